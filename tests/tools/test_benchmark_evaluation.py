import json
import math
import sys
import types

import benchmark_evaluation
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from eomt_d2.errors import UserError

SMALL = ["--images", "6", "--detections", "5", "--repeats", "2", "--size", "48", "64"]


@pytest.fixture(autouse=True)
def forgotten_datasets():
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_every_task(tmp_path, capsys):
    file = tmp_path / "numbers.json"
    benchmark_evaluation.main([*SMALL, "--threads", "1", "3", "--json", str(file)])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "| " in line]
    assert [row[:2] for row in rows[1:]] == [
        ["| segm", "pycocotools"],
        ["| segm", "faster_coco_eval"],
        ["| bbox", "pycocotools"],
        ["| bbox", "faster_coco_eval"],
        ["| masks", "Detectron2"],
        ["| masks", "eomt_d2"],
        ["| panoptic", "Detectron2"],
        ["| panoptic", "1 threads"],
        ["| panoptic", "3 threads"],
        ["| semantic", "1 threads"],
        ["| semantic", "3 threads"],
    ]
    report = json.loads(file.read_text())
    assert report["images"] == 6
    numbers = report["tasks"]["panoptic"]["3 threads"]
    assert len(numbers["seconds_per_1000_images"]) == len(numbers["times_as_fast"]) == 2
    for total, loop in zip(
        numbers["seconds_per_1000_images"], numbers["loop_ms_per_image"], strict=True
    ):
        assert 0 < loop <= total
    assert report["tasks"]["segm"]["pycocotools"]["times_as_fast"] == [1, 1]


def test_the_waiting_of_the_network_does_not_count(monkeypatch, tmp_path):
    """With a clock on which nothing but waiting takes time."""
    now = [0.0]
    clock = types.SimpleNamespace(
        perf_counter=lambda: now[0],
        thread_time=lambda: now[0] / 2,
        sleep=lambda seconds: now.append(now.pop() + seconds),
    )
    monkeypatch.setattr(benchmark_evaluation, "time", clock)
    file = tmp_path / "numbers.json"
    options = ["--tasks", "semantic", "--threads", "1", "--network-ms", "50", "--json", str(file)]
    monkeypatch.setattr(benchmark_evaluation, "measure", lambda task, ways, *_: {"run": run(ways)})

    def run(ways):
        (way,) = ways.values()
        result = way()
        return [result.own, result.loop, result.total]

    benchmark_evaluation.main([*SMALL, *options])
    assert now == pytest.approx([6 * 0.05])
    assert json.loads(file.read_text())["tasks"]["semantic"]["run"] == pytest.approx([0.15, 0, 0])


def test_ways_that_disagree_are_not_compared():
    benchmark_evaluation.check_same("segm", {"AP": 50.0}, {"AP": 50.0 + 1e-12, "AP-cat": 3.0})
    benchmark_evaluation.check_same("segm", {"AP": 50.0}, {"AP": math.nan})
    with pytest.raises(RuntimeError, match="two ways of segm disagree: AP is 50.0 and 50.1"):
        benchmark_evaluation.check_same("segm", {"AP": 50.0}, {"AP": 50.1})


def test_peak_memory_is_that_since_the_reset():
    before = benchmark_evaluation.reset_peak_memory()
    if math.isnan(before):
        pytest.skip("this system does not tell the peak of a process's memory")
    block = np.ones(2**26, dtype=np.uint8)
    del block
    assert benchmark_evaluation.peak_memory() - before >= 60
    assert benchmark_evaluation.reset_peak_memory() - before < 30


def test_mistakes_are_named(monkeypatch):
    with pytest.raises(UserError, match="--images is 0; it must be at least 1"):
        benchmark_evaluation.main(["--images", "0"])
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match="`pip install faster-coco-eval`"):
        benchmark_evaluation.main(["--tasks", "segm", *SMALL])
