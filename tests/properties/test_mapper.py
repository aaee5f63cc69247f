"""Training samples of random small images: what a model may rely on, whatever was drawn."""

import json

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from eomt_d2.data import MaskClassificationMapper

QUICK = settings(
    max_examples=80,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
NUM_CLASSES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@st.composite
def scenes(draw):
    """Ids of segments on a small map, their classes, which are crowds, and the pixels."""
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    count = draw(st.integers(0, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ids = np.zeros((height, width), np.uint8)
    for segment in range(1, count + 1):
        top, left = rng.integers(height), rng.integers(width)
        ids[top : top + rng.integers(1, height + 1), left : left + rng.integers(1, width + 1)] = (
            segment
        )
    classes = rng.integers(0, NUM_CLASSES, count).tolist()
    crowds = (rng.random(count) < 0.25).tolist()
    return ids, classes, crowds, rng.integers(0, 256, (height, width, 3), np.uint8)


OPTIONS = st.fixed_dictionaries(
    dict(
        image_size=st.integers(1, 40),
        crop_height=st.sampled_from([0, 0, 1, 7, 33]),
        scale_fit=st.sampled_from(["long", "short"]),
        color_jitter=st.booleans(),
        emptied_segments=st.sampled_from(["drop", "keep"]),
        pad_value=st.sampled_from([0, 128]),
        mask_tensors=st.booleans(),
        image_format=st.sampled_from(["RGB", "BGR"]),
    )
)
SCALES = st.tuples(st.floats(0.05, 3), st.floats(0.05, 3)).map(sorted)


def entry_of(scene, folder, kind):
    """The scene in Detectron2's dataset format, written to files."""
    ids, classes, crowds, pixels = scene
    height, width = ids.shape
    Image.fromarray(pixels).save(folder / "image.png")
    entry = {"file_name": str(folder / "image.png"), "image_id": 1, "height": height}
    entry["width"] = width
    if kind == "panoptic":
        Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], -1)).save(folder / "truth.png")
        entry["pan_seg_file_name"] = str(folder / "truth.png")
        entry["segments_info"] = [
            {"id": i, "category_id": category, "iscrowd": int(crowd)}
            for i, (category, crowd) in enumerate(zip(classes, crowds, strict=True), 1)
        ]
        return entry
    entry["annotations"] = [
        {"category_id": category, "iscrowd": int(crowd), "segmentation": run_lengths(ids == i)}
        for i, (category, crowd) in enumerate(zip(classes, crowds, strict=True), 1)
    ]
    return json.loads(json.dumps(entry))


def run_lengths(mask):
    """COCO's uncompressed run lengths: column by column, zeros first."""
    flat = np.concatenate([[False], mask.flatten("F")])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(np.concatenate([[0], edges, [mask.size]]))
    return {"size": list(mask.shape), "counts": runs.tolist()}


def masks_of(instances):
    masks = instances.gt_masks
    return masks.tensor if isinstance(masks, BitMasks) else masks


@given(
    scene=scenes(), options=OPTIONS, scales=SCALES, kind=st.sampled_from(["panoptic", "instance"]),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@QUICK
def test_a_sample(folder, scene, options, scales, kind, seed):
    ids, classes, crowds, pixels = scene
    low, high = scales
    entry = entry_of(scene, folder, kind)
    before = json.dumps(entry)
    mapper = MaskClassificationMapper(
        is_train=True, min_scale=low, max_scale=high, empty_samples="keep", ground_truth=kind,
        **options,
    )  # fmt: skip
    np.random.seed(seed)
    sample = mapper(entry)
    assert json.dumps(entry) == before, "the entry belongs to the data set"
    height, width = options["crop_height"] or options["image_size"], options["image_size"]
    assert sample["image"].shape == (3, height, width) and sample["image"].dtype == torch.uint8
    instances, masks = sample["instances"], masks_of(sample["instances"])
    assert instances.image_size == (height, width)
    assert masks.shape == (len(instances), height, width) and masks.dtype == torch.bool
    assert instances.gt_classes.dtype == torch.int64
    # The segments without crowds, in their order; some or all of them.
    wanted = [c for c, crowd in zip(classes, crowds, strict=True) if not crowd]
    found = instances.gt_classes.tolist()
    if options["emptied_segments"] == "keep":
        assert found == wanted
    else:
        left = iter(wanted)
        assert all(label in left for label in found)
        assert masks.flatten(1).any(1).all()
    # The map of ids gives every pixel to one segment at most, and so does any crop of it.
    assert (masks.sum(0) <= 1).all()
    # Nothing is in the padding: there is none beyond the largest scale.
    fitted = (max if options["scale_fit"] == "long" else min)(ids.shape)
    rows, columns = (max(1, int(high * width * side / fitted + 1e-6)) for side in ids.shape)
    assert not masks[:, rows:].any() and not masks[:, :, columns:].any()
    assert (sample["image"][:, rows:] == options["pad_value"]).all()

    np.random.seed(seed)
    again = mapper(entry)
    assert torch.equal(again["image"], sample["image"])
    assert torch.equal(masks_of(again["instances"]), masks)
    assert torch.equal(again["instances"].gt_classes, instances.gt_classes)


@given(scene=scenes(), scales=SCALES, seed=st.integers(0, 2**32 - 1), size=st.integers(1, 40))
@QUICK
def test_panoptic_and_instance_ground_truth_agree(folder, scene, scales, seed, size):
    """The same segments as a map of ids and as run lengths, after the same draws."""
    samples = []
    for kind in ("panoptic", "instance"):
        mapper = MaskClassificationMapper(
            is_train=True, image_size=size, min_scale=scales[0], max_scale=scales[1],
            empty_samples="keep", ground_truth=kind,
        )  # fmt: skip
        np.random.seed(seed)
        samples.append(mapper(entry_of(scene, folder, kind))["instances"])
    one, other = samples
    assert one.gt_classes.tolist() == other.gt_classes.tolist()
    assert torch.equal(masks_of(one), masks_of(other))
