"""Renaming the tensors of a state dict by a table of rules that can be read in both directions."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Rule", "is_any_of", "read_by_rules", "rule", "write_by_rules"]


class Rule(NamedTuple):
    """Tensors of one naming scheme that are a tensor, or several, of another.

    In a name, ``*`` stands for one component between dots and ``**`` for any number of them; the
    n-th star means the same on both sides and in every name of the rule.

    Attributes:
        theirs: names whose tensors are concatenated along the first dimension.
        ours: names that get equal parts of the result, in order; None for a part that is dropped.
        batch_dim: our tensor has a first dimension of size 1 that theirs lacks.
    """

    theirs: tuple[str, ...]
    ours: tuple[str | None, ...]
    batch_dim: bool = False


def rule(
    theirs: str | Sequence[str], ours: str | Sequence[str | None], batch_dim: bool = False
) -> Rule:
    """A :class:`Rule`, where a single name may be given without a tuple around it."""
    return Rule(
        (theirs,) if isinstance(theirs, str) else tuple(theirs),
        (ours,) if isinstance(ours, str) else tuple(ours),
        batch_dim,
    )


def read_by_rules(
    weights: dict[str, Tensor], rules: Iterable[Rule]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rename another project's tensors to ours.

    Of several rules for a name, the first one whose tensors are all present takes it.

    Args:
        weights: by their names.
        rules: in order of precedence.

    Returns:
        The tensors that a rule took, by our names, and those that none took, by theirs.

    Raises:
        ValueError: if two tensors would get the same name, or cannot be joined or split.
    """
    converted: dict[str, Tensor] = {}
    rest = dict(weights)
    for theirs, ours, batch_dim in rules:
        for stars in _occurrences(theirs, rest):
            parts = _regroup([rest.pop(_fill(name, stars)) for name in theirs], len(ours))
            for name, part in zip(ours, parts, strict=True):
                if name is None:
                    continue
                name = _fill(name, stars)
                if name in converted:
                    raise ValueError(f"Two tensors would be called {name}.")
                converted[name] = part[None] if batch_dim else part
    return converted, rest


def write_by_rules(
    weights: dict[str, Tensor], rules: Iterable[Rule]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inverse of :func:`read_by_rules`, for rules that drop nothing.

    Args:
        weights: by our names.
        rules: in order of precedence; each has one name of ours, or one of theirs.

    Returns:
        The tensors that a rule took, by their names, and those that none took, by ours.
    """
    converted: dict[str, Tensor] = {}
    rest = dict(weights)
    for theirs, ours, batch_dim in rules:
        for stars in _occurrences(ours, rest):
            tensors = [rest.pop(_fill(name, stars)) for name in ours]
            if batch_dim:
                tensors = [tensor[0] for tensor in tensors]
            parts = _regroup(tensors, len(theirs))
            for name, part in zip(theirs, parts, strict=True):
                converted[_fill(name, stars)] = part
    return converted, rest


def is_any_of(name: str, templates: Iterable[str]) -> bool:
    """Whether a name is one of some names with stars."""
    return any(re.fullmatch(_pattern(template), name) for template in templates)


def _occurrences(templates: Sequence[str | None], weights: dict[str, Tensor]) -> list[list[str]]:
    """What the stars stand for, wherever all names of a rule are present."""
    pattern = re.compile(_pattern(templates[0]))
    matches = (pattern.fullmatch(name) for name in weights)
    stars = [list(match.groups()) for match in matches if match]
    return [s for s in stars if all(_fill(name, s) in weights for name in templates)]


def _pattern(template: str) -> str:
    parts = re.split(r"(\*\*?)", template)
    kinds = {"*": r"([^.]+)", "**": r"(.+)"}
    return "".join(kinds.get(part, re.escape(part)) for part in parts)


def _fill(template: str, stars: Sequence[str]) -> str:
    values = iter(stars)
    return re.sub(r"\*\*?", lambda _: next(values), template)


def _regroup(tensors: list[Tensor], count: int) -> list[Tensor]:
    """Concatenate tensors along the first dimension and cut the result into equal parts."""
    if len(tensors) == count:
        return tensors
    if len({tensor.shape[1:] for tensor in tensors}) > 1 or tensors[0].dim() == 0:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(f"Tensors of shapes {shapes} cannot be joined.")
    joined = torch.cat(tensors)
    if len(joined) % count:
        raise ValueError(f"{len(joined)} rows cannot be split into {count} equal parts.")
    return [part.contiguous() for part in joined.chunk(count)]
