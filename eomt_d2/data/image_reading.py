"""Reading photographs of every kind as 8-bit colour, and label files without changing a value.

Files may come from anywhere: only formats that Pillow decodes itself are read (it hands others,
such as EPS, to outside programs), and the size that a header announces is checked before a pixel
is decoded.
"""

import functools
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from eomt_d2.errors import UserError

__all__ = ["FORMATS", "MAX_PIXELS", "read_id_png", "read_image", "read_label_map"]

# Images beyond this are refused as decompression bombs: 16384 x 16384, or a panorama of
# 20,000 x 13,400. Decoded as RGB, this many pixels are 0.8 GB.
MAX_PIXELS = 1 << 28
FORMATS = (
    "JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "MPO", "JPEG2000", "TGA", "AVIF",
)  # fmt: skip

# What Pillow raises for files it cannot make sense of: beside OSError (also "truncated" and
# "cannot identify"), broken chunks and headers surface as the errors of its parsers.
_DECODING_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    RuntimeError,
    struct.error,
    zlib.error,
    MemoryError,
    Image.DecompressionBombError,
)

_EXIF_ORIENTATION_TAG = 0x0112
_UNDO_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(file_name: str, format: str = "RGB") -> np.ndarray:
    """Read a photograph as 8-bit colour, turned upright as its EXIF orientation says.

    Grayscale, 1-bit, palette, CMYK, YCbCr and HSV images are converted to colour; 16-bit grayscale
    is scaled to 8 bits (value / 257, rounded; not clipped); an alpha channel or a transparent
    palette entry is dropped, its pixels keep their stored colour (as Detectron2 does).

    Args:
        file_name: a path, or an address that Detectron2's ``PathManager`` can open.
        format: "RGB" or "BGR", the order of the channels.

    Returns:
        (H, W, 3) uint8, contiguous.

    Raises:
        UserError: the file is missing, empty, truncated, no image of :data:`FORMATS`, larger than
            :data:`MAX_PIXELS`, or its pixels have no defined range (floating point, 32-bit integers
            beyond 16 bits).
    """
    if format not in ("RGB", "BGR"):
        raise UserError(f'Image format "{format}" is not supported; use "RGB" or "BGR".')
    with _decoded(file_name) as image:
        rgb = _to_rgb(_upright(image), file_name)
    return rgb if format == "RGB" else np.ascontiguousarray(rgb[:, :, ::-1])


def read_label_map(file_name: str) -> np.ndarray:
    """Read a file of one class index per pixel (a semantic segmentation PNG or TIFF).

    The values are taken as stored: palette images give their indices, and no EXIF orientation is
    applied.

    Returns:
        (H, W) unsigned integers: uint8, or uint16 where the file has more bits.

    Raises:
        UserError: the file is unreadable or has several channels or values beyond 16 bits.
    """
    with _decoded(file_name) as image:
        mode, labels = image.mode, np.array(image)
    if labels.ndim != 2 or mode == "F":
        raise UserError(
            f"{file_name} is no label map: its pixels are of mode {mode}, expected one class "
            "index per pixel (8-bit, 16-bit or palette)."
        )
    if labels.dtype in (np.uint8, np.bool_):
        return labels.astype(np.uint8, copy=False)
    return _as_uint16(labels, file_name)


def read_id_png(file_name: str) -> np.ndarray:
    """Read a COCO panoptic PNG: the segment id of a pixel is R + 256 G + 256^2 B.

    Returns:
        (H, W) int32 segment ids; 0 is void.

    Raises:
        UserError: the file is unreadable.
    """
    with _decoded(file_name) as image:
        # convert() copies also what is RGB already.
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        pixels = rgb.tobytes("raw", "RGBX")
    # Four bytes R, G, B, X are the id as a little-endian number, below X.
    ids = np.frombuffer(pixels, "<i4").reshape(image.height, image.width)
    return (ids & 0xFFFFFF).astype(np.int32, copy=False)


@contextmanager
def _decoded(file_name: str) -> Iterator[Image.Image]:
    """Open and fully decode a file, so that every fault of it is met (and named) here."""
    try:
        with PathManager.open(file_name, "rb") as file:
            if not file.read(1):
                raise UserError(f"Image file {file_name} is empty (0 bytes); restore or remove it.")
            file.seek(0)
            with _pillow_limit(MAX_PIXELS):
                image = Image.open(file, formats=_available_formats())
                _refuse_bombs(image.size, file_name)
                image.load()
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(
            f"Image file {file_name} does not exist; check the folders of the data set "
            "(and $DETECTRON2_DATASETS)."
        ) from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"Image file {file_name} cannot be read (it is none of {', '.join(FORMATS)}); restore, "
            "convert or remove it."
        ) from error
    except Image.DecompressionBombError as error:
        raise UserError(
            f"Image file {file_name} says it has more than twice the {MAX_PIXELS} pixels that are "
            "read; cut it into parts or scale it down."
        ) from error
    except _DECODING_ERRORS as error:
        raise UserError(
            f"Image file {file_name} cannot be read ({error}); restore or remove it."
        ) from error
    yield image


def _refuse_bombs(size: tuple[int, int], file_name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise UserError(
            f"Image file {file_name} says it has {width}x{height} pixels, more than the "
            f"{MAX_PIXELS} that are read; cut it into parts or scale it down."
        )


@contextmanager
def _pillow_limit(pixels: int) -> Iterator[None]:
    """Pillow's own limit, which also guards what its decoders find beyond the header, is lower
    than ours; its default comes back afterwards."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@functools.cache
def _available_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _upright(image: Image.Image) -> Image.Image:
    # After load(): Pillow turns TIFF by itself while loading and then removes the tag.
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION_TAG)
    except _DECODING_ERRORS:
        # Damaged metadata around intact pixels: there is no orientation to apply.
        orientation = None
    method = _UNDO_ORIENTATION.get(orientation)
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image, file_name: str) -> np.ndarray:
    if image.mode == "F":
        raise UserError(
            f"Image file {file_name} has floating point pixels of unknown range; convert it to "
            "8 or 16 bits."
        )
    if image.mode.startswith("I"):
        values = _as_uint16(np.array(image), file_name).astype(np.uint32)
        gray = ((values + 128) // 257).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode in ("P", "PA"):
        # Straight to RGB, Pillow would warn about transparency given per palette entry.
        image = image.convert("RGBA")
    if image.mode == "RGB":
        return np.array(image)
    try:
        return np.array(image.convert("RGB"))
    except ValueError as error:
        raise UserError(
            f"Image file {file_name} has colour mode {image.mode}, which cannot be converted to "
            "RGB; convert it to RGB first."
        ) from error


def _as_uint16(values: np.ndarray, file_name: str) -> np.ndarray:
    # Pillow opens 16-bit files as "I;16" or, some versions and formats, as 32-bit "I".
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise UserError(
            f"Image file {file_name} has integer pixels beyond 16 bits "
            f"({values.min()} to {values.max()}); convert it to 8 or 16 bits."
        )
    return values.astype(np.uint16)
