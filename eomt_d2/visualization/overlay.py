"""Segmentations drawn over their image.

Detectron2's own visualizer fills the holes of things and colours them at random, so a prediction
and its ground truth look different even where they agree.
"""

import colorsys

import cv2
import numpy as np
import torch
from detectron2.data import Metadata

__all__ = ["draw_panoptic", "side_by_side"]

_OPACITY = 0.55
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.42
_TITLE_HEIGHT = 28


def draw_panoptic(
    image: np.ndarray,
    panoptic_seg: torch.Tensor,
    segments_info: list[dict],
    metadata: Metadata,
    scale: float = 1.0,
) -> np.ndarray:
    """Draw segments with their class names over an image, in the classes' colours.

    Args:
        image: (H, W, 3) uint8 RGB.
        panoptic_seg: (H, W) int32 map of segment ids, 0 being void, which is left as it is.
        segments_info: one dict per segment with ``id``, ``category_id`` (contiguous) and
            ``isthing``.
        metadata: of the data set, with class names and, if it has them, colours.
        scale: size of the picture over the size of the image.

    Returns:
        (H * scale, W * scale, 3) uint8 RGB, sizes rounded.
    """
    height, width = (round(side * scale) for side in image.shape[:2])
    picture = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    rows = np.arange(height) * image.shape[0] // height
    columns = np.arange(width) * image.shape[1] // width
    ids = panoptic_seg.cpu().numpy()[rows[:, None], columns]
    for segment in segments_info:
        mask = ids == segment["id"]
        colour = np.float32(_colour(segment, metadata))
        picture[mask] = (1 - _OPACITY) * picture[mask] + _OPACITY * colour
    border = np.zeros(ids.shape, bool)
    border[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    border[1:] |= ids[1:] != ids[:-1]
    picture[border] = 255
    picture = np.ascontiguousarray(picture.round().astype(np.uint8))
    for segment in segments_info:
        _write_name(picture, ids == segment["id"], _name(segment, metadata))
    return picture


def _kind(segment: dict) -> str:
    return "thing" if segment["isthing"] else "stuff"


def _name(segment: dict, metadata: Metadata) -> str:
    return getattr(metadata, f"{_kind(segment)}_classes")[segment["category_id"]]


def _colour(segment: dict, metadata: Metadata) -> tuple[float, ...]:
    colours = metadata.get(f"{_kind(segment)}_colors")
    if colours:
        return tuple(colours[segment["category_id"]])
    # Steps of the golden ratio around the circle of hues: neighbouring classes differ clearly.
    hue = (0.13 + 0.618034 * segment["category_id"]) % 1
    return tuple(255 * channel for channel in colorsys.hsv_to_rgb(hue, 0.85, 1.0))


def _write_name(picture: np.ndarray, mask: np.ndarray, name: str) -> None:
    """White on black, centred on the pixel deepest inside the segment, within the picture."""
    if not mask.any():
        return
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    (width, height), _ = cv2.getTextSize(name, _FONT, _FONT_SCALE, 1)
    x = int(np.clip(x - width // 2, 2, max(picture.shape[1] - width - 2, 2)))
    y = int(np.clip(y + height // 2, height + 2, picture.shape[0] - 3))
    for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(picture, name, (x, y), _FONT, _FONT_SCALE, colour, thickness, cv2.LINE_AA)


def side_by_side(panels: dict[str, np.ndarray]) -> np.ndarray:
    """Put pictures of equal height next to each other under their titles.

    Args:
        panels: (H, W_i, 3) uint8 RGB by title.

    Returns:
        (H + title, sum W_i, 3) uint8 RGB.
    """
    columns = []
    for title, panel in panels.items():
        header = np.full((_TITLE_HEIGHT, panel.shape[1], 3), 255, np.uint8)
        cv2.putText(header, title, (6, 20), _FONT, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
        columns.append(np.concatenate([header, panel], axis=0))
    return np.concatenate(columns, axis=1)
