"""The configs of the baselines: beside the network nothing differs from the EoMT of the recipe."""

import re

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from eomt_d2.analysis import build_meta_model, network_complexity
from eomt_d2.data.mapper import MaskClassificationMapper
from eomt_d2.modeling import EoMT, Mask2Former
from eomt_d2.solver import build_lr_scheduler, build_optimizer
from tests.configs.published import BASELINES, PUBLISHED, ROOT, load

LADDER = [
    "coco/panoptic/mask2former_vit_adapter_large_640",
    "coco/panoptic/ladder_1_no_adapter_640",
    "coco/panoptic/ladder_2_no_pixel_decoder_640",
    "coco/panoptic/ladder_3_single_scale_640",
    "coco/panoptic/ladder_4_no_decoder_640",
    "coco/panoptic/eomt_large_640",
]
# Configs whose multiply-accumulates are counted here; it takes a second each.
COUNTED = [
    *LADDER,
    "coco/panoptic/mask2former_vit_adapter_large_640_annealed",
    "ade20k/semantic/mask2former_vit_adapter_large_512",
]
MAX_LINES = 15


def flat(cfg: CfgNode, prefix: str = "") -> dict[str, object]:
    """Every key with its whole name."""
    keys = {}
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            keys |= flat(value, f"{prefix}{name}.")
        else:
            keys[prefix + name] = value
    return keys


def differences(one: str, other: str) -> set[str]:
    """Keys in which two configs differ, but for OUTPUT_DIR, which must."""
    one, other = flat(load(one)), flat(load(other))
    assert one.keys() == other.keys()
    keys = {key for key in one if one[key] != other[key]}
    assert "OUTPUT_DIR" in keys
    return keys - {"OUTPUT_DIR"}


def settings(thing) -> dict[str, object]:
    """The numbers, names and sets that an object was made from."""
    return {
        name: value
        for name, value in vars(thing).items()
        if isinstance(value, (int, float, str, bool, tuple, frozenset, type(None)))
    }


@pytest.mark.parametrize("name", BASELINES)
def test_only_the_network_differs_from_eomt(name):
    network = {"MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME", "MODEL.WEIGHTS"}
    network |= {"MODEL.MASK2FORMER.ANNEAL_MASKS", "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME"}
    network |= {"MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES"}
    if "no_decoder" in name:
        network = {"MODEL.MASK_FORMER.MASK_ANNEALING.SCHEDULE"}
    keys = differences(name, BASELINES[name].eomt)
    assert keys and keys <= network
    # The weights differ only where a recipe starts from a model of its own kind.
    assert ("MODEL.WEIGHTS" in keys) is name.startswith("ade20k/panoptic/")


@pytest.mark.parametrize("name", BASELINES)
def test_everything_around_the_network_is_the_same(name):
    """Loss, matching, results, images, optimizer, schedule: made of one class and one setting."""
    cfgs = load(name), load(BASELINES[name].eomt)
    models = [build_meta_model(cfg) for cfg in cfgs]
    for part in ("criterion", "criterion.matcher", "postprocessing"):
        one, other = (_get(model, part) for model in models)
        assert type(one) is type(other)
        assert settings(one) == settings(other)
    inputs = [(model.image_size, model.test_mode, model.num_queries) for model in models]
    assert inputs[0] == inputs[1]

    mappers = [MaskClassificationMapper.from_config(cfg) for cfg in cfgs]
    assert mappers[0] == mappers[1]

    solvers = []
    for cfg, model in zip(cfgs, models, strict=True):
        optimizer = build_optimizer(cfg, model)
        groups = {
            group["name"]: (group["role"], group["lr"], group["weight_decay"])
            for group in optimizer.param_groups
        }
        # The adapter does not use the ViT's final norm and drops it.
        groups.pop("norm", None)
        solvers.append(
            (type(optimizer), type(build_lr_scheduler(cfg, optimizer)), optimizer.defaults, groups)
        )
    assert solvers[0] == solvers[1]


def _get(thing, path):
    for name in path.split("."):
        thing = getattr(thing, name)
    return thing


