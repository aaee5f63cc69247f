#!/usr/bin/env python
"""Train or evaluate a model; the arguments are those of Detectron2's own train_net.py.

python tools/train_net.py --config-file configs/shapes/panoptic/eomt_tiny.yaml
python tools/train_net.py --config-file F --eval-only MODEL.WEIGHTS output/model_final.pth
torchrun --nproc-per-node 8 tools/train_net.py --config-file F
"""

import argparse

from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from eomt_d2.checkpoint import Checkpointer
from eomt_d2.engine import Trainer, launch, load_config, set_up
from eomt_d2.errors import exit_on_user_error


def main(args: argparse.Namespace) -> dict | None:
    """Evaluate if ``args.eval_only``, else train; in one process of the run."""
    cfg = set_up(args)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    model = Trainer.build_model(cfg)
    Checkpointer(model, save_dir=cfg.OUTPUT_DIR, strict=True).resume_or_load(
        cfg.MODEL.WEIGHTS, resume=args.resume
    )
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


if __name__ == "__main__":
    with exit_on_user_error():
        arguments = default_argument_parser().parse_args()
        # A mistake is reported once, before any process is started.
        load_config(arguments)
        launch(main, arguments)
