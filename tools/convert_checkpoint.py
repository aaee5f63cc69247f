#!/usr/bin/env python
"""Convert weights of other projects to this one, and back.

python tools/convert_checkpoint.py pytorch_model.bin eomt.pth --source eomt
python tools/convert_checkpoint.py hf://org/delta eomt.pth --base dinov3_vitl16.pth
python tools/convert_checkpoint.py output/model_final.pth folder --target transformers \\
    --config-file configs/coco/panoptic/eomt_large_640.yaml
"""

import argparse
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from eomt_d2.analysis import build_meta_model
from eomt_d2.checkpoint.addresses import register_hub
from eomt_d2.checkpoint.conversion import (
    check_destination,
    check_ending,
    fit_strictly,
    read_foreign,
    write_weights,
)
from eomt_d2.checkpoint.sources import SOURCES
from eomt_d2.checkpoint.targets import (
    to_official,
    to_transformers,
    transformers_config,
    write_transformers_folder,
)
from eomt_d2.engine import load_config
from eomt_d2.errors import UserError, exit_on_user_error
from eomt_d2.modeling import EoMT


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert as the command line says."""
    args = parse_arguments(arguments)
    check_destination(args.destination)
    if args.target != "transformers":
        check_ending(args.destination)
    elif not args.config_file:
        raise UserError("--target transformers needs --config-file, which says what the model is.")
    register_hub(PathManager)
    cfg = read_config(args) if args.config_file else None
    tensors, title = read_foreign(args.source_path, PathManager, source=args.source, base=args.base)
    print(f"{args.source_path}: {title}, {len(tensors)} tensors.")
    if cfg is not None:
        model = build_meta_model(cfg)
        tensors, lines = fit_strictly(tensors, model)
        print("".join(f"  {line}.\n" for line in lines), end="")
    if args.target != "eomt_d2":
        check_whole_eomt(tensors)
    if args.target == "eomt_d2":
        write_weights(args.destination, tensors, "model")
    elif args.target == "eomt":
        write_weights(args.destination, to_official(tensors), "state_dict")
    else:
        write_folder(args.destination, tensors, cfg, model)
    print(f"Wrote {args.destination}.")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; None takes the program's own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source_path", metavar="SRC", help="file, folder, URL or hf://org/name")
    parser.add_argument(
        "destination", metavar="DST", help=".pth or .safetensors; a folder for transformers"
    )
    parser.add_argument(
        "--source", choices=["auto", *SOURCES], default="auto", help="whose weights SRC holds"
    )
    parser.add_argument("--target", choices=["eomt_d2", "transformers", "eomt"], default="eomt_d2")
    parser.add_argument(
        "--config-file", default="", help="resample for this config's sizes and check against it"
    )
    parser.add_argument(
        "--base", default="", help="DINOv3's weights, where SRC holds differences to them"
    )
    return parser.parse_args(arguments)


def read_config(args: argparse.Namespace) -> CfgNode:
    """The config, for a model that computes nothing and needs no device."""
    args.opts = ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "False"]
    return load_config(args)


def check_whole_eomt(tensors: dict[str, Tensor]) -> None:
    """Only a whole EoMT can become one elsewhere."""
    lacking = [
        name
        for name in ("query_embed.weight", "class_head.bias", "backbone.norm.bias")
        if name not in tensors
    ]
    if lacking:
        raise UserError(f"The weights are not those of a whole EoMT: {', '.join(lacking)} missing.")


def write_folder(folder: str, tensors: dict[str, Tensor], cfg: CfgNode, model: nn.Module) -> None:
    """A folder that transformers' ``from_pretrained`` reads."""
    if not isinstance(model, EoMT):
        raise UserError(f"transformers' EoMT cannot be a {cfg.MODEL.META_ARCHITECTURE}.")
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0]) if cfg.DATASETS.TEST else None
    names = []
    if metadata is not None:
        names = metadata.get("stuff_classes") or metadata.get("thing_classes") or []
    if len(set(names)) != model.num_classes:
        names = []
    renamed = to_transformers(tensors, model.criterion.no_object_weight)
    config = transformers_config(model, list(names), model.postprocessing.thing_ids or frozenset())
    write_transformers_folder(folder, renamed, config)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
