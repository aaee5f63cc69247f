"""Overlays show segments where they are."""

import numpy as np
import torch
from detectron2.data import Metadata

from eomt_d2.visualization import draw_panoptic, side_by_side

METADATA = Metadata(
    thing_classes=["cat", "sky"], stuff_classes=["cat", "sky"],
    thing_colors=[[250, 0, 0], [0, 0, 250]], stuff_colors=[[250, 0, 0], [0, 0, 250]],
)  # fmt: skip


def test_segments_are_coloured_in_place_and_void_is_left_alone():
    image = np.full((60, 90, 3), 128, np.uint8)
    panoptic = torch.zeros(60, 90, dtype=torch.int32)
    panoptic[:, 60:] = 1
    segments = [{"id": 1, "category_id": 1, "isthing": False}]
    drawn = draw_panoptic(image, panoptic, segments, METADATA, scale=2).astype(int)
    assert drawn.shape == (120, 180, 3)
    assert np.abs(drawn[:, :110] - 128).max() <= 2
    sky = drawn[4:20, 130:].reshape(-1, 3).mean(0)  # its label is in the middle
    assert sky[2] > 150 > 110 > sky[0], "stuff is drawn in the colour of its class"


def test_holes_stay_open_and_colours_can_be_missing():
    names = Metadata(thing_classes=["a", "b"], stuff_classes=["a", "b"])
    image = np.full((90, 90, 3), 128, np.uint8)
    panoptic = torch.zeros(90, 90, dtype=torch.int32)
    panoptic[5:85, 5:85] = 7
    panoptic[20:70, 20:70] = 0
    drawn = [
        draw_panoptic(image, panoptic, [{"id": 7, "category_id": c, "isthing": True}], names)
        for c in (0, 1)
    ]
    for picture in drawn:
        assert (picture[30:60, 40:60] == 128).all(), "the hole of a frame is not part of it"
    assert np.abs(drawn[0][8:18, 30:60].astype(int) - drawn[1][8:18, 30:60]).max() > 60


def test_side_by_side_keeps_the_panels():
    panels = {"a": np.zeros((20, 30, 3), np.uint8), "b": np.full((20, 10, 3), 9, np.uint8)}
    joined = side_by_side(panels)
    assert joined.shape[1] == 40
    assert (joined[-20:, :30] == 0).all()
    assert (joined[-20:, 30:] == 9).all()
    assert (joined[:-20, :30] < 128).any(), "the title is written"
