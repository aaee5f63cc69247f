"""The checkpointer: safe reading, weights fitted to the model, strictness, atomic writing."""

import os
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from fvcore.common.checkpoint import _IncompatibleKeys as IncompatibleKeys
from torch import nn

from eomt_d2.errors import UserError

from .addresses import local_file, register_hub
from .atomic_file import AtomicFile
from .file_reading import read_weights, state_dict_of
from .fitting import check_vits, fit_to_model
from .heads import anew
from .numbering import iteration_of, numbered_names
from .resuming import check_same_path, newest_readable
from .sources import rename_to_ours
from .wording import shape_text, summary

__all__ = ["Checkpointer"]

# Detectron2's way to ask for matching by similar names, at the end of a path.
HEURISTICS_QUERY = "?matching_heuristics=True"


class Checkpointer(DetectionCheckpointer):
    """Reads and writes weights and the state of a training.

    It reads checkpoints of its own, of Detectron2 and of Lightning, Detectron2's ``.pkl`` model
    zoo, folders of transformers, and plain state dicts (``.pth``, ``.bin``, ``.safetensors``): of a
    whole model, or of a ViT alone, which goes into the model's ViT. Names of the projects in
    :mod:`.sources` are translated. No file can execute code. Position and patch embeddings are
    resampled to the model's sizes before shapes are compared. Besides a path, weights can have a
    URL or an address ``hf://org/name``, see :mod:`.addresses`.

    A ViT is loaded completely or not at all: a missing or misshapen tensor of it is an error, since
    training from a half-loaded backbone looks like training and is not. What a new task changes
    starts anew (the class head) or is fitted (the queries), and a line in the log says so. When a
    training resumes, everything must fit.

    Attributes:
        last_path: the checkpoint that was saved last, by the main process for all, or that a
            training resumed from; "" if none.

    Args:
        model: a model, wrapped by DDP or not.
        save_dir: where checkpoints are written.
        strict: refuse weights that leave any tensor of the model as initialised, as evaluation
            must.
        allow_partial_vit: accept weights that leave a part of a ViT as initialised.
        kwargs: see :class:`fvcore.common.checkpoint.Checkpointer`.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        strict: bool = False,
        allow_partial_vit: bool = False,
        **kwargs: Any,
    ):
        super().__init__(model, save_dir, **kwargs)
        register_hub(self.path_manager)
        self._strict = strict
        self._allow_partial_vit = allow_partial_vit
        self._resuming = False
        self._use_heuristics = False
        # What a file holds that was read to see whether it can be.
        self._content_read: dict[str, Any] | None = None
        self.last_path = ""

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the last checkpoint of ``save_dir`` with all states, or else ``path``'s weights.

        If the last checkpoint is damaged, the newest one before it is taken, and a warning says so.
        Every process of a run must call this.

        Args:
            path: used if there is nothing to resume; "" leaves the model as initialised.
            resume: continue if there is a checkpoint.

        Returns:
            What the file holds beside weights and known states.

        Raises:
            UserError: see :meth:`load`; also if no checkpoint can be read, or where any tensor does
                not fit on resuming.
        """
        if not (resume and self.has_checkpoint()):
            return self.load(path, checkpointables=[])
        self._resuming = True
        try:
            last_path = self.get_checkpoint_file()
            if "://" not in self.save_dir:
                last_path, self._content_read = newest_readable(self.save_dir, last_path)
            rest = self.load(last_path)
        finally:
            self._resuming = False
            self._content_read = None
        self.last_path = last_path
        return rest

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load weights, and the states named by ``checkpointables`` (None: all).

        Every process of a run must call this.

        Args:
            path: a file, a folder of transformers, a URL or an address; "" loads nothing.
            checkpointables: see :class:`fvcore.common.checkpoint.Checkpointer`.

        Raises:
            UserError: if the file is not safe to read or does not hold the whole ViT (the whole
                model if ``strict``); on all processes, if one of them cannot get it.
        """
        self._use_heuristics = path.endswith(HEURISTICS_QUERY)
        path = self._local_file(path.removesuffix(HEURISTICS_QUERY))
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

    def _local_file(self, path: str) -> str:
        # A process that stopped alone would leave the others waiting for it.
        local, problem = path, ""
        if path:
            try:
                local = local_file(path, self.path_manager)
            except UserError as error:
                problem = str(error)
        ranks = comm.all_gather((path, problem))
        problems = {rank: problem for rank, (_, problem) in enumerate(ranks) if problem}
        if problems:
            rank, problem = next(iter(problems.items()))
            where = "" if len(problems) == len(ranks) else f" (on the machine of rank {rank})"
            raise UserError(problem + where)
        check_same_path([other for other, _ in ranks])
        return local

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<save_dir>/<name>.pth`` and the note that it is the last checkpoint.

        A file appears under its name only when it is complete, so an interruption never leaves a
        damaged checkpoint behind.
        """
        if not self.save_dir:
            return
        self.last_path = os.path.join(self.save_dir, f"{name}.pth")
        if not self.save_to_disk:
            return
        if "://" in self.save_dir:
            super().save(name, **kwargs)
            return
        states = {key: object.state_dict() for key, object in self.checkpointables.items()}
        self._write(self.last_path, {**states, **kwargs})
        self.tag_last_checkpoint(f"{name}.pth")

    def save_weights(self, name: str, **kwargs: Any) -> None:
        """Write ``<save_dir>/<name>.pth`` with the weights alone, which nothing resumes from.

        Args:
            name: of the file.
            kwargs: what it holds besides.
        """
        if self.save_dir and self.save_to_disk:
            self._write(os.path.join(self.save_dir, f"{name}.pth"), kwargs)

    def prune(self, keep: int, iteration: int) -> None:
        """Delete checkpoints ``model_<iteration>.pth``, but not the newest ones.

        Those of later iterations are another training's and stay, as do all other names.

        Args:
            keep: how many stay, at least 1.
            iteration: that the training has come to.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        names = numbered_names(self.path_manager.ls(self.save_dir))
        names = [name for name in names if (iteration_of(name) or 0) <= iteration]
        for name in names[:-keep]:
            self.path_manager.rm(os.path.join(self.save_dir, name))

    def _write(self, path: str, content: dict[str, Any]) -> None:
        content = {"model": self.model.state_dict(), **content}
        self.logger.info("Saving checkpoint to %s", path)
        if "://" in path:
            with self.path_manager.open(path, "wb") as file:
                torch.save(content, file)
            return
        os.makedirs(self.save_dir, exist_ok=True)
        with AtomicFile(path) as file:
            torch.save(content, file)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write down which file ``--resume`` continues from."""
        self.write_text("last_checkpoint", last_filename_basename)

    def write_text(self, name: str, text: str) -> None:
        """Write a small file beside the checkpoints, whole or not at all."""
        path = os.path.join(self.save_dir, name)
        if "://" in path:
            with self.path_manager.open(path, "w") as file:
                file.write(text)
            return
        with AtomicFile(path) as file:
            file.write(text.encode())

    def read_text(self, name: str) -> str:
        """What a file beside the checkpoints holds; "" if there is none."""
        path = os.path.join(self.save_dir, name)
        if not self.path_manager.isfile(path):
            return ""
        with self.path_manager.open(path) as file:
            return file.read()

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = self._content_read or read_weights(filename)
        if filename.endswith(".pkl") and "model" not in content:
            # Caffe2's, as Detectron2 reads it; "__author__" is how it knows.
            blobs = content.get("blobs", content)
            weights = {name: blob for name, blob in blobs.items() if not name.endswith("_momentum")}
            return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
        weights = state_dict_of(content, filename)
        content = {**content, "model": weights} if "model" in content else {"model": weights}
        if self._use_heuristics:
            content["matching_heuristics"] = True
        return content

    def _load_model(self, checkpoint: dict[str, Any]) -> IncompatibleKeys:
        weights = checkpoint["model"]
        self._convert_ndarray_to_tensor(weights)
        weights, title = rename_to_ours(weights)
        new_task = not (self._strict or self._resuming)
        weights, changes = fit_to_model(weights, self.model, new_task=new_task)
        self.logger.info("The weights are those of %s.", title)
        for change in changes:
            self.logger.info("%s.", change)
        if not self._allow_partial_vit:
            advice = ""
            if new_task:
                advice = (
                    ", or set MODEL.VIT.ALLOW_PARTIAL_WEIGHTS True to start what is missing anew"
                )
            check_vits(weights, self.model, advice=advice)
        checkpoint["model"] = weights
        return super()._load_model(checkpoint)

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
        for line in anew(misshapen):
            self.logger.warning("%s.", line)
        if missing:
            self.logger.warning("Not in the file, so they start anew: %s.", summary(missing, state))
        if incompatible.unexpected_keys:
            self.logger.warning(
                "Not in the model, so not used: %s.", summary(incompatible.unexpected_keys, state)
            )

    def _refuse_to_start_anew(
        self, misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]], missing: list[str]
    ) -> None:
        problems = [
            f"{name} is {shape_text(found)} in the file and {shape_text(wanted)} in the model"
            for name, found, wanted in misshapen
        ] + [f"{name} is not in the file" for name in missing]
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise UserError(
                f"The weights do not fit the model to be evaluated: {'; '.join(problems[:3])}{more}"
                f"; give the config of their training (for example its NUM_CLASSES) and weights of "
                f"the whole trained model, not of a backbone alone."
            )
