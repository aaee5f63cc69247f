"""What a config file may hold, looked at before Detectron2 merges it.

A config may come from anywhere. Only plain YAML is read, never the tags that call Python; here
also the shapes are refused that would make reading it endless, and what YAML would silently
overlook.
"""

import os
from collections.abc import Iterator
from typing import Any

import yaml
from detectron2.utils.file_io import PathManager
from fvcore.common.config import BASE_KEY

from eomt_d2.errors import UserError

__all__ = ["check_config_file"]

MAX_BYTES = 1 << 18
# Values after every alias (*name) has been replaced by what it stands for.
MAX_VALUES = 100_000


def check_config_file(path: str, _seen: tuple[str, ...] = ()) -> None:
    """Check a config file and the files that it is based on.

    Args:
        path: of the file; what its ``_BASE_`` names starts at its folder.

    Raises:
        UserError: a file cannot be read or is longer than a config can be; it is no plain YAML or
            no mapping of keys; it names a key twice, is nested too deeply, or grows too large by
            its aliases; ``_BASE_`` is no path of a file, or leads back to the file itself.
    """
    if path in _seen:
        raise UserError(
            f"The config file {path} is based on itself ({' -> '.join((*_seen, path))}); remove "
            f"one {BASE_KEY}."
        )
    for base in _bases(_read(path), path):
        check_config_file(base, (*_seen, path))


def _read(path: str) -> dict[str, Any]:
    try:
        with PathManager.open(path, "r") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise UserError(f"The config file {path} is longer than {MAX_BYTES} bytes.")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _count_values(node, path, {}, ())
        content = yaml.safe_load(text)
    except OSError as error:
        raise UserError(
            f"The config file {error.filename or path} cannot be read: {error.strerror}."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"The config file {path} is no text: {error}.") from error
    except UserError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise UserError(f"The config file {path} is no plain YAML: {_problem(error)}.") from error
    except RecursionError as error:
        raise UserError(f"The config file {path} is nested too deeply.") from error
    if not isinstance(content, dict):
        what = "empty" if content is None else f"a {type(content).__name__}"
        raise UserError(f"The config file {path} is {what}; it has to be a mapping of keys.")
    return content


def _problem(error: Exception) -> str:
    # Without the lines that PyYAML quotes: a file that was named by another one may be private.
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} (line {error.problem_mark.line + 1})"
    return " ".join(str(error).split())


def _count_values(
    node: yaml.Node, path: str, counts: dict[int, int], above: tuple[int, ...]
) -> int:
    """Values below a node, aliases replaced; each node of the file is visited once."""
    if id(node) in above:
        raise UserError(
            f"The config file {path} has a value inside of itself (line {_line(node)})."
        )
    if id(node) not in counts:
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, path)
            children = [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        inner = (*above, id(node))
        counts[id(node)] = 1 + sum(_count_values(c, path, counts, inner) for c in children)
        if counts[id(node)] > MAX_VALUES:
            raise UserError(
                f"The config file {path} has more than {MAX_VALUES} values once its aliases are "
                f"replaced (line {_line(node)})."
            )
    return counts[id(node)]


def _check_keys(node: yaml.MappingNode, path: str) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        # "<<" merges what an alias stands for.
        if not key.tag.endswith((":str", ":merge")):
            raise UserError(
                f"The config file {path} has a key that is no name (line {_line(key)})."
            )
        name = key.value
        if name in seen:
            raise UserError(
                f"The config file {path} has the key {name} twice in one place (line "
                f"{_line(key)}); only the last one would count, so remove one of them."
            )
        seen.add(name)


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _bases(content: dict[str, Any], path: str) -> Iterator[str]:
    named = content.get(BASE_KEY, [])
    for base in named if isinstance(named, list) else [named]:
        if not isinstance(base, str) or not base:
            raise UserError(
                f"{BASE_KEY} in the config file {path} is {base!r:.60}; it has to be the path of "
                "another config file, or a list of them."
            )
        if "://" in base:
            raise UserError(
                f"{BASE_KEY} in the config file {path} is the address {base:.200}; nothing is "
                "downloaded for a config, so save that file and give its path."
            )
        yield os.path.join(os.path.dirname(path), os.path.expanduser(base))
