"""Reading COCO's panoptic and instance files."""

import json

import numpy as np
import pytest
from panopticapi.utils import id2rgb
from PIL import Image

from eomt_d2.data.datasets.coco_format import (
    ids_to_rgb,
    instance_metadata,
    load_coco_instances,
    load_coco_panoptic,
    mask_box,
    panoptic_metadata,
    read_categories,
)
from eomt_d2.errors import UserError

# Stuff before, between and after things; ids with gaps.
CATEGORIES = [
    {"id": 2, "name": "sky", "isthing": 0},
    {"id": 5, "name": "cat", "isthing": 1},
    {"id": 6, "name": "road", "isthing": 0},
    {"id": 9, "name": "dog", "isthing": 1},
]


@pytest.fixture
def files(tmp_path):
    """A data set of one image, and a function that changes its JSON file."""
    for folder in ("images/city", "panoptic", "semantic"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (4, 3)).save(tmp_path / "images/city/a.jpeg")
    Image.new("RGB", (4, 3)).save(tmp_path / "panoptic/a_ids.png")
    Image.new("L", (4, 3)).save(tmp_path / "semantic/a_ids.png")
    content = {
        "images": [{"id": 7, "file_name": "city/a.jpeg", "height": 3, "width": 4}],
        "categories": CATEGORIES[::-1],
        "annotations": [
            {
                "image_id": 7,
                "file_name": "a_ids.png",
                "segments_info": [
                    {"id": 11, "category_id": 9, "area": 5, "iscrowd": 0},
                    {"id": 12, "category_id": 6, "area": 7, "iscrowd": 0},
                ],
            }
        ],
    }

    def load(sem_seg=False):
        (tmp_path / "panoptic.json").write_text(json.dumps(content))
        return load_coco_panoptic(
            tmp_path / "panoptic.json",
            tmp_path / "images",
            tmp_path / "panoptic",
            panoptic_metadata(CATEGORIES),
            tmp_path / "semantic" if sem_seg else None,
        )

    return content, load, tmp_path


def test_categories_are_sorted_by_id(files):
    content, load, root = files
    load()
    assert [c["id"] for c in read_categories(root / "panoptic.json")] == [2, 5, 6, 9]


def test_metadata_counts_things_and_stuff_together():
    metadata = panoptic_metadata(CATEGORIES)
    assert metadata["thing_classes"] == metadata["stuff_classes"] == ["sky", "cat", "road", "dog"]
    assert metadata["thing_dataset_id_to_contiguous_id"] == {5: 1, 9: 3}
    assert metadata["stuff_dataset_id_to_contiguous_id"] == {2: 0, 5: 1, 6: 2, 9: 3}
    assert "stuff_colors" not in metadata


def test_colours_are_used_where_every_category_has_one():
    coloured = [{**c, "color": [c["id"], 0, 0]} for c in CATEGORIES]
    assert panoptic_metadata(coloured)["stuff_colors"][3] == [9, 0, 0]
    assert instance_metadata(coloured)["thing_colors"][1] == [5, 0, 0]


def test_instance_metadata():
    metadata = instance_metadata([CATEGORIES[1], CATEGORIES[3]])
    assert metadata == {
        "thing_classes": ["cat", "dog"],
        "thing_dataset_id_to_contiguous_id": {5: 0, 9: 1},
    }


def test_panoptic_entries(files):
    _, load, root = files
    (record,) = load(sem_seg=True)
    assert record == {
        "file_name": str(root / "images/city/a.jpeg"),
        "image_id": 7,
        "height": 3,
        "width": 4,
        "pan_seg_file_name": str(root / "panoptic/a_ids.png"),
        "sem_seg_file_name": str(root / "semantic/a_ids.png"),
        "segments_info": [
            {"id": 11, "category_id": 3, "area": 5, "iscrowd": 0, "isthing": True},
            {"id": 12, "category_id": 2, "area": 7, "iscrowd": 0, "isthing": False},
        ],
    }


