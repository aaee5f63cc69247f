import json
import logging

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES
from detectron2.evaluation import DatasetEvaluators
from detectron2.structures import BitMasks, Instances
from panopticapi.utils import id2rgb
from PIL import Image

from eomt_d2.config import add_eomt_config
from eomt_d2.errors import UserError
from eomt_d2.evaluation import build_evaluator, evaluated_tasks

# ADE20K panoptic (RECIPES: 50 stuff ids, among them wall 0 and floor 3; bed 7 and person 12 are
# things). Category ids are class indices, so thing ids have gaps.
WALL, FLOOR, BED, PERSON = 0, 3, 7, 12
STUFF_IDS = (0, 1, 2, 3, 4, 5, 6, 9, 11, 13)
IMAGE = {"file_name": "ADE_val_00000001.jpg", "image_id": "ADE_val_00000001"}


def config(*switches):
    cfg = get_cfg()
    add_eomt_config(cfg)
    for switch in switches:
        cfg.MODEL.MASK_FORMER.TEST[switch] = True
    return cfg


@pytest.fixture
def ade20k(register, tmp_path):
    """One image: wall above, floor below, two beds and a person on them."""
    ids = np.full((60, 80), 1, dtype=np.int32)
    ids[30:] = 2
    ids[35:50, 5:30], ids[35:50, 40:70], ids[10:40, 32:38] = 3, 4, 5
    category = {1: WALL, 2: FLOOR, 3: BED, 4: BED, 5: PERSON}
    for folder in ("panoptic", "semantic"):
        (tmp_path / folder).mkdir()
    name = "ADE_val_00000001.png"
    Image.fromarray(id2rgb(ids)).save(tmp_path / "panoptic" / name)
    semantic = np.vectorize(category.get)(ids).astype(np.uint8)
    Image.fromarray(semantic).save(tmp_path / "semantic" / name)

    categories = [
        {"id": i, "name": class_name, "isthing": int(i not in STUFF_IDS)}
        for i, class_name in enumerate(ADE20K_SEM_SEG_CATEGORIES)
    ]
    segments = [
        {"id": i, "category_id": c, "area": int((ids == i).sum()), "iscrowd": 0}
        for i, c in category.items()
    ]
    image = {"id": IMAGE["image_id"], "height": 60, "width": 80, "file_name": IMAGE["file_name"]}
    annotation = {"image_id": IMAGE["image_id"], "file_name": name, "segments_info": segments}
    content = {"images": [image], "annotations": [annotation], "categories": categories}
    (tmp_path / "panoptic.json").write_text(json.dumps(content))

    boxes = {3: [5, 35, 25, 15], 4: [40, 35, 30, 15], 5: [32, 10, 6, 30]}
    annotations = [
        {
            "id": i,
            "image_id": IMAGE["image_id"],
            "category_id": category[i],
            "bbox": [x, y, w, h],
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            "area": w * h,
            "iscrowd": 0,
        }
        for i, (x, y, w, h) in boxes.items()
    ]
    things = [c for c in categories if c["isthing"]]
    content = {"images": [image], "annotations": annotations, "categories": things}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    register(
        "ade_panoptic",
        [{**IMAGE, "sem_seg_file_name": str(tmp_path / "semantic" / name)}],
        evaluator_type="ade20k_panoptic_seg",
        panoptic_json=str(tmp_path / "panoptic.json"),
        panoptic_root=str(tmp_path / "panoptic"),
        json_file=str(tmp_path / "instances.json"),
        sem_seg_root=str(tmp_path / "semantic"),
        ignore_label=255,
        thing_classes=ADE20K_SEM_SEG_CATEGORIES,
        stuff_classes=ADE20K_SEM_SEG_CATEGORIES,
        thing_dataset_id_to_contiguous_id={c["id"]: c["id"] for c in things},
        stuff_dataset_id_to_contiguous_id={i: i for i in STUFF_IDS},
    )
    return ids, category


def ade20k_output(ids, category):
    segments = [
        {"id": i, "category_id": c, "isthing": c not in STUFF_IDS} for i, c in category.items()
    ]
    instances = Instances(ids.shape)
    instances.pred_masks = torch.from_numpy(np.stack([ids == i for i in (3, 4, 5)]))
    instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes()
    instances.pred_classes = torch.tensor([BED, BED, PERSON])
    instances.scores = torch.tensor([0.9, 0.8, 0.7])
    labels = torch.from_numpy(np.vectorize(category.get)(ids))
    return {
        "panoptic_seg": (torch.from_numpy(ids), segments),
        "instances": instances,
        "sem_seg_labels": labels,
    }


def test_ade20k_panoptic_with_all_three_tasks(ade20k, tmp_path):
    cfg = config("PANOPTIC_ON", "INSTANCE_ON", "SEMANTIC_ON")
    evaluator = build_evaluator(cfg, "ade_panoptic", str(tmp_path / "out"))
    evaluator.reset()
    evaluator.process([IMAGE], [ade20k_output(*ade20k)])
    results = evaluator.evaluate()
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100.0)
    assert results["segm"]["AP"] == pytest.approx(100.0)
    assert results["bbox"]["AP"] == pytest.approx(100.0)
    assert results["sem_seg"]["mIoU"] == pytest.approx(100.0)


