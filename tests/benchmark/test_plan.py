import pytest

from eomt_d2.benchmark.plan import (
    Point,
    Settings,
    at_point,
    grid,
    load_models,
    precision_of,
    uncompiled,
)
from eomt_d2.errors import UserError
from tests.benchmark.models import CONFIGS, DINOV2, EOMT, MASK2FORMER, narrow, tiny

WINDOWS = str(CONFIGS / "ade20k/semantic/eomt_large_512.yaml")


def test_a_grid_has_every_combination_once():
    points = grid([64, 128], [1, 2, 1], [None], [(60, 80)])
    assert points == [
        Point(64, 1, None, (60, 80)),
        Point(64, 2, None, (60, 80)),
        Point(128, 1, None, (60, 80)),
        Point(128, 2, None, (60, 80)),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (([0], [1], [1], [None]), "--sizes is 0; it must be at least 1."),
        (([None], [0], [1], [None]), "--batch is 0; it must be at least 1."),
        (([None], [1], [-5], [None]), "--queries is -5; it must be at least 1."),
    ],
)
def test_values_of_a_grid_are_positive(values, message):
    with pytest.raises(UserError) as error:
        grid(*values)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeats": 0}, "--repeats is 0"),
        ({"warmup": 0}, "--warmup is 0"),
        ({"active_queries": -1}, "--active-queries is -1"),
        ({"segments": 0}, "--segments is 0"),
        ({"precision": "float16"}, "float16 needs a GPU"),
        ({"mode": "train", "masked": True}, "--masked belongs to --mode infer"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        Settings(**settings).check()


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="--device is cuda, but PyTorch finds no GPU here"):
        Settings(device="cuda").check()


def test_names_are_unique():
    models, _ = tiny(EOMT, MASK2FORMER, EOMT)
    assert [model.name for model in models] == ["eomt_tiny", "mask2former_tiny", "eomt_tiny #2"]


def test_transformers_comes_after_ours():
    models, _ = narrow()
    assert [(model.name, model.transformers) for model in models] == [
        ("eomt_small_640", False),
        ("eomt_small_640 (transformers)", True),
    ]


def test_against_transformers_only_panoptic_results_are_made():
    settings = Settings(against_transformers=True)
    for model in load_models([EOMT], [], settings):
        flags = model.cfg.MODEL.MASK_FORMER.TEST
        assert (flags.PANOPTIC_ON, flags.INSTANCE_ON, flags.SEMANTIC_ON) == (True, False, False)
    with pytest.raises(UserError, match="compares panoptic results, which .* does not make"):
        load_models([WINDOWS], [], settings)


def test_other_architectures_are_refused():
    with pytest.raises(UserError, match="only models that classify masks can be measured"):
        load_models([EOMT], ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], Settings())


def test_a_point_changes_the_size_and_the_queries():
    cfg = tiny(EOMT)[0][0].cfg
    changed = at_point(cfg, Point(size=96, queries=7))
    source = changed.INPUT
    assert (source.IMAGE_SIZE, source.MIN_SIZE_TEST, source.MAX_SIZE_TEST) == (96, 96, 96)
    assert changed.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES == 7
    assert at_point(cfg, Point()) == cfg
    assert cfg.INPUT.IMAGE_SIZE == 128


def test_windows_keep_their_long_side():
    (model,) = load_models([WINDOWS], [], Settings())
    source = at_point(model.cfg, Point(size=256)).INPUT
    assert (source.IMAGE_SIZE, source.MIN_SIZE_TEST) == (256, 256)
    assert source.MAX_SIZE_TEST == model.cfg.INPUT.MAX_SIZE_TEST > 256


@pytest.mark.parametrize(
    ("settings", "precision"),
    [
        ({}, "float32"),
        ({"precision": "bfloat16"}, "bfloat16"),
        ({"mode": "train"}, "float32"),
        ({"mode": "train", "precision": "bfloat16"}, "bfloat16"),
    ],
)
def test_precision_on_a_cpu(settings, precision):
    """The config asks for float16, which a CPU cannot do."""
    (model,) = load_models([DINOV2], [], Settings(**settings))
    assert precision_of(model.cfg) == precision


def test_compilation_is_off_where_it_must_be():
    cfg = tiny(EOMT)[0][0].cfg.clone()
    cfg.defrost()
    cfg.MODEL.COMPILE = "max-autotune"
    cfg.freeze()
    assert uncompiled(cfg).MODEL.COMPILE == "off"
    assert cfg.MODEL.COMPILE == "max-autotune"
