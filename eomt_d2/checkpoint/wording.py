"""Shapes and names of tensors in messages."""

from collections.abc import Iterable

__all__ = ["shape_text", "summary"]


def shape_text(shape: Iterable[int]) -> str:
    """A shape for messages: ``3x16``."""
    return "x".join(map(str, shape)) or "a scalar"


def summary(names: Iterable[str]) -> str:
    """Names with what they share said once: ``class_head.{bias, weight}, query_embed.weight``."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        module, _, leaf = name.rpartition(".")
        groups.setdefault(module, []).append(leaf)
    texts = [
        leaves[0] if len(leaves) == 1 else f"{{{', '.join(leaves)}}}" for leaves in groups.values()
    ]
    return ", ".join(
        f"{module}.{text}".lstrip(".") for module, text in zip(groups, texts, strict=True)
    )
