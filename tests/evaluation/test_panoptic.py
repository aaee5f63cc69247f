import copy
import json
import math
import tempfile
import threading
import weakref
from pathlib import Path

import numpy as np
import panopticapi.evaluation
import pytest
import torch
from detectron2.data import MetadataCatalog
from panopticapi.evaluation import pq_compute
from panopticapi.utils import id2rgb
from PIL import Image

from eomt_d2.errors import UserError
from eomt_d2.evaluation import PanopticEvaluator, background

# Things and stuff are interleaved, and no id is its contiguous one.
CATEGORIES = [
    {"id": 10, "name": "cat", "isthing": 1},
    {"id": 20, "name": "sky", "isthing": 0},
    {"id": 70, "name": "dog", "isthing": 1},
    {"id": 90, "name": "sea", "isthing": 0},
]
CAT, SKY, DOG = 0, 1, 2


def rows(*parts):
    """10 x 10 map of segment ids from (number of rows, id)."""
    return np.concatenate([np.full((count, 10), id_, dtype=np.int32) for count, id_ in parts])


def output(segment_ids, *segments):
    info = [{"id": i, "category_id": c, "isthing": t, "score": 0.9} for i, c, t in segments]
    return {"panoptic_seg": (torch.from_numpy(segment_ids), info)}


# Image 1: cat on 4 rows, sky on 5, void on 1. The predicted cat lacks a row: IoU 30/40 = 0.75.
# The predicted sky has the cat's row and the void row: 50 / (50 + 70 - 50 - 10 void) = 5/6.
# Image 2: dog on 5 rows, a crowd of cats on 5. The dog is taken for a cat: one missed dog, one
# false cat. The cat predicted on the crowd is ignored.
# cat: 0.75 / (1 + 1/2) = 0.5; dog: 0; sky: 5/6; sea does not occur.
TRUTH = [
    (rows((4, 5), (5, 7), (1, 0)), [(5, 10, 0), (7, 20, 0)]),
    (rows((5, 3), (5, 4)), [(3, 70, 0), (4, 10, 1)]),
]
PREDICTED = [
    output(rows((3, 1), (7, 2)), (1, CAT, True), (2, SKY, False)),
    output(rows((5, 1), (5, 2)), (1, CAT, True), (2, CAT, True)),
]
PERFECT = [
    output(rows((4, 1), (5, 2), (1, 0)), (1, CAT, True), (2, SKY, False)),
    output(rows((5, 1), (5, 0)), (1, DOG, True)),
]
INPUTS = [
    {"file_name": "a/1.jpg", "image_id": 11},
    # The same base name in another folder.
    {"file_name": "b/1.jpg", "image_id": 12},
]


@pytest.fixture
def make_dataset(register, tmp_path):
    def make(categories=CATEGORIES, truth=TRUTH):
        annotations = []
        (tmp_path / "truth").mkdir()
        for entry, (segment_ids, segments) in zip(INPUTS, truth, strict=True):
            name = f"{entry['image_id']}.png"
            Image.fromarray(id2rgb(segment_ids)).save(tmp_path / "truth" / name)
            info = [{"id": i, "category_id": c, "iscrowd": crowd} for i, c, crowd in segments]
            for segment in info:
                segment["area"] = int((segment_ids == segment["id"]).sum())
            annotations.append(
                {"image_id": entry["image_id"], "file_name": name, "segments_info": info}
            )
        images = [{"id": entry["image_id"]} for entry in INPUTS]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / "truth.json").write_text(json.dumps(content))
        ids = {c["id"]: (index, c["isthing"]) for index, c in enumerate(categories)}
        return register(
            "panoptic_data",
            [],
            panoptic_json=str(tmp_path / "truth.json"),
            panoptic_root=str(tmp_path / "truth"),
            thing_dataset_id_to_contiguous_id={k: i for k, (i, t) in ids.items() if t},
            stuff_dataset_id_to_contiguous_id={k: i for k, (i, t) in ids.items() if not t},
        )

    return make


