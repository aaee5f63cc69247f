"""Annotation files that reach for other files, or for all of the memory."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from eomt_d2.data.datasets.annotation_file import path_below, read_json
from eomt_d2.data.datasets.coco_format import (
    instance_metadata,
    load_coco_instances,
    load_coco_panoptic,
    panoptic_metadata,
)
from eomt_d2.data.datasets.loading import load_dataset_dicts
from eomt_d2.errors import UserError

OUTSIDE = [
    "../../etc/passwd", "/etc/passwd", "a/../../b.png", "..", "a/..", "", ".", "http://x/y.png",
    "file:///etc/passwd", "a.png\0.jpg", "..\\..\\a.png", "C:\\a.png",
]  # fmt: skip
CATEGORIES = [{"id": 1, "name": "cat", "isthing": 1}]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_elsewhere(name):
    with pytest.raises(UserError, match="may lie outside of 'images'") as caught:
        path_below("images", name, "a.json")
    assert "\0" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.png", "city/a.b.jpg", "..a/b..png", "...png", "~/a.png"])
def test_names_that_stay(name):
    assert path_below("images", name, "a.json") == f"images/{name}"


@pytest.fixture
def folder(tmp_path):
    for name in ("images", "panoptic"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (4, 3)).save(tmp_path / "images/a.png")
    Image.new("RGB", (4, 3)).save(tmp_path / "panoptic/a.png")
    Image.new("RGB", (4, 3)).save(tmp_path / "secret.png")
    return tmp_path


def write(folder, image_name="a.png", png_name="a.png", instances=False):
    annotation = {"image_id": 1, "category_id": 1, "id": 1, "bbox": [0, 0, 2, 2], "area": 4}
    if not instances:
        annotation = {"image_id": 1, "file_name": png_name, "segments_info": []}
    content = {
        "images": [{"id": 1, "file_name": image_name, "height": 3, "width": 4}],
        "annotations": [annotation],
        "categories": CATEGORIES,
    }
    (folder / "a.json").write_text(json.dumps(content))
    return folder / "a.json"


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd"])
def test_our_loaders_refuse_them(folder, name):
    metadata = panoptic_metadata(CATEGORIES)
    for names in ({"image_name": name}, {"png_name": name}):
        with pytest.raises(UserError, match="may lie outside"):
            load_coco_panoptic(
                write(folder, **names), folder / "images", folder / "panoptic", metadata
            )
    with pytest.raises(UserError, match="may lie outside"):
        load_coco_instances(
            write(folder, name, instances=True), folder / "images", instance_metadata(CATEGORIES)
        )


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png"])
@pytest.mark.parametrize("root", ["images", "./images", "x/../images"])
def test_so_do_detectron2s_own(folder, catalogs, monkeypatch, name, root):
    monkeypatch.chdir(folder)
    (folder / "x").mkdir()
    write(folder, name, instances=True)
    register_coco_instances("hostile", {}, "a.json", root)
    with pytest.raises(UserError, match="annotations of hostile name the file .* outside of"):
        load_dataset_dicts(["hostile"])
    write(folder, "a.png", instances=True)
    assert len(load_dataset_dicts(["hostile"])) == 1


def test_links_inside_the_folder_are_the_users_own(folder):
    (folder / "images/link.png").symlink_to(folder / "secret.png")
    file = write(folder, "link.png", instances=True)
    (record,) = load_coco_instances(file, folder / "images", instance_metadata(CATEGORIES))
    assert record["file_name"] == str(folder / "images/link.png")


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("[" * 100_000, "nested too deeply|is not JSON"),
        ('{"a":' * 100_000, "nested too deeply|is not JSON"),
        ("1" * 5000, "is not JSON"),
        ('{"images": NaN, ', "is not JSON"),
        ("", "is not JSON"),
        ("\ud800".encode("utf-16", "surrogatepass").decode("latin1"), "is not JSON"),
    ],
)
def test_no_json(tmp_path, text, sentence):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=sentence) as caught:
        read_json(tmp_path / "a.json")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("content", [{}, {"images": 5}, [], {"images": [], "annotations": [{}]}])
def test_detectron2s_loader_fails_in_one_sentence(folder, catalogs, content):
    (folder / "a.json").write_text(json.dumps(content))
    register_coco_instances("broken", {}, str(folder / "a.json"), str(folder / "images"))
    with pytest.raises(UserError, match="data set broken cannot be loaded .*; check its annot"):
        load_dataset_dicts(["broken"])


def test_faults_of_a_users_own_loader_are_not_hidden(catalogs):
    def load():
        raise KeyError("mine")

    DatasetCatalog.register("own", load)
    with pytest.raises(KeyError, match="mine"):
        load_dataset_dicts(["own"])
    MetadataCatalog.get("own")


def test_an_empty_data_set(catalogs):
    DatasetCatalog.register("nothing", lambda: [])
    with pytest.raises(UserError, match="The data set nothing cannot be loaded .*is empty"):
        load_dataset_dicts(["nothing"])
