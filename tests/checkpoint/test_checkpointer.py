import pickle

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from detectron2.utils import comm
from torch import nn

from eomt_d2.checkpoint import Checkpointer
from eomt_d2.errors import UserError

from .foreign import official_eomt, our_eomt, transformers_eomt
from .segmenter import Segmenter, assert_equal, saved


def test_its_own_checkpoint(tmp_path, log):
    source, model = Segmenter(), Segmenter()
    source.mask_annealing.set_probs([0.0, 0.0])
    Checkpointer(source, str(tmp_path)).save("model_final", iteration=9)
    rest = Checkpointer(model).load(str(tmp_path / "model_final.pth"))
    assert_equal(model.state_dict(), source.state_dict())
    assert model.mask_annealing.active == (False, False)
    assert rest["iteration"] == 9
    assert log[-1] == "INFO Loaded 38 of the model's 38 tensors."


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_leave_no_trace(tmp_path, prefix):
    source, model = Segmenter(), Segmenter()
    path = saved(tmp_path, {"model": source.state_dict(prefix=prefix)})
    Checkpointer(model).load(path)
    assert_equal(model.state_dict(), source.state_dict())


def test_another_number_of_classes_starts_the_head_anew(tmp_path, log):
    source, model = Segmenter(num_classes=5), Segmenter(num_classes=3)
    head = model.class_head.weight.clone()
    Checkpointer(model).load(saved(tmp_path, source.state_dict()))
    assert torch.equal(model.class_head.weight, head)
    assert_equal(model.backbone.state_dict(), source.backbone.state_dict())
    assert log[-2:] == [
        "INFO Loaded 36 of the model's 38 tensors.",
        "WARNING class_head starts anew: 4 classes in the file, 2 in the model.",
    ]


def test_another_image_size_is_resampled(tmp_path):
    source, model = Segmenter(img_size=64), Segmenter(img_size=96)
    # A constant position embedding stays constant.
    nn.init.constant_(source.backbone.pos_embed, 0.5)
    Checkpointer(model).load(saved(tmp_path, source.state_dict()))
    assert model.backbone.pos_embed.shape == (1, 36, 16)
    torch.testing.assert_close(model.backbone.pos_embed, torch.full((1, 36, 16), 0.5))


def test_resuming_must_fit_entirely(tmp_path):
    Checkpointer(Segmenter(num_classes=5), str(tmp_path)).save("model_0000001")
    checkpointer = Checkpointer(Segmenter(num_classes=3), str(tmp_path))
    with pytest.raises(UserError, match="resume from does not fit .* class_head.weight"):
        checkpointer.resume_or_load("", resume=True)
    checkpointer.resume_or_load(str(tmp_path / "model_0000001.pth"), resume=False)


def test_another_file_can_be_loaded_after_a_failure(tmp_path, monkeypatch):
    """Detectron2 main notes the file it loads, and forgets it only after success."""
    plain_load = DetectionCheckpointer.load

    def load(self, path, *args):
        assert self._parsed_url_during_load is None
        try:
            return plain_load(self, path, *args)
        except UserError:
            self._parsed_url_during_load = path
            raise

    monkeypatch.setattr(DetectionCheckpointer, "_parsed_url_during_load", None, raising=False)
    monkeypatch.setattr(DetectionCheckpointer, "load", load)
    model = Segmenter()
    checkpointer = Checkpointer(model)
    with pytest.raises(UserError, match="is missing"):
        checkpointer.load(saved(tmp_path, {}))
    source = Segmenter()
    checkpointer.load(saved(tmp_path, source.state_dict()))
    assert_equal(model.state_dict(), source.state_dict())


def test_no_weights_leave_the_model_alone():
    model = Segmenter()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert Checkpointer(model).load("") == {}
    assert_equal(model.state_dict(), before)


def test_weights_that_do_not_exist(tmp_path):
    with pytest.raises(UserError, match=r"The weights .*nothing.pth do not exist"):
        Checkpointer(Segmenter()).load(str(tmp_path / "nothing.pth"))


