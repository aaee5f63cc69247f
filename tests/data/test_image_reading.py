import io

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image as detectron2_read_image
from PIL import Image

from eomt_d2.data.image_reading import read_id_png, read_image, read_label_map
from eomt_d2.errors import UserError

# (height, width) as a viewer shows them; the files' names and README give width x height.
PHOTOS = {
    "coco_gray_378x640.jpg": (640, 378),
    "coco_wide_500x169.jpg": (169, 500),
    "crop_very_wide_4096x200.jpg": (200, 4096),
    "derived_cmyk_500x169.jpg": (169, 500),
    "exif_orient6_1200x1800.jpg": (1200, 1800),  # stored as 1200 wide, 1800 high
    "exif_orient6_128x128.jpg": (128, 128),
    "gray_cameraman_512x512.png": (512, 512),
    "hopper_128x128.jpg": (128, 128),
    "rocket_640x427.jpg": (427, 640),
}

RED, GREEN = (255, 0, 0), (0, 255, 0)


@pytest.fixture
def save(tmp_path):
    """Save a Pillow image (or bytes) under a name and give the path."""

    def save_image(image, name, **options):
        path = tmp_path / name
        if isinstance(image, bytes):
            path.write_bytes(image)
        else:
            image.save(path, **options)
        return str(path)

    return save_image


def palette_image():
    """Two pixels: index 0 (red) and index 1 (green)."""
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette(RED + GREEN)
    return image


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_photos_agree_with_detectron2(test_data, name, channels):
    path = str(test_data / "photos" / name)
    image = read_image(path, channels)
    assert image.shape == (*PHOTOS[name], 3)
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    np.testing.assert_array_equal(image, detectron2_read_image(path, channels))


def test_exif_orientation_shows_the_same_photo_upright(test_data):
    # Both files show the same portrait; the second was saved lying on its side (JPEG, so close).
    upright = read_image(str(test_data / "photos" / "hopper_128x128.jpg")).astype(int)
    turned = read_image(str(test_data / "photos" / "exif_orient6_128x128.jpg")).astype(int)
    assert np.abs(upright - turned).mean() < 5
    assert np.abs(upright - np.rot90(turned)).mean() > 30


def test_cmyk_shows_the_photo_it_was_made_from(test_data):
    original = read_image(str(test_data / "photos" / "coco_wide_500x169.jpg")).astype(int)
    cmyk = read_image(str(test_data / "photos" / "derived_cmyk_500x169.jpg")).astype(int)
    assert np.abs(original - cmyk).mean() < 5


@pytest.mark.parametrize("name", ["turned.jpg", "turned.png", "turned.tiff"])
def test_orientation_6_is_undone_once(save, name):
    # Orientation 6: the first stored row is the right side of the upright image. Blocks of 16
    # pixels keep JPEG from mixing the colours. Pillow turns TIFF by itself, the others not.
    stored = np.zeros((32, 16, 3), np.uint8)
    stored[:16] = RED
    exif = Image.Exif()
    exif[0x0112] = 6
    image = read_image(save(Image.fromarray(stored), name, exif=exif))
    assert image.shape == (16, 32, 3)
    assert image[8, 24, 0] > 200 and image[8, 8, 0] < 50


def test_damaged_exif_leaves_the_pixels(save):
    path = save(Image.new("RGB", (8, 8), RED), "a.png", exif=b"Exif\x00\x00no TIFF header")
    np.testing.assert_array_equal(read_image(path), np.full((8, 8, 3), RED))


@pytest.mark.parametrize("name", ["deep.png", "deep.tiff"])
@pytest.mark.parametrize("big_endian", [False, True])
def test_16_bits_are_scaled_not_clipped(save, name, big_endian):
    # value / 257, rounded: 128 / 257 = 0.498, 129 / 257 = 0.502, 32768 / 257 = 127.5019.
    values = np.array([[0, 128, 129, 257, 32768, 65535]], ">u2" if big_endian else "<u2")
    image = Image.frombytes("I;16B" if big_endian else "I;16", (6, 1), values.tobytes())
    rgb = read_image(save(image, name))
    assert rgb.tolist() == [[[v] * 3 for v in (0, 0, 1, 1, 128, 255)]]


def test_32_bit_mode_with_16_bit_values(save):
    image = Image.fromarray(np.array([[0, 257, 65535]], np.int32))
    assert read_image(save(image, "a.tiff")).tolist() == [[[0] * 3, [1] * 3, [255] * 3]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [1, bytes([128, 0])])
