"""EoMT of transformers behind our contract; what it computes is theirs."""

import sys

import pytest
import torch

from eomt_d2.benchmark.building import build_network, build_step
from eomt_d2.benchmark.plan import Point, at_point
from eomt_d2.benchmark.timing import Stopwatch
from eomt_d2.benchmark.transformers_eomt import (
    TransformersEoMT,
    agreeing_pixels,
    compare_networks,
    transformers_batch,
)
from eomt_d2.errors import UserError
from tests.benchmark.models import DINOV2, DINOV3, EOMT, MASK2FORMER, narrow, tiny

POINT = Point(size=64, batch=2, original_size=(60, 80))


@pytest.mark.parametrize("config", [DINOV2, DINOV3])
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_the_same_network(config, masked):
    models, settings = narrow(config, masked=masked)
    step, agreement = build_step(models[1], POINT, settings)
    assert max(agreement) < 1e-5
    probs = step.model.network.attn_mask_probs
    assert torch.equal(probs, torch.full_like(probs, float(masked)))


def test_the_finished_network_predicts_once():
    """Its fast path, as ours."""
    models, settings = narrow()
    step, _ = build_step(models[1], POINT, settings)
    calls = []
    step.model.network.class_predictor.register_forward_hook(lambda *_: calls.append(1))
    step(Stopwatch("cpu"))
    assert len(calls) == 1


def test_its_results_are_ours_pixel_by_pixel():
    models, settings = narrow()
    ours, theirs = (build_step(model, POINT, settings)[0] for model in models)
    watch = Stopwatch("cpu")
    assert agreeing_pixels(ours(watch), theirs(watch)) > 0.999


def test_another_network_is_refused():
    models, settings = narrow()
    cfg = at_point(models[0].cfg, POINT)
    ours = build_network(cfg, settings)
    theirs = TransformersEoMT(ours)
    images = [torch.randint(256, (3, 48, 64), dtype=torch.uint8)]
    compare_networks(ours, theirs, images)
    with torch.no_grad():
        theirs.network.layers[0].mlp.fc1.bias[0] += 1
    with pytest.raises(UserError, match="is another function than ours"):
        compare_networks(ours, theirs, images)
    with torch.no_grad():
        theirs.network.class_predictor.bias[0] = torch.nan
    with pytest.raises(UserError, match="is another function than ours"):
        compare_networks(ours, theirs, images)


def test_images_are_prepared_as_ours_are():
    models, settings = narrow()
    ours = build_network(at_point(models[0].cfg, POINT), settings)
    theirs = TransformersEoMT(ours)
    seen = []
    ours.predict = lambda x: seen.append(x) or theirs.predict(x)
    image = torch.randint(256, (3, 48, 64), dtype=torch.uint8)
    with torch.no_grad():
        ours([{"image": image}])
    torch.testing.assert_close(theirs.prepare([image]), seen[0])


def test_targets_are_those_of_the_batch():
    models, settings = narrow(mode="train")
    step, _ = build_step(models[0], POINT, settings)
    for ours, theirs in zip(step.inputs, transformers_batch(step.inputs), strict=True):
        masks = ours["instances"].gt_masks.tensor
        assert theirs["mask_labels"].dtype == torch.float32
        assert torch.equal(theirs["mask_labels"] > 0, masks)
        assert torch.equal(theirs["class_labels"], ours["instances"].gt_classes)


def test_agreement_of_results_by_hand():
    """Of 2 x 3 pixels: void and void, twice the same class, another class, void against a class,
    and the same class under another number."""
    ours = torch.tensor([[0, 1, 1], [2, 2, 2]], dtype=torch.int32)
    theirs = torch.tensor([[-1, 0, 0], [0, -1, 5]])
    ours_info = [{"id": 1, "category_id": 7}, {"id": 2, "category_id": 8}]
    theirs_info = [{"id": 0, "label_id": 7}, {"id": 5, "label_id": 8}]
    found = agreeing_pixels(
        [{"panoptic_seg": (ours, ours_info)}], [{"panoptic_seg": (theirs, theirs_info)}]
    )
    assert found == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("config", "opts", "message"),
    [
        (MASK2FORMER, [], "transformers has no Mask2Former like ours"),
        (EOMT, [], "transformers' EoMT needs register tokens and LayerScale"),
        (EOMT, ["MODEL.EOMT.MASKED_ATTENTION", "False"], "always has masked attention"),
        (EOMT, ["INPUT.TEST_MODE", "divisible"], "transformers' EoMT takes squares"),
    ],
)
def test_what_transformers_cannot_build(config, opts, message):
    (model,), settings = tiny(config, opts=opts)
    with pytest.raises(UserError, match=message):
        TransformersEoMT(build_network(model.cfg, settings))


def test_a_position_embedding_of_another_size():
    models, settings = narrow(opts=["MODEL.VIT.IMG_SIZE", "96"])
    with pytest.raises(UserError, match="does not take the weights"):
        build_step(models[1], POINT, settings)


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    (model,), settings = tiny(EOMT)
    with pytest.raises(UserError, match="run `pip install transformers`"):
        TransformersEoMT(build_network(model.cfg, settings))
