#!/usr/bin/env python
"""Experiment: would EoMT be faster if its first blocks merged similar patches, and at what price?

python tools/experiments/token_merging.py --config-file configs/coco/panoptic/eomt_small_640.yaml \
    MODEL.DEVICE cpu SOLVER.AMP.ENABLED False
python tools/experiments/token_merging.py --config-file configs/shapes/panoptic/eomt_tiny.yaml \
    --evaluate MODEL.WEIGHTS output/quickstart/train/model_final.pth

After the first ``--after`` blocks the most similar pairs of patch tokens become one token each
("Token Merging", arXiv 2210.09461, section 3: bipartite soft matching), and before the queries come
in, every patch gets back the token it went into. Printed are MACs and the time of the network
beside the plain one, by turns; with ``--evaluate`` also the quality of a trained model on
DATASETS.TEST. What was seen is in docs/performance.md.
"""

import argparse
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from eomt_d2.benchmark.variants import compare_costs, compare_quality, load_finished_model
from eomt_d2.errors import UserError, exit_on_user_error
from eomt_d2.modeling.eomt import EoMT
from eomt_d2.modeling.structures import MaskPrediction


def merge_patches(patches: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Choose which patches become one: ``number`` of the even ones, each with an odd one.

    Args:
        patches: (N, C) tokens; they are compared by the cosine between them.
        number: pairs to merge, at most ceil(N / 2). Several even patches may go to one odd one.

    Returns:
        (N,) int64, the group in [0, N - number) of each patch, and (N - number,) int64, a patch
        that stands for each group: its odd one, if it has any.
    """
    directions = F.normalize(patches, dim=-1)
    similarity, partner = (directions[::2] @ directions[1::2].T).max(dim=-1)
    order = similarity.argsort(descending=True)
    merged, single = order[:number], order[number:]
    representatives = torch.cat((2 * single, torch.arange(1, len(patches), 2, device=order.device)))
    groups = torch.empty(len(patches), dtype=torch.int64, device=order.device)
    groups[representatives] = torch.arange(len(representatives), device=order.device)
    groups[2 * merged] = groups[2 * partner[merged] + 1]
    return groups, representatives


def mean_by_group(patches: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """(N, C) tokens to the (num_groups, C) means of their groups."""
    sums = patches.new_zeros(num_groups, patches.shape[1]).index_add_(0, groups, patches)
    sizes = patches.new_zeros(num_groups).index_add_(0, groups, torch.ones_like(patches[:, 0]))
    return sums / sizes[:, None]


def predict_merged(model: EoMT, images: Tensor, after: int, share: float) -> list[MaskPrediction]:
    """EoMT's unmasked ``predict`` of one image, (1, 3, H, W), with a share of its patches merged
    between block ``after`` and the first block with queries."""
    vit = model.backbone
    grid = vit.grid_size(*images.shape[-2:])
    tokens, rotary = vit.embed(images)
    for block in vit.blocks[:after]:
        tokens = vit.run_block(block, tokens, rotary)

    prefix, patches = tokens[:, : vit.num_prefix_tokens], tokens[0, vit.num_prefix_tokens :]
    groups, representatives = merge_patches(patches, int(share * len(patches)))
    tokens = torch.cat((prefix, mean_by_group(patches, groups, len(representatives))[None]), dim=1)
    merged_rotary = rotary and rotary._replace(
        cos=rotary.cos[representatives], sin=rotary.sin[representatives]
    )
    for block in vit.blocks[after : -model.num_blocks]:
        tokens = vit.run_block(block, tokens, merged_rotary)
    prefix, merged = tokens[:, : vit.num_prefix_tokens], tokens[:, vit.num_prefix_tokens :]

    tokens = torch.cat((model.query_embed.weight[None], prefix, merged[:, groups]), dim=1)
    for block in vit.blocks[-model.num_blocks :]:
        tokens = vit.run_block(block, tokens, rotary)
    return [model.predict_masks(tokens, grid)]


def main(args: argparse.Namespace) -> None:
    cfg, model = load_finished_model(args.config_file, args.opts, with_weights=args.evaluate)
    if not isinstance(model, EoMT):
        raise UserError(f"Merging is tried on EoMT, not on {type(model).__name__}.")
    num_early = len(model.backbone.blocks) - model.num_blocks
    if not 0 < args.after <= num_early:
        raise UserError(f"--after is {args.after}; {num_early} blocks come before the queries.")
    if not all(0 <= share <= 0.5 for share in args.shares):
        raise UserError(f"--shares is {args.shares}; each lies in [0, 0.5].")
    variants = {
        f"{share:g} of the patches merged": partial(
            predict_merged, model, after=args.after, share=share
        )
        for share in args.shares
    }
    print(compare_costs(model, variants, args.repeats))
    if args.evaluate:
        print(compare_quality(cfg, model, variants))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="F")
    parser.add_argument("--after", type=int, default=2, help="blocks before the merging")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.25, 0.4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--evaluate", action="store_true", help="evaluate MODEL.WEIGHTS")
    parser.add_argument("opts", nargs="*", default=[], help="config keys and values")
    return parser.parse_args()


if __name__ == "__main__":
    with exit_on_user_error():
        main(parse_arguments())
