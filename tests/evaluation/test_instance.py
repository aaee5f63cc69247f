import json
import math
import sys
from unittest import mock

import faster_coco_eval
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_util

from eomt_d2.config import add_eomt_config
from eomt_d2.errors import UserError
from eomt_d2.evaluation import InstanceEvaluator, build_evaluator
from eomt_d2.evaluation.instance import coco_results

# As in ADE20K panoptic: things between stuff, so that neither kind of id is contiguous.
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}]
CONTIGUOUS = {3: 7, 8: 12}
CAT, DOG = 7, 12
INPUT = {"image_id": 1, "file_name": "1.jpg"}


def box_mask(x, y, width, height):
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def annotation(id_, category, *box, **changes):
    rle = mask_util.encode(np.asfortranarray(box_mask(*box)))
    rle["counts"] = rle["counts"].decode()
    area = int(box[2] * box[3])
    entry = dict(id=id_, image_id=1, category_id=category, bbox=list(box), area=area, iscrowd=0)
    return {**entry, "segmentation": rle, **changes}


def detections(*entries):
    """Instances from (contiguous class, score, x, y, width, height)."""
    result = Instances((40, 40))
    masks = [box_mask(*entry[2:]) for entry in entries]
    result.pred_masks = (
        torch.from_numpy(np.stack(masks)).bool() if masks else torch.zeros(0, 40, 40)
    )
    corners = [[x, y, x + w, y + h] for _, _, x, y, w, h in entries]
    result.pred_boxes = Boxes(torch.tensor(corners, dtype=torch.float32).reshape(-1, 4))
    result.pred_classes = torch.tensor([entry[0] for entry in entries], dtype=torch.int64)
    result.scores = torch.tensor([entry[1] for entry in entries])
    return {"instances": result}


@pytest.fixture
def make_dataset(register, tmp_path):
    def make(annotations, **metadata):
        path = tmp_path / "instances.json"
        image = {"id": 1, "file_name": "1.jpg", "width": 40, "height": 40}
        content = {"images": [image], "annotations": annotations, "categories": CATEGORIES}
        path.write_text(json.dumps(content))
        metadata = {"thing_dataset_id_to_contiguous_id": CONTIGUOUS, **metadata}
        return register("instance_data", [], json_file=str(path), **metadata)

    return make


def evaluate(evaluator, output):
    evaluator.reset()
    evaluator.process([INPUT], [output])
    return evaluator.evaluate()


TWO_CATS = [annotation(1, 3, 0, 0, 8, 5), annotation(2, 3, 20, 20, 8, 5)]
# One exact, one where nothing is, one on the second cat with IoU 25/40 = 0.625.
THREE_DETECTIONS = detections(
    (CAT, 0.9, 0, 0, 8, 5), (CAT, 0.8, 0, 30, 5, 5), (CAT, 0.7, 20, 20, 5, 5)
)
# At IoU 0.50, 0.55, 0.60: true, false, true. Precision 1 at the 51 recall points 0 ... 0.50, then
# 2/3 at the other 50: (51 + 100/3) / 101 = 0.834983.
# At the other 7 thresholds: true, false, false: 51/101 = 0.504950.
AP50, AP75 = 83.4983, 50.4950
AP = 60.3960  # (3 * 83.4983 + 7 * 50.4950) / 10


def test_average_precision_by_hand(make_dataset):
    results = evaluate(InstanceEvaluator(make_dataset(TWO_CATS)), THREE_DETECTIONS)
    for task in ("segm", "bbox"):
        expected = {"AP": AP, "AP50": AP50, "AP75": AP75, "APs": AP, "AP-cat": AP}
        absent = dict.fromkeys(("APm", "APl", "AP-dog"), math.nan)
        assert results[task] == pytest.approx({**expected, **absent}, abs=1e-3, nan_ok=True)


def test_mask_area_decides_about_small_and_medium(make_dataset):
    # A diagonal pair of corners: box 40 x 40 = 1600 (medium), mask 2 * 36 = 72 pixels (small).
    mask = box_mask(0, 0, 6, 6) | box_mask(34, 34, 6, 6)
    rle = mask_util.encode(np.asfortranarray(mask))
    rle["counts"] = rle["counts"].decode()
    truth = [
        annotation(1, 3, 0, 0, 8, 5),
        annotation(2, 3, 0, 0, 40, 40, segmentation=rle, area=72),
    ]
    predicted = detections((CAT, 0.9, 0, 0, 40, 40))
    predicted["instances"].pred_masks = torch.from_numpy(mask[None]).bool()
    metrics = evaluate(InstanceEvaluator(make_dataset(truth)), predicted)["segm"]
    assert metrics["APs"] == pytest.approx(50.4950, abs=1e-3)  # one of two small ones: 51/101
    assert math.isnan(metrics["APm"])
    # Of a false one the area of its own decides, and it is small too: precision 1/2 at the
    # recalls 0 ... 0.50.
    corners = box_mask(0, 34, 6, 6) | box_mask(34, 0, 6, 6)
    predicted = detections((CAT, 0.95, 0, 0, 40, 40), (CAT, 0.9, 0, 0, 40, 40))
    predicted["instances"].pred_masks = torch.from_numpy(np.stack([corners, mask])).bool()
    metrics = evaluate(InstanceEvaluator("instance_data"), predicted)["segm"]
    assert metrics["APs"] == pytest.approx(25.2475, abs=1e-3)