def evaluate(name, outputs, folder=None):
    evaluator = PanopticEvaluator(name, folder)
    evaluator.reset()
    for entry, result in zip(INPUTS, outputs, strict=False):
        evaluator.process([entry], [result])
    return evaluator.evaluate()["panoptic_seg"]


EXPECTED = {
    "PQ": 44.4444,  # (1/2 + 0 + 5/6) / 3
    "SQ": 52.7778,  # (3/4 + 0 + 5/6) / 3
    "RQ": 55.5556,  # (2/3 + 0 + 1) / 3
    "PQ_th": 25.0,
    "SQ_th": 37.5,
    "RQ_th": 33.3333,
    "PQ_st": 83.3333,
    "SQ_st": 83.3333,
    "RQ_st": 100.0,
    "PQ-cat": 50.0,
    "PQ-sky": 83.3333,
    "PQ-dog": 0.0,
    "PQ-sea": math.nan,
    "SQ-cat": 75.0,
    "SQ-sky": 83.3333,
    "SQ-dog": 0.0,
    "SQ-sea": math.nan,
    "RQ-cat": 66.6667,
    "RQ-sky": 100.0,
    "RQ-dog": 0.0,
    "RQ-sea": math.nan,
}


def test_metrics_by_hand(make_dataset):
    assert evaluate(make_dataset(), PREDICTED) == pytest.approx(EXPECTED, abs=1e-3, nan_ok=True)


