import importlib.util
import io
import json
import math
import sys

import detectron2.evaluation
import numpy as np
import pytest
import torch
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import name2label
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import json2labelImg
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from detectron2.data.datasets.cityscapes_panoptic import load_cityscapes_panoptic
from detectron2.structures import Instances
from PIL import Image

from eomt_d2.errors import UserError
from eomt_d2.evaluation import cityscapes

HEIGHT, WIDTH = 40, 60
# (label, left, top, right, bottom) in inclusive pixel coordinates, later ones on top.
SCENE = [
    ("road", 0, 0, 59, 39),
    ("sky", 0, 0, 59, 9),  # 600 pixels
    ("car", 4, 20, 19, 31),  # 16 x 12 = 192
    ("person", 30, 20, 39, 31),  # 10 x 12 = 120
    ("cargroup", 44, 20, 59, 31),  # 192, a crowd
    ("ego vehicle", 0, 36, 59, 39),  # void
]
ROAD, SKY, BUILDING, PERSON, CAR = 0, 10, 2, 11, 13  # trainIds = contiguous classes
THINGS = [c for c in CITYSCAPES_CATEGORIES if c["isthing"]]
FRAME = "aachen_000000_000019"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A Cityscapes folder with one image, made by the official preparation functions."""
    root = tmp_path_factory.mktemp("cityscapes")
    truth, images = root / "gtFine" / "val" / "aachen", root / "leftImg8bit" / "val" / "aachen"
    truth.mkdir(parents=True)
    images.mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(images / f"{FRAME}_leftImg8bit.png")
    objects = [
        {"label": label, "polygon": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]}
        for label, x0, y0, x1, y1 in SCENE
    ]
    polygons = str(truth / f"{FRAME}_gtFine_polygons.json")
    with open(polygons, "w") as file:
        json.dump({"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}, file)
    json2labelImg(polygons, polygons.replace("polygons.json", "labelIds.png"), "ids")
    json2labelImg(polygons, polygons.replace("polygons.json", "labelTrainIds.png"), "trainIds")
    annotation = Annotation()
    annotation.fromJsonFile(polygons)
    # Saved here, because Pillow 13 writes no 32-bit PNG, which json2instanceImg asks for.
    instance_ids = createInstanceImage(annotation, "ids").convert("I;16")
    instance_ids.save(polygons.replace("polygons.json", "instanceIds.png"))
    convert2panoptic(str(root / "gtFine"), setNames=["val"])
    return root


def region(label):
    """(HEIGHT, WIDTH) bool: what is left of an object of the scene under the later ones."""
    order = np.full((HEIGHT, WIDTH), -1)
    for index, (_, x0, y0, x1, y1) in enumerate(SCENE):
        order[y0 : y1 + 1, x0 : x1 + 1] = index
    return order == [name for name, *_ in SCENE].index(label)


def semantic_truth():
    classes = np.full((HEIGHT, WIDTH), ROAD)
    for label, index in (("sky", SKY), ("car", CAR), ("person", PERSON), ("cargroup", CAR)):
        classes[region(label)] = index
    return classes


@pytest.fixture
def semantic(root, register):
    images, truth = str(root / "leftImg8bit" / "val"), str(root / "gtFine" / "val")
    return register("city_semantic", load_cityscapes_semantic(images, truth), gt_dir=truth)


@pytest.fixture
def instance(root, register):
    path = root / "leftImg8bit" / "val" / "aachen" / f"{FRAME}_leftImg8bit.png"
    entry = {"file_name": str(path), "image_id": path.name}
    names = [c["name"] for c in THINGS]
    return register(
        "city_instance", [entry], gt_dir=str(root / "gtFine" / "val"), thing_classes=names
    )


@pytest.fixture
def panoptic(root, register):
    truth = root / "gtFine" / "cityscapes_panoptic_val"
    stuff = [c for c in CITYSCAPES_CATEGORIES if not c["isthing"]]
    ids = {
        "thing_dataset_id_to_contiguous_id": {c["id"]: c["trainId"] for c in THINGS},
        "stuff_dataset_id_to_contiguous_id": {c["id"]: c["trainId"] for c in stuff},
    }
    dicts = load_cityscapes_panoptic(
        str(root / "leftImg8bit" / "val"), str(truth), f"{truth}.json", ids
    )
    return register(
        "city_panoptic", dicts, panoptic_root=str(truth), panoptic_json=f"{truth}.json", **ids
    )


def evaluate(evaluator, dataset, output):
    evaluator.reset()
    entry = detectron2.data.DatasetCatalog.get(dataset)[0]
    evaluator.process([entry], [output])
    return evaluator.evaluate()


def instances(*entries):
    """Instances from (name, score, mask)."""
    result = Instances((HEIGHT, WIDTH))
    result.pred_masks = torch.from_numpy(np.stack([mask for *_, mask in entries]))
    names = [c["name"] for c in THINGS]
    result.pred_classes = torch.tensor([names.index(name) for name, *_ in entries])
    result.scores = torch.tensor([score for _, score, _ in entries])
    return {"instances": result}


def panoptic_seg(*segments):
    """Result from (class, is it a thing, mask)."""
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    info = []
    for number, (category, isthing, mask) in enumerate(segments, start=1):
        ids[mask] = number
        info.append({"id": number, "category_id": category, "isthing": isthing})
    return {"panoptic_seg": (torch.from_numpy(ids), info)}


def test_the_constructed_truth_is_what_it_should_be(root):
    folder = root / "gtFine" / "val" / "aachen"
    labels = np.array(Image.open(folder / f"{FRAME}_gtFine_labelIds.png"))
    names = ("road", "sky", "car", "person", "ego vehicle")
    counts = [int((labels == name2label[name].id).sum()) for name in names]
    # Road: 2400 - 600 - 192 - 120 - 192 (group) - 240 (void) = 1056; the group counts as car.
    assert counts == [1056, 600, 384, 120, 240]
    ids = np.unique(np.array(Image.open(folder / f"{FRAME}_gtFine_instanceIds.png"))).tolist()
    assert ids == [1, 7, 23, 26, 24000, 26000]  # void, road, sky, car group, person, car


def test_semantic_perfect(semantic):
    evaluator = cityscapes.CityscapesSemanticEvaluator(semantic)
    labels = torch.from_numpy(semantic_truth())
    scores = torch.nn.functional.one_hot(labels, 19).permute(2, 0, 1).float()
    for output in ({"sem_seg": scores}, {"sem_seg_labels": labels}):
        metrics = evaluate(evaluator, semantic, output)["sem_seg"]
        for key in ("mIoU", "IoU", "iIoU", "IoU_sup", "iIoU_sup", "IoU-road", "IoU-person"):
            assert metrics[key] == pytest.approx(100.0)
        assert math.isnan(metrics["IoU-train"])


def test_semantic_by_hand(semantic):
    labels = semantic_truth()
    labels[20:32, 4:12] = ROAD  # half of the single car: 96 pixels
    labels[labels == SKY] = BUILDING
    evaluator = cityscapes.CityscapesSemanticEvaluator(semantic)
    output = {"sem_seg_labels": torch.from_numpy(labels)}
    metrics = evaluate(evaluator, semantic, output)["sem_seg"]
    expected = {
        "IoU-road": 91.6667,  # 1056 / (1056 + 96)
        "IoU-sky": 0.0,
        "IoU-building": 0.0,  # predicted but absent: counts, by the official definition
        "IoU-car": 75.0,  # 288 / 384
        "IoU-person": 100.0,
        "mIoU": 53.3333,  # (91.6667 + 0 + 0 + 75 + 100) / 5
        # Single objects, weighted by the usual size of their class: car 1/2, person 1.
        "iIoU": 75.0,
        # flat 91.6667, sky 0, construction 0, vehicle 75, human 100
        "IoU_sup": 53.3333,
        "iIoU_sup": 75.0,
    }
    assert {key: metrics[key] for key in expected} == pytest.approx(expected, abs=1e-3)


def test_instance_perfect_and_the_group_is_ignored(instance):
    evaluator = cityscapes.CityscapesInstanceEvaluator(instance)
    output = instances(
        ("car", 0.9, region("car")),
        ("person", 0.9, region("person")),
        ("car", 0.95, region("cargroup")),
    )
    metrics = evaluate(evaluator, instance, output)["segm"]
    assert [metrics[k] for k in ("AP", "AP50", "AP-car", "AP-person")] == [100.0] * 4
    assert math.isnan(metrics["AP-bus"])


def test_instance_by_hand(instance):
    # Person: 90 of 120 pixels, IoU 0.75: found at the thresholds 0.50 ... 0.70, five of ten.
    person = region("person")
    person[29:] = False
    output = instances(("car", 0.9, region("car")), ("person", 0.8, person))
    metrics = evaluate(cityscapes.CityscapesInstanceEvaluator(instance), instance, output)["segm"]
    expected = {"AP": 75.0, "AP50": 100.0, "AP-car": 100.0, "AP-person": 50.0}
    assert {key: metrics[key] for key in expected} == pytest.approx(expected)


def test_masks_of_any_width_become_the_same_pngs(instance):
    """In between they have 8 pixels to the byte; here the last byte of a row has 5."""
    masks = torch.rand(3, 20, 29) < 0.5
    result = Instances((20, 29), pred_masks=masks, pred_classes=torch.tensor([0, 2, 1]))
    result.scores = torch.tensor([0.75, 0.5, 0.25])
    evaluator = cityscapes.CityscapesInstanceEvaluator(instance)
    evaluator.process([{"file_name": f"{FRAME}_leftImg8bit.png"}], [{"instances": result}])
    ((frame, encoded),) = evaluator._work.results()
    assert frame == FRAME
    for mask, (png, _, _) in zip(masks, encoded, strict=True):
        assert np.array_equal(np.array(Image.open(io.BytesIO(png))), mask.numpy())
    # person, car, rider
    assert [entry[1:] for entry in encoded] == [(24, 0.75), (26, 0.5), (25, 0.25)]


def test_panoptic_perfect_and_by_hand(panoptic):
    evaluator = cityscapes.CityscapesPanopticEvaluator(panoptic)
    segments = [
        (ROAD, False, region("road")),
        (SKY, False, region("sky")),
        (CAR, True, region("car")),
        (PERSON, True, region("person")),
    ]
    metrics = evaluate(evaluator, panoptic, panoptic_seg(*segments))["panoptic_seg"]
    assert [metrics[k] for k in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st")] == [100.0] * 5
    # Without the person, which becomes road: road 1056 / 1176 = 0.897959, person missed.
    road = region("road") | region("person")
    segments = [(ROAD, False, road), *segments[1:3]]
    metrics = evaluate(evaluator, panoptic, panoptic_seg(*segments))["panoptic_seg"]
    expected = {
        "PQ": 72.4490,  # (0.897959 + 1 + 1 + 0) / 4
        "PQ_th": 50.0,
        "PQ_st": 94.8980,
        "PQ-road": 89.7959,
        "PQ-person": 0.0,
    }
    assert {key: metrics[key] for key in expected} == pytest.approx(expected, abs=1e-3)


def test_works_where_detectron2_cannot_import_its_own(monkeypatch, semantic, instance):
    """Detectron2's main branch fails with "No module named 'deeplearning'" (issue 5436)."""

    def fail(*args, **kwargs):
        raise ModuleNotFoundError("No module named 'deeplearning'")

    monkeypatch.setitem(sys.modules, "detectron2.evaluation.cityscapes_evaluation", None)
    for name in ("CityscapesInstanceEvaluator", "CityscapesSemSegEvaluator"):
        for method in ("__init__", "reset", "process", "evaluate"):
            monkeypatch.setattr(getattr(detectron2.evaluation, name), method, fail)
    spec = importlib.util.spec_from_file_location("fresh_cityscapes", cityscapes.__file__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    labels = {"sem_seg_labels": torch.from_numpy(semantic_truth())}
    result = evaluate(fresh.CityscapesSemanticEvaluator(semantic), semantic, labels)
    assert result["sem_seg"]["mIoU"] == pytest.approx(100.0)
    found = instances(("car", 0.9, region("car")), ("person", 0.9, region("person")))
    result = evaluate(fresh.CityscapesInstanceEvaluator(instance), instance, found)
    assert result["segm"]["AP"] == pytest.approx(100.0)


def test_leaves_nothing_behind(monkeypatch, tmp_path, instance, semantic):
    monkeypatch.chdir(tmp_path)
    had_in1d = hasattr(np, "in1d")
    found = instances(("car", 0.9, region("car")))
    evaluate(cityscapes.CityscapesInstanceEvaluator(instance), instance, found)
    labels = {"sem_seg_labels": torch.from_numpy(semantic_truth())}
    evaluate(cityscapes.CityscapesSemanticEvaluator(semantic), semantic, labels)
    assert list(tmp_path.iterdir()) == []
    assert hasattr(np, "in1d") == had_in1d


def test_mistakes_are_named(semantic, instance, register, tmp_path):
    evaluator = cityscapes.CityscapesSemanticEvaluator(semantic)
    small = {"sem_seg_labels": torch.zeros(5, 5, dtype=torch.int64)}
    with pytest.raises(UserError, match="cityscapesscripts stopped: .*widths.*are not equal"):
        evaluate(evaluator, semantic, small)
    with pytest.raises(UserError, match="predicts 150 classes, but city_semantic has 19"):
        evaluate(evaluator, semantic, {"sem_seg": torch.zeros(150, HEIGHT, WIDTH)})
    with pytest.raises(UserError, match="needs 'instances'.*INSTANCE_ON"):
        evaluate(cityscapes.CityscapesInstanceEvaluator(instance), instance, small)
    entries = detectron2.data.DatasetCatalog.get(semantic)
    empty = register("without_truth", entries, gt_dir=str(tmp_path))
    labels = {"sem_seg_labels": torch.from_numpy(semantic_truth())}
    with pytest.raises(UserError, match=f"{FRAME}_gtFine_labelIds.png of without_truth is missing"):
        evaluate(cityscapes.CityscapesSemanticEvaluator(empty), empty, labels)
