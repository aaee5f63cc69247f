"""Real training processes that are killed and resumed, against one that is not: bit by bit.

Augmentation, point sampling, stochastic depth and annealed masks all draw random numbers here. The
uninterrupted training evaluates after iterations 4 and 9; the killed ones do not get to all of it.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eomt_d2.data.datasets.shapes import make_shapes
from tests.tools.test_train_net import CONFIG

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("watched_training.py")

SETTINGS = (
    "MODEL.VIT.DROP_PATH_RATE", "0.3", "INPUT.COLOR_JITTER", "True", "SOLVER.MAX_ITER", "12",
    "SOLVER.CHECKPOINT_PERIOD", "3", "TEST.EVAL_PERIOD", "5",
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", "True",
)  # fmt: skip

# Name: signal in iteration 7 of the first process, its exit code, and workers of the loader in the
# first and in the second, resumed process.
INTERRUPTIONS = {
    "killed": ("SIGKILL", -signal.SIGKILL, 0, 0),
    "killed_workers": ("SIGKILL", -signal.SIGKILL, 2, 2),
    "terminated": ("SIGTERM", 128 + signal.SIGTERM, 2, 0),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All trainings, each in a folder of its name: 12 iterations, CHECKPOINT_PERIOD 3."""
    folder = tmp_path_factory.mktemp("resume")
    root = make_shapes(folder / "shapes", num_train=5, num_val=1, num_workers=1)
    config = folder / "tiny.yaml"
    config.write_text(CONFIG.replace("{root}", str(root)))

    def run(name, signal_name="", workers=0, flags=(), log="first"):
        arguments = ["--config-file", config, *flags, *SETTINGS, "OUTPUT_DIR", folder / name]
        return {
            "arguments": [*map(str, arguments), "DATALOADER.NUM_WORKERS", str(workers)],
            "losses": str(folder / f"{name}.losses"),
            "log": str(folder / f"{name}.{log}"),
            "signal": signal_name,
            "iteration": 7,
        }

    plan, expected = [run("whole")], [0]
    for name, (signal_name, code, first_workers, workers) in INTERRUPTIONS.items():
        plan.append(run(name, signal_name, first_workers))
        plan.append(run(name, workers=workers, flags=["--resume"], log="second"))
        expected += [code, 0]
    (folder / "plan.json").write_text(json.dumps(plan))
    process = subprocess.run(
        [sys.executable, SCRIPT, folder / "plan.json", folder / "codes.json"],
        env={
            **os.environ,
            "PYTHONPATH": str(SCRIPT.parents[2]),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert process.returncode == 0, process.stderr
    codes = json.loads((folder / "codes.json").read_text())
    assert codes == expected, "".join(Path(run["log"]).read_text()[-2000:] for run in plan)
    return folder


def losses(folder, name):
    """(iteration, exact loss) in the order of training."""
    lines = (folder / f"{name}.losses").read_text().splitlines()
    return [(int(iteration), loss) for iteration, loss in map(str.split, lines)]


def final_state(folder, name):
    state = torch.load(folder / name / "model_final.pth", weights_only=True)
    trainer = state["trainer"]
    return {
        "model": state["model"],
        "optimizer": trainer["_trainer"]["optimizer"]["state"],
        "schedule": trainer["hooks"]["LRScheduler"],
        "iteration": trainer["iteration"],
        "seed": trainer["seed"],
    }


def test_the_uninterrupted_training_is_one_to_compare_with(folder):
    whole = losses(folder, "whole")
    assert [iteration for iteration, _ in whole] == list(range(12))
    assert len({loss for _, loss in whole}) == 12


@pytest.mark.parametrize("name", INTERRUPTIONS)
def test_the_final_state_is_that_of_the_uninterrupted_training(folder, name):
    torch.testing.assert_close(
        final_state(folder, name), final_state(folder, "whole"), rtol=0, atol=0
    )


@pytest.mark.parametrize("name", ["killed", "killed_workers"])
def test_a_killed_training_repeats_what_was_not_saved(folder, name):
    whole = losses(folder, "whole")
    # Saved after iteration 5, killed in 7: iteration 6 comes again.
    assert losses(folder, name) == whole[:7] + whole[6:]


def test_a_training_that_was_told_to_end_loses_nothing(folder):
    assert losses(folder, "terminated") == losses(folder, "whole")
    log = (folder / "terminated.first").read_text()
    assert (
        "SIGTERM ended the training; the last good checkpoint is "
        f"{folder / 'terminated' / 'model_0000007.pth'}, from which the same command continues "
        "with --resume."
    ) in log
    assert "Traceback" not in log
