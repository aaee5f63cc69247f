"""Values by themselves: their choices, ranges and the names they may have."""

import difflib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, get_cfg

from eomt_d2.config import add_eomt_config, config_keys

__all__ = ["either", "empty_values", "nearest", "outside_choices", "outside_ranges", "value_of"]


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of a key given in full."""
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def empty_values(cfg: CfgNode) -> Iterator[str]:
    """Sentences about keys that were left empty, which a config takes for a value of any kind."""
    defaults = get_cfg()
    add_eomt_config(defaults)
    present = set(config_keys(cfg))
    for key in config_keys(defaults):
        default = value_of(defaults, key)
        if key in present and value_of(cfg, key) is None and default is not None:
            yield f"{key} is empty; give it a value, such as the default {default!r}."


def outside_choices(cfg: CfgNode, choices: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Sentences about the keys whose value is not among those allowed."""
    for key, allowed in choices.items():
        if value_of(cfg, key) not in allowed:
            yield f"{key} is {value_of(cfg, key)!r}; it must be {either(allowed)}."


def outside_ranges(cfg: CfgNode, ranges: Sequence[tuple]) -> Iterator[str]:
    """Sentences about the numbers of (key, smallest, largest or None) that lie outside."""
    for key, low, high in ranges:
        value = value_of(cfg, key)
        largest = sys.float_info.max if high is None else high
        # NaN compares with nothing.
        if not low <= value <= largest:
            allowed = f"at least {low}" if high is None else f"between {low} and {high}"
            if high is None and value > largest:
                allowed += " and finite"
            yield f"{key} is {str(value):.40}; it must be {allowed}."


def nearest(name: Any, known: Sequence[str]) -> str:
    """What follows a name that is unknown: "; the nearest one is X", or nothing."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"; the nearest one is {near[0]}" if near else ""


def either(names: tuple[str, ...]) -> str:
    """What may be chosen from: 'a', 'b' or 'c'."""
    return " or ".join((", ".join(map(repr, names[:-1])), repr(names[-1])))
