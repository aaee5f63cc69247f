"""The photometric jitter of the published ADE20K and Cityscapes recipes.

It is not Detectron2's SSD transform: brightness multiplies instead of adding, and hue moves by at
most 18 degrees.
"""

import numpy as np
import torch
from torchvision.transforms.v2 import functional

__all__ = ["apply_color_jitter", "draw_color_jitter"]

_BRIGHTNESS = 32 / 255
_CONTRAST = 0.5
_SATURATION = 0.5
_HUE = 18 / 360

_ADJUST = {
    "brightness": functional.adjust_brightness,
    "contrast": functional.adjust_contrast,
    "saturation": functional.adjust_saturation,
    "hue": functional.adjust_hue,
}


def draw_color_jitter(rng: np.random.Generator) -> list[tuple[str, float]]:
    """Draw which operations happen, in which order, and how strongly.

    Each of the four has probability 0.5. Brightness comes first; a fair coin then chooses between
    (contrast, saturation, hue) and (saturation, hue, contrast).

    Returns:
        (operation, amount) in the order to apply: a factor in U(1 - 32/255, 1 + 32/255) for
        "brightness" and in U(0.5, 1.5) for "contrast" and "saturation"; a shift in
        U(-18/360, 18/360) of a turn for "hue".
    """
    operations = []

    def draw(name: str, low: float, high: float) -> None:
        if rng.random() < 0.5:
            operations.append((name, rng.uniform(low, high)))

    draw("brightness", 1 - _BRIGHTNESS, 1 + _BRIGHTNESS)
    contrast_first = rng.random() < 0.5
    if contrast_first:
        draw("contrast", 1 - _CONTRAST, 1 + _CONTRAST)
    draw("saturation", 1 - _SATURATION, 1 + _SATURATION)
    draw("hue", -_HUE, _HUE)
    if not contrast_first:
        draw("contrast", 1 - _CONTRAST, 1 + _CONTRAST)
    return operations


def apply_color_jitter(image: np.ndarray, operations: list[tuple[str, float]]) -> np.ndarray:
    """Apply the drawn operations to an image.

    Contrast blends with the mean of the grey image, saturation with the grey image; after each
    operation the result is a uint8 image again.

    Args:
        image: (H, W, 3) uint8, RGB.
        operations: see :func:`draw_color_jitter`.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    if not operations:
        return image
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    for name, amount in operations:
        pixels = _ADJUST[name](pixels, amount)
    return pixels.permute(1, 2, 0).contiguous().numpy()
