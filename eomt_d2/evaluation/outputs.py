"""What evaluators read from a model's result for one image."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eomt_d2.errors import UserError

__all__ = ["required_output", "semantic_labels_of"]

_FLAGS = {
    "panoptic_seg": "PANOPTIC_ON",
    "instances": "INSTANCE_ON",
    "sem_seg": "SEMANTIC_ON",
}


def required_output(output: Mapping[str, Any], key: str, dataset_name: str) -> Any:
    """Return ``output[key]``.

    Raises:
        UserError: the model did not produce this kind of result; the message names the
            configuration key that switches it on.
    """
    if key not in output:
        raise UserError(
            f"Evaluating {dataset_name} needs '{key}', but the model returned "
            f"{sorted(output) or 'nothing'}: set MODEL.MASK_FORMER.TEST.{_FLAGS[key]} to True."
        )
    return output[key]


def semantic_labels_of(output: Mapping[str, Any], num_classes: int, dataset_name: str) -> Tensor:
    """Read a semantic result in either form that ``TEST.SEMANTIC_OUTPUT`` selects.

    Args:
        output: holds ``sem_seg`` (K, height, width) scores or ``sem_seg_labels`` (height, width).
        num_classes: K, the number of classes of the data set.
        dataset_name: for messages.

    Returns:
        (height, width) int64 on the CPU, class indices in [0, K).

    Raises:
        UserError: no semantic result, or one for another number of classes.
    """
    if "sem_seg_labels" in output:
        labels = output["sem_seg_labels"].to(device="cpu", dtype=torch.int64)
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise UserError(
                f"The model predicts classes {int(labels.min())}..{int(labels.max())}, but "
                f"{dataset_name} has {num_classes} semantic classes: set "
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES to {num_classes}."
            )
        return labels
    scores = required_output(output, "sem_seg", dataset_name)
    if scores.shape[0] != num_classes:
        raise UserError(
            f"The model predicts {scores.shape[0]} classes, but {dataset_name} has {num_classes} "
            f"semantic classes: set MODEL.SEM_SEG_HEAD.NUM_CLASSES to {num_classes}."
        )
    return scores.argmax(dim=0).cpu()
