"""Registered data sets, as Detectron2's catalogs and its own evaluators see them."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, SemSegEvaluator
from detectron2.structures import BitMasks, Instances
from panopticapi.utils import rgb2id
from PIL import Image
from pycocotools import mask as mask_util

from eomt_d2.data.datasets.builtin import register_builtin

NAMES = {
    *(f"shapes_{s}_{t}" for s in ("train", "val") for t in ("panoptic", "instance", "semantic")),
    *(f"ade20k_{t}_{s}" for s in ("train", "val") for t in ("panoptic", "instance")),
    *(f"coco_2017_{s}_panoptic_with_sem_seg" for s in ("train", "val")),
}


@pytest.fixture
def registered(catalogs, shapes_root):
    register_builtin(shapes_root)
    return shapes_root


def test_exactly_these_names_are_added(catalogs, tmp_path):
    before = set(DatasetCatalog.list())
    register_builtin(tmp_path)
    assert set(DatasetCatalog.list()) - before == NAMES


def test_names_that_are_taken_are_left_alone(catalogs, tmp_path):
    """The official mask2former package was imported before."""
    DatasetCatalog.register("ade20k_panoptic_val", lambda: ["theirs"])
    MetadataCatalog.get("ade20k_panoptic_val").set(evaluator_type="theirs")
    register_builtin(tmp_path)
    register_builtin(tmp_path)
    assert DatasetCatalog.get("ade20k_panoptic_val") == ["theirs"]
    assert MetadataCatalog.get("ade20k_panoptic_val").evaluator_type == "theirs"
    assert NAMES <= set(DatasetCatalog.list())


def test_shapes_panoptic_metadata(registered):
    metadata = MetadataCatalog.get("shapes_val_panoptic")
    folder = registered / "shapes"
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 3: 1, 4: 2, 7: 3, 8: 4}
    assert metadata.stuff_classes[5:] == ["stripes", "checkers", "dots"]
    assert metadata.panoptic_root == str(folder / "panoptic_val")
    assert metadata.panoptic_json == str(folder / "annotations" / "panoptic_val.json")
    assert metadata.json_file == str(folder / "annotations" / "instances_val.json")
    assert metadata.sem_seg_root == str(folder / "semantic_val")


def test_shapes_tasks_describe_the_same_images(registered):
    panoptic, instance, semantic = (
        DatasetCatalog.get(f"shapes_train_{task}") for task in ("panoptic", "instance", "semantic")
    )
    assert len(panoptic) == len(instance) == len(semantic) == 6
    for p, i, s in zip(panoptic, instance, semantic, strict=True):
        assert p["file_name"] == i["file_name"] == s["file_name"]
        assert p["sem_seg_file_name"] == s["sem_seg_file_name"]
        things = [x["category_id"] for x in p["segments_info"] if x["isthing"]]
        assert things == [x["category_id"] for x in i["annotations"]]


def ground_truth_as_panoptic_output(record):
    """Non-crowd segments of the panoptic PNG, as a model would give them."""
    ids = rgb2id(np.asarray(Image.open(record["pan_seg_file_name"])))
    segments = [s for s in record["segments_info"] if not s.get("iscrowd")]
    ids[~np.isin(ids, [s["id"] for s in segments])] = 0
    info = [{k: s[k] for k in ("id", "category_id", "isthing")} for s in segments]
    return {"panoptic_seg": (torch.as_tensor(ids), info)}


def test_ground_truth_of_shapes_reaches_pq_100(registered):
    evaluator = COCOPanopticEvaluator("shapes_val_panoptic")
    evaluator.reset()
    for record in DatasetCatalog.get("shapes_val_panoptic"):
        evaluator.process([record], [ground_truth_as_panoptic_output(record)])
    results = evaluator.evaluate()["panoptic_seg"]
    assert results["PQ"] == results["PQ_th"] == results["PQ_st"] == 100


@pytest.mark.parametrize("name", ["shapes_val_semantic", "shapes_val_panoptic"])
def test_ground_truth_of_shapes_reaches_miou_100(registered, name):
    evaluator = SemSegEvaluator(name, distributed=False)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        labels = torch.as_tensor(np.array(Image.open(record["sem_seg_file_name"]), dtype=np.int64))
        scores = torch.nn.functional.one_hot(labels, 8).permute(2, 0, 1)
        evaluator.process([record], [{"sem_seg": scores}])
    results = evaluator.evaluate()["sem_seg"]
    ious = [v for k, v in results.items() if k.startswith("IoU-") and not np.isnan(v)]
    assert len(ious) >= 6
    assert set(ious) == {100.0}


def test_ground_truth_of_shapes_reaches_ap_100(registered):
    evaluator = COCOEvaluator(
        "shapes_val_instance", tasks=("segm",), distributed=False, use_fast_impl=False
    )
    evaluator.reset()
    for record in DatasetCatalog.get("shapes_val_instance"):
        objects = record["annotations"]
        instances = Instances((128, 128))
        masks = [mask_util.decode(x["segmentation"]) for x in objects]
        instances.pred_masks = torch.as_tensor(np.stack(masks)).bool()
        instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes()
        instances.pred_classes = torch.tensor([x["category_id"] for x in objects])
        instances.scores = torch.ones(len(objects))
        evaluator.process([record], [{"instances": instances}])
    assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(100)


def test_ade20k_panoptic_metadata(registered):
    metadata = MetadataCatalog.get("ade20k_panoptic_val")
    assert metadata.evaluator_type == "ade20k_panoptic_seg"
    assert len(metadata.stuff_classes) == len(metadata.thing_classes) == 150
    things = metadata.thing_dataset_id_to_contiguous_id
    assert len(things) == 100 and all(k == v for k, v in things.items())
    assert min(things) == 7 and max(things) == 149
    assert metadata.stuff_dataset_id_to_contiguous_id == {i: i for i in range(150)}
    root = registered / "ADEChallengeData2016"
    assert metadata.image_root == str(root / "images" / "validation")
    assert metadata.panoptic_root == str(root / "ade20k_panoptic_val")
    assert metadata.json_file == str(root / "ade20k_instance_val.json")


def test_ade20k_instance_metadata(registered):
    metadata = MetadataCatalog.get("ade20k_instance_train")
    assert metadata.evaluator_type == "coco"
    assert len(metadata.thing_classes) == 100
    assert metadata.thing_classes[0] == "bed"
    things = metadata.thing_dataset_id_to_contiguous_id
    assert (things[7], things[8], things[12], things[149]) == (0, 1, 3, 99)
    root = registered / "ADEChallengeData2016"
    assert metadata.image_root == str(root / "images" / "training")
    assert metadata.json_file == str(root / "ade20k_instance_train.json")


def test_coco_with_semantic_truth_differs_from_detectron2s_in_nothing_else(registered):
    ours = MetadataCatalog.get("coco_2017_val_panoptic_with_sem_seg")
    theirs = MetadataCatalog.get("coco_2017_val_panoptic")
    for key in ("thing_classes", "stuff_classes", "thing_colors", "evaluator_type"):
        assert ours.get(key) == theirs.get(key)
    for kind in ("thing", "stuff"):
        key = f"{kind}_dataset_id_to_contiguous_id"
        assert theirs.get(key).items() <= ours.get(key).items()
    # Where the data are looked for differs only by the root.
    for key in ("image_root", "panoptic_root", "panoptic_json", "json_file"):
        below = getattr(theirs, key).split("coco/", 1)[1]
        assert getattr(ours, key) == str(registered / "coco" / below)
    assert ours.sem_seg_root == str(registered / "coco" / "panoptic_semseg_val2017")


def test_missing_data_are_named_when_loaded(catalogs, tmp_path):
    register_builtin(tmp_path)
    with pytest.raises(ValueError, match="panoptic_train.json' cannot be read .No such file"):
        DatasetCatalog.get("shapes_train_panoptic")
