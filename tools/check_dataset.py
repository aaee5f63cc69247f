#!/usr/bin/env python
"""Check the data sets of a config before training: all faults in a table, not only the first.

python tools/check_dataset.py --config-file configs/shapes/panoptic/eomt_tiny.yaml
python tools/check_dataset.py --config-file F --workers 8 --json faults.json DATASETS.TEST "()"
python tools/check_dataset.py --config-file F --limit 100

Every image and its ground truth are read as training and evaluation read them. Errors are what they
would stop with (single training images can be skipped: DATALOADER.ON_BAD_SAMPLE skip); warnings are
what they would do without. Exit code: 0 without errors, 1 with errors, 2 where the config or
the command line cannot be used.
"""

import argparse
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from detectron2.config import CfgNode

from eomt_d2.data.checking import DatasetCheck, check_dataset, faults_table
from eomt_d2.data.datasets.preparation import write_json
from eomt_d2.engine import load_config
from eomt_d2.errors import UserError, exit_on_user_error
from eomt_d2.evaluation import evaluated_tasks

# Settings of the training machine must not matter here.
WITHOUT_DEVICE = ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "False"]


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="F", help="path of the config")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one per core, up to 8)"
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="read only the first N images of each data set"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the faults there as well")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides, at the end"
    )
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> int:
    """Check, print, and give the exit code."""
    for option in ("workers", "limit"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option} is {value}; it must be at least 1.")
    opts = args.opts if len(args.opts) % 2 else [*args.opts, *WITHOUT_DEVICE]
    cfg = load_config(argparse.Namespace(config_file=args.config_file, opts=opts))
    if not cfg.DATASETS.TRAIN and not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TRAIN and DATASETS.TEST are both empty; name what to check.")
    checks = []
    for role in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[role]:
            checks.append(_check(cfg, name, role, args))
            _print_check(checks[-1])
    errors, warnings = (_count(checks, severity) for severity in ("error", "warning"))
    print(f"{len(checks)} data sets: {errors} errors, {warnings} warnings")
    if args.json:
        write_json(args.json, _as_json(checks))
    return 1 if errors else 0


def _check(cfg: CfgNode, name: str, role: str, args: argparse.Namespace) -> DatasetCheck:
    tasks = evaluated_tasks(cfg, name) if role == "TEST" else ()
    try:
        return check_dataset(cfg, name, role, tasks, num_workers=args.workers, limit=args.limit)
    except BrokenProcessPool as error:
        raise UserError(
            "A process that reads images ended by itself, probably for lack of memory; use a "
            "smaller --workers."
        ) from error


def _print_check(check: DatasetCheck) -> None:
    part = "" if check.num_checked == check.num_images else f"{check.num_checked} of "
    errors, warnings = (_count([check], severity) for severity in ("error", "warning"))
    print(
        f"{check.name} (DATASETS.{check.role}): {part}{check.num_images} images read, "
        f"{errors} errors, {warnings} warnings"
    )
    if check.faults:
        print(f"\n{faults_table(check.faults)}\n")


def _count(checks: list[DatasetCheck], severity: str) -> int:
    return sum(fault.severity == severity for check in checks for fault in check.faults)


def _as_json(checks: list[DatasetCheck]) -> dict:
    return {
        "errors": _count(checks, "error"),
        "warnings": _count(checks, "warning"),
        "datasets": [
            {**check._asdict(), "faults": [fault._asdict() for fault in check.faults]}
            for check in checks
        ],
    }


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(parse_args()))
