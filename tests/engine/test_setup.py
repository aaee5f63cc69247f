import argparse
import logging

import pytest
import torch
import yaml
from detectron2.config import get_cfg

from eomt_d2.config import add_eomt_config
from eomt_d2.engine import load_config, set_up
from eomt_d2.errors import UserError

GOOD = """
VERSION: 2
MODEL:
  META_ARCHITECTURE: EoMT
  DEVICE: cpu
  BACKBONE: {NAME: ViT}
  MASK_FORMER: {TEST: {PANOPTIC_ON: True}}
  SEM_SEG_HEAD: {NUM_CLASSES: 8}
INPUT: {MIN_SIZE_TEST: 640, MAX_SIZE_TEST: 640}
DATASETS:
  TRAIN: ("shapes_train_panoptic",)
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(GOOD)
    return path


def arguments(config_file, *opts, eval_only=False):
    return argparse.Namespace(config_file=str(config_file), opts=list(opts), eval_only=eval_only)


def test_file_and_overrides(config_file):
    cfg = load_config(arguments(config_file, "SOLVER.BASE_LR", "0.5"))
    assert cfg.MODEL.META_ARCHITECTURE == "EoMT"
    assert cfg.SOLVER.BASE_LR == 0.5
    assert cfg.is_frozen()


def test_set_up_writes_the_config_it_runs_with(config_file, tmp_path, restored_loggers):
    output = tmp_path / "output"
    cfg = set_up(arguments(config_file, "OUTPUT_DIR", str(output), "SEED", "7"))
    first = torch.rand(1)
    written = get_cfg()
    add_eomt_config(written)
    written.merge_from_file(str(output / "config.yaml"))
    assert yaml.safe_load(written.dump()) == yaml.safe_load(cfg.dump())
    set_up(arguments(config_file, "OUTPUT_DIR", str(output), "SEED", "7"))
    assert torch.rand(1) == first
    logging.getLogger("eomt_d2.solver").info("a line of ours")
    assert "a line of ours" in (output / "log.txt").read_text()


@pytest.mark.parametrize(
    "opts, sentence",
    [
        (
            ("SOLVER.LAYER_DECY", "0.8"),
            r"The config key SOLVER.LAYER_DECY in the command line does not exist; the nearest "
            r"one is SOLVER.LAYER_DECAY\.",
        ),
        (("SLOVER.BASE_LR", "0.1"), r"SLOVER.BASE_LR .* does not exist; .* SOLVER.BASE_LR\."),
        (("SOLVER.BASE_LR",), r"odd length"),
        (
            ("SOLVER.BASE_LR", "fast"),
            r"SOLVER.BASE_LR in the command line is a text; it has to be a number\.",
        ),
        (("INPUT.TEST_MODE", "sliding"), r"INPUT.TEST_MODE is 'sliding'"),
        (
            ("DATASETS.TEST", "('shapes_val_panoptc',)"),
            r"DATASETS.TEST names the data set 'shapes_val_panoptc', which is not registered; the "
            r"nearest name is shapes_val_panoptic",
        ),
        (("DATASETS.TRAIN", "()"), r"DATASETS.TRAIN is empty"),
        (
            ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5"),
            r"NUM_CLASSES is 5, but the data set 'shapes_train_panoptic' has 8 classes; set",
        ),
        (
            ("DATASETS.TEST", "('coco_2017_val_panoptic',)"),
            r"NUM_CLASSES is 8, but the data set 'coco_2017_val_panoptic' has 133 classes",
        ),
        (
            ("DATASETS.TEST", "('shapes_val_semantic',)", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5"),
            r"Nothing can be evaluated on shapes_val_semantic",
        ),
        (("OUTPUT_DIR", __file__), r"OUTPUT_DIR is .*, which is a file"),
    ],
)
def test_bad_overrides_give_one_sentence(config_file, opts, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        load_config(arguments(config_file, *opts))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("SOLVER: {BASE_LRATE: 1.0}", r"The config key SOLVER.BASE_LRATE in .*bad.yaml does not"),
        ("SOLVER: [", r"bad.yaml is no plain YAML"),
        ("_BASE_: nowhere.yaml", r"The config file .*nowhere.yaml cannot be read"),
        ("OUTPUT_DIR: !!python/object/apply:os.getcwd []", r"bad.yaml is no plain YAML"),
    ],
)
def test_bad_files_give_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence) as caught:
        load_config(arguments(path))
    assert len(str(caught.value).splitlines()) == 1


def test_classes_are_compared_where_the_metadata_tells_them(config_file):
    instances = (
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "False",
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON", "True",
    )  # fmt: skip
    train = ("DATASETS.TRAIN", "('ade20k_instance_train',)", *instances)
    load_config(arguments(config_file, *train, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "100"))
    with pytest.raises(UserError, match="NUM_CLASSES is 150, .*'ade20k_instance_train' has 100"):
        load_config(arguments(config_file, *train, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "150"))
    # Detectron2 registers it with 80 things and 54 classes of stuff, both counted from 0: neither
    # is the number of panoptic classes, and the mapper says which data to take instead.
    separated = "('coco_2017_train_panoptic_separated',)"
    load_config(arguments(config_file, "DATASETS.TRAIN", separated))


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"missing.yaml does not exist"):
        load_config(arguments(tmp_path / "missing.yaml"))


def test_evaluation_needs_no_training_data(config_file):
    cfg = load_config(arguments(config_file, "DATASETS.TRAIN", "()", eval_only=True))
    assert cfg.DATASETS.TRAIN == ()


def test_a_batch_must_spread_over_the_processes(config_file):
    args = arguments(config_file, "SOLVER.IMS_PER_BATCH", "6")
    args.num_gpus, args.num_machines = 2, 2
    with pytest.raises(UserError, match="IMS_PER_BATCH is 6, which cannot .* over 4 processes"):
        load_config(args)


def test_the_share_of_a_process_must_be_cut_evenly(config_file):
    args = arguments(config_file, "SOLVER.IMS_PER_BATCH", "8", "SOLVER.ACCUMULATION_STEPS", "4")
    args.num_gpus, args.num_machines = 4, 1
    with pytest.raises(
        UserError, match="STEPS is 4, .* the 2 images that each of 4 processes has of .* 8"
    ):
        load_config(args)
    args.eval_only = True
    assert load_config(args).SOLVER.ACCUMULATION_STEPS == 4


def test_no_gpu_gives_the_override_to_add(config_file, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="finds no GPU here; add MODEL.DEVICE cpu"):
        load_config(arguments(config_file, "MODEL.DEVICE", "cuda"))


def test_compiling_needs_a_compiler(config_file, monkeypatch):
    compiled = arguments(config_file, "MODEL.COMPILE", "default")
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    assert load_config(compiled).MODEL.COMPILE == "default"
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match="'default', which needs a C.. compiler, but there is none"):
        load_config(compiled)
    load_config(arguments(config_file))
