"""Subsets of COCO annotation files."""

import json
import subprocess
import sys


def run(*args):
    command = [sys.executable, "datasets/subset_coco.py", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


def test_keeps_the_named_images_and_everything_else(test_data, tmp_path):
    source = test_data / "coco/annotations/panoptic_val2017_mini.json"
    output = tmp_path / "new" / "two.json"
    result = run(source, "--images", 139, 785, "--output", output)
    assert result.returncode == 0, result.stderr
    full, kept = json.loads(source.read_text()), json.loads(output.read_text())
    assert sorted(image["id"] for image in kept["images"]) == [139, 785]
    # The data set says that 785 has only 4 segments.
    assert [len(a["segments_info"]) for a in kept["annotations"] if a["image_id"] == 785] == [4]
    assert kept["categories"] == full["categories"]


def test_wrong_input_is_one_sentence(tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text("[]")
    result = run(bad, "--images", 1, "--output", tmp_path / "x.json")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert f"error: {bad} is no COCO annotation file" in result.stderr.splitlines()[-1]
    bad.write_text('{"images": [], "annotations": []}')
    result = run(bad, "--images", 7, "--output", tmp_path / "x.json")
    assert result.returncode == 2
    assert "no image with id 7" in result.stderr
    assert not (tmp_path / "x.json").exists()
