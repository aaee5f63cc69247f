"""The README's first command, with few steps: it ends unmasked and beats the untrained model."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]


def quickstart(*arguments):
    return subprocess.run(
        ["bash", "tools/quickstart.sh", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )


def test_few_steps_learn_something(tmp_path):
    output = tmp_path / "out"
    result = quickstart(
        "--output", output, "--iterations", 400, "--train-images", 500, "--pictures", 2,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["held_out_images"] == 64
    assert metrics["masking_probabilities"] == [0.0, 0.0]
    # A fifth of the default's iterations: masks and textures are learned, but few classes are yet
    # as certain as PQ's threshold asks for.
    assert metrics["PQ"] >= metrics["untrained_PQ"]
    assert metrics["AP"] > metrics["untrained_AP"] + 5
    assert metrics["mIoU"] > metrics["untrained_mIoU"] + 10
    mean_of_classes = (3 * metrics["PQ_st"] + 5 * metrics["PQ_th"]) / 8
    assert metrics["PQ"] == pytest.approx(mean_of_classes)
    assert {"SQ", "RQ", "AP", "mIoU"} <= metrics.keys()
    overlays = sorted((output / "overlays").glob("*.png"))
    assert len(overlays) == 2
    for file in overlays:
        picture = np.asarray(Image.open(file)).astype(int)
        image, truth, prediction = np.split(picture[-384:], 3, axis=1)
        assert np.abs(truth - image).mean() > 1, "the ground truth is drawn"
        assert prediction.shape == image.shape
    assert (output / "curves.png").stat().st_size > 10_000
    assert str(output / "metrics.json") in result.stdout.splitlines()[-1]


def test_wrong_arguments_are_explained():
    result = quickstart("--iterations", "0")
    assert result.returncode == 2
    assert "0 is not positive" in result.stderr
    assert "Traceback" not in result.stderr
