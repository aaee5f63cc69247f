"""The trainer: Detectron2's DefaultTrainer with this package's parts."""

import logging
import os
import signal
import weakref
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn

from eomt_d2.checkpoint import Checkpointer
from eomt_d2.checkpoint.atomic_file import remove_leftovers
from eomt_d2.checkpoint.numbering import numbered_name
from eomt_d2.config import missing_keys
from eomt_d2.data import build_test_loader, build_train_loader, training_seed
from eomt_d2.errors import UserError
from eomt_d2.evaluation import build_evaluator
from eomt_d2.solver import build_gradient_clipper, build_lr_scheduler, build_optimizer

from .failures import explained_failures, memory_advice
from .hooks import HostMemoryLogger, LearningRateLogger, MaskAnnealingHook, configured_windows
from .interruption import Interrupted, InterruptionHook, SignalWatch
from .saving import BestCheckpoint, PeriodicCheckpoint, has_finite_weights
from .scaling import scale_to_world_size
from .train_step import TrainStep

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains any model of Detectron2's registry by the recipes of this package.

    What differs from ``DefaultTrainer``: layer decay, two-stage schedule, clipping under mixed
    precision (fp16 with loss scaling or bf16), accumulation of gradients, mask annealing where the
    model has it, this package's data loaders, evaluators and checkpointer, and checkpoints that
    hold all that a resumed training needs, whatever the release of Detectron2: it continues as if
    it had not been interrupted. A signal (see :mod:`.interruption`) lets it save before it ends.

    Attributes:
        complete_iteration: the last one that is over, with the schedules; -1 before the first.

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
        self._seed = training_seed(cfg)
        self._signals = SignalWatch(_tell_of_signal)
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
            max_skipped_steps=cfg.SOLVER.MAX_SKIPPED_STEPS,
            received_signal=self._signals.received,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            allow_partial_vit=cfg.MODEL.VIT.ALLOW_PARTIAL_WEIGHTS,
            trainer=weakref.proxy(self),
        )
        self._best = None
        if cfg.TEST.BEST_METRIC:
            self._best = BestCheckpoint(self.checkpointer, cfg.TEST.BEST_METRIC)
        self.start_iter = 0
        self.complete_iteration = -1
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self._has_trainer_state = False
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint of OUTPUT_DIR, or start from MODEL.WEIGHTS.

        Args:
            resume: continue if there is a checkpoint.

        Raises:
            UserError: if the last checkpoint holds weights only, or see
                :meth:`~eomt_d2.checkpoint.Checkpointer.resume_or_load`.
        """
        if resume and comm.is_main_process() and "://" not in self.cfg.OUTPUT_DIR:
            for name in remove_leftovers(self.cfg.OUTPUT_DIR):
                logger.info("Removed %s, the rest of a checkpoint whose writing was cut.", name)
        super().resume_or_load(resume)
        path = self.checkpointer.last_path
        if not path:
            return
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
        self.complete_iteration = self.start_iter - 1
        if self._best is not None:
            self._best.resume()

    def train(self) -> dict[str, Any] | None:
        """Run the training.

        Returns:
            The results of the last evaluation, as :meth:`test` gives them, on the main process;
            None on the others, or if nothing was evaluated.

        Raises:
            UserError: what a hook, the data or the model raised; without Detectron2's traceback in
                the log.
            Interrupted: after a signal, when all is saved.
        """
        self._seek()
        loop_logger = logging.getLogger(TrainerBase.__module__)
        loop_logger.addFilter(_is_no_user_error)
        try:
            with self._signals.listening():
                try:
                    super().train()
                except Interrupted as interruption:
                    self._leave(interruption)
                    raise
        finally:
            loop_logger.removeFilter(_is_no_user_error)
        return getattr(self, "_last_eval_results", None) if comm.is_main_process() else None

    def _seek(self) -> None:
        """Let data and random numbers start where the training does."""
        self._trainer.seed = self._seed
        loader = self.data_loader
        if hasattr(loader, "seek"):
            loader.seek(self._seed, self.start_iter)
        if self.start_iter and not getattr(loader, "is_exact", False):
            logger.warning(
                "The training loader cannot start exactly at iteration %d, so the images come in "
                "another order than without the interruption (see docs/long_runs.md).",
                self.start_iter,
            )

    def run_step(self) -> None:
        advice = memory_advice(self.cfg)
        with explained_failures(self, f"in iteration {self.iter}", advice):
            super().run_step()

    def after_step(self) -> None:
        with explained_failures(self, f"after iteration {self.iter}"):
            super().after_step()

    def after_train(self) -> None:
        with explained_failures(self, "after the last iteration"):
            super().after_train()

    def save_complete_iteration(self) -> None:
        """Save the state after the last complete iteration, unless that is done or impossible."""
        iteration = self.complete_iteration
        name = numbered_name(iteration)
        saved = os.path.basename(self.checkpointer.last_path)
        is_saved = saved == name or (iteration + 1 == self.max_iter and saved == "model_final.pth")
        if iteration < self.start_iter or is_saved or self._trainer.is_updating:
            return
        if has_finite_weights(self.checkpointer.model):
            self.iter, current = iteration, self.iter
            self.checkpointer.save(name.removesuffix(".pth"), iteration=iteration)
            self.iter = current

    def last_checkpoint_text(self) -> str:
        """Which checkpoint --resume would continue from, as a part of a sentence."""
        path = self.checkpointer.last_path
        return f"the last good checkpoint is {path}" if path else "there is no checkpoint yet"

    def _leave(self, interruption: Interrupted) -> None:
        self._trainer.end_workers()
        if comm.is_main_process():
            self.save_complete_iteration()
        if interruption.by_all:
            # Whoever ended first would have the others ended too, before all is saved.
            comm.synchronize()
        logger.warning(
            "%s ended the training; %s, from which the same command continues with --resume.",
            interruption.name,
            self.last_checkpoint_text(),
        )

    @property
    def agreed_signal(self) -> int:
        """See :class:`~eomt_d2.engine.train_step.TrainStep`."""
        return self._trainer.agreed_signal

    @property
    def skipped_steps(self) -> int:
        """See :class:`~eomt_d2.engine.train_step.TrainStep`."""
        return self._trainer.skipped_steps

    def state_dict(self) -> dict[str, Any]:
        """Iteration, seed, schedule (in the hooks), optimizer and loss scaling."""
        state = {**super().state_dict(), "_trainer": self._trainer.state_dict()}
        return {**state, "seed": self._seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`, or as much of it as Detectron2 v0.6 saves.

        Raises:
            UserError: if the optimizer's state belongs to another model or optimizer.
        """
        # Detectron2 main's own version fails on checkpoints of v0.6.
        super(DefaultTrainer, self).load_state_dict(state_dict)
        self._has_trainer_state = True
        seed = state_dict.get("seed", self._seed)
        if self.cfg.SEED >= 0 and seed != self.cfg.SEED:
            logger.warning("SEED is %d, but the training goes on with its %d.", self.cfg.SEED, seed)
        self._seed = seed
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
        own: list[HookBase] = [LearningRateLogger(), HostMemoryLogger()]
        if self._mask_annealing is not None:
            windows = None
            if self._mask_annealing.enabled:
                windows = configured_windows(self.cfg, self._mask_annealing.num_blocks)
            power = self.cfg.MODEL.MASK_FORMER.MASK_ANNEALING.POWER
            own.append(MaskAnnealingHook(self._mask_annealing, windows, power))
        solver = self.cfg.SOLVER
        at_the_end = [
            InterruptionHook(),
            PeriodicCheckpoint(self.checkpointer, solver.CHECKPOINT_PERIOD, solver.CHECKPOINT_KEEP),
            EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate),
        ]
        hooks = [timer, *own]
        for hook in others:
            if isinstance(hook, EvalHook):
                hooks += at_the_end
            elif not isinstance(hook, PeriodicCheckpointer):
                hooks.append(hook)
        return hooks

    def _evaluate(self) -> dict[str, Any]:
        with self._signals.raising():
            try:
                self._last_eval_results = self.test(self.cfg, self.model)
            except Exception as error:
                # Other processes that the signal ended are missed before it is noticed here.
                if self._signals.received():
                    raise Interrupted(self._signals.received(), by_all=False) from error
                raise
        if self._best is not None:
            self._best.update(self._last_eval_results, min(self.iter, self.max_iter - 1))
        return self._last_eval_results

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
        """See :func:`eomt_d2.engine.scaling.scale_to_world_size`."""
        return scale_to_world_size(cfg, num_workers)


def _check_keys(cfg: CfgNode) -> None:
    # Filled in here, they would stand beside values for another package's network.
    missing = missing_keys(cfg)
    if missing:
        more = f" and {len(missing) - 1} more keys" if len(missing) > 1 else ""
        raise UserError(
            f"The config lacks {missing[0]}{more} of eomt_d2; call add_eomt_config after other "
            f"packages' functions that add keys (add_maskformer2_config replaces some)."
        )


def _tell_of_signal(signum: int) -> None:
    logger.warning(
        "%s: this iteration is finished and saved, then the training ends.",
        signal.Signals(signum).name,
    )


def _is_no_user_error(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], UserError))
