"""From a model's config to what is measured."""

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from eomt_d2.analysis import masked_when_finished
from eomt_d2.errors import UserError
from eomt_d2.modeling import EoMT

from .inputs import test_inputs, training_inputs
from .plan import Model, Point, Settings, at_point, precision_of, uncompiled
from .steps import InferenceStep, TrainingStep
from .transformers_eomt import Agreement, TransformersEoMT, compare_networks, transformers_batch

__all__ = ["build_network", "build_step"]

_NOISE = 0.1


def build_step(
    model: Model, point: Point, settings: Settings
) -> tuple[InferenceStep | TrainingStep, Agreement | None]:
    """Build a model with its inputs.

    Returns:
        What is measured, and for transformers' network how well it agrees with ours.

    Raises:
        UserError: if the model refuses a value of its config, or transformers cannot build it.
    """
    cfg = at_point(model.cfg, point)
    training = settings.mode == "train"
    agreement = None
    network: nn.Module
    if model.transformers:
        network, agreement = _transformers_network(cfg, point, settings)
    else:
        network = build_network(cfg, settings)
    network.train(training)
    if not training:
        inputs = _test_inputs(cfg, point)
        step = InferenceStep(
            network, inputs, num_active=settings.active_queries, precision=precision_of(cfg)
        )
        return step, agreement
    batch = training_inputs(cfg, point.batch, settings.segments)
    if model.transformers:
        batch = transformers_batch(batch)
    # transformers calls its criterion for each prediction, after all of them are made.
    criterion = network.get_submodule("network.criterion" if model.transformers else "criterion")
    return TrainingStep(network, criterion, batch, cfg, precision_of(cfg)), agreement


def build_network(cfg: CfgNode, settings: Settings) -> nn.Module:
    """The network of a config in evaluation mode, with the same random weights every time.

    MODEL.WEIGHTS is not read: what the weights are does not change how long anything takes. For
    inference masked attention is as in the finished model, unless the settings say otherwise.

    Raises:
        UserError: if the model refuses a value.
    """
    torch.manual_seed(0)
    try:
        model = build_model(cfg)
    except ValueError as error:
        raise UserError(str(error)) from error
    # Fresh biases are zeros, and fresh LayerScale hides what a block does: two networks could
    # agree without being the same.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(_NOISE * torch.randn_like(parameter))
    if settings.mode == "infer":
        masked = True if settings.masked else masked_when_finished(cfg, model)
        if masked is not None:
            annealing = model.mask_annealing
            annealing.set_probs([float(masked)] * annealing.num_blocks)
    return model.eval()


def _transformers_network(
    cfg: CfgNode, point: Point, settings: Settings
) -> tuple[TransformersEoMT, Agreement]:
    ours = build_network(uncompiled(cfg), settings)
    theirs = TransformersEoMT(ours, settings.compile)
    assert isinstance(ours, EoMT)  # or transformers would have had none
    images = [x["image"] for x in _test_inputs(cfg, point)]
    return theirs, compare_networks(ours, theirs, images)


def _test_inputs(cfg: CfgNode, point: Point) -> list[dict]:
    side = cfg.INPUT.IMAGE_SIZE
    return test_inputs(cfg, point.batch, point.original_size or (side, side))
