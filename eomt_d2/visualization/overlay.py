"""Segmentations drawn over their image."""

import cv2
import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.utils.visualizer import ColorMode, Visualizer

__all__ = ["draw_panoptic", "side_by_side"]

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
        panoptic_seg: (H, W) int32 map of segment ids, 0 being void.
        segments_info: one dict per segment with ``id``, ``category_id`` (contiguous) and
            ``isthing``.
        metadata: of the data set, with class names and colours.
        scale: size of the picture over the size of the image.

    Returns:
        (H * scale, W * scale, 3) uint8 RGB.
    """
    # Things of one class in one colour each would be told apart by nothing: jitter their colour.
    visualizer = Visualizer(image, metadata, scale, ColorMode.SEGMENTATION)
    drawn = visualizer.draw_panoptic_seg(panoptic_seg.cpu(), segments_info)
    return np.ascontiguousarray(drawn.get_image())


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
        cv2.putText(
            header, title, (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA
        )
        columns.append(np.concatenate([header, panel], axis=0))
    return np.concatenate(columns, axis=1)
