"""The checkpointer: safe reading, weights fitted to the model, strictness, atomic writing."""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from fvcore.common.checkpoint import _IncompatibleKeys as IncompatibleKeys
from torch import Tensor, nn

from eomt_d2.errors import UserError
from eomt_d2.modeling.backbone import ViT

from .file_reading import read_weights
from .vit_weights import fit_vit_weights

__all__ = ["Checkpointer"]

# In front of every name where DDP or torch.compile wrapped the model that was saved.
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
# Detectron2's way to ask for matching by similar names, at the end of a path.
HEURISTICS_QUERY = "?matching_heuristics=True"


class Checkpointer(DetectionCheckpointer):
    """Reads and writes weights and the state of a training.

    It reads checkpoints of its own, of Detectron2 and of Lightning, Detectron2's ``.pkl`` model
    zoo, and plain state dicts (``.pth``, ``.safetensors``): of the whole model, or of a ViT alone
    under timm's names, which goes into the model's ViT. No file can execute code. Position and
    patch embeddings are resampled to the model's sizes before shapes are compared.

    A ViT is loaded completely or not at all: a missing or misshapen tensor of it is an error, since
    training from a half-loaded backbone looks like training and is not. What a new task changes,
    such as the class head, keeps its initial values where shapes differ, and a line in the log says
    so. When a training resumes, everything must fit.

    Args:
        model: a model, wrapped by DDP or not.
        save_dir: where checkpoints are written.
        strict: refuse weights that leave any tensor of the model as initialised, as evaluation
            must.
        kwargs: see :class:`fvcore.common.checkpoint.Checkpointer`.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, strict: bool = False, **kwargs: Any
    ):
        super().__init__(model, save_dir, **kwargs)
        self._strict = strict
        self._resuming = False
        self._use_heuristics = False

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the last checkpoint of ``save_dir`` with all states, or else ``path``'s weights.

        Args:
            path: used if there is nothing to resume; "" leaves the model as initialised.
            resume: continue if there is a checkpoint.

        Returns:
            What the file holds beside weights and known states.

        Raises:
            UserError: see :meth:`load`; also where any tensor does not fit on resuming.
        """
        self._resuming = resume and self.has_checkpoint()
        try:
            return super().resume_or_load(path, resume=resume)
        finally:
            self._resuming = False

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load weights, and the states named by ``checkpointables`` (None: all).

        Every process of a run must call this.

        Raises:
            UserError: if the file is not safe to read or does not hold the whole ViT (the whole
                model if ``strict``); on all processes, if it does not exist for one of them.
        """
        self._use_heuristics = path.endswith(HEURISTICS_QUERY)
        path = path.removesuffix(HEURISTICS_QUERY)
        self._check_existence(path)
        if self._strict and not path:
            self.logger.warning(
                "MODEL.WEIGHTS is empty, so an untrained model with random weights is evaluated."
            )
        try:
            return super().load(path, checkpointables)
        finally:
            # Detectron2 main forgets this when loading fails, and would then refuse every other
            # file; v0.6 has no use for it.
            self._parsed_url_during_load = None

    def _check_existence(self, path: str) -> None:
        # A process that stopped alone would leave the others waiting for it.
        exists = not path or os.path.isfile(self.path_manager.get_local_path(path))
        ranks = comm.all_gather((path, exists))
        missing = [rank for rank, (_, exists) in enumerate(ranks) if not exists]
        if missing:
            wanted = ranks[missing[0]][0]
            where = "" if len(missing) == len(ranks) else f" on the machine of rank {missing[0]}"
            raise UserError(
                f"The weights {wanted} do not exist{where} (MODEL.WEIGHTS, or --resume)."
            )
        for rank, (other, _) in enumerate(ranks):
            if other != ranks[0][0]:
                raise UserError(
                    f"Rank 0 would load {ranks[0][0] or 'nothing'} and rank {rank} "
                    f"{other or 'nothing'}; to resume on several machines, OUTPUT_DIR must be a "
                    f"folder that they share."
                )

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<save_dir>/<name>.pth`` and the note which checkpoint is the last one.

        A file appears under its name only when it is complete, so an interruption never leaves a
        damaged checkpoint behind.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        if "://" in self.save_dir:
            super().save(name, **kwargs)
            return
        states = {key: object.state_dict() for key, object in self.checkpointables.items()}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        os.makedirs(self.save_dir, exist_ok=True)
        with _AtomicFile(path) as file:
            torch.save({"model": self.model.state_dict(), **states, **kwargs}, file)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write down which file ``--resume`` continues from."""
        if "://" in self.save_dir:
            super().tag_last_checkpoint(last_filename_basename)
            return
        with _AtomicFile(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = read_weights(filename)
        if filename.endswith(".pkl"):
            return self._as_zoo_checkpoint(content)
        if "model" not in content:
            # pycls and Lightning have keys of their own.
            weights = content.get("model_state", content.get("state_dict", content))
            content = {"model": weights}
        _check_state_dict(content["model"], filename)
        if self._use_heuristics:
            content["matching_heuristics"] = True
        return content

    @staticmethod
    def _as_zoo_checkpoint(content: dict[str, Any]) -> dict[str, Any]:
        """Detectron2's conventions for ``.pkl``: its own model zoo, or Caffe2's."""
        if "model" in content and "__author__" in content:
            return content
        blobs = content.get("blobs", content)
        weights = {name: blob for name, blob in blobs.items() if not name.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}

    def _load_model(self, checkpoint: dict[str, Any]) -> IncompatibleKeys:
        vits = {
            f"{name}." if name else "": module
            for name, module in self.model.named_modules()
            if isinstance(module, ViT)
        }
        weights = checkpoint["model"]
        self._convert_ndarray_to_tensor(weights)
        weights = _without_wrapper_prefixes(weights)
        if not checkpoint.get("matching_heuristics"):
            weights = _placed_in_vit(weights, vits)
            for prefix, vit in vits.items():
                for change in fit_vit_weights(weights, vit, prefix):
                    self.logger.info(change)
        checkpoint["model"] = weights
        self._check_vits(weights, vits)
        return super()._load_model(checkpoint)

    def _check_vits(self, weights: dict[str, Tensor], vits: dict[str, nn.Module]) -> None:
        for prefix, vit in vits.items():
            problems = []
            for name, tensor in vit.state_dict(prefix=prefix).items():
                if name not in weights:
                    problems.append(f"{name} is missing")
                elif weights[name].shape != tensor.shape:
                    problems.append(
                        f"{name} is {_shape(weights[name].shape)} instead of {_shape(tensor.shape)}"
                    )
            if problems:
                more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
                raise UserError(
                    f"The weights do not fit the ViT of the config: {'; '.join(problems[:3])}"
                    f"{more}."
                )

    def _log_incompatible_keys(self, incompatible: IncompatibleKeys) -> None:
        state = self.model.state_dict()
        misshapen = incompatible.incorrect_shapes
        missing = sorted(set(incompatible.missing_keys) - {name for name, *_ in misshapen})
        if self._resuming and (misshapen or missing):
            names = ", ".join([*(name for name, *_ in misshapen), *missing][:5])
            raise UserError(
                f"The checkpoint to resume from does not fit the model of the config, for example "
                f"{names}; resume with the config of the interrupted training."
            )
        if self._strict:
            # Only training uses this counter of batch normalisation, and older files lack it.
            absent = [name for name in missing if not name.endswith(".num_batches_tracked")]
            self._refuse_to_start_anew(misshapen, absent)
        loaded = len(state) - len(misshapen) - len(missing)
        self.logger.info("Loaded %d of the model's %d tensors.", loaded, len(state))
        for name, found, wanted in misshapen:
            self.logger.warning(
                "%s starts anew: it is %s in the file and %s in the model.",
                name,
                _shape(found),
                _shape(wanted),
            )
        if missing:
            self.logger.warning("Not in the file, so they start anew: %s", _summary(missing))
        if incompatible.unexpected_keys:
            self.logger.warning(
                "Not in the model, so not used: %s", _summary(incompatible.unexpected_keys)
            )

    def _refuse_to_start_anew(
        self, misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]], missing: list[str]
    ) -> None:
        problems = [
            f"{name} is {_shape(found)} in the file and {_shape(wanted)} in the model"
            for name, found, wanted in misshapen
        ] + [f"{name} is not in the file" for name in missing]
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise UserError(
                f"The weights do not fit the model to be evaluated: {'; '.join(problems[:3])}{more}"
                f"; give the config of their training (for example its NUM_CLASSES) and weights of "
                f"the whole trained model, not of a backbone alone."
            )