def test_perfect_prediction(make_dataset):
    metrics = evaluate(make_dataset(), PERFECT)
    assert [metrics[k] for k in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st")] == [100.0] * 5


def test_label_maps_of_panoptic_deeplab(make_dataset):
    """Detectron2's own models may give class * label_divisor + instance, -1 where void; here the
    predictions of ``PREDICTED`` in that form."""
    name = make_dataset()
    MetadataCatalog.get(name).label_divisor = 1000
    labels = [rows((3, 0), (7, 1000)), rows((5, 0), (5, 1))]
    # Data sets of such models have class indices as category ids.
    content = json.loads(Path(MetadataCatalog.get(name).panoptic_json).read_text())
    assert [c["id"] for c in content["categories"]] == [10, 20, 70, 90]
    outputs = [{"panoptic_seg": (torch.from_numpy(ids), None)} for ids in labels]
    metrics = evaluate(name, outputs)
    assert metrics == pytest.approx(EXPECTED, abs=1e-3, nan_ok=True)
    assert outputs[0]["panoptic_seg"][0].tolist() == rows((3, 0), (7, 1000)).tolist()


def test_no_more_images_are_held_than_are_being_compared(make_dataset, monkeypatch):
    """Neither their maps nor files: with one thread at most one that runs and one that waits."""
    name = make_dataset()
    monkeypatch.setattr(tempfile, "tempdir", str(Path(MetadataCatalog.get(name).panoptic_root)))
    monkeypatch.setattr(background, "threads_of_this_process", lambda: 1)
    evaluator = PanopticEvaluator(name)
    noise = np.where(np.random.default_rng(0).random((10, 10)) < 0.5, 1, 2).astype(np.int32)
    copies = []
    to = torch.Tensor.to

    def watched(tensor, *args, **kwargs):
        result = to(tensor, *args, **kwargs)
        copies.append(weakref.ref(result))
        return result

    monkeypatch.setattr(torch.Tensor, "to", watched)
    for _ in range(20):
        evaluator.process(INPUTS[:1], [output(noise, (1, CAT, True), (2, SKY, False))])
        assert len(list(Path(tempfile.gettempdir()).glob("*.ppm"))) <= 1
        # One more is the name "ids" of the loop.
        assert sum(reference() is not None for reference in copies) <= 3
    evaluator._work.results()
    assert not list(Path(tempfile.gettempdir()).glob("*.ppm"))
    assert len(copies) == 20


def test_what_the_model_does_afterwards_to_its_result_does_not_matter(make_dataset, monkeypatch):
    """The comparison, here delayed, has a copy."""
    evaluator = PanopticEvaluator(make_dataset())
    proceed = threading.Event()
    compare = evaluator._compare
    monkeypatch.setattr(
        evaluator, "_compare", lambda *arguments: proceed.wait(60) and compare(*arguments)
    )
    results = copy.deepcopy(PREDICTED)
    for entry, result in zip(INPUTS, results, strict=True):
        evaluator.process([entry], [result])
        result["panoptic_seg"][0].fill_(1)
        result["panoptic_seg"][1].clear()
    proceed.set()
    metrics = evaluator.evaluate()["panoptic_seg"]
    assert metrics == pytest.approx(EXPECTED, abs=1e-3, nan_ok=True)


def test_panopticapi_says_nothing_and_others_are_heard(make_dataset, capsys):
    evaluate(make_dataset(), PREDICTED)
    assert capsys.readouterr().out == ""
    panopticapi.evaluation.pq_compute_single_core(0, [], "", "", {})
    assert "all 0 images processed" in capsys.readouterr().out


def test_written_predictions_give_the_same_to_panopticapi(make_dataset, tmp_path):
    folder = tmp_path / "results"
    evaluate(make_dataset(), PREDICTED, str(folder))
    written = json.loads((folder / "predictions.json").read_text())["annotations"]
    assert [[s["category_id"] for s in a["segments_info"]] for a in written] == [[10, 20], [10, 10]]
    (tmp_path / "pngs").mkdir()
    for annotation, predicted in zip(written, PREDICTED, strict=True):
        image = id2rgb(predicted["panoptic_seg"][0].numpy())
        Image.fromarray(image).save(tmp_path / "pngs" / annotation["file_name"])
    official = pq_compute(
        str(tmp_path / "truth.json"),
        str(folder / "predictions.json"),
        str(tmp_path / "truth"),
        str(tmp_path / "pngs"),
    )
    assert official["All"]["n"] == 3
    assert 100 * official["All"]["pq"] == pytest.approx(44.4444, abs=1e-3)


def test_the_models_segments_stay_as_they_are(make_dataset):
    predicted = output(rows((10, 1)), (1, CAT, True))
    evaluate(make_dataset(), [predicted, PREDICTED[1]])
    expected = [{"id": 1, "category_id": CAT, "isthing": True, "score": 0.9}]
    assert predicted["panoptic_seg"][1] == expected


def test_data_without_stuff_classes(make_dataset):
    truth = [(rows((10, 5)), [(5, 10, 0)]), (rows((10, 5)), [(5, 10, 0)])]
    predicted = [output(rows((10, 1)), (1, 0, True))] * 2
    metrics = evaluate(make_dataset(CATEGORIES[:1], truth), predicted)
    assert metrics["PQ"] == metrics["PQ_th"] == 100.0
    assert math.isnan(metrics["PQ_st"])


def test_mistakes_are_named(make_dataset):
    name = make_dataset()
    with pytest.raises(UserError, match="1 of the 2 images of .*truth.json.*the first is 12"):
        evaluate(name, PREDICTED[:1])
    with pytest.raises(UserError, match="predicts thing class 1, which panoptic_data"):
        evaluate(name, [output(rows((10, 1)), (1, SKY, True))])
    with pytest.raises(KeyError, match="segment with ID 3 is presented in PNG and not"):
        evaluate(name, [output(rows((10, 3)), (1, CAT, True)), PREDICTED[1]])
    with pytest.raises(UserError, match="needs 'panoptic_seg'.*PANOPTIC_ON"):
        evaluate(name, [{"sem_seg": None}])
    (Path(MetadataCatalog.get(name).panoptic_root) / "11.png").unlink()
    with pytest.raises(UserError, match="ground truth .*11.png of panoptic_data is missing"):
        evaluate(name, PREDICTED)
