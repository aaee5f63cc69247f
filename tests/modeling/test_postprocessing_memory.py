"""Memory of post-processing: bytes per pixel of the image, whatever the number of queries.

The logits themselves, which exist before, do not count.
"""

import pytest
import torch

from eomt_d2.benchmark.memory import peak_memory
from eomt_d2.modeling.postprocessing import MaskGeometry, PostProcessing, instance_inference

GRID, CLASSES, COUNTS, MB = (64, 64), 20, (50, 800), 1_000_000
INPUT, IMAGE = (256, 256), (171, 256)
# Where every query may own every pixel, time does grow with both.
OUTPUT = {"few": (1000, 1500), "all": (200, 300)}
PIXELS = {kind: height * width for kind, (height, width) in OUTPUT.items()}
# Pieces of 4 MB and what is made from them; and, at 128 x 128 pixels to a tile, a few bytes for
# each tile and query.
PIECES = 24 * MB


def logits_of(num_queries, kind):
    """Class and mask logits: "few", of which 24 queries are sure of one part of the image each and
    the others of "no object", or "all", where every query may own any pixel."""
    class_logits = torch.zeros(num_queries, CLASSES + 1)
    if kind == "all":
        class_logits[torch.arange(num_queries), torch.arange(num_queries) % CLASSES] = 10
        return class_logits, torch.randn(num_queries, *GRID) * 3
    mask_logits = torch.full((num_queries, *GRID), -8.0)
    for i in range(24):
        top, left = 8 * (i // 4), 16 * (i % 4)
        mask_logits[i, top : top + 8, left : left + 16] = 8
        class_logits[i, i % CLASSES] = 10
    class_logits[24:, CLASSES] = 10
    return class_logits, mask_logits


def peak(kind, num_queries, **settings):
    class_logits, mask_logits = logits_of(num_queries, kind)
    # Only panoptic results need to know which classes are things.
    process = PostProcessing(thing_ids=range(10) if "panoptic_on" in settings else None, **settings)
    geometry = MaskGeometry(INPUT, IMAGE, OUTPUT[kind])
    return peak_memory(lambda: process(class_logits, mask_logits, geometry), "cpu", [])


@pytest.mark.parametrize("kind", ["few", "all"])
def test_panoptic(kind):
    """The map of int32 is the result, and the only thing that is made of the whole image."""
    few, many = (peak(kind, count, panoptic_on=True) for count in COUNTS)
    assert 4 * PIXELS[kind] < many < 4 * PIXELS[kind] + PIECES
    assert abs(many - few) < (0.1 * few if kind == "few" else PIECES / 4)


@pytest.mark.parametrize("kind", ["few", "all"])
def test_semantic_labels(kind):
    """Scores at the size of the network's input, 20 x 256 x 256 float32, and labels of int64."""
    few, many = (peak(kind, count, semantic_on=True, semantic_output="labels") for count in COUNTS)
    fixed = 4 * CLASSES * INPUT[0] * INPUT[1] + 8 * PIXELS[kind]
    assert 8 * PIXELS[kind] < many < fixed + PIECES
    assert abs(many - few) < (0.1 * few if kind == "few" else PIECES / 4)


@pytest.mark.parametrize("kind", ["few", "all"])
def test_instances(kind):
    """Masks of bool for each instance are the result; beyond it there are only pieces."""
    for count in COUNTS:
        beyond = peak(kind, count, instance_on=True) - size_of_masks(kind, count)
        assert 0 < beyond < PIECES


def size_of_masks(kind, num_queries):
    class_logits, mask_logits = logits_of(num_queries, kind)
    geometry = MaskGeometry(INPUT, IMAGE, OUTPUT[kind])
    return instance_inference(mask_logits, class_logits, geometry).pred_masks.numel()
