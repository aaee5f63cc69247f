"""From what MODEL.WEIGHTS may say to a file on this machine: paths, folders, URLs, ``hf://``."""

import os
from collections.abc import Callable
from typing import Any
from urllib.error import URLError

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from iopath.common.file_io import PathHandler, PathManager

from eomt_d2.errors import UserError

from .file_reading import shards_of

__all__ = ["WEIGHT_FILES", "HubHandler", "local_file", "register_hub"]

# Files that a folder or a repository of weights may hold, the best one first.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class HubHandler(PathHandler):
    """Resolves ``hf://org/name`` to a file of that repository, downloaded once.

    ``hf://org/name@revision`` takes a branch, tag or commit, ``hf://org/name/path/file`` one
    certain file; otherwise it is the first of :data:`WEIGHT_FILES` that the repository has, and all
    parts of a split one. The hub's own environment variables apply: ``HF_HOME`` (cache),
    ``HF_TOKEN`` (for gated repositories), ``HF_ENDPOINT`` (a mirror), ``HF_HUB_OFFLINE``.
    """

    PREFIX = "hf://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        repository, revision, file = self._split(path)

        def download(name: str) -> str:
            return hf_hub_download(
                repository,
                name,
                revision=revision,
                endpoint=os.environ.get("HF_ENDPOINT"),
                force_download=force,
            )

        try:
            return download(file) if file else _download_first(download)
        except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
            raise UserError(f"{path} {_reason(error, file)}.") from error

    def _split(self, path: str) -> tuple[str, str | None, str]:
        parts = path.removeprefix(self.PREFIX).split("/", 2)
        if len(parts) < 2 or not all(parts[:2]):
            raise UserError(
                f"{path} is no address of the form hf://org/name or hf://org/name/file."
            )
        name, _, revision = parts[1].partition("@")
        return f"{parts[0]}/{name}", revision or None, parts[2] if len(parts) > 2 else ""

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return os.path.isfile(self._get_local_path(path))

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return self._isfile(path)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any):
        if "w" in mode or "a" in mode:
            raise UserError(f"{path} can only be read.")
        return open(self._get_local_path(path), mode, buffering)


def register_hub(path_manager: PathManager) -> None:
    """Let a path manager resolve ``hf://``, unless somebody already does."""
    try:
        path_manager.register_handler(HubHandler(), allow_override=False)
    except KeyError:
        return  # iopath's way to say that the prefix is taken


def local_file(path: str, path_manager: PathManager) -> str:
    """The weight file on this machine that ``path`` means.

    Args:
        path: a file, a folder with one of :data:`WEIGHT_FILES`, a URL, ``hf://...``, or anything
            else that ``path_manager`` knows.

    Raises:
        UserError: if there is no such file or it cannot be downloaded.
    """
    try:
        local = path_manager.get_local_path(path)
    except UserError:
        raise
    except (URLError, OSError, ValueError) as error:
        raise UserError(
            f"The weights {path} could not be downloaded ({_first_line(error)})"
        ) from error
    if os.path.isdir(local):
        for name in WEIGHT_FILES:
            if os.path.isfile(os.path.join(local, name)):
                return os.path.join(local, name)
        raise UserError(
            f"The folder {path} (MODEL.WEIGHTS) holds none of {', '.join(WEIGHT_FILES)}; name the "
            "weight file itself."
        )
    if not os.path.isfile(local):
        raise UserError(f"The weights {path} do not exist (MODEL.WEIGHTS, or --resume).")
    return local


def _download_first(download: Callable[[str], str]) -> str:
    """The first of the usual files that exists, with all of its parts."""
    for name in WEIGHT_FILES[:-1]:
        try:
            return _with_shards(download(name), download)
        except EntryNotFoundError:  # there, or without a network in the cache
            continue
    return _with_shards(download(WEIGHT_FILES[-1]), download)


def _with_shards(file: str, download: Callable[[str], str]) -> str:
    if file.endswith(".index.json"):
        for shard in shards_of(file):
            download(os.path.basename(shard))
    return file


def _reason(error: Exception, file: str) -> str:
    """What went wrong at the hub, and what to do; continues a sentence."""
    if isinstance(error, LocalEntryNotFoundError):
        return "is not in the cache, and the hub cannot be reached"
    if isinstance(error, GatedRepoError):
        return (
            "is only for users who accepted its licence: do so on the page of the repository and "
            "set HF_TOKEN to a token of yours"
        )
    if isinstance(error, RepositoryNotFoundError):
        return "does not exist on the hub, or is private and HF_TOKEN does not open it"
    if isinstance(error, EntryNotFoundError):
        return f"does not hold {file or 'any of ' + ', '.join(WEIGHT_FILES)}"
    return f"could not be downloaded ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
