"""Control over torch.rand, for comparing code that draws the same numbers in another order."""

from collections import defaultdict
from contextlib import contextmanager
from unittest import mock

import torch

_rand = torch.rand


class Draws:
    """Records what is drawn and hands it out again, in order within each shape."""

    def __init__(self):
        self._by_shape = defaultdict(list)

    @contextmanager
    def record(self):
        def rand(*size, **kwargs):
            drawn = _rand(*size, **kwargs)
            self._by_shape[size].append(drawn)
            return drawn

        with mock.patch("torch.rand", rand):
            yield

    @contextmanager
    def replay(self):
        remaining = {size: iter(drawn) for size, drawn in self._by_shape.items()}

        def rand(*size, device=None):
            return next(remaining[size]).to(device)

        with mock.patch("torch.rand", rand):
            yield
        left = [size for size, drawn in remaining.items() if next(drawn, None) is not None]
        assert not left, f"not all numbers were drawn again: {left}"


def same_points_for_all(*size, device=None):
    """Stands in for torch.rand(N, P, 2): P points that depend on neither N nor the call."""
    points = _rand(1, *size[1:], generator=torch.Generator().manual_seed(size[1]))
    return points.expand(size).to(device)


def center_only(*size, device=None):
    """Stands in for torch.rand(N, P, 2): every point is the centre of the map."""
    return torch.full(size, 0.5, device=device)
