"""Mask2Former from configs: its sizes, the removal ladder, backbones, padding."""

from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from eomt_d2.config import add_eomt_config
from eomt_d2.engine.config_validation import validate_config
from eomt_d2.errors import UserError
from eomt_d2.modeling.mask2former import Mask2Former
from tests.modeling.test_eomt import CLASSES, POINTS, QUERIES, perturb, training_input

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAMES = ["res2", "res3", "res4", "res5"]


def config(*overrides, file="coco/panoptic/eomt_large_640.yaml"):
    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.merge_from_file(str(CONFIGS / file))
    cfg.MODEL.META_ARCHITECTURE = "Mask2Former"
    cfg.merge_from_list(list(overrides))
    return cfg


def build(*overrides, device="meta", **kwargs):
    cfg = config("MODEL.DEVICE", device, *overrides, **kwargs)
    with torch.device(device):
        return build_model(cfg)


def size(module) -> int:
    return sum(p.numel() for p in module.parameters())


ADAPTER = ("MODEL.BACKBONE.NAME", "ViTAdapter")
NO_PIXEL_DECODER = ("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "none")
KEYS = "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES"
SINGLE_SCALE = (*NO_PIXEL_DECODER, KEYS, ["res4"])
LADDER = {
    "adapter": (ADAPTER, 348_674_054 - 2_048),  # the ViT's final norm is not there
    "no adapter": ((), 342_263_622),
    "no pixel decoder": (NO_PIXEL_DECODER, 337_211_782),
    "single scale": (SINGLE_SCALE, 328_273_286),
}


@pytest.mark.parametrize("step", LADDER)
def test_sizes_of_the_removal_ladder(step):
    """SPEC-mask2former, "The removal ladder": ViT-L, 640, 200 queries, 133 classes."""
    overrides, parameters = LADDER[step]
    model = build(*overrides)
    assert size(model) == parameters
    assert model.size_divisibility == (16 if step == "single scale" else 32)


def test_sizes_of_the_parts():
    """SPEC-mask2former, "The parts that add up to it", and the original on ResNet-50."""
    model = build()
    assert (size(model.pixel_decoder), size(model.decoder)) == (6_101_440, 14_544_262)
    model = build(
        "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", NAMES,
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 100,
    )  # fmt: skip
    assert (size(model.pixel_decoder), size(model.decoder)) == (6_035_904, 14_493_062)
    assert model.size_divisibility == 32


@pytest.mark.parametrize(
    "name, millions", [("small", 46.56), ("base", 120.96), ("large", 348.67), ("giant", 1208.65)]
)
def test_sizes_of_the_baselines(name, millions):
    """SPEC-mask2former; the published counts include the final norm that nothing uses."""
    model = build(*ADAPTER, "MODEL.VIT.NAME", f"vit_{name}_patch14_reg4_dinov2")
    with_norm = size(model) + 2 * model.backbone.vit.embed_dim
    assert with_norm / 1e6 == pytest.approx(millions, abs=0.005)


def tiny(*overrides):
    return perturb(
        build(
            "MODEL.VIT.NAME", "", "MODEL.VIT.EMBED_DIM", 32, "MODEL.VIT.DEPTH", 4,
            "MODEL.VIT.NUM_HEADS", 2, "INPUT.IMAGE_SIZE", 64, "MODEL.MASK_FORMER.HIDDEN_DIM", 32,
            "MODEL.MASK_FORMER.DIM_FEEDFORWARD", 48, "MODEL.MASK_FORMER.DEC_LAYERS", 5,
            "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1, "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
            CLASSES, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", QUERIES,
            "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", POINTS, "MODEL.MASK_FORMER.TEST.PANOPTIC_ON",
            False, "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", True, *overrides, device="cpu",
        )
    )  # fmt: skip


RESNET = (
    "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", NAMES,
    "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "BN",
    "MODEL.BACKBONE.FREEZE_AT", 0,
)  # fmt: skip
PYRAMID = ("MODEL.BACKBONE.NAME", "ViTFeaturePyramid")


@pytest.mark.parametrize(
    "overrides", [ADAPTER, (), NO_PIXEL_DECODER, SINGLE_SCALE, RESNET, PYRAMID]
)
def test_every_parameter_gets_a_gradient(overrides):
    """DDP allows no unused parameter; one image has no segment."""
    model = tiny(*overrides).train()
    losses = model([training_input(0), training_input(3)])
    assert len(losses) == 3 * 5
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_gradients_under_autocast():
    model = tiny(*ADAPTER).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model([training_input(1), training_input(3)])
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    largest = max(p.grad.abs().max() for p in model.backbone.spatial_prior.parameters())
    assert largest > 1e-4


def test_predict_compiles_without_graph_break():
    model, images = tiny(*ADAPTER).eval(), torch.randn(1, 3, 64, 64)
    compiled = torch.compile(model.predict, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected, actual = model.predict(images)[-1], compiled(images)[-1]
    torch.testing.assert_close(actual.mask_logits, expected.mask_logits)


@pytest.mark.parametrize("overrides", [ADAPTER, (), SINGLE_SCALE, RESNET])
def test_predict_waits_for_no_device(overrides):
    """On the meta device there is no value to wait for: reading one raises."""
    images = torch.empty(2, 3, 64, 96, device="meta")
    out = build(*overrides).eval().predict(images)
    assert out[-1].mask_logits.shape == (2, 200, 16, 24)


@pytest.mark.parametrize("mode, image", [("divisible", (50, 91)), ("square", (80, 33)),
                                         ("window", (80, 133))])  # fmt: skip
def test_any_image_size_works_through_padding(mode, image):
    """The network needs multiples of 32; 80 is none, though it is one of the patch."""
    model = tiny("INPUT.TEST_MODE", mode, "INPUT.IMAGE_SIZE", 80, "INPUT.SIZE_DIVISIBILITY", 16)
    pixels = torch.randint(0, 255, (3, *image), dtype=torch.uint8)
    with torch.no_grad():
        (result,) = model.eval()([{"image": pixels, "height": 70, "width": 30}])
    assert result["sem_seg"].shape == (CLASSES, 70, 30)


def test_padding_beyond_the_window_does_not_move_the_result():
    """A window of 80 pixels, padded to 96, gives what an image padded to 96 gives."""
    window = tiny("INPUT.TEST_MODE", "window", "INPUT.IMAGE_SIZE", 80).eval()
    square = tiny("INPUT.TEST_MODE", "divisible", "INPUT.IMAGE_SIZE", 80).eval()
    square.load_state_dict(window.state_dict())
    batch = [{"image": torch.randint(0, 255, (3, 80, 80), dtype=torch.uint8)}]
    with torch.no_grad():
        first, second = window(batch)[0]["sem_seg"], square(batch)[0]["sem_seg"]
    assert first.std() > 1e-3
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


EOMT_CONFIGS = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.yaml")
    if path.name.startswith("eomt") or path.name == "overfit.yaml"
)


@pytest.mark.parametrize("file", EOMT_CONFIGS)
def test_one_key_turns_any_eomt_config_into_mask2former(file):
    cfg = config(file=file)
    validate_config(cfg)
    model = build("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", False, file=file)
    assert isinstance(model, Mask2Former)
    assert not model.mask_annealing.enabled
    assert list(model.backbone.output_shape()) == NAMES


def test_maps_that_are_missing_or_not_read_are_told():
    with pytest.raises(UserError, match=r"attends to those of .* \['res4'\], but .* gives \['res2"):
        build(*ADAPTER, KEYS, ["res4"])
    with pytest.raises(UserError, match=r"gives \['res4'\].*MODEL.RESNETS.OUT_FEATURES"):
        build("MODEL.BACKBONE.NAME", "build_resnet_backbone")
    with pytest.raises(UserError, match="PIXEL_DECODER_NAME is 'FPN'; it must be"):
        build("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "FPN")
