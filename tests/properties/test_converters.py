"""Our weights under the names of other projects and back, for ViTs of any small size."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eomt_d2.checkpoint.sources import rename_to_ours
from eomt_d2.checkpoint.targets import to_official, to_transformers
from eomt_d2.modeling import EoMT, ViT
from eomt_d2.modeling.criterion import MaskClassificationCriterion
from eomt_d2.modeling.matcher import HungarianMatcher
from eomt_d2.modeling.postprocessing import PostProcessing

QUICK = settings(max_examples=50, derandomize=True, database=None, deadline=None)
# Of a DINOv2, of its giant with gates, and of a DINOv3.
KINDS = {
    "dinov2": dict(),
    "giant": dict(ffn="swiglu"),
    "dinov3": dict(position="rotary", key_bias=False, norm_eps=1e-5),
}


@st.composite
def models(draw):
    heads = draw(st.integers(1, 3))
    dim = heads * draw(st.sampled_from([4, 8, 12]))
    depth = draw(st.integers(1, 4))
    patch = draw(st.sampled_from([4, 8, 16]))
    num_classes = draw(st.integers(1, 9))
    size = patch * draw(st.integers(1, 4))
    # Of a gated network the width is made from two thirds of the ratio; whole numbers suit all.
    ratio = draw(st.sampled_from([1, 2, 4]))
    model = EoMT(
        backbone=ViT(
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            img_size=size,
            patch_size=patch,
            mlp_ratio=ratio,
            **KINDS[draw(st.sampled_from(sorted(KINDS)))],
        ),
        criterion=MaskClassificationCriterion(num_classes=num_classes, matcher=HungarianMatcher()),
        postprocessing=PostProcessing(panoptic_on=True, thing_ids={0}),
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
        num_queries=draw(st.integers(1, 12)),
        num_blocks=draw(st.integers(1, depth)),
        num_classes=num_classes,
        image_size=size,
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        model.mask_annealing.set_probs([draw(st.sampled_from([0.0, 0.25, 1.0]))] * model.num_blocks)
    return model


def assert_identical(ours, back):
    assert ours.keys() == back.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == back[name].dtype, name
        assert torch.equal(tensor, back[name]), name


@given(model=models())
@QUICK
def test_official_and_back(model):
    ours = model.state_dict()
    official = to_official(ours)
    assert not official.keys() & ours.keys()
    back, title = rename_to_ours(official)
    assert title == "an official EoMT"
    assert_identical(ours, back)


@given(model=models())
@QUICK
def test_transformers_and_back(model):
    ours = model.state_dict()
    back, title = rename_to_ours(to_transformers(ours))
    assert "transformers" in title
    assert_identical(ours, back)
