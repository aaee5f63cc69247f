"""ADE20K's classes and how its label files combine, on arrays checked by hand."""

import numpy as np
import pytest
from PIL import Image

from eomt_d2.data.datasets.ade20k import (
    ADE20K_CATEGORIES,
    ADE20K_THING_CATEGORIES,
    instance_ids,
    panoptic_ids,
    segment_category,
    semantic_ids,
)


def test_150_classes_of_which_100_are_things():
    assert [category["id"] for category in ADE20K_CATEGORIES] == list(range(150))
    assert len(ADE20K_THING_CATEGORIES) == 100


def test_well_known_classes():
    """The 100 instance classes begin bed, window, cabinet, person and end with flag (149)."""
    things = [(category["id"], category["name"]) for category in ADE20K_THING_CATEGORIES]
    assert [name.split(",")[0] for _, name in things[:4]] == ["bed", "window", "cabinet", "person"]
    assert [number for number, _ in things[:4]] == [7, 8, 10, 12]
    assert things[-1] == (149, "flag")
    assert (20, "car") in things
    stuff = {category["name"] for category in ADE20K_CATEGORIES if not category["isthing"]}
    assert {"wall", "sky", "tree", "grass", "water"} <= stuff


def test_semantic_ids():
    label = np.array([[0, 1, 150]], dtype=np.uint8)
    np.testing.assert_array_equal(semantic_ids(label), [[255, 0, 149]])


def test_semantic_ids_of_the_real_sample(test_data):
    folder = test_data / "ade20k"
    files = sorted((folder / "annotations" / "validation").glob("*.png"))
    assert len(files) == 3
    for file in files:
        expected = np.asarray(Image.open(folder / "annotations_detectron2/validation" / file.name))
        np.testing.assert_array_equal(semantic_ids(np.asarray(Image.open(file))), expected)


def test_semantic_value_above_150():
    with pytest.raises(ValueError, match="label 151 is above 150"):
        semantic_ids(np.array([[151]], dtype=np.uint8))


def packed(red, green):
    return np.asarray(red) + 256 * np.asarray(green)


def test_instances():
    """Class 1 is bed (7), class 4 is person (12), class 100 is flag (149)."""
    ids = instance_ids(packed([[0, 1, 1, 4, 100, 4]], [[0, 1, 2, 3, 255, 0]]))
    assert (ids > 0).tolist() == [[False, True, True, True, True, False]]
    assert [segment_category(i) for i in ids[0, 1:5].tolist()] == [7, 7, 12, 149]
    assert len(set(ids[0, 1:5].tolist())) == 4


def test_instance_class_above_100():
    with pytest.raises(ValueError, match="instance class 101 is above 100"):
        instance_ids(packed([[101]], [[1]]))


def test_things_overwrite_stuff_and_semantic_things_are_ignored():
    #                 wall, sky, person, other; PNG values are the classes plus 1
    label = np.array([[1, 1, 3, 13, 13, 0, 0]], dtype=np.uint8)
    red = [[0, 4, 0, 0, 4, 4, 0]]
    green = [[0, 1, 0, 0, 1, 2, 0]]
    ids = panoptic_ids(label, packed(red, green))
    classes = [segment_category(i) if i else None for i in ids[0].tolist()]
    assert classes == [0, 12, 2, None, 12, 12, None]
    assert ids[0, 1] == ids[0, 4] != ids[0, 5]


def test_stuff_of_one_class_is_one_segment():
    ids = panoptic_ids(np.array([[1, 3, 1]], dtype=np.uint8), np.zeros((1, 3), dtype=np.int32))
    assert ids[0, 0] == ids[0, 2] != ids[0, 1]


def test_sizes_that_differ():
    with pytest.raises(ValueError, match="sizes differ"):
        panoptic_ids(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.int32))