def test_palette_with_transparency_keeps_its_colours(save, transparency):
    path = save(palette_image(), "a.png", transparency=transparency)
    assert read_image(path).tolist() == [[list(RED), list(GREEN)]]


def test_alpha_is_dropped(save):
    rgba = Image.fromarray(np.array([[[10, 20, 30, 0], [40, 50, 60, 255]]], np.uint8))
    assert read_image(save(rgba, "rgba.png")).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    la = Image.fromarray(np.array([[[70, 0], [80, 255]]], np.uint8), "LA")
    assert read_image(save(la, "la.png")).tolist() == [[[70] * 3, [80] * 3]]


def test_1_bit(save):
    image = Image.fromarray(np.array([[False, True]]))
    assert image.mode == "1"
    assert read_image(save(image, "a.png")).tolist() == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize("read", [read_image, read_label_map, read_id_png])
def test_unreadable_files_are_named(save, tmp_path, read):
    photo = io.BytesIO()
    Image.fromarray(np.random.randint(0, 255, (64, 64), np.uint8)).save(photo, "PNG")
    files = {
        save(b"", "empty.png"): "is empty",
        save(photo.getvalue()[:900], "truncated.png"): "cannot be read",
        save(photo.getvalue()[:20], "header.png"): "cannot be read",
        save(b"<html>not found</html>", "text.jpg"): "cannot be read",
        str(tmp_path / "missing.jpg"): "does not exist",
        str(tmp_path): "cannot be read",
    }
    for path, reason in files.items():
        with pytest.raises(UserError, match=reason) as error:
            read(path)
        assert path in str(error.value)


def test_damaged_bytes_never_end_in_another_error(test_data, save):
    photo = (test_data / "photos" / "exif_orient6_128x128.jpg").read_bytes()
    rng = np.random.default_rng(0)
    outcomes = {True: 0, False: 0}
    for _ in range(150):
        damaged = np.frombuffer(photo, np.uint8).copy()
        damaged[rng.integers(0, 700, 4)] = rng.integers(0, 256, 4)
        path = save(damaged.tobytes(), "damaged.jpg")
        try:
            outcomes[read_image(path).shape[2] == 3] += 1
        except UserError as error:
            assert path in str(error)
            outcomes[False] += 1
    assert outcomes[True] > 20 and outcomes[False] > 20


def test_pixels_without_a_range_are_refused(save):
    floats = save(Image.fromarray(np.array([[0.5]], np.float32)), "float.tiff")
    with pytest.raises(UserError, match="float.tiff has floating point pixels"):
        read_image(floats)
    wide = save(Image.fromarray(np.array([[70000]], np.int32)), "wide.tiff")
    with pytest.raises(UserError, match="beyond 16 bits"):
        read_image(wide)


def test_unknown_format_is_refused():
    with pytest.raises(UserError, match='"YUV" is not supported'):
        read_image("any.jpg", "YUV")


def test_label_map_keeps_stored_values(save):
    assert read_label_map(save(palette_image(), "palette.png")).tolist() == [[0, 1]]
    gray = Image.fromarray(np.array([[0, 7, 255]], np.uint8))
    assert read_label_map(save(gray, "gray.png")).tolist() == [[0, 7, 255]]
    deep = Image.fromarray(np.array([[3, 846, 65535]], np.uint16))
    labels = read_label_map(save(deep, "deep.tiff"))
    assert labels.tolist() == [[3, 846, 65535]] and labels.dtype == np.uint16
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    assert read_label_map(save(gray, "turned.png", exif=exif)).tolist() == [[0, 7, 255]]


def test_label_map_of_real_image(test_data):
    folder = test_data / "ade20k"
    raw = read_label_map(str(folder / "annotations/validation/ADE_val_00000001.png"))
    shifted = read_label_map(str(folder / "annotations_detectron2/validation/ADE_val_00000001.png"))
    np.testing.assert_array_equal(raw - np.uint8(1), shifted)


def test_colour_image_is_no_label_map(save):
    with pytest.raises(UserError, match="a.png is no label map.*mode RGB"):
        read_label_map(save(Image.new("RGB", (2, 2)), "a.png"))


def test_id_is_in_base_256(save):
    image = Image.fromarray(np.array([[[1, 2, 3], [0, 0, 0], [255, 255, 255]]], np.uint8))
    # 1 + 2 * 256 + 3 * 65536 = 197121; 256^3 - 1 = 16777215.
    assert read_id_png(save(image, "a.png")).tolist() == [[197121, 0, 16777215]]
