"""The loss of a batch must not depend on how its images are spread over processes.

Run as a script, this file is one of the two processes.
"""

import os
import subprocess
import sys
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eomt_d2.modeling.criterion import MaskClassificationCriterion
from eomt_d2.modeling.matcher import HungarianMatcher
from eomt_d2.modeling.structures import MaskPrediction, MaskTarget
from tests.modeling.draws import same_points_for_all

NUM_CLASSES = 4
# Two batches of four images, by segments per image, and the images of each process: one process
# without any segment, and processes with different numbers of images.
SPREADS = [((3, 2, 0, 0), ([0, 1], [2, 3])), ((1, 7, 0, 2), ([0], [1, 2, 3]))]


class Network(nn.Module):
    """Two heads and the criterion. Returns the total loss."""

    def __init__(self):
        super().__init__()
        self.mask_head = nn.Linear(3, 16)
        self.class_head = nn.Linear(3, NUM_CLASSES + 1)
        self.criterion = MaskClassificationCriterion(
            num_classes=NUM_CLASSES, matcher=HungarianMatcher(num_points=20), num_points=20
        )

    def forward(self, queries, targets):
        masks = self.mask_head(queries).unflatten(-1, (4, 4))
        prediction = MaskPrediction(masks, self.class_head(queries))
        return sum(self.criterion([prediction], targets).values())


def make_batch(num_segments):
    torch.manual_seed(0)
    network, queries = Network(), torch.randn(4, 5, 3)
    targets = [
        MaskTarget(torch.randint(NUM_CLASSES, (count,)), torch.rand(count, 8, 8) > 0.5)
        for count in num_segments
    ]
    return network, queries, targets


def gradients(network, queries, targets):
    with mock.patch("torch.rand", same_points_for_all):
        network(queries, targets).backward()
    return [parameter.grad for parameter in network.parameters()]


def run_rank(rank, init_file, result_file):
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    results = []
    for num_segments, images_of_rank in SPREADS:
        network, queries, targets = make_batch(num_segments)
        images = images_of_rank[rank]
        results.append(
            gradients(
                DistributedDataParallel(network), queries[images], [targets[i] for i in images]
            )
        )
    torch.save(results, f"{result_file}{rank}")
    dist.destroy_process_group()


def test_two_processes_equal_the_whole_batch(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path / "init"), str(tmp_path / "rank")],
            env=environment,
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    results = [torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in range(2)]
    for i, (num_segments, _) in enumerate(SPREADS):
        expected = gradients(*make_batch(num_segments))
        for rank in range(2):
            torch.testing.assert_close(results[rank][i], expected)


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), sys.argv[2], sys.argv[3])
