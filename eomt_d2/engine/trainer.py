"""The trainer: Detectron2's DefaultTrainer with this package's parts."""

import logging
import weakref
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn

from eomt_d2.checkpoint import Checkpointer
from eomt_d2.config import missing_keys
from eomt_d2.data import build_test_loader, build_train_loader
from eomt_d2.errors import UserError
from eomt_d2.evaluation import build_evaluator
from eomt_d2.solver import build_gradient_clipper, build_lr_scheduler, build_optimizer

from .hooks import LearningRateLogger, MaskAnnealingHook, configured_windows
from .train_step import TrainStep

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains any model of Detectron2's registry by the recipes of this package.

    What differs from ``DefaultTrainer``: layer decay, two-stage schedule, clipping under mixed
    precision (fp16 with loss scaling or bf16), accumulation of gradients, mask annealing where the
    model has it, this package's data loaders, evaluators and checkpointer, and checkpoints that
    hold all that a resumed training needs, whatever the release of Detectron2.

    Args:
        cfg: a validated config, see :func:`~eomt_d2.engine.setup.set_up`.

    Raises:
        UserError: if keys of this package are missing, or the model refuses a value.
    """

    def __init__(self, cfg: CfgNode):
        # DefaultTrainer's constructor hard-wires its own step, checkpointer and scaling of
        # iterations, and starts the workers of its loader; only its methods are of use here.
        super(DefaultTrainer, self).__init__()
        _check_keys(cfg)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._mask_annealing = getattr(model, "mask_annealing", None)
        # DDP takes no device ids for a model on the CPU.
        devices = {} if next(model.parameters()).is_cuda else {"device_ids": None}
        model = create_ddp_model(model, broadcast_buffers=False, **devices)
        self._trainer = TrainStep(
            model,
            self.build_train_loader(cfg),
            optimizer,
            clip_gradients=build_gradient_clipper(cfg),
            precision=cfg.SOLVER.AMP.PRECISION if cfg.SOLVER.AMP.ENABLED else "float32",
            accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            allow_partial_vit=cfg.MODEL.VIT.ALLOW_PARTIAL_WEIGHTS,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self._has_trainer_state = False
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint of OUTPUT_DIR, or start from MODEL.WEIGHTS.

        Args:
            resume: continue if there is a checkpoint.

        Raises:
            UserError: if the last checkpoint holds weights only.
        """
        super().resume_or_load(resume)
        if not (resume and self.checkpointer.has_checkpoint()):
            return
        path = self.checkpointer.get_checkpoint_file()
        if not self._has_trainer_state:
            raise UserError(
                f"{path} holds weights but not the state of a training, so nothing can be resumed; "
                f"leave --resume out and give it as MODEL.WEIGHTS instead."
            )
        if self.scheduler.last_epoch != self.start_iter:
            logger.warning(
                "%s lacks the learning-rate schedule at iteration %d: it is computed from the "
                "config.",
                path,
                self.start_iter,
            )
            self.scheduler.last_epoch = self.start_iter
            for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_lr(), strict=True):
                group["lr"] = lr

    def train(self) -> dict[str, Any] | None:
        """Run the training.

        Returns:
            The results of the last evaluation, as :meth:`test` gives them, on the main process;
            None on the others, or if nothing was evaluated.

        Raises:
            UserError: what a hook, the data or the model raised; without Detectron2's traceback in
                the log.
        """
        loop_logger = logging.getLogger(TrainerBase.__module__)
        loop_logger.addFilter(_is_no_user_error)
        try:
            super().train()
        finally:
            loop_logger.removeFilter(_is_no_user_error)
        return getattr(self, "_last_eval_results", None) if comm.is_main_process() else None

    def state_dict(self) -> dict[str, Any]:
        """Iteration, schedule (in the hooks), optimizer and loss scaling."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`, or as much of it as Detectron2 v0.6 saves.

        Raises:
            UserError: if the optimizer's state belongs to another model or optimizer.
        """
        # Detectron2 main's own version fails on checkpoints of v0.6.
        super(DefaultTrainer, self).load_state_dict(state_dict)
        self._has_trainer_state = True
        if "_trainer" not in state_dict:
            logger.warning(
                "The checkpoint lacks the optimizer's state and the loss scaling, as those of "
                "Detectron2 v0.6 do: both start anew."
            )
            return
        try:
            self._trainer.load_state_dict(state_dict["_trainer"])
        except ValueError as error:
            raise UserError(
                f"The optimizer's state in the checkpoint does not fit the config ({error}); "
                f"resume with the config of the interrupted training, or leave --resume out."
            ) from error

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks; rates are logged and masks annealed before anything is saved."""
        timer, *others = super().build_hooks()
        own: list[HookBase] = [LearningRateLogger()]
        if self._mask_annealing is not None:
            windows = None
            if self._mask_annealing.enabled:
                windows = configured_windows(self.cfg, self._mask_annealing.num_blocks)
            power = self.cfg.MODEL.MASK_FORMER.MASK_ANNEALING.POWER
            own.append(MaskAnnealingHook(self._mask_annealing, windows, power))
        return [timer, *own, *others]

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model named by MODEL.META_ARCHITECTURE.

        Raises:
            UserError: if the model refuses a value of the config.
        """
        try:
            model = build_model(cfg)
        except ValueError as error:
            raise UserError(str(error)) from error
        total = sum(p.numel() for p in model.parameters())
        logger.info("%s with %s parameters:\n%s", type(model).__name__, f"{total:,}", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See :func:`eomt_d2.solver.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(
        cls, cfg: CfgNode, optimizer: torch.optim.Optimizer
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """See :func:`eomt_d2.solver.build_lr_scheduler`."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """See :func:`eomt_d2.data.build_train_loader`."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """See :func:`eomt_d2.data.build_test_loader`."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """See :func:`eomt_d2.evaluation.build_evaluator`."""
        return build_evaluator(cfg, dataset_name)

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Detectron2's scaling by SOLVER.REFERENCE_WORLD_SIZE, for this package's keys too.

        Both warm-ups and annealing windows in iterations shrink or grow with MAX_ITER.
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        scaled = DefaultTrainer.auto_scale_workers(cfg, num_workers)
        if scaled is cfg:
            return cfg
        scale = num_workers / reference
        frozen = scaled.is_frozen()
        scaled.defrost()
        for key in ("WARMUP_ITERS_HEAD", "WARMUP_ITERS_BACKBONE"):
            scaled.SOLVER[key] = round(cfg.SOLVER[key] / scale)
        annealing = scaled.MODEL.MASK_FORMER.MASK_ANNEALING
        if annealing.SCHEDULE == "iterations":
            annealing.STARTS = [round(start / scale) for start in annealing.STARTS]
            annealing.ENDS = [round(end / scale) for end in annealing.ENDS]
        if frozen:
            scaled.freeze()
        return scaled


def _check_keys(cfg: CfgNode) -> None:
    # Filled in here, they would stand beside values for another package's network.
    missing = missing_keys(cfg)
    if missing:
        more = f" and {len(missing) - 1} more keys" if len(missing) > 1 else ""
        raise UserError(
            f"The config lacks {missing[0]}{more} of eomt_d2; call add_eomt_config after other "
            f"packages' functions that add keys (add_maskformer2_config replaces some)."
        )


def _is_no_user_error(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], UserError))
