"""What a new task changes in a trained model: the number of classes, the number of queries."""

import re

from torch import Tensor

from .wording import shape_text

__all__ = ["Misshapen", "anew", "fit_queries"]

Misshapen = tuple[str, tuple[int, ...], tuple[int, ...]]
"""Name, shape in the file and shape in the model of a tensor whose shapes differ."""

_CLASS_HEAD = re.compile(r"((?:.*\.)?class_head)\.(weight|bias)")
_QUERIES = re.compile(r"(?:.*\.)?query_\w+\.weight")


def fit_queries(weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """Fit the queries to a model with another number of them, in place.

    Of too many the first ones are used; too few are repeated, in order, until they are enough.

    Args:
        weights: by our names.
        wanted: the model's state dict.

    Returns:
        A line for each tensor that was changed.
    """
    changes = []
    for name in sorted(filter(_QUERIES.fullmatch, weights.keys() & wanted.keys())):
        old, new = weights[name], wanted[name]
        fits = old.dim() == 2 and len(old) > 0 and old.shape[1] == new.shape[1]
        if not fits or len(old) == len(new):
            continue
        weights[name] = old.repeat(-(-len(new) // len(old)), 1)[: len(new)]
        how = "the first ones are used" if len(old) > len(new) else "they are repeated"
        changes.append(f"{name}: {len(old)} queries in the file, {len(new)} in the model; {how}")
    return changes


def anew(misshapen: list[Misshapen]) -> list[str]:
    """A line for each class head, and each other tensor, that the file cannot fill.

    Args:
        misshapen: tensors that keep their initial values.
    """
    lines = []
    for name, found, wanted in misshapen:
        head = _CLASS_HEAD.fullmatch(name)
        if head is None:
            shapes = f"it is {shape_text(found)} in the file and {shape_text(wanted)} in the model"
            lines.append(f"{name} starts anew: {shapes}")
        elif head[2] == "weight":
            # The last class is "no object".
            classes = f"{found[0] - 1} classes in the file, {wanted[0] - 1} in the model"
            lines.append(f"{head[1]} starts anew: {classes}")
    return lines
