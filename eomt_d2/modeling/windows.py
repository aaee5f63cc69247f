"""Sliding windows for semantic inference (EoMT's ADE20K and Cityscapes semantic recipes)."""

from collections.abc import Iterable, Sequence

from torch import Tensor

__all__ = ["window_positions", "merge_windows"]


def window_positions(height: int, width: int, window: int) -> list[tuple[int, int]]:
    """Where square windows stand along the long side of an image.

    ``n = ceil(long / window)`` windows, evenly spread: window j starts at ``int(j * step)`` with
    ``step = window - (n * window - long) / (n - 1)``.

    Args:
        height, width: size of the image in pixels; the short side equals ``window``.
        window: side of the windows in pixels.

    Returns:
        (top, left) of each window. They slide along the width if height <= width.

    Raises:
        ValueError: if the short side is not ``window``.
    """
    if min(height, width) != window:
        raise ValueError(
            f"the short side of a {height} x {width} image must equal the window of {window} "
            "pixels: resize the image first"
        )
    long = max(height, width)
    count = -(-long // window)
    step = window - (count * window - long) / (count - 1) if count > 1 else 0.0
    starts = [int(j * step) for j in range(count)]
    # Rounding may put the last window one pixel short of the border.
    starts[-1] = long - window
    return [(0, start) if height <= width else (start, 0) for start in starts]


def merge_windows(
    windows: Iterable[Tensor], positions: Sequence[tuple[int, int]], size: tuple[int, int]
) -> Tensor:
    """The average, at each pixel, of the windows that cover it.

    Args:
        windows: (K, h, w) scores of each window. A generator keeps one window in memory at a time.
        positions: (top, left) of each window; together the windows cover the image.
        size: (H, W) of the image in pixels.

    Returns:
        (K, H, W) of the windows' dtype.
    """
    total = count = None
    for scores, (top, left) in zip(windows, positions, strict=True):
        if total is None:
            total = scores.new_zeros(len(scores), *size)
            count = scores.new_zeros(size)
        height, width = scores.shape[1:]
        total[:, top : top + height, left : left + width] += scores
        count[top : top + height, left : left + width] += 1
    return total.div_(count)
