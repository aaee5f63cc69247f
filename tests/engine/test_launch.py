"""Several processes under torchrun are tested with the command line, in tests/tools."""

import argparse
import multiprocessing
import os
import signal
import subprocess
import sys

import detectron2.engine
import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException

from eomt_d2.engine import launch
from eomt_d2.errors import UserError


def arguments(num_gpus=1):
    return argparse.Namespace(num_gpus=num_gpus, num_machines=1, machine_rank=0, dist_url="auto")


def test_one_process_runs_here():
    seen = []
    launch(seen.append, arguments())
    assert seen == [arguments()]


def test_more_gpus_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="--num-gpus is 4, but PyTorch finds 1 GPUs here"):
        launch(print, arguments(num_gpus=4))


# Detectron2's launcher needs GPUs; this one starts processes in the same way without.
COMMAND_LINE = """
import argparse
import detectron2.engine
import torch
from eomt_d2.engine import launch
from eomt_d2.errors import UserError, exit_on_user_error

def spawn(main, num_gpus, *, args, **_):
    torch.multiprocessing.spawn(work, (main, args), nprocs=num_gpus)

def work(rank, main, args):
    main(*args)

def train(args):
    raise EXCEPTION("photo.jpg is damaged; replace it.")

if __name__ == "__main__":
    detectron2.engine.launch = spawn
    torch.cuda.device_count = lambda: 2
    with exit_on_user_error():
        launch(train, argparse.Namespace(num_gpus=2, num_machines=1, machine_rank=0, dist_url=""))
"""


def run_command_line(folder, exception):
    script = folder / "train.py"
    script.write_text(COMMAND_LINE.replace("EXCEPTION", exception))
    return subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_a_mistake_in_a_started_process_is_one_sentence(tmp_path):
    result = run_command_line(tmp_path, "UserError")
    assert "error: photo.jpg is damaged; replace it.\n" in result.stderr
    assert result.stderr.count("photo.jpg") == 1
    assert "Traceback" not in result.stderr + result.stdout
    assert result.returncode == 2


def test_a_failure_of_ours_in_a_started_process_keeps_its_traceback(tmp_path):
    result = run_command_line(tmp_path, "ValueError")
    assert "ValueError: photo.jpg is damaged" in result.stderr
    assert result.returncode == 1


def test_a_signal_reaches_started_processes_and_gives_the_exit_code(monkeypatch):
    """Here one that has nothing of PyTorch to import."""

    def start(*_, **__):
        process = multiprocessing.get_context("fork").Process(target=wait_for_a_signal)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        os.kill(os.getpid(), signal.SIGTERM)
        process.join(60)
        text = "process 0 terminated with exit code 143"
        raise ProcessExitedException(text, error_index=0, error_pid=0, exit_code=process.exitcode)

    def wait_for_a_signal():
        # Blocked when the parent forked, so it cannot come too early.
        sys.exit(128 + signal.sigwait([signal.SIGTERM]))

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(detectron2.engine, "launch", start)
    with pytest.raises(SystemExit) as raised:
        launch(print, arguments(num_gpus=2))
    assert raised.value.code == 143
