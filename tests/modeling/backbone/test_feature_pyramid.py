"""The plain pyramid on the last layer of a ViT."""

import pytest
import torch

from eomt_d2.errors import UserError
from eomt_d2.modeling.backbone import ViT, ViTFeaturePyramid
from eomt_d2.modeling.upscale import DownscaleBlock, UpscaleBlock


def make_pyramid(patch_size=16, **kwargs):
    vit = ViT(embed_dim=8, depth=1, num_heads=1, patch_size=patch_size, img_size=patch_size * 4)
    return ViTFeaturePyramid(vit=vit, **kwargs)


def test_strides_and_blocks():
    pyramid = make_pyramid()
    images = torch.randn(2, 3, 64, 96)
    maps = pyramid(images)
    assert {name: tuple(x.shape) for name, x in maps.items()} == {
        "res2": (2, 8, 16, 24), "res3": (2, 8, 8, 12), "res4": (2, 8, 4, 6), "res5": (2, 8, 2, 3),
    }  # fmt: skip
    spec = pyramid.output_shape()
    assert [(s.channels, s.stride) for s in spec.values()] == [(8, 4), (8, 8), (8, 16), (8, 32)]
    kinds = {name: [type(block) for block in stage] for name, stage in pyramid.stages.items()}
    assert kinds == {
        "res2": [UpscaleBlock] * 2, "res3": [UpscaleBlock], "res4": [], "res5": [DownscaleBlock],
    }  # fmt: skip
    assert pyramid.size_divisibility == 32
    # Stride 16 is the ViT's map, final norm included.
    assert torch.equal(maps["res4"], pyramid.vit(images)["vit"])


def test_only_what_is_asked_for_is_made():
    """SPEC-mask2former: two maps of the single-scale step are 2 x 4,206,592 parameters at L."""
    with torch.device("meta"):
        vit = ViT(embed_dim=1024, depth=1, num_heads=16)
        pyramid = ViTFeaturePyramid(vit=vit, out_features=["res2", "res4"])
        whole = ViTFeaturePyramid(vit=vit)
    assert sum(p.numel() for p in pyramid.stages.parameters()) == 2 * 4_206_592
    assert sum(p.numel() for p in whole.stages.parameters()) == 4 * 4_206_592
    assert list(pyramid.output_shape()) == ["res2", "res4"]
    assert pyramid.size_divisibility == 16


@pytest.mark.parametrize("patch_size, divisibility", [(8, 32), (14, 28), (32, 32)])
def test_other_patch_sizes(patch_size, divisibility):
    """14 is taken for 16: the maps are as many pixels larger as its patches are smaller."""
    pyramid = make_pyramid(patch_size)
    assert pyramid.size_divisibility == divisibility
    maps = pyramid(torch.randn(1, 3, 4 * divisibility, 4 * divisibility))
    assert [x.shape[-1] for x in maps.values()] == [32, 16, 8, 4]


def test_unknown_maps_are_told():
    with pytest.raises(UserError, match=r"OUT_FEATURES is \['p3'\]; it must name some of res2"):
        make_pyramid(out_features=["p3"])
