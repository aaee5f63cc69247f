"""The command line, on files with the names of other projects."""

import subprocess
import sys
from pathlib import Path

import convert_checkpoint
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import DINOv3ViTConfig, DINOv3ViTModel, EomtForUniversalSegmentation

from eomt_d2.errors import UserError
from tests.checkpoint.foreign import (
    CLASSES,
    DEPTH,
    DIM,
    HEADS,
    QUERIES,
    SIZE,
    official_eomt,
    our_eomt,
    perturb,
    transformers_eomt,
)

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def converted(capsys):
    """Converts in this process and returns what was printed."""

    def run(*arguments) -> str:
        convert_checkpoint.main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return run


@pytest.fixture
def config(tmp_path):
    """A config of the tiny network, with classes of our own that need no data set."""
    content = {
        "_BASE_": str(REPOSITORY / "configs" / "base.yaml"),
        "MODEL": {
            "VIT": {"NAME": "", "EMBED_DIM": DIM, "DEPTH": DEPTH, "NUM_HEADS": HEADS},
            "EOMT": {"NUM_BLOCKS": 2},
            "SEM_SEG_HEAD": {"NUM_CLASSES": CLASSES},
            "MASK_FORMER": {"NUM_OBJECT_QUERIES": QUERIES, "TEST": {"SEMANTIC_ON": True}},
        },
        "INPUT": {"IMAGE_SIZE": SIZE, "MIN_SIZE_TEST": SIZE, "MAX_SIZE_TEST": SIZE},
        "DATASETS": {"TRAIN": [], "TEST": []},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_official_to_ours_and_back(tmp_path, config, converted):
    official = {f"network.{name}": tensor for name, tensor in official_eomt("dinov2").items()}
    source = tmp_path / "last.ckpt"
    torch.save({"state_dict": official, "hyper_parameters": {"lr": 1e-4}}, source)
    output = converted(source, tmp_path / "ours.safetensors", "--config-file", config)
    assert f"{source}: an official EoMT" in output
    model = our_eomt("dinov2")
    model.load_state_dict(load_file(tmp_path / "ours.safetensors"), strict=True)
    converted(tmp_path / "ours.safetensors", tmp_path / "back.pth", "--target", "eomt")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert set(official) - set(back) == {
        "network.criterion.empty_weight", "network.encoder.pixel_mean", "network.encoder.pixel_std",
    }  # fmt: skip
    assert all(torch.equal(tensor, official[name]) for name, tensor in back.items())


def test_transformers_to_ours_and_back(tmp_path, config, converted):
    oracle = transformers_eomt("dinov2")
    oracle.save_pretrained(tmp_path / "theirs")
    converted(tmp_path / "theirs", tmp_path / "ours.pth", "--source", "transformers")
    converted(
        tmp_path / "ours.pth",
        tmp_path / "back",
        "--target",
        "transformers",
        "--config-file",
        config,
    )
    back, info = EomtForUniversalSegmentation.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not any(info.values()), info
    state = oracle.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.state_dict().items())


def test_differences_are_added_to_their_base(tmp_path, converted):
    vit = DINOv3ViTConfig(
        hidden_size=DIM, num_hidden_layers=DEPTH, num_attention_heads=HEADS, image_size=SIZE,
        intermediate_size=4 * DIM, num_register_tokens=4,
    )  # fmt: skip
    perturb(DINOv3ViTModel(vit)).save_pretrained(tmp_path / "base")
    delta = official_eomt("dinov3")
    delta["attn_mask_probs"] = torch.tensor([-1.0, -1.0])
    torch.save(delta, tmp_path / "delta.bin")
    with pytest.raises(UserError, match="give DINOv3's own file with --base"):
        converted(tmp_path / "delta.bin", tmp_path / "ours.pth")
    output = converted(tmp_path / "delta.bin", tmp_path / "ours.pth", "--base", tmp_path / "base")
    assert "an official EoMT, added to its base" in output
    weights = torch.load(tmp_path / "ours.pth", weights_only=True)["model"]
    model = our_eomt("dinov3")
    model.load_state_dict(weights, strict=True)
    assert model.mask_annealing.active == (False, False)
    base = load_file(tmp_path / "base" / "model.safetensors")
    torch.testing.assert_close(
        weights["backbone.norm.weight"],
        base["norm.weight"] + delta["encoder.backbone.norm.weight"],
        rtol=0,
        atol=0,
    )
    assert torch.equal(weights["query_embed.weight"], delta["q.weight"])


def test_a_config_resamples_and_reports(tmp_path, config, converted):
    weights = our_eomt("dinov2", image_size=96).state_dict()
    del weights["mask_annealing.probs"]
    weights["extra.weight"] = torch.ones(1)
    save_file(weights, tmp_path / "w.safetensors")
    output = converted(tmp_path / "w.safetensors", tmp_path / "o.pth", "--config-file", config)
    assert output.splitlines()[1:-1] == [
        "  backbone.pos_embed: resampled from 6x6 to 4x4 patches.",
        "  Not in the file: mask_annealing.",
        "  Not in the model, so left out: extra.",
    ]
    written = torch.load(tmp_path / "o.pth", weights_only=True)["model"]
    assert written["backbone.pos_embed"].shape == (1, 16, DIM)


def test_mistakes_are_one_sentence(tmp_path, config, converted):
    good = tmp_path / "good.pth"
    torch.save(our_eomt("dinov2").state_dict(), good)
    torch.save(our_eomt("dinov2", num_classes=9).state_dict(), tmp_path / "nine.pth")
    torch.save(our_eomt("dinov2").backbone.state_dict(), tmp_path / "vit.pth")
    (tmp_path / "text.pth").write_text("hello")
    fresh = tmp_path / "new.pth"
    for arguments, message in (
        ((tmp_path / "none.pth", fresh), "none.pth do not exist"),
        ((tmp_path / "text.pth", fresh), "is damaged or no weight file"),
        ((good, good), "exists already"),
        ((good, tmp_path / "no" / "new.pth"), "there is no folder"),
        ((good, tmp_path / "new.onnx"), "must end in .pth or .safetensors"),
        ((good, fresh, "--source", "eomt"), "they look like a model of eomt_d2"),
        ((good, tmp_path / "new", "--target", "transformers"), "needs --config-file"),
        ((good, fresh, "--base", good), "leave --base out"),
        ((tmp_path / "nine.pth", fresh, "--config-file", config), "for example its NUM_CLASSES"),
        ((tmp_path / "vit.pth", fresh, "--target", "eomt"), "not those of a whole EoMT"),
    ):
        with pytest.raises(UserError) as caught:
            converted(*arguments)
        assert message in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
        assert not fresh.exists()


def test_the_command_itself(tmp_path):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "tools/convert_checkpoint.py", "none.pth", "new.pth"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr == (
        "error: The weights none.pth do not exist (MODEL.WEIGHTS, or --resume).\n"
    )
