"""Large-scale jitter: flip, scale, pad and crop of an image and of the id maps of its segments.

The order and the ranges are those of the published EoMT recipes. What happens to one sample is
drawn first, as a small :class:`Geometry`, and then applied by pure functions; so an id map can be
transformed, found empty and drawn again without touching any image pixel.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

__all__ = ["Geometry", "draw_geometry", "scaled_size", "transform_id_map", "transform_image"]


class Geometry(NamedTuple):
    """One draw of flip, scale and crop.

    Attributes:
        flip: mirror left and right, before everything else.
        height, width: size in pixels after scaling, before padding.
        top, left: offset of the crop inside the scaled (and padded) image, in pixels.
        crop_size: side of the square crop, in pixels.
        crop_height: of a crop that is no square, whose width ``crop_size`` then is; 0: a square.
    """

    flip: bool
    height: int
    width: int
    top: int
    left: int
    crop_size: int
    crop_height: int = 0

    @property
    def crop_shape(self) -> tuple[int, int]:
        """(height, width) of the crop, with its padding."""
        return self.crop_height or self.crop_size, self.crop_size

    @property
    def content_size(self) -> tuple[int, int]:
        """(height, width) of the crop that comes from the image; the rest of it is padding."""
        crop_height, crop_width = self.crop_shape
        return min(self.height, crop_height), min(self.width, crop_width)


def scaled_size(
    height: int, width: int, target: int, scale: float, fit: str = "long"
) -> tuple[int, int]:
    """The size that an image is resized to: at scale 1 its long (or short) side fits ``target``.

    r = scale * min(target / height, target / width), or max(...) for the short side, and new sizes
    truncate. A side never falls below one pixel.

    Returns:
        (height, width) in pixels.
    """
    side = max(height, width) if fit == "long" else min(height, width)
    # Multiplied before divided: a side that is a whole number of pixels is not truncated below it.
    return (
        max(1, int(scale * (target * height) / side)),
        max(1, int(scale * (target * width) / side)),
    )


def draw_geometry(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    crop_size: int,
    min_scale: float,
    max_scale: float,
    fit: str = "long",
    crop_height: int = 0,
) -> Geometry:
    """Draw flip (p = 0.5), scale ~ U(min_scale, max_scale) and the crop's offset per axis.

    Args:
        rng: the sample's generator; four numbers are drawn from it.
        height, width: size of the image in pixels.
        crop_size, crop_height: see :class:`Geometry`.
        min_scale, max_scale, fit: see :func:`scaled_size`, with ``crop_size`` as the target.
    """
    flip = bool(rng.random() < 0.5)
    scale = rng.uniform(min_scale, max_scale)
    new_height, new_width = scaled_size(height, width, crop_size, scale, fit)
    top = int(rng.integers(0, max(new_height - (crop_height or crop_size), 0), endpoint=True))
    left = int(rng.integers(0, max(new_width - crop_size, 0), endpoint=True))
    return Geometry(flip, new_height, new_width, top, left, crop_size, crop_height)


def transform_image(image: np.ndarray, geometry: Geometry, pad_value: int = 0) -> np.ndarray:
    """Flip, resize (PIL bilinear, antialiased, on uint8), pad and crop an image.

    Args:
        image: (H, W, 3) uint8.
        pad_value: of the padding, in [0, 255].

    Returns:
        (height, width, 3) uint8, ``geometry.crop_shape``.
    """
    height, width = geometry.content_size
    top, left = geometry.top, geometry.left
    # PIL resizes along the rows, rounds, and then along the columns. The same two steps, one by
    # one: columns outside of the crop are dropped between them, and the first is done on the
    # transposed image, because PIL is faster along columns. Its ``box`` would save more, but
    # computes other positions: results differ by up to 2 levels.
    turn = Image.Transpose.ROTATE_90 if geometry.flip else Image.Transpose.TRANSPOSE
    picture = Image.fromarray(image).transpose(turn)
    picture = picture.resize((picture.width, geometry.width), Image.Resampling.BILINEAR)
    picture = picture.crop((0, left, picture.width, left + width))
    picture = picture.transpose(Image.Transpose.TRANSPOSE)
    picture = picture.resize((width, geometry.height), Image.Resampling.BILINEAR)
    crop = np.full((*geometry.crop_shape, 3), pad_value, np.uint8)
    crop[:height, :width] = picture.crop((0, top, width, top + height))
    return crop


def transform_id_map(id_map: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Flip, resize and crop a map of integers; nearest neighbour with the floor rule.

    A pixel at position d of a resized axis takes its value from floor(d * source / resized),
    computed in integers. Only the pixels of the crop are looked up.

    Args:
        id_map: (H, W) of any dtype.

    Returns:
        (h, w), the part of the crop that is not padding (``geometry.content_size``).
    """
    source_height, source_width = id_map.shape
    height, width = geometry.content_size
    rows = (geometry.top + np.arange(height)) * source_height // geometry.height
    columns = (geometry.left + np.arange(width)) * source_width // geometry.width
    if geometry.flip:
        columns = source_width - 1 - columns
    return id_map.take(rows, axis=0).take(columns, axis=1)
