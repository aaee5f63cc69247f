"""From command-line arguments to a validated config and a process that is ready to run."""

import argparse
import difflib
import os
import re
import shutil
from collections.abc import Callable

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from eomt_d2.config import add_eomt_config, config_keys
from eomt_d2.data.datasets import register_datasets
from eomt_d2.errors import UserError
from eomt_d2.evaluation import evaluated_tasks

from .config_file import check_config_file
from .config_validation import is_mask_classification, validate_config

__all__ = ["load_config", "set_up"]

# How yacs says that a value is of the wrong kind.
_MISMATCH = re.compile(
    r"Type mismatch \(<class '(?:.*\.)?(\w+)'> vs\. <class '(?:.*\.)?(\w+)'>\) with values .* for "
    r"config key: (\S+?)\.?"
)
_KINDS = {
    "bool": "True or False",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a group of keys",
    "CfgNode": "a group of keys",
    "NoneType": "empty",
}


def set_up(args: argparse.Namespace) -> CfgNode:
    """Prepare this process: config, data sets, loggers, seeds, OUTPUT_DIR with its config.yaml.

    Args:
        args: ``config_file``, ``opts`` and, where there is training, ``eval_only``, ``num_gpus``
            and ``num_machines``, as :func:`detectron2.engine.default_argument_parser` makes them.

    Returns:
        The frozen config.

    Raises:
        UserError: see :func:`load_config`.
    """
    cfg = load_config(args)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="eomt_d2")
    return cfg


def load_config(args: argparse.Namespace) -> CfgNode:
    """Read the config file and the overrides, register the data sets and check all values.

    Args:
        args: see :func:`set_up`.

    Returns:
        The frozen config.

    Raises:
        UserError: if the file cannot be read, a key does not exist or a value is not allowed, if a
            data set is unknown, cannot be evaluated or has another number of classes than the
            model, or if this machine cannot run what is asked for.
    """
    cfg = get_cfg()
    add_eomt_config(cfg)
    if args.config_file:
        if not PathManager.isfile(args.config_file):
            raise UserError(f"The config file {args.config_file} does not exist.")
        check_config_file(args.config_file)
        _merge(
            cfg, args.config_file, lambda: cfg.merge_from_file(args.config_file, allow_unsafe=False)
        )
    _merge(cfg, "the command line", lambda: cfg.merge_from_list(args.opts or []))
    cfg.freeze()
    validate_config(cfg)
    register_datasets(cfg)
    training = not getattr(args, "eval_only", True)
    _check_datasets(cfg, training)
    for name in cfg.DATASETS.TEST:
        evaluated_tasks(cfg, name)
    _check_classes(cfg)
    # Before Detectron2 has started its processes, only the arguments know how many there will be.
    asked_for = getattr(args, "num_gpus", 1) * getattr(args, "num_machines", 1)
    _check_machine(cfg, max(comm.get_world_size(), asked_for), training)
    return cfg


def _merge(cfg: CfgNode, source: str, merge: Callable[[], None]) -> None:
    try:
        merge()
    except (RecursionError, MemoryError) as error:
        raise UserError(f"The config in {source} has a value that is nested too deeply.") from error
    except (KeyError, AssertionError, ValueError, TypeError, AttributeError) as error:
        message = " ".join(str(error.args[0]).split()) if error.args else ""
        unknown = re.fullmatch(r"Non-existent (?:config )?key: (\S+)", message)
        if unknown:
            hint = _nearest_key(cfg, unknown[1])
            raise UserError(
                f"The config key {unknown[1]} in {source} does not exist{hint}."
            ) from error
        mismatch = _MISMATCH.fullmatch(message)
        if mismatch:
            wanted, given, key = mismatch.groups()
            raise UserError(
                f"The config key {key} in {source} is {_KINDS.get(given, given)}; it has to be "
                f"{_KINDS.get(wanted, wanted)}."
            ) from error
        raise UserError(f"The config in {source} is not valid: {message}.") from error


def _nearest_key(cfg: CfgNode, key: str) -> str:
    keys = list(config_keys(cfg))
    last = key.rpartition(".")[2]
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.75) or [
        candidate for candidate in keys if candidate.rpartition(".")[2] == last
    ]
    return f"; the nearest one is {near[0]}" if near else ""


def _check_datasets(cfg: CfgNode, training: bool) -> None:
    if training and not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty; name the data sets to train on.")
    known = DatasetCatalog.list()
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; the nearest name is {near[0]}" if near else ""
                raise UserError(
                    f"DATASETS.{key} names the data set {name!r}, which is not registered{hint} "
                    f"(your own can be described in DATASETS.REGISTER)."
                )


def _check_classes(cfg: CfgNode) -> None:
    """The network has as many classes as the data, where the metadata of the data says."""
    if not is_mask_classification(cfg):
        return
    flags = cfg.MODEL.MASK_FORMER.TEST
    things_only = flags.INSTANCE_ON and not (flags.PANOPTIC_ON or flags.SEMANTIC_ON)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        metadata = MetadataCatalog.get(name)
        if things_only and "panoptic" in metadata.get("evaluator_type", ""):
            continue  # its thing_classes list the stuff too
        classes = metadata.get("thing_classes" if things_only else "stuff_classes") or ()
        things = metadata.get("thing_dataset_id_to_contiguous_id") or {}
        if max(things.values(), default=-1) >= len(classes):
            continue  # things and stuff are numbered apart ("separated"): refused by the mapper
        given = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if classes and len(classes) != given:
            raise UserError(
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {given}, but the data set {name!r} has "
                f"{len(classes)} classes; set it to {len(classes)}."
            )


def _check_machine(cfg: CfgNode, world_size: int, training: bool) -> None:
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, but PyTorch finds no GPU here; add "
            f"MODEL.DEVICE cpu to the command."
        )
    if is_mask_classification(cfg) and cfg.MODEL.COMPILE != "off" and not _has_compiler():
        raise UserError(
            f"MODEL.COMPILE is {cfg.MODEL.COMPILE!r}, which needs a C++ compiler, but there is "
            f"none in the PATH; install one (g++ or clang++) or set MODEL.COMPILE off."
        )
    # With a reference, Detectron2 makes the batch fit the number of processes.
    if training and not cfg.SOLVER.REFERENCE_WORLD_SIZE:
        _check_batch(cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS, world_size)
    parent = os.path.abspath(cfg.OUTPUT_DIR)
    if os.path.exists(parent) and not os.path.isdir(parent):
        raise UserError(f"OUTPUT_DIR is {cfg.OUTPUT_DIR}, which is a file and no folder.")


def _has_compiler() -> bool:
    names = (os.environ.get("CXX"), "g++", "clang++", "c++", "cl")
    return any(name and shutil.which(name.split()[0]) for name in names)


def _check_batch(batch: int, accumulation_steps: int, world_size: int) -> None:
    if batch % world_size:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {batch}, which cannot be spread evenly over {world_size} "
            f"processes."
        )
    if batch // world_size % accumulation_steps:
        raise UserError(
            f"SOLVER.ACCUMULATION_STEPS is {accumulation_steps}, which does not divide the "
            f"{batch // world_size} images that each of {world_size} processes has of "
            f"SOLVER.IMS_PER_BATCH {batch}."
        )