def test_ade20k_with_one_bed_called_person(ade20k, tmp_path):
    ids, category = ade20k
    output = ade20k_output(ids, {**category, 4: PERSON})
    output["instances"].pred_classes[1] = PERSON
    cfg = config("PANOPTIC_ON", "INSTANCE_ON", "SEMANTIC_ON")
    evaluator = build_evaluator(cfg, "ade_panoptic", str(tmp_path / "out"))
    evaluator.reset()
    evaluator.process([IMAGE], [output])
    results = evaluator.evaluate()
    # Bed: one found, one missed, 1 / 1.5. Person: one found, one false, 1 / 1.5. Stuff is right.
    assert results["panoptic_seg"]["PQ"] == pytest.approx(83.3333, abs=1e-3)
    # Bed: half of the recall at precision 1, 51/101. Person: the false one (0.8) comes before the
    # true one (0.7), precision 1/2. Mean of 50.4950 and 50.
    assert results["segm"]["AP"] == pytest.approx(50.2475, abs=1e-3)
    # Bed: 375 of its 825 pixels. Person: 180 pixels and 450 false ones. Wall and floor are right:
    # (0.454545 + 0.285714 + 1 + 1) / 4.
    assert results["sem_seg"]["mIoU"] == pytest.approx(68.5065, abs=1e-3)


@pytest.mark.parametrize(
    "evaluator_type, switches, expected",
    [
        ("coco_panoptic_seg", ("PANOPTIC_ON",), ("panoptic",)),
        ("coco_panoptic_seg", ("PANOPTIC_ON", "INSTANCE_ON"), ("panoptic", "instance")),
        ("coco_panoptic_seg", ("SEMANTIC_ON",), ("semantic",)),
        ("ade20k_panoptic_seg", ("INSTANCE_ON",), ("instance",)),
        ("coco", ("INSTANCE_ON", "SEMANTIC_ON"), ("instance",)),
        ("ade20k_instance", ("INSTANCE_ON",), ("instance",)),
        ("sem_seg", ("SEMANTIC_ON", "PANOPTIC_ON"), ("semantic",)),
        ("cityscapes_sem_seg", ("SEMANTIC_ON",), ("semantic",)),
        ("cityscapes_instance", ("INSTANCE_ON",), ("instance",)),
        ("cityscapes_panoptic_seg", ("PANOPTIC_ON", "SEMANTIC_ON"), ("panoptic", "semantic")),
        # No switch: another architecture, which gets the data set's main task.
        ("coco_panoptic_seg", (), ("panoptic",)),
        ("coco", (), ("instance",)),
    ],
)
def test_tasks_are_those_of_model_and_data(register, evaluator_type, switches, expected):
    paths = dict.fromkeys(("panoptic_json", "json_file", "sem_seg_root", "gt_dir"), "/some/path")
    register("some_data", [], evaluator_type=evaluator_type, **paths)
    assert evaluated_tasks(config(*switches), "some_data") == expected


def test_a_second_task_without_ground_truth_is_left_out_with_a_warning(register, caplog):
    register("only_panoptic", [], evaluator_type="coco_panoptic_seg", json_file=None)
    cfg = config("PANOPTIC_ON", "INSTANCE_ON", "SEMANTIC_ON")
    with caplog.at_level(logging.WARNING, logger="eomt_d2.evaluation.build"):
        assert evaluated_tasks(cfg, "only_panoptic") == ("panoptic",)
    assert [record.getMessage() for record in caplog.records] == [
        "Instance results on only_panoptic are not evaluated, because its metadata has no "
        "json_file.",
        "Semantic results on only_panoptic are not evaluated, because its metadata has no "
        "sem_seg_root.",
    ]


def test_unknown_type_and_contradiction_are_one_sentence(register):
    register("lvis_like", [], evaluator_type="lvis")
    with pytest.raises(UserError, match="lvis_like has evaluator_type 'lvis'.*one of coco_pan"):
        evaluated_tasks(config("INSTANCE_ON"), "lvis_like")
    register("no_type", [])
    with pytest.raises(UserError, match="no_type has evaluator_type None"):
        evaluated_tasks(config("INSTANCE_ON"), "no_type")
    register("boxes", [], evaluator_type="coco")
    with pytest.raises(UserError, match="Nothing can be evaluated on boxes.*TEST.INSTANCE_ON"):
        evaluated_tasks(config("SEMANTIC_ON"), "boxes")


def test_data_sets_that_share_a_folder_keep_their_files(register, ade20k, tmp_path):
    metadata = MetadataCatalog.get("ade_panoptic").as_dict()
    metadata.pop("name")
    register("ade_again", [IMAGE], **metadata)
    cfg = config("PANOPTIC_ON", "INSTANCE_ON")
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    for name in ("ade_panoptic", "ade_again"):
        evaluator = build_evaluator(cfg, name)
        assert isinstance(evaluator, DatasetEvaluators)
        evaluator.reset()
        evaluator.process([IMAGE], [ade20k_output(*ade20k)])
        evaluator.evaluate()
    files = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*.json")}
    assert files == {
        f"inference/{name}/{file}.json"
        for name in ("ade_panoptic", "ade_again")
        for file in ("predictions", "coco_instances_results")
    }
