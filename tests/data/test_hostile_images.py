"""Image files that are larger, or other, than they look."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from eomt_d2.data import MaskClassificationMapper
from eomt_d2.data.image_reading import MAX_PIXELS, read_id_png, read_image, read_label_map
from eomt_d2.errors import UserError


def png_of(width, height, rows=b""):
    """A gray PNG that claims a size, with the pixels of some rows or none."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))


@pytest.mark.parametrize("read", [read_image, read_label_map, read_id_png])
@pytest.mark.parametrize(
    "width, height, sentence",
    [
        (60_000, 60_000, "says it has more than twice the 268435456 pixels"),
        (20_000, 20_000, "says it has 20000x20000 pixels, more than the 268435456 that are read"),
        (2**31 - 1, 1, "says it has more than twice"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused_by_their_header(tmp_path, read, width, height, sentence):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(width, height))
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(UserError, match=f"bomb.png {sentence}"):
        read(str(path))
    assert Image.MAX_IMAGE_PIXELS == before


def test_large_panoramas_are_read(tmp_path):
    """200 megapixels: beyond Pillow's own limit, within ours."""
    assert 20_000 * 10_000 < MAX_PIXELS == 16384**2
    path = tmp_path / "large.png"
    Image.new("1", (20_000, 10_000), 1).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels = read_label_map(str(path))
    assert labels.shape == (10_000, 20_000) and labels[-1, -1] == 1


def test_a_20000_pixel_wide_panorama_becomes_a_sample(tmp_path):
    image = np.zeros((300, 20_000, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(np.ones((300, 20_000), np.uint8)).save(tmp_path / "labels.png")
    entry = {
        "file_name": str(tmp_path / "a.png"),
        "sem_seg_file_name": str(tmp_path / "labels.png"),
    }
    sample = MaskClassificationMapper(is_train=True, image_size=64, min_scale=1.0)(entry)
    assert sample["image"].shape == (3, 64, 64) and sample["width"] == 20_000
    assert sample["instances"].gt_classes.tolist() == [1]
    tested = MaskClassificationMapper(is_train=False, min_size_test=64, max_size_test=64)(entry)
    assert tested["image"].shape == (3, 1, 64)


def test_a_single_pixel_becomes_a_sample(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    Image.new("L", (1, 1), 3).save(tmp_path / "labels.png")
    entry = {
        "file_name": str(tmp_path / "a.png"),
        "sem_seg_file_name": str(tmp_path / "labels.png"),
    }
    sample = MaskClassificationMapper(is_train=True, image_size=32, min_scale=0.1)(entry)
    assert sample["instances"].gt_classes.tolist() == [3]


@pytest.mark.parametrize("name", ["EPS", "PCX", "SGI", "PDF"])
def test_formats_of_other_programs_are_not_opened(tmp_path, name):
    """Pillow gives EPS to Ghostscript; the ending of a file says nothing about its format."""
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (8, 8)).save(path, name)
    with pytest.raises(UserError, match=r"photo.jpg cannot be read \(it is none of JPEG, PNG"):
        read_image(str(path))


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "TGA"])
def test_formats_of_photographs_are(tmp_path, name):
    path = tmp_path / "photo"
    Image.new("RGB", (8, 6), (255, 255, 255)).save(path, name)
    image = read_image(str(path))
    assert image.shape == (6, 8, 3) and image.min() > 250


def test_text_chunks_cannot_fill_the_memory(tmp_path):
    """A PNG may hold compressed text; Pillow inflates no more than a mebibyte of it."""
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 30_000_000, zip=True)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    path = tmp_path / "text.png"
    path.write_bytes(file.getvalue())
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match="text.png cannot be read"):
        read_image(str(path))
