"""Numbers that a reader can work out, the published networks, and fvcore as a second counter."""

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from fvcore.nn import FlopCountAnalysis
from torch import nn

from eomt_d2.analysis import build_meta_model, count_macs, count_parameters, network_complexity
from eomt_d2.config import add_eomt_config
from eomt_d2.errors import UserError
from eomt_d2.modeling.backbone.vit_block import Attention


def config(*overrides):
    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "EoMT"
    cfg.MODEL.BACKBONE.NAME = "ViT"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 133
    cfg.merge_from_list(list(overrides))
    return cfg


# ViT of 2 blocks, C = 8, on 32 x 48 pixels: 2 x 3 patches, 1 class and 4 register tokens.
TINY = (
    "MODEL.VIT.NAME", "", "MODEL.VIT.EMBED_DIM", 8, "MODEL.VIT.DEPTH", 2,
    "MODEL.VIT.NUM_HEADS", 2, "MODEL.VIT.NUM_REGISTERS", 4, "MODEL.VIT.MLP_RATIO", 4.0,
    "MODEL.VIT.IMG_SIZE", 32, "MODEL.EOMT.NUM_BLOCKS", 1,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 5, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4,
)  # fmt: skip
# Block of T tokens: projections 4 C^2 T, attention 2 T^2 C, feed-forward 8 C^2 T.
FIRST_BLOCK = 12 * 8**2 * 11 + 2 * 11**2 * 8
LAST_BLOCK = 12 * 8**2 * 16 + 2 * 16**2 * 8
PATCHES = 6 * 8 * 3 * 16**2
# Transposed 2x2 convolutions and depthwise 3x3 ones, from 2 x 3 to 4 x 6 to 8 x 12 pixels.
UPSCALE = 6 * 8 * 8 * 4 + 24 * 8 * 9 + 24 * 8 * 8 * 4 + 96 * 8 * 9
CLASSES, MASKS = 5 * 8 * 5, 3 * 5 * 8 * 8
DOT_PRODUCT = 5 * 96 * 8


@pytest.mark.parametrize(
    ("masked", "predictions"), [(False, 1), (True, 2)], ids=["unmasked", "masked"]
)
def test_every_module_of_a_tiny_eomt(masked, predictions):
    model = build_meta_model(config(*TINY))
    assert all(p.is_meta for p in [*model.parameters(), *model.buffers()])
    found = network_complexity(model, 32, 48, masked=masked)
    expected = {
        "backbone": PATCHES + FIRST_BLOCK + LAST_BLOCK,
        "backbone.patch_embed": PATCHES,
        "backbone.blocks": FIRST_BLOCK + LAST_BLOCK,
        "backbone.blocks.1": LAST_BLOCK,
        "backbone.blocks.1.attn": 4 * 8**2 * 16 + 2 * 16**2 * 8,
        "backbone.norm": 0,
        "query_embed": 0,
        "class_head": predictions * CLASSES,
        "mask_head": predictions * MASKS,
        "upscale": predictions * UPSCALE,
        "": PATCHES + FIRST_BLOCK + LAST_BLOCK
        + predictions * (CLASSES + MASKS + UPSCALE + DOT_PRODUCT),
    }  # fmt: skip
    assert {name: found[name].macs for name in expected} == expected
    # Norms 2 x 2C, qkv 3C (C + 1), proj C (C + 1), 2 LayerScales, feed-forward 8C^2 + 5C.
    block = 4 * 8 + 3 * 8 * 9 + 8 * 9 + 2 * 8 + 8 * 8**2 + 5 * 8
    assert found["backbone.blocks"].parameters == 2 * block
    # Patch embedding with bias, class and 4 registers, 4 positions of 32 x 32 pixels, norm.
    assert found["backbone"].parameters == 8 * (768 + 1) + 5 * 8 + 4 * 8 + 2 * block + 2 * 8
    assert found[""].parameters == sum(p.numel() for p in model.parameters())


