"""Curves from the metrics.json of a run."""

import json

import numpy as np
import pytest
from PIL import Image

from eomt_d2.errors import UserError
from eomt_d2.visualization.curves import plot_training, read_scalars


def write_metrics(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_scalars_by_iteration(tmp_path):
    file = write_metrics(
        tmp_path / "metrics.json",
        [{"iteration": 19, "loss_ce": 2.0}, {"iteration": 39, "loss_ce": 1.0, "lr/head": 0.1}],
    )
    assert read_scalars(file) == {"loss_ce": [(19, 2.0), (39, 1.0)], "lr/head": [(39, 0.1)]}


def test_a_run_that_starts_again_replaces_the_earlier_one(tmp_path):
    lines = [{"iteration": i, "loss_ce": v} for i, v in ((9, 3.0), (19, 2.0), (9, 8.0), (29, 7.0))]
    file = write_metrics(tmp_path / "metrics.json", lines)
    assert read_scalars(file) == {"loss_ce": [(9, 8.0), (29, 7.0)]}


def test_the_picture_shows_the_curves(tmp_path):
    records = [
        {
            "iteration": i,
            "loss_ce": 2.0 / (i + 1),
            "loss_mask": 1.0,
            "loss_dice": 1.0,
            "lr/head": 1e-3,
            "mask_annealing/block_0": 1 - i / 10,
            "panoptic_seg/PQ": 5.0 * i,
        }
        for i in range(10)
    ]
    plot_training(write_metrics(tmp_path / "m.json", records), tmp_path / "new" / "full.png")
    plot_training(write_metrics(tmp_path / "n.json", records[:1]), tmp_path / "one.png")
    full, one = (np.asarray(Image.open(tmp_path / f)) for f in ("new/full.png", "one.png"))
    assert full.shape[0] > 500
    different = (full != one).any(-1)
    height, width = different.shape
    for rows in (slice(0, height // 2), slice(height // 2, height)):
        for columns in (slice(0, width // 2), slice(width // 2, width)):
            assert different[rows, columns].sum() > 100, "each of the four panels has its curve"


def test_wrong_files_are_explained(tmp_path):
    with pytest.raises(UserError, match="give the OUTPUT_DIR"):
        read_scalars(tmp_path / "metrics.json")
    (tmp_path / "metrics.json").write_text('{"iteration": 1}\nnothing\n')
    with pytest.raises(UserError, match="Line 2 of .* is no record"):
        read_scalars(tmp_path / "metrics.json")
