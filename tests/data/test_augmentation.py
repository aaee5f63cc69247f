import itertools

import numpy as np
import pytest
from PIL import Image

from eomt_d2.data.augmentation import (
    Geometry,
    draw_geometry,
    scaled_size,
    transform_id_map,
    transform_image,
)


def in_the_recipe_s_order(source, geometry, resize):
    """Flip, resize, pad, crop, one after the other on the whole picture."""
    if geometry.flip:
        source = source[:, ::-1]
    resized = resize(source, geometry.height, geometry.width)
    size = geometry.crop_size
    padded_shape = max(geometry.height, size), max(geometry.width, size), *source.shape[2:]
    padded = np.zeros(padded_shape, source.dtype)
    padded[: geometry.height, : geometry.width] = resized
    top, left = geometry.top, geometry.left
    return padded[top : top + size, left : left + size]


def nearest_floor(source, height, width):
    result = np.empty((height, width), source.dtype)
    for y, x in itertools.product(range(height), range(width)):
        result[y, x] = source[y * source.shape[0] // height, x * source.shape[1] // width]
    return result


def pil_bilinear(source, height, width):
    image = Image.fromarray(np.ascontiguousarray(source))
    return np.asarray(image.resize((width, height), Image.BILINEAR))


def geometries(height, width, count=12, crop_size=24):
    rng = np.random.default_rng(1)
    drawn = [
        draw_geometry(rng, height, width, crop_size=crop_size, min_scale=0.1, max_scale=2.0)
        for _ in range(count)
    ]
    assert {g.flip for g in drawn} == {True, False}
    assert any(g.height > crop_size for g in drawn) and any(g.width < crop_size for g in drawn)
    return drawn


@pytest.mark.parametrize(
    "height, width, target, scale, expected",
    [
        (1024, 2048, 1024, 1.0, (512, 1024)),  # Cityscapes, RECIPES: the long side is fitted
        (480, 640, 640, 2.0, (960, 1280)),
        (427, 640, 640, 0.55, (234, 352)),  # 234.85 truncates
        (640, 427, 640, 0.55, (352, 234)),
        (200, 4096, 640, 0.1, (3, 64)),  # 3.125
        (1, 5000, 640, 0.1, (1, 64)),  # 0.0128 would be no pixel at all
    ],
)
def test_scaled_size(height, width, target, scale, expected):
    assert scaled_size(height, width, target, scale) == expected


@pytest.mark.parametrize(
    "height, width, target, scale, expected",
    [
        (1024, 2048, 1024, 0.5, (512, 1024)),  # Cityscapes
        (1024, 2048, 1024, 2.0, (2048, 4096)),
        (480, 640, 512, 1.0, (512, 682)),  # 512 * 640 / 480 = 682.67
        (640, 480, 512, 0.5, (341, 256)),
    ],
)
def test_scaled_size_by_the_short_side(height, width, target, scale, expected):
    assert scaled_size(height, width, target, scale, "short") == expected


def test_a_crop_that_is_no_square():
    """2 rows and 4 columns of a grid of 5 x 3 whose entries are row and column."""
    grid = 10 * np.arange(5)[:, None] + np.arange(3) + 1
    geometry = Geometry(False, 5, 3, 2, 0, 4, crop_height=2)
    assert transform_id_map(grid, geometry).tolist() == [[21, 22, 23], [31, 32, 33]]
    image = np.repeat(grid[:, :, None], 3, axis=2).astype(np.uint8)
    assert transform_image(image, geometry)[:, :, 0].tolist() == [[21, 22, 23, 0], [31, 32, 33, 0]]
    # Offsets cover what the crop leaves: rows 0 to 3, columns none.
    rng = np.random.default_rng(0)
    draws = [
        draw_geometry(
            rng, 5, 3, crop_size=3, crop_height=2, min_scale=1.0, max_scale=1.0, fit="short"
        )
        for _ in range(100)
    ]
    assert {(g.height, g.width, g.left, g.crop_shape) for g in draws} == {(5, 3, 0, (2, 3))}
    assert {g.top for g in draws} == {0, 1, 2, 3}


def test_scale_1_fits_every_long_side_exactly():
    # 640 / 4095 * 4095 is 639.99... in floating point, which would truncate to 639.
    for long_side in range(1, 5000):
        assert scaled_size(long_side, 1, 640, 1.0)[0] == 640


@pytest.mark.parametrize(
    "width, flip, expected",
    [
        (3, False, [0, 1, 3]),  # floor of 0, 1.67, 3.33
        (3, True, [4, 3, 1]),  # the mirrored row 4 3 2 1 0 at the same places
        (7, False, [0, 0, 1, 2, 2, 3, 4]),  # floor of 0, .71, 1.43, 2.14, 2.86, 3.57, 4.29
        (7, True, [4, 4, 3, 2, 2, 1, 0]),
    ],
)
def test_nearest_with_the_floor_rule(width, flip, expected):
    row = np.arange(5)[None]
    assert transform_id_map(row, Geometry(flip, 1, width, 0, 0, 10)).tolist() == [expected]
    if not flip:
        column = transform_id_map(row.T, Geometry(False, width, 1, 0, 0, 10))
        assert column.tolist() == [[value] for value in expected]


def test_offsets_are_per_axis():
    # Rows 0-3 hold 0-3, 10-13, 20-23, 30-33; the 2x2 crop starts at row 1, column 2.
    grid = 10 * np.arange(4)[:, None] + np.arange(4)
    assert transform_id_map(grid, Geometry(False, 4, 4, 1, 2, 2)).tolist() == [[12, 13], [22, 23]]
    image = np.repeat(grid.astype(np.uint8)[:, :, None], 3, axis=2)
    crop = transform_image(image, Geometry(False, 4, 4, 1, 2, 2))
    assert crop[:, :, 0].tolist() == [[12, 13], [22, 23]]


def test_padding_is_right_and_bottom_and_zero():
    image = np.full((2, 3, 3), 9, np.uint8)
    crop = transform_image(image, Geometry(True, 2, 3, 0, 0, 4))
    assert crop[:, :, 1].tolist() == [[9, 9, 9, 0], [9, 9, 9, 0], [0] * 4, [0] * 4]
    assert transform_id_map(image[:, :, 0], Geometry(True, 2, 3, 0, 0, 4)).shape == (2, 3)
    grey = transform_image(image, Geometry(True, 2, 3, 0, 0, 4), pad_value=128)
    assert grey[:, :, 2].tolist() == [[9, 9, 9, 128], [9, 9, 9, 128], [128] * 4, [128] * 4]


@pytest.mark.parametrize("shape", [(31, 17), (24, 40), (5, 5)])
def test_id_maps_equal_the_steps_on_the_whole_map(shape):
    id_map = np.random.randint(1, 255, shape).astype(np.uint8)
    for geometry in geometries(*shape):
        content = transform_id_map(id_map, geometry)
        expected = in_the_recipe_s_order(id_map, geometry, nearest_floor)
        height, width = content.shape
        assert content.dtype == id_map.dtype
        np.testing.assert_array_equal(content, expected[:height, :width])
        assert not expected[height:].any() and not expected[:, width:].any()


@pytest.mark.parametrize("shape", [(31, 17), (24, 40)])
def test_images_equal_the_steps_on_the_whole_image(shape):
    image = np.random.randint(0, 255, (*shape, 3)).astype(np.uint8)
    for geometry in geometries(*shape):
        np.testing.assert_array_equal(
            transform_image(image, geometry), in_the_recipe_s_order(image, geometry, pil_bilinear)
        )


def test_draws_cover_flip_scale_and_both_axes_independently():
    rng = np.random.default_rng(0)
    drawn = [
        draw_geometry(rng, 4, 4, crop_size=2, min_scale=2.0, max_scale=2.0) for _ in range(1800)
    ]
    assert {(g.height, g.width, g.crop_size) for g in drawn} == {(4, 4, 2)}
    # Offsets 0, 1, 2 on each axis: 9 pairs, 200 expected of each (standard deviation 13).
    for offsets in itertools.product(range(3), range(3)):
        assert 140 < sum((g.top, g.left) == offsets for g in drawn) < 260
    assert 800 < sum(g.flip for g in drawn) < 1000

    drawn = [
        draw_geometry(rng, 100, 1000, crop_size=1000, min_scale=0.1, max_scale=2.0)
        for _ in range(1800)
    ]
    widths = np.array([g.width for g in drawn])
    # Uniform over 100 ... 2000: mean 1050, standard deviation of the mean 13.
    assert 100 <= widths.min() < 115 and 1985 < widths.max() <= 2000
    assert 990 < widths.mean() < 1110
    assert {g.top for g in drawn} == {0}
    assert all(g.left == 0 for g in drawn if g.width <= 1000)