def test_an_interrupted_save_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    checkpointer = Checkpointer(Segmenter(), str(tmp_path))
    checkpointer.save("model_final")
    before = (tmp_path / "model_final.pth").read_bytes()

    def full_disk(content, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        checkpointer.save("model_final")
    assert (tmp_path / "model_final.pth").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "last_checkpoint",
        "model_final.pth",
    ]
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_final.pth")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_pruning_keeps_the_newest_and_all_other_names(tmp_path):
    checkpointer = Checkpointer(nn.Linear(1, 1), str(tmp_path))
    for name in ("model_0000001", "model_0000003", "model_0000005", "model_final"):
        checkpointer.save(name)
    checkpointer.save_weights("model_best")
    # What a longer training left here before.
    (tmp_path / "model_0000009.pth").touch()
    checkpointer.prune(2, iteration=5)
    others = ["last_checkpoint", "model_0000009.pth", "model_best.pth", "model_final.pth"]
    assert names(tmp_path) == sorted([*others, "model_0000003.pth", "model_0000005.pth"])
    checkpointer.prune(1, iteration=5)
    assert names(tmp_path) == sorted([*others, "model_0000005.pth"])


def test_weights_alone_are_not_resumed_from(tmp_path):
    source, model = Segmenter(), Segmenter()
    checkpointer = Checkpointer(source, str(tmp_path), trainer=nn.Linear(1, 1))
    checkpointer.save("model_0000001")
    checkpointer.save_weights("model_best", iteration=7)
    assert checkpointer.last_path == checkpointer.get_checkpoint_file()
    assert checkpointer.last_path == str(tmp_path / "model_0000001.pth")
    content = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert sorted(content) == ["iteration", "model"]
    Checkpointer(model, strict=True).load(str(tmp_path / "model_best.pth"))
    assert_equal(model.state_dict(), source.state_dict())


def test_a_damaged_last_checkpoint(tmp_path):
    models = [Segmenter(), Segmenter()]
    for i, model in enumerate(models):
        Checkpointer(model, str(tmp_path)).save(f"model_000000{i}", iteration=i)
    path = tmp_path / "model_0000001.pth"
    path.write_bytes(path.read_bytes()[:1000])
    model = Segmenter()
    checkpointer = Checkpointer(model, str(tmp_path))
    assert checkpointer.resume_or_load("", resume=True) == {"iteration": 0}
    assert checkpointer.last_path == str(tmp_path / "model_0000000.pth")
    assert_equal(model.state_dict(), models[0].state_dict())


def test_detectron2_zoo_file_of_a_resnet(tmp_path):
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2"]
    source, model = (nn.ModuleDict({"backbone": build_backbone(cfg)}) for _ in range(2))
    # The zoo's ImageNet files name the tensors without the model's prefix.
    arrays = {
        name.removeprefix("backbone."): tensor.numpy()
        for name, tensor in source.state_dict().items()
    }
    content = {"model": arrays, "__author__": "test", "matching_heuristics": True}
    path = tmp_path / "R-18.pkl"
    path.write_bytes(pickle.dumps(content))
    Checkpointer(model).load(str(path))
    assert_equal(model.state_dict(), source.state_dict())


def test_strictness_refuses_a_head_of_another_size(tmp_path):
    path = saved(tmp_path, Segmenter(num_classes=5).state_dict())
    with pytest.raises(
        UserError,
        match=r"model to be evaluated: class_head.weight is 5x16 in the file and 3x16 in the "
        r"model; class_head.bias is 5 in the file and 3 in the model; give .*NUM_CLASSES",
    ):
        Checkpointer(Segmenter(num_classes=3), strict=True).load(path)


def test_strictness_refuses_a_backbone_alone(tmp_path):
    path = saved(tmp_path, Segmenter().backbone.state_dict())
    with pytest.raises(
        UserError,
        match="class_head.bias is not in the file; class_head.weight is not in the file; "
        "mask_annealing.probs is not in the file; .*not of a backbone alone",
    ):
        Checkpointer(Segmenter(), strict=True).load(path)


def test_strictness_needs_no_counter_of_batches(tmp_path):
    source, model = nn.BatchNorm2d(2), nn.ModuleDict({"norm": nn.BatchNorm2d(2)})
    nn.init.normal_(source.weight)
    weights = source.state_dict(prefix="norm.")
    del weights["norm.num_batches_tracked"]
    Checkpointer(model, strict=True).load(saved(tmp_path, weights))
    assert torch.equal(model["norm"].weight, source.weight)


def test_an_untrained_model_may_be_evaluated(log):
    Checkpointer(Segmenter(), strict=True).load("")
    assert log[0] == (
        "WARNING MODEL.WEIGHTS is empty, so an untrained model with random weights is evaluated."
    )


def test_similar_names_match_where_the_path_asks_for_it(tmp_path):
    source, model = nn.Linear(2, 3), nn.ModuleDict({"head": nn.Linear(2, 3)})
    path = saved(tmp_path, {"model": source.state_dict()})
    Checkpointer(model).load(f"{path}?matching_heuristics=True")
    assert_equal(model["head"].state_dict(), source.state_dict())