def test_each_kind_of_layer():
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(3, 5),
            "conv": nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
            "transposed": nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False),
            "attention": nn.MultiheadAttention(8, 2, batch_first=True),
            "norm": nn.LayerNorm(8),
        }
    ).eval()
    maps = torch.zeros(1, 4, 10, 8)

    def run():
        model["linear"](torch.zeros(2, 7, 3))
        model["conv"](maps)
        model["transposed"](maps)
        model["norm"](model["attention"](*[torch.zeros(1, 9, 8)] * 3)[0])
        torch.einsum("bqc,bchw->bqhw", torch.zeros(1, 5, 4), maps)
        F.interpolate(maps, scale_factor=2, mode="bilinear")

    # Without gradients, nn.MultiheadAttention would be one fused operation.
    with torch.no_grad():
        own = count_macs(model, run)
    assert torch.backends.mha.get_fastpath_enabled()
    assert own["linear"] == 2 * 7 * 3 * 5
    assert own["conv"] == 5 * 4 * 6 * (4 // 2) * 3 * 3
    assert own["transposed"] == 10 * 8 * 4 * 6 * 2 * 2
    # Outside of its submodule out_proj, whose weights it uses itself.
    assert own["attention"] == 9 * 8 * 8 * 4 + 2 * 9 * 9 * 8
    assert own["norm"] == 0
    assert own[""] == 5 * 4 * 10 * 8
    assert count_parameters(model)["conv"] == 6 * (4 // 2) * 3 * 3 + 6
    assert not model["linear"]._forward_hooks and not model["linear"]._forward_pre_hooks


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("split", [False, True], ids=["dense", "split"])
def test_attention_counts_both_products_whether_split_or_not(split, device):
    # 13 tokens, of which the first 3 are queries with a mask of their own; 16 channels.
    attention = Attention(16, 4).to(device)
    mask = torch.ones(1, 3, 13, dtype=torch.bool, device=device) if split else None
    tokens = torch.zeros(1, 13, 16, device=device)
    with torch.no_grad():
        own = count_macs(attention, lambda: attention(tokens, query_mask=mask))
    products = 13 * 13 * 16 + 13 * 13 * 16
    assert sum(own.values()) == 4 * 16 * 16 * 13 + products


def test_a_shared_parameter_counts_once_and_its_work_each_time():
    layer = nn.Linear(4, 4, bias=False)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    own = count_macs(model, lambda: model(torch.zeros(1, 4)))
    assert count_parameters(model) == {"0": 16}
    assert own["0"] == 2 * 16


# Parameters and GMACs at 640 pixels with 200 queries and 133 classes. The paper (arXiv 2503.19108)
# rounds to 24 / 93 / 316 / 1164 M and, with what fvcore adds, 68 / 216 / 669 / 2261 and for L
# masked 828; see the docstring of eomt_d2/analysis/complexity.py.
@pytest.mark.parametrize(
    ("size", "parameters", "unmasked", "masked"),
    [
        ("small", 23_975_942, 67.8, 88.5),
        ("base", 93_663_110, 215.5, 285.7),
        ("large", 316_695_686, 668.0, 827.0),
        ("giant", 1_163_622_022, 2260, 2686),
    ],
)
def test_published_networks(size, parameters, unmasked, masked):
    model = build_meta_model(config("MODEL.VIT.NAME", f"vit_{size}_patch14_reg4_dinov2"))
    digits = 0 if size == "giant" else 1
    for masking, gmacs in ((False, unmasked), (True, masked)):
        total = network_complexity(model, 640, 640, masked=masking)[""]
        assert total.parameters == parameters
        assert round(total.macs / 1e9, digits) == gmacs


class Predict(nn.Module):
    """fvcore traces ``forward``."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return [tuple(prediction) for prediction in self.model.predict(images)]


def attention_products(inputs, outputs):
    """fvcore does not know fused attention: q k^T and its product with v."""
    q, k, v = (value.type().sizes() for value in inputs[:3])
    return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
def test_fvcore_agrees_but_for_norms_and_resizing(masked):
    cfg = config(*TINY, "MODEL.DEVICE", "cpu")
    model = META_ARCH_REGISTRY.get("EoMT")(cfg).eval()
    ours = network_complexity(model, 32, 48, masked=masked)[""].macs
    analysis = FlopCountAnalysis(Predict(model), torch.zeros(1, 3, 32, 48))
    analysis.set_op_handle("aten::scaled_dot_product_attention", attention_products)
    analysis.unsupported_ops_warnings(False)
    with torch.no_grad():
        by_operator = analysis.by_operator()
    products = ("linear", "scaled_dot_product_attention", "conv", "matmul")
    assert sum(by_operator[name] for name in products) == ours
    assert {name for name, count in by_operator.items() if count} - set(products) == (
        {"layer_norm", "upsample_bilinear2d"} if masked else {"layer_norm"}
    )


class Output(NamedTuple):
    sem_seg: torch.Tensor


@META_ARCH_REGISTRY.register()
class ComputesInItsConstructor(nn.Module):
    """Like Detectron2's Swin, whose stochastic depth rates are items of a tensor."""

    def __init__(self, cfg):
        super().__init__()
        self.rate = torch.linspace(0, 1, 3)[1].item()
        self.layer = nn.Conv2d(3, 2, 1)
        self.query = nn.Parameter(torch.zeros(1, 4))
        self.head = nn.Linear(4, 5, bias=False)

    def forward(self, batched_inputs):
        # A parameter as the input of a module, seen from another shape, as learned queries are.
        self.head(self.query.expand(6, -1))
        self.head(self.query)
        return [Output(self.layer(x["image"][None])) for x in batched_inputs]


def test_another_architecture_that_cannot_be_built_on_meta():
    cfg = config("MODEL.META_ARCHITECTURE", "ComputesInItsConstructor", "MODEL.DEVICE", "cuda")
    model = build_meta_model(cfg)
    assert model.layer.weight.is_meta and model.rate == 0.5
    found = network_complexity(model, 10, 7)
    assert found["layer"] == (3 * 2 + 2, 10 * 7 * 3 * 2)
    assert found["head"] == (4 * 5, 7 * 4 * 5)
    assert model.training and all(p.requires_grad for p in model.parameters())


# Detectron2's anchors.
@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
def test_a_detector_depends_on_the_image():
    model = build_meta_model(
        config("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES", 2,
               "MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone",
               "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"],
               "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"],
               "MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512]],
               "MODEL.RETINANET.IN_FEATURES", ["p3", "p4", "p5", "p6", "p7"])
    )  # fmt: skip
    with pytest.raises(UserError, match="RetinaNet cannot be counted for 64 x 64 pixels: .*image"):
        network_complexity(model, 64, 64)


def test_mistakes_are_sentences():
    with pytest.raises(UserError, match="64 x 50 pixels .* multiples of 16; choose 64 x 48"):
        network_complexity(build_meta_model(config(*TINY)), 64, 50)
    unmasked = build_meta_model(config(*TINY, "MODEL.EOMT.MASKED_ATTENTION", False))
    with pytest.raises(UserError, match="no masked attention to switch on"):
        network_complexity(unmasked, 32, 32, masked=True)
    assert network_complexity(unmasked, 32, 32, masked=False)[""].macs > 0
    with pytest.raises(UserError, match="is no multiple of 3 heads"):
        build_meta_model(config(*TINY, "MODEL.VIT.NUM_HEADS", 3))