def test_perfect_detections_and_an_ignored_crowd(make_dataset):
    truth = [*TWO_CATS, annotation(3, 8, 5, 10, 10, 10), annotation(4, 8, 0, 28, 40, 12, iscrowd=1)]
    predicted = detections(
        (CAT, 0.9, 0, 0, 8, 5),
        (CAT, 0.8, 20, 20, 8, 5),
        (DOG, 0.7, 5, 10, 10, 10),
        (DOG, 0.9, 3, 30, 10, 5),  # inside the crowd
    )
    results = evaluate(InstanceEvaluator(make_dataset(truth)), predicted)
    for key in ("AP", "AP-cat", "AP-dog"):
        assert results["segm"][key] == results["bbox"][key] == pytest.approx(100.0)


def test_agrees_with_detectron2_where_it_works(make_dataset, tmp_path):
    name = make_dataset(
        TWO_CATS, thing_dataset_id_to_contiguous_id={3: 0, 8: 1}, thing_classes=["cat", "dog"]
    )
    predicted = detections((0, 0.9, 0, 0, 8, 5), (0, 0.8, 0, 30, 5, 5), (1, 0.7, 20, 20, 5, 5))
    ours = evaluate(InstanceEvaluator(name), predicted)
    theirs = evaluate(
        COCOEvaluator(name, ("segm", "bbox"), distributed=False, use_fast_impl=False), predicted
    )
    for task in ("segm", "bbox"):
        assert ours[task] == pytest.approx(dict(theirs[task]), nan_ok=True)


def test_class_names_of_stuff_do_not_disturb(make_dataset):
    # Detectron2's COCO panoptic metadata lists all 133 classes as thing_classes.
    name = make_dataset(TWO_CATS, thing_classes=[f"class {i}" for i in range(133)])
    metrics = evaluate(InstanceEvaluator(name), THREE_DETECTIONS)["segm"]
    assert metrics["AP-cat"] == pytest.approx(AP, abs=1e-3)


def test_no_detection_at_all_is_zero(make_dataset):
    metrics = evaluate(InstanceEvaluator(make_dataset(TWO_CATS)), detections())["segm"]
    assert metrics["AP"] == metrics["AP50"] == metrics["AP-cat"] == 0.0
    assert math.isnan(metrics["AP-dog"])


def test_annotations_numbered_from_zero_without_area_and_iscrowd(make_dataset):
    # pycocotools takes a match with annotation 0 for none, and needs the other two fields.
    truth = [annotation(0, 3, 0, 0, 8, 5), annotation(1, 3, 20, 20, 8, 5)]
    for entry in truth:
        del entry["area"], entry["iscrowd"]
    predicted = detections((CAT, 0.9, 0, 0, 8, 5), (CAT, 0.8, 20, 20, 8, 5))
    metrics = evaluate(InstanceEvaluator(make_dataset(truth)), predicted)["segm"]
    assert metrics["AP"] == metrics["APs"] == pytest.approx(100.0)


def test_written_results_have_the_ids_of_the_data_set(make_dataset, tmp_path):
    evaluate(InstanceEvaluator(make_dataset(TWO_CATS), str(tmp_path / "out")), THREE_DETECTIONS)
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert [entry["category_id"] for entry in written] == [3, 3, 3]
    assert [entry["bbox"] for entry in written][1] == [0.0, 30.0, 5.0, 5.0]


def test_faster_coco_eval_by_config(make_dataset):
    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.TEST.COCO_EVALUATOR = "faster_coco_eval"
    name = make_dataset(TWO_CATS, evaluator_type="coco")
    evaluator = build_evaluator(cfg, name)
    with mock.patch.object(
        faster_coco_eval, "COCOeval_faster", wraps=faster_coco_eval.COCOeval_faster
    ) as used:
        results = evaluate(evaluator, THREE_DETECTIONS)
    assert [call.args[2] for call in used.call_args_list] == ["segm", "bbox"]
    for task in ("segm", "bbox"):
        assert results[task]["AP"] == pytest.approx(AP, abs=1e-3)
        assert results[task]["AP50"] == pytest.approx(AP50, abs=1e-3)


def test_a_missing_package_is_noticed_before_the_model_runs(make_dataset, monkeypatch):
    name = make_dataset(TWO_CATS)
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match="faster_coco_eval.*`pip install faster-coco-eval`"):
        InstanceEvaluator(name, coco_evaluator="faster_coco_eval")


def test_results_are_those_of_detectron2_and_masks_are_not_kept():
    random = np.random.default_rng(0)
    instances = Instances((40, 60))
    instances.pred_masks = torch.from_numpy(random.random((5, 40, 60)) < 0.3)
    instances.pred_boxes = Boxes(torch.from_numpy(random.uniform(0, 40, (5, 4)).astype("f4")))
    instances.pred_classes = torch.tensor([3, 0, 1, 1, 2])
    instances.scores = torch.linspace(0.9, 0.1, 5)
    assert coco_results(instances, 139) == instances_to_coco_json(instances, 139)
    instances.remove("pred_masks")
    assert coco_results(instances, 139) == instances_to_coco_json(instances, 139)


def test_mistakes_are_named(make_dataset, register):
    evaluator = InstanceEvaluator(make_dataset(TWO_CATS))
    with pytest.raises(UserError, match="instance of class 9, which is not a thing class"):
        evaluate(evaluator, detections((9, 0.9, 0, 0, 8, 5)))
    with pytest.raises(UserError, match="needs 'instances'.*INSTANCE_ON"):
        evaluate(evaluator, {"panoptic_seg": None})
    register("without_json", [], json_file=None)
    with pytest.raises(UserError, match="without_json needs a COCO instances JSON"):
        InstanceEvaluator("without_json")
