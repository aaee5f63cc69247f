import json
import os

import pytest

from eomt_d2.benchmark.machine import MatrixProduct, describe_machine
from eomt_d2.benchmark.plan import Settings
from eomt_d2.benchmark.report import make_folder, new_report, write_pictures, write_report
from eomt_d2.errors import UserError
from tests.benchmark.reports import FIRST, POINT, failed, report


def test_json_and_markdown_of_what_there_is(tmp_path):
    folder = str(tmp_path / "new" / "folder")
    make_folder(folder)
    started = new_report(Settings(), ["tools/benchmark.py", "--output", folder])
    write_report(started, folder)
    found = json.loads((tmp_path / "new/folder/benchmark.json").read_text())
    assert found["results"] == []
    assert found["settings"]["repeats"] == 20
    started["results"] = report([POINT], [FIRST])["results"]
    write_report(started, folder)
    found = json.loads((tmp_path / "new/folder/benchmark.json").read_text())
    assert found["results"][0]["models"][0]["seconds"]["network"] == [0.1, 0.1]
    assert "| one " in (tmp_path / "new/folder/benchmark.md").read_text()
    assert sorted(os.listdir(folder)) == ["benchmark.json", "benchmark.md"]


def test_pictures_of_what_was_measured(tmp_path):
    points = [POINT, POINT._replace(batch=2)]
    paths = write_pictures(report(points, [FIRST]), str(tmp_path))
    assert [os.path.basename(path) for path in paths] == ["benchmark.png", "curve_batch.png"]
    assert all(os.path.getsize(path) > 1000 for path in paths)
    assert write_pictures(report([POINT], [failed("big")]), str(tmp_path)) == []


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output .*file cannot be written to"):
        make_folder(str(tmp_path / "file"))


def test_the_machine():
    found = describe_machine("cpu", ["a", "b"])
    assert found["command"] == "a b"
    assert found["cores"] == os.cpu_count()
    assert found["gpu"] is None and found["cuda"] is None
    assert found["torch"] and found["cpu"] and found["detectron2"]


def test_operations_of_a_matrix_product():
    product = MatrixProduct("cpu", "bfloat16")
    assert product.flops == 2 * 1024**3
    product(None)