class _AtomicFile:
    """Opens a temporary file beside ``path``, which takes its place when all went well."""

    def __init__(self, path: str):
        self._path = path
        self._temporary = f"{path}.{os.getpid()}.tmp"

    def __enter__(self):
        self._file = open(self._temporary, "wb")
        return self._file

    def __exit__(self, error_type, error, traceback) -> None:
        if error_type is None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        if error_type is None:
            os.replace(self._temporary, self._path)
        else:
            os.remove(self._temporary)


def _check_state_dict(weights: Any, filename: str) -> None:
    if not isinstance(weights, dict):
        raise UserError(f"{filename} holds a {type(weights).__name__} in place of a state dict.")
    for name, value in weights.items():
        if not isinstance(name, str):
            raise UserError(
                f"{filename} holds no plain state dict: its entry {name!r} has a "
                f"{type(name).__name__} for a name; save the model's state_dict() alone."
            )
        if not isinstance(value, Tensor | np.ndarray):
            raise UserError(
                f"{filename} holds no plain state dict: its entry {name!r} is a "
                f"{type(value).__name__} and no tensor; save the model's state_dict() alone."
            )


def _without_wrapper_prefixes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in WRAPPER_PREFIXES:
        if weights and all(name.startswith(prefix) for name in weights):
            return _without_wrapper_prefixes({k[len(prefix) :]: v for k, v in weights.items()})
    return weights


def _placed_in_vit(weights: dict[str, Tensor], vits: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Put the prefix of the model's ViT in front of the weights of a ViT alone."""
    is_plain_vit = "patch_embed.proj.weight" in weights and "blocks.0.norm1.weight" in weights
    if not is_plain_vit or len(vits) != 1:
        return weights
    (prefix,) = vits
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _summary(names: list[str]) -> str:
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