def test_weights_that_another_machine_lacks(tmp_path, monkeypatch):
    path = saved(tmp_path, Segmenter().state_dict())
    monkeypatch.setattr(comm, "all_gather", lambda own: [own, (path, "There is no file.")])
    with pytest.raises(UserError, match=r"There is no file. \(on the machine of rank 1\)"):
        Checkpointer(Segmenter()).load(path)


def test_a_checkpoint_that_only_one_machine_knows_of(tmp_path, monkeypatch):
    path = saved(tmp_path, Segmenter().state_dict())
    monkeypatch.setattr(comm, "all_gather", lambda own: [own, ("", "")])
    with pytest.raises(UserError, match="rank 1 nothing; .* OUTPUT_DIR must be a folder"):
        Checkpointer(Segmenter()).load(path)


def test_weights_of_lightning(tmp_path):
    source, model = Segmenter(), Segmenter()
    content = {"state_dict": source.state_dict(), "epoch": 3, "pytorch-lightning_version": "2.5"}
    Checkpointer(model).load(saved(tmp_path, content))
    assert_equal(model.state_dict(), source.state_dict())


def test_weights_of_lightning_under_the_name_of_its_network(tmp_path):
    source, model = Segmenter(), Segmenter()
    content = {"state_dict": source.state_dict(prefix="network."), "epoch": 3}
    Checkpointer(model).load(saved(tmp_path, content))
    assert_equal(model.state_dict(), source.state_dict())


def test_an_official_eomt_to_evaluate(tmp_path, log):
    """A finished one runs unmasked by itself, a partly annealed one as it was trained."""
    official = {f"network.{name}": tensor for name, tensor in official_eomt("dinov2").items()}
    path = saved(tmp_path, official, "pytorch_model.bin")
    model = our_eomt("dinov2")
    Checkpointer(model, strict=True).load(path)
    assert log[1:] == [
        "INFO The weights are those of an official EoMT.",
        "INFO Loaded 69 of the model's 69 tensors.",
    ]
    images = torch.randn(1, 3, 64, 64)
    assert len(model.predict(images)) == 1
    official["network.attn_mask_probs"] = torch.tensor([0.0, 1.0])
    Checkpointer(model, strict=True).load(saved(tmp_path, official, "partly.bin"))
    assert model.mask_annealing.active == (False, True)
    assert len(model.predict(images)) == 2


def test_a_folder_of_transformers_for_another_task(tmp_path, log):
    transformers_eomt("dinov2").save_pretrained(tmp_path)
    model = our_eomt("dinov2", num_classes=3, num_queries=10)
    Checkpointer(model).load(str(tmp_path))
    assert log[1:] == [
        "INFO The weights are those of an EoMT of transformers.",
        "INFO query_embed.weight: 7 queries in the file, 10 in the model; they are repeated.",
        "INFO Loaded 67 of the model's 69 tensors.",
        "WARNING class_head starts anew: 5 classes in the file, 3 in the model.",
    ]


def test_a_partial_backbone_has_to_be_allowed(tmp_path, log):
    source, model = Segmenter(), Segmenter()
    weights = source.state_dict()
    del weights["backbone.reg_token"]
    path = saved(tmp_path, weights)
    with pytest.raises(UserError, match="set MODEL.VIT.ALLOW_PARTIAL_WEIGHTS True"):
        Checkpointer(model).load(path)
    # An evaluation has no use for such weights.
    with pytest.raises(UserError, match=r"the ViT that the config names\.$"):
        Checkpointer(model, strict=True).load(path)
    before = model.backbone.reg_token.clone()
    Checkpointer(model, allow_partial_vit=True).load(path)
    assert torch.equal(model.backbone.reg_token, before)
    assert_equal({**model.state_dict(), "backbone.reg_token": 0 * before},
                 {**source.state_dict(), "backbone.reg_token": 0 * before})  # fmt: skip
    assert log[-1] == "WARNING Not in the file, so they start anew: backbone.reg_token."


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"epoch": 3}, "its entry 'epoch' is a int and no tensor"),
        ({"model": [1]}, "holds a list in place of a state dict"),
        ({"state_dict": {1: torch.ones(1)}}, "its entry 1 has a int for a name"),
    ],
)
def test_what_is_no_state_dict(tmp_path, content, problem):
    with pytest.raises(UserError, match=f"weights.pth .*{problem}"):
        Checkpointer(Segmenter()).load(saved(tmp_path, content))
