import os
import random
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.utils import comm

from eomt_d2.data.image_order import ImageOrder
from eomt_d2.data.train_loader import TrainLoader


def draw(entry):
    """A mapper that shows what it drew, from every generator that a mapper may use."""
    return {**entry, "drawn": (random.random(), np.random.rand(), torch.rand(1).item())}


def loader(workers=0, size=5, batch=4, mapper=draw, **options):
    dataset = [{"i": i, "width": 10 + 20 * (i % 2), "height": 20} for i in range(size)]
    return TrainLoader(
        dataset, mapper, ImageOrder(size), seed=3, batch_size=batch, num_workers=workers, **options
    )


def batches(loader, count):
    return list(islice(iter(loader), count))


@pytest.fixture(scope="module")
def whole():
    return batches(loader(), 9)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [0, 1, 4])
def test_a_batch_depends_only_on_its_number(whole, workers, start):
    resumed = loader(workers)
    resumed.seek(3, start)
    random.seed(start)
    torch.manual_seed(start)
    assert batches(resumed, 9 - start) == whole[start:]


def test_the_same_image_is_drawn_anew_each_time(whole):
    samples = [sample for batch in whole for sample in batch]
    assert len({sample["drawn"] for sample in samples}) == len(samples) == 36


def test_seeds_differ(whole):
    other = loader()
    other.seek(4, 0)
    assert not {str(sample) for batch in batches(other, 9) for sample in batch} & {
        str(sample) for batch in whole for sample in batch
    }


@pytest.mark.parametrize("group", [False, True])
def test_processes_share_each_batch(whole, monkeypatch, group):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares.append(batches(loader(group_by_aspect_ratio=group), 9))
    if not group:
        joined = [one + other for one, other in zip(*shares, strict=True)]
        assert joined == whole
    for batch in (batch for share in shares for batch in share):
        assert len(batch) == 2
        if group:
            assert len({sample["width"] for sample in batch}) == 1


def test_grouping_by_aspect_ratio_is_not_exact():
    assert loader().is_exact
    assert not loader(group_by_aspect_ratio=True).is_exact


WORKERS = """
import os, signal, time
from torch.utils.data import get_worker_info
from eomt_d2.data.image_order import ImageOrder
from eomt_d2.data.train_loader import TrainLoader

def slow(entry):
    time.sleep(0.05)
    return {"pid": os.getpid()}

loader = iter(TrainLoader([{}] * 4, slow, ImageOrder(4), seed=0, batch_size=2, num_workers=2))
workers = {sample["pid"] for _ in range(2) for sample in next(loader)}
for signum in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
    for pid in workers:
        os.kill(pid, signum)
after = {sample["pid"] for _ in range(8) for sample in next(loader)}
assert len(workers) == 2 and workers == after, (workers, after)
del loader
for pid in workers:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        continue
    raise AssertionError(f"{pid} is still there")
print("gone")
"""


def test_workers_outlive_signals_and_end_with_the_loader(tmp_path):
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    result = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (result.returncode, result.stdout) == (0, "gone\n"), result.stderr