@pytest.mark.parametrize("name", BASELINES)
def test_sizes_and_the_comment_of_each_config(name):
    cfg, baseline = load(name), BASELINES[name]
    model, side = build_meta_model(cfg), cfg.INPUT.IMAGE_SIZE
    assert isinstance(model, EoMT if "no_decoder" in name else Mask2Former)
    assert sum(parameter.numel() for parameter in model.parameters()) == baseline.parameters
    if name in COUNTED:
        masked = False if "annealed" in name else None  # after training
        macs = network_complexity(model, side, side, masked=masked)[""].macs
        assert macs / 1e9 == pytest.approx(float(baseline.gmac), rel=2e-4)

    text = (ROOT / f"{name}.yaml").read_text()
    quoted = f"# Cost: {baseline.parameters / 1e6:.1f} M parameters, {baseline.gmac} GMAC."
    assert quoted in text
    published = [baseline.result] if baseline.result else []
    assert re.findall(r"^# Published: (.+?) on ", text, re.M) == published
    assert ("# No published result" in text) is (not published)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= MAX_LINES
    assert f"OUTPUT_DIR: output/{name.replace('/', '_')}\n" in text


@pytest.mark.parametrize(
    "size, millions, dim",
    [
        ("small", 46.56, 384),
        ("base", 120.96, 768),
        ("large", 348.67, 1024),
        ("giant", 1208.65, 1536),
    ],
)
def test_sizes_of_the_published_baselines(size, millions, dim):
    """The parameters that reproduce the paper's column, with the norm that the adapter drops."""
    baseline = BASELINES[f"coco/panoptic/mask2former_vit_adapter_{size}_640"]
    assert (baseline.parameters + 2 * dim) / 1e6 == pytest.approx(millions, abs=0.005)


def test_each_step_of_the_ladder_removes_one_thing():
    """Table 1 of the paper: one key a step, but for the decoder, with which all its keys go."""
    steps = [differences(one, other) for one, other in zip(LADDER, LADDER[1:], strict=False)]
    assert steps[0] == {"MODEL.BACKBONE.NAME"}
    assert steps[1] == {"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME"}
    assert steps[2] == {"MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES"}
    assert steps[4] == {"MODEL.MASK_FORMER.MASK_ANNEALING.SCHEDULE"}
    assert "MODEL.META_ARCHITECTURE" in steps[3]
    parameters = [BASELINES[name].parameters for name in LADDER[:-1]]
    assert [round(count / 1e6, 1) for count in parameters] == [348.7, 342.3, 337.2, 328.3, 316.7]


def test_ade20k_starts_where_the_coco_config_of_the_same_network_ends():
    for name in (name for name in BASELINES if name.startswith("ade20k/panoptic/")):
        cfg, coco = load(name), load(name.replace("ade20k", "coco"))
        assert cfg.MODEL.WEIGHTS == f"{coco.OUTPUT_DIR}/model_final.pth"


@pytest.mark.parametrize("name", PUBLISHED)
def test_one_key_makes_a_mask2former_of_every_eomt_config(name):
    """Nothing else has to change for the config to be valid and the network to be built."""
    model = build_meta_model(load(name, "MODEL.META_ARCHITECTURE", "Mask2Former"))
    eomt = PUBLISHED[name]
    assert isinstance(model, Mask2Former)
    assert model.num_queries == eomt.task.queries
    assert model.decoder.class_head.out_features == eomt.task.classes + 1
    assert (model.test_mode, model.image_size) == (eomt.task.test_mode, eomt.size)


def test_one_key_trains_the_other_network_in_the_same_loop():
    """Two updates of the shapes config, EoMT's, as Mask2Former."""
    names = [
        "MODEL.META_ARCHITECTURE",
        "Mask2Former",
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON",
        "False",
    ]
    names += ["MODEL.MASK_FORMER.TEST.SEMANTIC_ON", "True"]
    cfg = load("shapes/panoptic/eomt_tiny", *names)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    side = cfg.INPUT.IMAGE_SIZE
    masks = torch.zeros(2, side, side, dtype=torch.bool)
    masks[0, : side // 2], masks[1, side // 2 :, : side // 2] = True, True
    batch = [{"image": torch.randint(0, 255, (3, side, side)).byte(), "instances": _Targets(masks)}]
    before = {name: value.clone() for name, value in model.named_parameters()}
    for _ in range(2):
        losses = sum(model(batch).values())
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
        scheduler.step()
    # The rate of the first update is 0, that of the backbone until its warm-up.
    moved = {name for name, value in model.named_parameters() if not value.equal(before[name])}
    assert moved == {name for name in before if not name.startswith("backbone.vit.")}


class _Targets:
    """Two segments of the first two classes."""

    gt_classes = torch.tensor([0, 1])

    def __init__(self, masks):
        self.gt_masks = masks

    def __len__(self):
        return 2
