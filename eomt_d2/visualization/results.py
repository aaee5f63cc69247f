"""Predictions beside their ground truth, as pictures."""

import os
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch import nn

from eomt_d2.data.image_reading import read_id_png, read_image

from .overlay import draw_panoptic, side_by_side

__all__ = ["write_panoptic_comparisons"]


@torch.no_grad()
def write_panoptic_comparisons(
    models: Mapping[str, nn.Module],
    loader: Iterable[list[dict]],
    dataset_name: str,
    folder: str | os.PathLike[str],
    *,
    count: int,
    scale: float = 1.0,
) -> list[Path]:
    """Write image, ground truth and predictions side by side, one PNG per image.

    Args:
        models: by the title of their predictions; they give ``panoptic_seg`` and are put into
            evaluation mode and back.
        loader: test loader of the data set.
        dataset_name: a registered panoptic data set in COCO's format.
        folder: where the PNGs go; made if needed.
        count: images to draw, the first of the loader.
        scale: size of the pictures over the size of the images.

    Returns:
        The files, in the loader's order.
    """
    metadata = MetadataCatalog.get(dataset_name)
    records = {record["image_id"]: record for record in DatasetCatalog.get(dataset_name)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files, training = [], {model: model.training for model in models.values()}
    for model in training:
        model.eval()
    samples = (sample for batch in loader for sample in batch)
    for sample in islice(samples, count):
        record = records[sample["image_id"]]
        image = read_image(record["file_name"], "RGB")
        ids = torch.from_numpy(read_id_png(record["pan_seg_file_name"]).astype(np.int32))
        truth = (ids, [{**s, "isthing": bool(s["isthing"])} for s in record["segments_info"]])
        predictions = {title: model([sample])[0]["panoptic_seg"] for title, model in models.items()}
        panels = {"image": draw_panoptic(image, torch.zeros_like(ids), [], metadata, scale)}
        for title, (panoptic, segments) in {"ground truth": truth, **predictions}.items():
            panels[title] = draw_panoptic(image, panoptic, segments, metadata, scale)
        file = folder / f"{Path(record['file_name']).stem}.png"
        Image.fromarray(side_by_side(panels)).save(file)
        files.append(file)
    for model, mode in training.items():
        model.train(mode)
    return files
