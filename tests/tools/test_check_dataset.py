"""The command line that checks data sets, on made ones."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from eomt_d2.errors import UserError
from tests.data.checking import faulty_data
from tools import check_dataset

BASE = Path(__file__).parents[2] / "configs/shapes/panoptic/eomt_tiny.yaml"


@pytest.fixture
def config(tmp_path, catalogs):
    """Write a config that trains on and evaluates one of the faulty data sets."""

    def make(kind, num_classes, task):
        getattr(faulty_data, f"write_{kind}")(tmp_path / kind)
        name = f"faulty_{kind}"
        entries = faulty_data.register_entries_of(tmp_path)
        tasks = {"PANOPTIC_ON": False, "INSTANCE_ON": False, "SEMANTIC_ON": False, task: True}
        content = {
            "_BASE_": str(BASE),
            "DATASETS": {
                "REGISTER": [entry for entry in entries if entry["NAME"] == name],
                "TRAIN": [name],
                "TEST": [name],
            },
            "INPUT": {"DATASET_MAPPER_NAME": "auto"},
            "MODEL": {
                "SEM_SEG_HEAD": {"NUM_CLASSES": num_classes},
                "MASK_FORMER": {"TEST": tasks},
                "DEVICE": "cuda",
            },
        }
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(content))
        return str(file)

    return make


def run(*arguments):
    return check_dataset.main(check_dataset.parse_args(["--workers", "1", *arguments]))


def test_faults_in_a_table_and_in_json(config, tmp_path, capsys):
    file = config("panoptic", 2, "PANOPTIC_ON")
    output = tmp_path / "faults.json"
    assert run("--json", str(output), "--config-file", file) == 1
    printed = capsys.readouterr().out
    # Six images of training; the seventh is left out of training but not of the evaluation.
    assert "faulty_panoptic (DATASETS.TRAIN): 11 images read, 6 errors, 3 warnings" in printed
    assert "faulty_panoptic (DATASETS.TEST): 11 images read, 7 errors, 1 warnings" in printed
    assert "2 data sets: 13 errors, 4 warnings" in printed
    assert re.search(r"^ +file +what is wrong +what to do$", printed, re.MULTILINE)

    written = json.loads(output.read_text())
    assert (written["errors"], written["warnings"]) == (13, 4)
    train, test = written["datasets"]
    assert (train["role"], test["role"]) == ("TRAIN", "TEST")
    assert train["num_checked"] == 11 and len(train["faults"]) == 9
    missing = next(f for f in train["faults"] if f["file"].endswith("missing_png.png"))
    assert missing["severity"] == "error" and "does not exist" in missing["message"]


def test_clean_data_and_warnings_are_no_failure(config, tmp_path, capsys):
    file = config("semantic", 2, "SEMANTIC_ON")
    for name in ("beyond", "colour", "other_size"):
        for folder in ("images", "labels"):
            (tmp_path / "semantic" / folder / f"{name}.png").unlink()
    assert run("--config-file", file) == 0
    assert "2 data sets: 0 errors, 6 warnings" in capsys.readouterr().out
    shutil.copy(tmp_path / "semantic/labels/good.png", tmp_path / "semantic/labels/ignored.png")
    (tmp_path / "semantic/images/unpaired.png").unlink()
    for folder in ("images", "labels"):
        (tmp_path / "semantic" / folder / "one_pixel.png").unlink()
    assert run("--config-file", file) == 0
    assert "2 data sets: 0 errors, 0 warnings" in capsys.readouterr().out


def test_limit_and_overrides(config, capsys):
    file = config("instances", 1, "INSTANCE_ON")
    assert run("--limit", "1", "--config-file", file, "DATASETS.TEST", "()") == 0
    assert "faulty_instances (DATASETS.TRAIN): 1 of 22 images read" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("--limit", "0"), "--limit is 0; it must be at least 1"),
        (("--workers", "0"), "--workers is 0; it must be at least 1"),
        ((), "DATASETS.TRAIN and DATASETS.TEST are both empty"),
    ],
)
def test_usage_errors(config, arguments, sentence):
    file = config("semantic", 2, "SEMANTIC_ON")
    both = ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
    with pytest.raises(UserError, match=sentence):
        run(*arguments, "--config-file", file, *both)


def test_exit_code_of_the_process(config):
    file = config("instances", 1, "INSTANCE_ON")
    command = [sys.executable, check_dataset.__file__, "--workers", "2", "--config-file", file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "nan.png" in done.stdout
