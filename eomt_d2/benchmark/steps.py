"""What is measured: one call for results, and one step of training, with a stopwatch inside."""

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from eomt_d2.engine.train_step import PRECISIONS, TrainStep
from eomt_d2.modeling.structures import MaskPrediction
from eomt_d2.solver import build_gradient_clipper, build_optimizer

from .scene import Scene
from .timing import Stopwatch

__all__ = ["InferenceStep", "TrainingStep", "autocast", "observe_predict"]


def autocast(device: str, precision: str) -> AbstractContextManager:
    """PyTorch's mixed precision; for "float32" nothing."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device.partition(":")[0], dtype, enabled=dtype != torch.float32)


def observe_predict(model: nn.Module, around: Callable[..., list[MaskPrediction]]) -> None:
    """Have ``around(predict, images, ...)`` called instead of the model's ``predict(images, ...)``.

    That of the instance, where it was compiled in place, as well as that of the class, which a
    model may prefer for some inputs.
    """
    network = type(model)
    if "predict" in vars(model):
        vars(model)["predict"] = partial(around, vars(model)["predict"])

    def of_class(self, *args, **kwargs):
        return around(partial(network.predict, self), *args, **kwargs)

    model.__class__ = type(network.__name__, (network,), {"predict": of_class})


class InferenceStep:
    """Images on the device to results at the original resolution, by ``model(inputs)``.

    Phases: ``preparation`` (padding, normalisation), ``network`` (``model.predict``) and
    ``post-processing``, whose input is the scene instead of what the network gave.

    Args:
        model: in evaluation mode; its ``predict`` is wrapped.
        inputs: see :func:`~eomt_d2.benchmark.inputs.test_inputs`.
        num_active: of the scene, see :class:`Scene`.
        precision: "float32", or what the network is autocast to.
    """

    def __init__(
        self, model: nn.Module, inputs: list[dict], *, num_active: int, precision: str
    ) -> None:
        self.model, self.inputs = model, inputs
        # (N, 3, H, W) that the network was given last; N may be windows and not images.
        self.network_input: torch.Size | None = None
        self._num_active, self._precision = num_active, precision
        self._device = str(inputs[0]["image"].device)
        self._scene: Scene | None = None
        self._held: MaskPrediction | None = None
        observe_predict(model, self._watched_predict)

    @torch.no_grad()
    def __call__(self, watch: Stopwatch) -> list[dict]:
        self._watch = watch
        results = self.model(self.inputs)
        self._held = None
        watch.lap("post-processing")
        return results

    def _watched_predict(
        self, predict: Callable[..., list[MaskPrediction]], images: Tensor, **kwargs
    ) -> list[MaskPrediction]:
        self._watch.lap("preparation")
        with autocast(self._device, self._precision):
            prediction = predict(images, **kwargs)[-1]
        self._watch.lap("network")
        # Post-processing would hold it; of the scene the memory is not counted.
        self._held = prediction
        self.network_input = images.shape
        if self._scene is None:
            self._scene = Scene(
                self._num_active, prediction.class_logits.shape[-1] - 1, self._extent(images)
            )
        return [self._scene.replace(prediction)]

    def _extent(self, images: Tensor) -> tuple[float, float]:
        height, width = (
            min(1.0, side / padded)
            for side, padded in zip(
                self.inputs[0]["image"].shape[-2:], images.shape[-2:], strict=True
            )
        )
        return height, width


class TrainingStep:
    """One iteration as the trainer does it, :class:`~eomt_d2.engine.train_step.TrainStep` itself.

    Phases: ``forward`` (preparation and network), ``loss`` (matching included), ``backward``,
    ``optimizer`` (clipping, update and the metrics, for which the host waits for the device).

    Args:
        model: in training mode.
        criterion: the module inside it that makes the losses; with its first call ``forward`` ends.
        batch: see :func:`~eomt_d2.benchmark.inputs.training_inputs`.
        cfg: optimizer and clipping; gradients are not accumulated.
        precision: see :class:`~eomt_d2.engine.train_step.TrainStep`.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        batch: list[dict],
        cfg: CfgNode,
        precision: str,
    ) -> None:
        self.model, self.inputs = model, batch
        self.optimizer = build_optimizer(cfg, model)
        self._clip = build_gradient_clipper(cfg)
        self._step = TrainStep(
            model,
            itertools.repeat(batch),
            self.optimizer,
            clip_gradients=self._watched_clip,
            precision=precision,
        )
        self._forward_ends = False
        criterion.register_forward_pre_hook(_uncompiled(self._end_forward))
        model.register_forward_hook(lambda *_: self._watch.lap("loss"))

    def __call__(self, watch: Stopwatch) -> None:
        self._watch, self._forward_ends = watch, True
        with EventStorage():
            self._step.run_step()
        watch.lap("optimizer")

    def _end_forward(self, *_) -> None:
        if self._forward_ends:
            self._watch.lap("forward")
            self._forward_ends = False

    def _watched_clip(self, parameters) -> Tensor:
        self._watch.lap("backward")
        return self._clip(parameters)


def _uncompiled(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that ``torch.compile`` leaves alone, inside of a network that is compiled."""
    return torch.compiler.disable(hook)
