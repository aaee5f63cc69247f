"""Tiles of resized masks against the two resizes one after the other, and what may be left out."""

import pytest
import torch
import torch.nn.functional as F

from eomt_d2.modeling.mask_resize import MaskGeometry
from eomt_d2.modeling.mask_tiles import MaskTiles

GEOMETRIES = [
    # A landscape enlarged and a portrait reduced, each padded to a square.
    MaskGeometry((64, 64), (48, 64), (97, 131)),
    MaskGeometry((64, 64), (64, 40), (30, 20)),
    # Only the first, only the second, and none of the resizes changes the height.
    MaskGeometry((64, 64), (33, 64), (33, 64)),
    MaskGeometry((16, 16), (16, 12), (50, 12)),
    MaskGeometry((16, 16), (16, 16), (16, 16)),
    MaskGeometry((64, 48), (1, 48), (3, 5)),
]


def two_resizes(logits, geometry):
    """The definition, at full size."""
    height, width = geometry.image_size
    for size in (geometry.input_size, geometry.output_size):
        logits = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
        logits = logits[:, :height, :width] if size == geometry.input_size else logits
    return logits


def assemble(tiles, visible, size):
    whole = torch.full((visible.shape[1], *size), float("nan"))
    for tile, masks, logits in tiles.visible(visible):
        assert masks.tolist() == sorted(masks.tolist())
        whole[masks, tile.rows, tile.columns] = logits
    return whole


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("side", [1, 16, 200])
def test_tiles_equal_the_two_resizes(geometry, side):
    logits = torch.randn(3, 16, 16) * 10
    tiles = MaskTiles(logits, geometry, side)
    every = torch.ones(len(tiles.tiles), 3, dtype=torch.bool)
    actual = assemble(tiles, every, geometry.output_size)
    torch.testing.assert_close(actual, two_resizes(logits, geometry), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_no_pixel_is_beyond_the_bounds_of_its_tile(geometry):
    logits, scores = torch.randn(4, 16, 16) * 10, torch.rand(4)
    tiles = MaskTiles(logits, geometry, 9)
    highest, reached = (
        tiles.highest(),
        tiles.surely_reached(lambda x, part: x.sigmoid() * scores[part, None, None]),
    )
    resized = two_resizes(logits, geometry)
    best = (resized.sigmoid() * scores[:, None, None]).amax(0)
    for t, tile in enumerate(tiles.tiles):
        part = resized[:, tile.rows, tile.columns].flatten(1)
        assert (part.amax(1) <= highest[t]).all()
        assert (best[tile.rows, tile.columns] >= reached[t]).all()


def test_bounds_are_sharp_where_a_mask_is_flat():
    """Two masks, each one half of the image: far from the border between them nothing is left of
    the other one."""
    logits = torch.full((2, 8, 16), -5.0)
    logits[0, :, :8], logits[1, :, 8:] = 5.0, 5.0
    tiles = MaskTiles(logits, MaskGeometry((32, 64), (32, 64), (32, 64)), side=16)
    assert [tile.columns.start for tile in tiles.tiles] == [0, 16, 32, 48] * 2
    expected = torch.tensor([[5.0, -5.0], [5.0, 5.0], [5.0, 5.0], [-5.0, 5.0]]).repeat(2, 1)
    torch.testing.assert_close(tiles.highest(), expected, rtol=1e-4, atol=0)
    scores = torch.tensor([0.5, 1.0])
    reached = tiles.surely_reached(lambda x, part: x.sigmoid() * scores[part, None, None])
    # sigmoid(5) = 0.99331 times the score; within three cells of the border sigmoid(-5).
    assert reached[0].item() == pytest.approx(0.99331 / 2, abs=1e-4)
    assert reached[1].item() == pytest.approx(0.0067, abs=1e-4)
    assert reached[3].item() == pytest.approx(0.99331, abs=1e-4)


def test_masks_that_are_not_visible_are_not_made():
    tiles = MaskTiles(torch.randn(3, 4, 4), MaskGeometry((4, 4), (4, 4), (4, 8)), side=4)
    visible = torch.tensor([[False, False, False], [True, False, True]])
    ((tile, masks, logits),) = tiles.visible(visible)
    assert (tile.rows, tile.columns) == (slice(0, 4), slice(4, 8))
    assert masks.tolist() == [0, 2]
    assert logits.shape == (2, 4, 4)


@pytest.mark.parametrize("num_masks", [0, 1, 170])
def test_memory_does_not_grow_with_the_image(num_masks):
    """At 4000 x 6000 pixels no tile of all masks has more than 170 * 128 * 128 numbers."""
    geometry = MaskGeometry((640, 640), (427, 640), (4000, 6000))
    tiles = MaskTiles(torch.randn(num_masks, 160, 160), geometry)
    for tile in tiles.tiles:
        assert tile.rows.stop - tile.rows.start <= 128
        assert tile.columns.stop - tile.columns.start <= 128
    assert tiles.highest().shape == (32 * 47, num_masks)


def test_half_precision_infinities_stay_ordered():
    logits = torch.tensor([[[float("inf"), -float("inf")]]], dtype=torch.float16)
    tiles = MaskTiles(logits, MaskGeometry((1, 4), (1, 4), (1, 4)))
    whole = assemble(tiles, torch.ones(1, 1, dtype=torch.bool), (1, 4))
    assert (whole.sigmoid() == torch.tensor([1.0, 1.0, 0.0, 0.0])).all()


def test_autocast_does_not_touch_the_logits():
    logits, geometry = torch.randn(2, 4, 4), MaskGeometry((16, 16), (12, 16), (20, 30))
    every = torch.ones(1, 2, dtype=torch.bool)
    expected = assemble(MaskTiles(logits, geometry), every, (20, 30))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = assemble(MaskTiles(logits, geometry), every, (20, 30))
    assert torch.equal(actual, expected)