def test_semantic_files_only_where_there_are_any(files):
    _, load, _ = files
    assert "sem_seg_file_name" not in load()[0]


def test_category_without_isthing():
    with pytest.raises(UserError, match="'cat' lacks 'isthing'"):
        panoptic_metadata([{"id": 1, "name": "cat"}])


def test_unknown_category(files):
    content, load, _ = files
    content["annotations"][0]["segments_info"][0]["category_id"] = 77
    with pytest.raises(UserError, match="Image 7 of .* category 77"):
        load()


def test_unknown_image(files):
    content, load, _ = files
    content["annotations"][0]["image_id"] = 8
    with pytest.raises(UserError, match="annotates image 8"):
        load()


def test_no_annotation(files):
    content, load, _ = files
    content["annotations"] = []
    with pytest.raises(UserError, match="no annotated image"):
        load()


@pytest.mark.parametrize("name", ["images/city/a.jpeg", "panoptic/a_ids.png"])
def test_missing_file_is_named(files, name):
    _, load, root = files
    (root / name).unlink()
    with pytest.raises(UserError, match=f"{name}.* does not exist"):
        load()


def test_missing_folder_is_named(files):
    _, load, root = files
    (root / "semantic" / "a_ids.png").unlink()
    (root / "semantic").rmdir()
    with pytest.raises(UserError, match="semantic', .*does not exist"):
        load(sem_seg=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', "is not JSON"),
        ('{"images": []}', "has no 'categories'"),
        ("[1]", "has no 'categories'"),
        ('{"categories": [{"id": 1}]}', "lacks 'id' or 'name'"),
        ('{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "the same id"),
    ],
)
def test_unusable_categories(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_categories(tmp_path / "a.json")


def test_missing_json(tmp_path):
    with pytest.raises(UserError, match="a.json' cannot be read .No such file"):
        read_categories(tmp_path / "a.json")


def test_instances_take_the_ids_of_the_metadata(test_data):
    """A file that uses 80 categories, read as a data set that knows two more, before and after."""
    coco = test_data / "coco"
    json_file = coco / "annotations" / "instances_val2017_mini.json"
    categories = read_categories(json_file)
    wider = [{"id": -1, "name": "first"}, *categories, {"id": 999, "name": "last"}]
    narrow, wide = (
        load_coco_instances(json_file, coco / "val2017", instance_metadata(c))
        for c in (categories, wider)
    )
    for a, b in zip(narrow, wide, strict=True):
        assert a["file_name"] == b["file_name"]
        for x, y in zip(a["annotations"], b["annotations"], strict=True):
            assert y["category_id"] == x["category_id"] + 1
    # Image 39769 shows two cats (category 15 of 0-79) and two remotes (65) on a couch (57) which is
    # annotated as bed (59) too.
    (cats,) = (record for record in narrow if record["image_id"] == 39769)
    assert sorted(x["category_id"] for x in cats["annotations"]) == [15, 15, 57, 59, 65, 65]


def test_instance_of_unknown_category(test_data):
    coco = test_data / "coco"
    json_file = coco / "annotations" / "instances_val2017_mini.json"
    with pytest.raises(UserError, match="instance of category"):
        load_coco_instances(json_file, coco / "val2017", instance_metadata(CATEGORIES[:1]))


def test_missing_instance_json(tmp_path):
    with pytest.raises(UserError, match="'.*a.json' does not exist"):
        load_coco_instances(tmp_path / "a.json", tmp_path, instance_metadata(CATEGORIES))


def test_ids_to_rgb_is_panopticapis():
    ids = np.random.default_rng(0).integers(0, 256**3, (5, 7))
    assert (ids_to_rgb(ids) == id2rgb(ids)).all()


def test_mask_box():
    mask = np.zeros((6, 8), dtype=bool)
    mask[2, 3] = mask[4, 6] = True
    assert mask_box(mask) == [3, 2, 4, 3]
