"""Semantic data sets: a folder of images beside a folder of label PNG files."""

import os
from collections.abc import Callable
from pathlib import Path

from eomt_d2.data.datasets.faults import Fault, Faults
from eomt_d2.errors import UserError

__all__ = ["load_semantic_folders"]


def load_semantic_folders(
    image_root: str | os.PathLike[str],
    label_root: str | os.PathLike[str],
    image_suffix: str = ".jpg",
    label_suffix: str = ".png",
    report: Callable[[Fault], None] | None = None,
) -> list[dict[str, str]]:
    """Pair images with label files, sub-folders included.

    A pair has the same path below its root once the suffix is taken away; a suffix may be more
    than the extension ("_leftImg8bit.png").

    Args:
        report: gets the warning, see :func:`~.coco_format.load_coco_panoptic`.

    Returns:
        Dicts with ``file_name`` and ``sem_seg_file_name``, sorted by that path. Files without a
        partner are left out, with a warning that counts them.

    Raises:
        UserError: a folder is missing, or there is no pair.
    """
    images = _files_by_stem(Path(image_root), image_suffix)
    labels = _files_by_stem(Path(label_root), label_suffix)
    stems = sorted(images.keys() & labels.keys())
    if not stems:
        raise UserError(
            f"No image '*{image_suffix}' of '{image_root}' has a label '*{label_suffix}' of the "
            f"same name in '{label_root}'."
        )
    unpaired = len(images) + len(labels) - 2 * len(stems)
    if unpaired:
        Faults(image_root, report).warning(
            f"{unpaired} files of '{image_root}' and '{label_root}' have no partner and are left "
            "out; add their partners or remove them."
        )
    return [
        {"file_name": str(images[stem]), "sem_seg_file_name": str(labels[stem])} for stem in stems
    ]


def _files_by_stem(root: Path, suffix: str) -> dict[str, Path]:
    if not root.is_dir():
        raise UserError(f"The folder '{root}' does not exist.")
    files = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    return {
        file.relative_to(root).as_posix().removesuffix(suffix): file
        for file in files
        if file.name.endswith(suffix)
    }
