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


class DrawsByImage:
    """Stands in for torch.rand: an image draws from a generator of its own.

    What it draws depends on its seed and on how often it has drawn, not on the images beside it.
    It knows what a training step draws: the matcher's points, for one image after the other; all
    else for the images of a batch together, either one row per image (stochastic depth, annealed
    masks) or one per matched mask (the points of the losses).

    Args:
        num_points: of the matcher.
        num_queries: an image has at most as many matched masks.

    Attributes:
        kinds: what was drawn until now.
    """

    def __init__(self, num_points, num_queries):
        self._matcher_points = (1, num_points, 2)
        self._num_queries = num_queries
        self.kinds = set()

    def start(self, seeds, num_segments):
        """A batch, or a part of one, begins; two lists with a number for each image."""
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._num_masks = [min(count, self._num_queries) for count in num_segments]
        self._matched = 0

    def __call__(self, *size, device=None):
        # A size is given as several numbers or as one sequence.
        size = size if isinstance(size[0], int) else tuple(size[0])
        if size == self._matcher_points:
            self.kinds.add("matching")
            generator = self._generators[self._matched % len(self._generators)]
            self._matched += 1
            return _rand(size, generator=generator).to(device)
        if size[1:] == (1,) * (len(size) - 1):
            kind, rows = "stochastic depth", [1] * len(self._generators)
        elif len(size) == 2:
            kind, rows = "annealed masks", [1] * len(self._generators)
        else:
            kind, rows = "mask losses", self._num_masks
        assert size[0] == sum(rows), f"torch.rand{size} is not drawn for {rows}"
        self.kinds.add(kind)
        drawn = [
            _rand(count, *size[1:], generator=generator)
            for count, generator in zip(rows, self._generators, strict=True)
        ]
        return torch.cat(drawn).to(device)
