import pytest
import torch

from eomt_d2.analysis import build_meta_model, network_complexity
from eomt_d2.benchmark import Point, check, measure, measurement
from eomt_d2.benchmark.plan import at_point
from eomt_d2.errors import UserError
from tests.benchmark.models import EOMT, MASK2FORMER, narrow, tiny

POINT = Point(size=64, batch=2, original_size=(60, 80))
OUT_OF_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


def test_inference_of_two_networks():
    models, settings = tiny(EOMT, MASK2FORMER, repeats=3)
    result = measure(models, POINT, settings)
    assert result["point"] == POINT._asdict()
    eomt, mask2former = result["models"]
    assert (eomt["name"], mask2former["name"]) == ("eomt_tiny", "mask2former_tiny")
    assert eomt["ratios"] is None
    for found, model in zip(result["models"], models, strict=True):
        phases = ["preparation", "network", "post-processing", "total"]
        assert list(found["seconds"]) == phases
        assert all(len(seconds) == 3 for seconds in found["seconds"].values())
        parts = sum(found["seconds"][phase][1] for phase in phases[:3])
        assert parts <= found["seconds"]["total"][1]
        meta = build_meta_model(at_point(model.cfg, POINT))
        expected = network_complexity(meta, 64, 64, masked=found is mask2former)[""]
        assert (found["parameters"], found["macs"]) == expected
        assert found["input"] == [2, 3, 64, 64]
        rate = 2 * 2 * found["macs"] / found["times"]["network"]["median"]
        assert found["flops_per_second"] == pytest.approx(rate)
        share = rate / result["matmul"]["flops_per_second"]
        assert found["matmul_share"] == pytest.approx(share)
        assert found["peak_bytes"] > 4 * found["parameters"]
    ratios = [
        theirs / ours
        for theirs, ours in zip(
            mask2former["seconds"]["network"], eomt["seconds"]["network"], strict=True
        )
    ]
    assert mask2former["ratios"]["network"]["median"] == pytest.approx(sorted(ratios)[1])


def test_training_counts_forward_and_backward():
    models, settings = tiny(EOMT, mode="train", segments=3)
    (found,) = measure(models, Point(size=64, batch=2), settings)["models"]
    assert list(found["seconds"]) == ["forward", "loss", "backward", "optimizer", "total"]
    meta = build_meta_model(at_point(models[0].cfg, POINT))
    assert found["macs"] == network_complexity(meta, 64, 64, masked=True)[""].macs
    rate = 3 * 2 * 2 * found["macs"] / found["times"]["total"]["median"]
    assert found["flops_per_second"] == pytest.approx(rate)
    # Weights, gradients and two moments of AdamW.
    assert found["peak_bytes"] > 4 * 4 * found["parameters"]


def test_windows_are_counted():
    """A 64 x 160 image has three windows of 64."""
    opts = ["INPUT.TEST_MODE", "window", "INPUT.IMAGE_SIZE", "64", "INPUT.MIN_SIZE_TEST", "64",
            "INPUT.MAX_SIZE_TEST", "2560", "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "False",
            "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", "True", "DATASETS.TEST",
            "('shapes_val_semantic',)"]  # fmt: skip
    models, settings = tiny(EOMT, opts=opts)
    point = Point(original_size=(64, 160))
    (found,) = measure(models, point, settings)["models"]
    assert found["input"] == [3, 3, 64, 64]
    one = network_complexity(build_meta_model(models[0].cfg), 64, 64, masked=False)[""]
    assert found["macs"] == 3 * one.macs


def test_transformers_beside_ours():
    models, settings = narrow()
    ours, theirs = measure(models, POINT, settings)["models"]
    assert (ours["implementation"], theirs["implementation"]) == ("eomt_d2", "transformers")
    assert ours["agreement"] is None
    assert theirs["agreement"]["mask_logits"] < 1e-5
    assert theirs["agreement"]["pixels"] > 0.999
    for key in ("macs", "parameters", "input"):
        assert ours[key] == theirs[key]


def test_a_model_that_does_not_fit_is_left_out(monkeypatch):
    models, settings = tiny(EOMT, MASK2FORMER)
    build = measurement.build_step

    def build_or_fail(model, *args):
        if model is models[0]:
            raise OUT_OF_MEMORY
        return build(model, *args)

    monkeypatch.setattr(measurement, "build_step", build_or_fail)
    first, second = measure(models, POINT, settings)["models"]
    assert first["failure"] == "out of memory" and "times" not in first
    assert second["failure"] is None and second["times"]
    assert second["ratios"] is None, "there is nothing to compare with"


def test_models_that_do_not_fit_together(monkeypatch):
    def fail(*args, **kwargs):
        raise OUT_OF_MEMORY

    monkeypatch.setattr(measurement, "by_turns", fail)
    models, settings = tiny(EOMT, MASK2FORMER)
    result = measure(models, POINT, settings)
    assert [model["failure"] for model in result["models"]] == ["out of memory"] * 2
    assert result["matmul"]["flops_per_second"] is None


def test_other_errors_are_not_hidden(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(measurement, "build_step", fail)
    models, settings = tiny(EOMT)
    with pytest.raises(RuntimeError, match="a bug"):
        measure(models, POINT, settings)


def test_what_counts_as_out_of_memory():
    assert measurement.is_out_of_memory(OUT_OF_MEMORY)
    assert measurement.is_out_of_memory(MemoryError())
    assert measurement.is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    assert not measurement.is_out_of_memory(RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError) as error:
        torch.empty(10**18)
    assert measurement.is_out_of_memory(error.value), "as PyTorch says it"


@pytest.mark.parametrize(
    ("points", "settings", "message"),
    [
        (
            [Point(size=60)],
            {},
            "INPUT.IMAGE_SIZE is 60; it must be a multiple of MODEL.VIT.PATCH_SIZE 8",
        ),
        ([Point(), Point(queries=3)], {}, "--active-queries is 5, but eomt_tiny has 3 queries"),
    ],
)
def test_mistakes_are_found_before_anything_is_measured(points, settings, message):
    models, settings = tiny(EOMT, **settings)
    with pytest.raises(UserError, match=message):
        check(models, points, settings)


def test_a_masked_network_that_has_no_masks():
    models, settings = tiny(EOMT, opts=["MODEL.EOMT.MASKED_ATTENTION", "False"], masked=True)
    with pytest.raises(UserError, match="has no masked attention to switch on"):
        check(models, [Point(size=64)], settings)
