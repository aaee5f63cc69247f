"""PanopticEvaluator against panopticapi's own way: PNGs in a folder, compared by pq_compute."""

import json

import numpy as np
import pytest
import torch
from panopticapi.evaluation import pq_compute
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image

from eomt_d2.evaluation import PanopticEvaluator, background
from eomt_d2.evaluation.synthetic import draw_panoptic


@pytest.fixture
def compare(register, tmp_path):
    """``compare(truth JSON, its folder, predictions)``; a prediction is a map of segment ids and
    their category ids, by image id. Returns both results."""

    def compare(truth_json, folder, predictions):
        content = json.loads(truth_json.read_text())
        categories = {c["id"]: c for c in content["categories"]}
        (tmp_path / "pngs").mkdir()
        annotations = []
        for image_id, (ids, category_of) in predictions.items():
            Image.fromarray(id2rgb(ids)).save(tmp_path / "pngs" / f"{image_id}.png")
            info = [{"id": i, "category_id": c} for i, c in category_of.items()]
            annotations.append(
                {"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": info}
            )
        (tmp_path / "pngs.json").write_text(json.dumps({**content, "annotations": annotations}))
        official = pq_compute(
            str(truth_json), str(tmp_path / "pngs.json"), str(folder), str(tmp_path / "pngs")
        )

        # Contiguous ids in the reverse order.
        contiguous = {c: i for i, c in enumerate(reversed(categories))}
        register(
            "official",
            [],
            panoptic_json=str(truth_json),
            panoptic_root=str(folder),
            thing_dataset_id_to_contiguous_id={
                c: i for c, i in contiguous.items() if categories[c]["isthing"]
            },
            stuff_dataset_id_to_contiguous_id={
                c: i for c, i in contiguous.items() if not categories[c]["isthing"]
            },
        )
        evaluator = PanopticEvaluator("official")
        results = []
        # In another order too, as several processes have it.
        for order in (list(predictions), list(predictions)[::-1]):
            evaluator.reset()
            for image_id in order:
                ids, category_of = predictions[image_id]
                segments = [
                    {
                        "id": i,
                        "category_id": contiguous[c],
                        "isthing": bool(categories[c]["isthing"]),
                    }
                    for i, c in category_of.items()
                ]
                output = {"panoptic_seg": (torch.from_numpy(ids), segments)}
                evaluator.process([{"file_name": "x.jpg", "image_id": image_id}], [output])
            results.append(evaluator.evaluate()["panoptic_seg"])
        assert results[0] == pytest.approx(results[1], rel=0, abs=0, nan_ok=True), "to the last bit"
        return official, results[0], categories

    return compare


def assert_same(official, metrics, categories):
    """Counts are equal, and sums of IoUs up to the rounding of another order of adding."""
    for name, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for key in ("pq", "sq", "rq"):
            expected = pytest.approx(100 * official[name][key], rel=1e-12)
            assert metrics[f"{key.upper()}{suffix}"] == expected
    for category_id, category in categories.items():
        for key in ("pq", "sq", "rq"):
            value = metrics[f"{key.upper()}-{category['name']}"]
            # The official results have 0 where a class does not occur, ours NaN.
            expected = 100 * official["per_class"][category_id][key]
            assert np.nan_to_num(value) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("threads", [1, 3])
def test_same_on_drawn_images(compare, tmp_path, monkeypatch, threads):
    monkeypatch.setattr(background, "threads_of_this_process", lambda: threads)
    (tmp_path / "truth").mkdir()
    annotations, predictions = [], {}
    for number, image in enumerate(draw_panoptic(0, 30, things=3, stuff=4, size=(60, 80))):
        name = f"{number}.png"
        Image.fromarray(id2rgb(image.truth)).save(tmp_path / "truth" / name)
        info = [
            {
                "id": i,
                "category_id": 10 * (c + 1),
                "area": int((image.truth == i).sum()),
                "iscrowd": int(number % 5 == 0 and i == 1),
            }
            for i, c in image.truth_classes.items()
        ]
        annotations.append({"image_id": number, "file_name": name, "segments_info": info})
        categories = {i: 10 * (c + 1) for i, c in image.predicted_classes.items()}
        predictions[number] = image.predicted, categories
    content = {
        "images": [],
        "annotations": annotations,
        "categories": [
            {"id": 10 * (i + 1), "name": f"class {i}", "isthing": int(i < 3)} for i in range(7)
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    results = compare(tmp_path / "truth.json", tmp_path / "truth", predictions)
    assert_same(*results)
    assert 20 < results[1]["PQ"] < 90


def test_same_on_real_ground_truth(compare, test_data):
    """COCO's own segments, crowds and void; predicted are the same maps moved by 5 pixels, so that
    part of every segment lies on others, in a corner on void, and small ones are missed."""
    folder = test_data / "coco"
    truth_json = folder / "annotations" / "panoptic_val2017_mini.json"
    predictions = {}
    for annotation in json.loads(truth_json.read_text())["annotations"]:
        path = folder / "panoptic_val2017_mini" / annotation["file_name"]
        ids = np.roll(rgb2id(np.array(Image.open(path))).astype(np.int32), (5, 5), axis=(0, 1))
        categories = {s["id"]: s["category_id"] for s in annotation["segments_info"]}
        predictions[annotation["image_id"]] = ids, categories
    results = compare(truth_json, folder / "panoptic_val2017_mini", predictions)
    assert_same(*results)
    assert 20 < results[1]["PQ"] < 90
