"""Several processes under torchrun are tested with the command line, in tests/tools."""

import argparse

import pytest
import torch

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
