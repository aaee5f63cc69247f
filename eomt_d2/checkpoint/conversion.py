"""Converting a weight file of one project into that of another."""

import os
from typing import NamedTuple

import numpy as np
import torch
from iopath.common.file_io import PathManager
from safetensors.torch import save
from torch import Tensor, nn

from eomt_d2.errors import UserError

from .addresses import local_file
from .atomic_file import AtomicFile
from .deltas import add_base, is_delta
from .file_reading import read_weights, state_dict_of
from .fitting import check_vits, fit_to_model
from .sources import rename_to_ours
from .wording import shape_text, summary

__all__ = [
    "ForeignWeights",
    "check_destination",
    "check_ending",
    "fit_strictly",
    "read_foreign",
    "write_weights",
]

# Endings of files that are written here.
_ENDINGS = (".pth", ".safetensors")


class ForeignWeights(NamedTuple):
    """Weights by our names, and what they were.

    Attributes:
        tensors: of a whole model, or of a ViT alone under timm's names.
        title: such as "an official EoMT".
    """

    tensors: dict[str, Tensor]
    title: str


def read_foreign(
    path: str, path_manager: PathManager, *, source: str = "auto", base: str = ""
) -> ForeignWeights:
    """Read the weights of any known project.

    Args:
        path: whatever MODEL.WEIGHTS may be.
        path_manager: resolves it.
        source: a key of :data:`~.sources.SOURCES`, or "auto".
        base: for weights that are differences, those of the pre-trained ViT they belong to.

    Raises:
        UserError: if a file does not exist, is not safe or not what ``source`` says, or if a base
            is missing or not needed.
    """
    local = local_file(path, path_manager)
    arrays = state_dict_of(read_weights(local), local)
    tensors = {
        name: torch.from_numpy(array) if isinstance(array, np.ndarray) else array
        for name, array in arrays.items()
    }
    tensors, title = rename_to_ours(tensors, source)
    if is_delta(tensors) and not base:
        raise UserError(
            f"{path} holds differences to DINOv3's weights: give DINOv3's own file with --base."
        )
    if base:
        if not is_delta(tensors):
            raise UserError(f"{path} holds complete weights and no differences: leave --base out.")
        tensors = add_base(tensors, read_foreign(base, path_manager).tensors)
        title = f"{title}, added to its base"
    return ForeignWeights(tensors, title)


def fit_strictly(
    weights: dict[str, Tensor], model: nn.Module
) -> tuple[dict[str, Tensor], list[str]]:
    """Resample weights for a model and check that they are its.

    Args:
        weights: by our names.
        model: on any device, even "meta".

    Returns:
        The weights, and a line for each thing that was changed or is missing.

    Raises:
        UserError: if a part of the ViT is missing, or a shape differs from the model's.
    """
    weights, lines = fit_to_model(weights, model)
    check_vits(weights, model)
    wanted = model.state_dict()
    for name in sorted(weights.keys() & wanted.keys()):
        if weights[name].shape != wanted[name].shape:
            raise UserError(
                f"{name} is {shape_text(weights[name].shape)} in the file and "
                f"{shape_text(wanted[name].shape)} in the model of the config; give the config "
                "that the weights were trained with (for example its NUM_CLASSES)."
            )
    for what, one, other in (
        ("Not in the file", wanted, weights),
        ("Not in the model, so left out", weights, wanted),
    ):
        names = one.keys() - other.keys()
        if names:
            lines.append(f"{what}: {summary(names, one)}")
    return {name: weights[name] for name in wanted if name in weights}, lines


def check_destination(path: str) -> None:
    """Refuse to write over something, or into a folder that does not exist.

    Raises:
        UserError: see above.
    """
    if os.path.exists(path):
        raise UserError(f"{path} exists already; remove it or give another name.")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise UserError(f"{path} cannot be written: there is no folder {folder}.")


def write_weights(path: str, tensors: dict[str, Tensor], container: str) -> None:
    """Write one file of weights, which appears only when it is complete.

    Args:
        path: ends in ``.pth`` or ``.safetensors``.
        tensors: by name.
        container: the key of the state dict inside a ``.pth``.

    Raises:
        UserError: if the ending is another.
    """
    check_ending(path)
    # Tensors of one file may share memory, which safetensors does not know.
    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    with AtomicFile(path) as file:
        if path.endswith(".safetensors"):
            file.write(save(tensors, metadata={"format": "pt"}))
        else:
            torch.save({container: tensors}, file)


def check_ending(path: str) -> None:
    """Refuse a file that :func:`write_weights` could not write.

    Raises:
        UserError: if the ending is neither ``.pth`` nor ``.safetensors``.
    """
    if not path.endswith(_ENDINGS):
        raise UserError(f"{path} must end in {' or '.join(_ENDINGS)}.")
