import math

import numpy as np
import pytest
import torch
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from eomt_d2.errors import UserError
from eomt_d2.evaluation import SemanticSegmentationEvaluator
from eomt_d2.evaluation.semantic import confusion_matrix, semantic_metrics

CLASSES = ["wall", "sky", "tree", "sea"]
# Wall: 2 of 3 pixels found, none invented: 2/3. Sky: 1 of 2 found, 1 invented: 1/3. Tree is
# predicted only where the truth is ignored, sea only where there is sky: neither is in the truth.
TRUTH = np.array([[0, 0, 0], [1, 1, 255]], dtype=np.uint8)
LABELS = np.array([[0, 0, 1], [1, 3, 2]])


@pytest.fixture
def dataset(register, tmp_path):
    Image.fromarray(TRUTH).save(tmp_path / "truth.png")
    entry = {"file_name": "image.jpg", "sem_seg_file_name": str(tmp_path / "truth.png")}
    return register("semantic_data", [entry], stuff_classes=CLASSES, ignore_label=255)


def evaluate(evaluator, *outputs):
    evaluator.reset()
    for output in outputs:
        evaluator.process([{"file_name": "image.jpg"}], [output])
    return evaluator.evaluate()["sem_seg"]


def test_confusion_matrix_by_hand():
    # Rows: truth; columns: prediction; the ignored pixel is nowhere.
    expected = [[2, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert confusion_matrix(TRUTH, LABELS, 4, 255).tolist() == expected


def test_metrics_by_hand():
    metrics = semantic_metrics(confusion_matrix(TRUTH, LABELS, 4, 255), CLASSES)
    assert metrics["IoU-wall"] == pytest.approx(66.6667, abs=1e-3)
    assert metrics["IoU-sky"] == pytest.approx(33.3333, abs=1e-3)
    assert math.isnan(metrics["IoU-tree"]) and math.isnan(metrics["IoU-sea"])
    # Detectron2 v0.6 divides by 3 here, because sea is predicted, and gets 33.33.
    assert metrics["mIoU"] == pytest.approx(50.0)
    assert metrics["fwIoU"] == pytest.approx(53.3333, abs=1e-3)  # 3/5 * 2/3 + 2/5 * 1/3
    assert metrics["mACC"] == pytest.approx(58.3333, abs=1e-3)  # (2/3 + 1/2) / 2
    assert metrics["pACC"] == pytest.approx(60.0)  # 3 of 5


def test_nothing_to_count_is_not_a_score():
    metrics = semantic_metrics(np.zeros((4, 4), dtype=np.int64), CLASSES)
    assert all(math.isnan(value) for value in metrics.values())


def test_scores_and_labels_give_the_metrics(dataset):
    evaluator = SemanticSegmentationEvaluator(dataset)
    scores = torch.nn.functional.one_hot(torch.from_numpy(LABELS), 4).permute(2, 0, 1).float()
    for output in ({"sem_seg": scores}, {"sem_seg_labels": torch.from_numpy(LABELS)}):
        assert evaluate(evaluator, output)["mIoU"] == pytest.approx(50.0)


def test_pixels_of_all_images_count_together_and_reset_forgets(dataset):
    evaluator = SemanticSegmentationEvaluator(dataset)
    perfect = {"sem_seg_labels": torch.from_numpy(TRUTH.astype(np.int64) % 255)}
    half = {"sem_seg_labels": torch.from_numpy(LABELS)}
    # Wall: 2 + 3 of 6 -> 5/6; sky: 1 + 2 of 4, one invented -> 3/5. Not the mean of 100 and 50.
    assert evaluate(evaluator, half, perfect)["mIoU"] == pytest.approx(71.6667, abs=1e-3)
    assert evaluate(evaluator, perfect)["mIoU"] == pytest.approx(100.0)


def test_agrees_with_detectron2_where_the_definitions_do(register, tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.choice([0, 1, 2, 3, 255], size=(40, 50)).astype(np.uint8)
    labels = rng.integers(0, 4, size=(40, 50))
    Image.fromarray(truth).save(tmp_path / "truth.png")
    entry = {"file_name": "image.jpg", "sem_seg_file_name": str(tmp_path / "truth.png")}
    name = register("random_data", [entry], stuff_classes=CLASSES, ignore_label=255)
    scores = torch.nn.functional.one_hot(torch.from_numpy(labels), 4).permute(2, 0, 1).float()
    ours = evaluate(SemanticSegmentationEvaluator(name), {"sem_seg": scores})
    theirs = evaluate(SemSegEvaluator(name, distributed=False), {"sem_seg": scores})
    assert ours == pytest.approx({key: theirs[key] for key in ours})


def test_what_cannot_be_compared_is_named(dataset, register, tmp_path):
    evaluator = SemanticSegmentationEvaluator(dataset)
    with pytest.raises(UserError, match=r"truth.png: the prediction is \(5, 5\).*\(2, 3\)"):
        evaluate(evaluator, {"sem_seg_labels": torch.zeros(5, 5, dtype=torch.int64)})
    with pytest.raises(UserError, match="needs 'sem_seg'"):
        evaluate(evaluator, {"panoptic_seg": None})
    with pytest.raises(UserError, match="no semantic ground truth.*other.jpg"):
        evaluator.process(
            [{"file_name": "other.jpg"}], [{"sem_seg_labels": torch.from_numpy(LABELS)}]
        )
    Image.fromarray(np.array([[0, 7, 4]], dtype=np.uint8)).save(tmp_path / "bad.png")
    entry = {"file_name": "image.jpg", "sem_seg_file_name": str(tmp_path / "bad.png")}
    bad = register("bad_data", [entry], stuff_classes=CLASSES, ignore_label=255)
    with pytest.raises(UserError, match=r"bad.png: the ground truth holds the values \[4, 7\]"):
        evaluate(SemanticSegmentationEvaluator(bad), {"sem_seg_labels": torch.tensor([[0, 0, 0]])})
