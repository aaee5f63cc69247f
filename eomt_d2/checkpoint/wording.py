"""Shapes and names of tensors in messages."""

import itertools
from collections import Counter
from collections.abc import Iterable

__all__ = ["shape_text", "summary"]


def shape_text(shape: Iterable[int]) -> str:
    """A shape for messages: ``3x16``."""
    return "x".join(map(str, shape)) or "a scalar"


def summary(names: Iterable[str], among: Iterable[str]) -> str:
    """Names of tensors for a message, a module in place of all of its tensors.

    Args:
        names: to be listed.
        among: all names there are; a module is named where every name of it is to be listed.

    Returns:
        Sorted names, for example ``backbone.neck, class_head, decoder.norm.bias``.
    """
    names = set(names)
    listed = Counter(part for name in names for part in _prefixes(name))
    existing = Counter(part for name in names.union(among) for part in _prefixes(name))
    shortest = {
        next(part for part in _prefixes(name) if listed[part] == existing[part]) for name in names
    }
    return ", ".join(sorted(shortest))


def _prefixes(name: str) -> list[str]:
    """``a``, ``a.b`` and ``a.b.c`` of ``a.b.c``."""
    return list(itertools.accumulate(name.split("."), lambda front, part: f"{front}.{part}"))
