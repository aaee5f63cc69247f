"""Several processes train like one that has all their images.

The network, the loader, the trainer and its step are the real ones. Only torch.rand is replaced:
images draw the same wherever they are (:class:`~tests.modeling.draws.DrawsByImage`). What is left
is rounding, since sums over a batch are formed in another order.

Run as a script, this file is one of two processes.
"""

import os
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.structures import Instances
from torch.nn.parallel import DistributedDataParallel

from eomt_d2.data.image_order import ImageOrder
from eomt_d2.data.train_loader import TrainLoader
from eomt_d2.engine import Trainer
from tests.engine.tiny_training import config
from tests.modeling.draws import DrawsByImage

QUERIES, CLASSES, SIZE, POINTS = 6, 4, 32, 40
# Segments of the images of each batch. Two processes take two images each: unequal numbers, the
# second without any, the first without any and the other more than there are queries, nobody any.
BATCHES = ((3, 1, 2, 5), (4, 1, 0, 0), (0, 0, 9, 2), (0, 0, 0, 0), (0, 7, 1, 0), (4, 2, 3, 3))
# Of mask annealing in two blocks, in iterations: from the third batch on both mask at random.
STARTS, ENDS = (0, 1), (6, 9)
# Of gradients that processes exchange at once, in MB; the networks have 0.2 and 0.3.
BUCKET_MB = 0.1
KEYS = {
    "SEED": 1,
    "MODEL.META_ARCHITECTURE": "EoMT",
    "MODEL.BACKBONE.NAME": "ViT",
    # Keys with a bias get no gradient for it, and AdamW makes large steps of what rounding leaves.
    "MODEL.VIT.NAME": "",
    "MODEL.VIT.POSITION": "rotary",
    "MODEL.VIT.PATCH_SIZE": 8,
    "MODEL.VIT.EMBED_DIM": 32,
    "MODEL.VIT.DEPTH": 3,
    "MODEL.VIT.NUM_HEADS": 2,
    "MODEL.VIT.LAYER_SCALE_INIT": 0.0,
    "MODEL.VIT.DROP_PATH_RATE": 0.4,
    "MODEL.EOMT.NUM_BLOCKS": 2,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": CLASSES,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": QUERIES,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": POINTS,
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": True,
    "MODEL.MASK_FORMER.MASK_ANNEALING.SCHEDULE": "iterations",
    "MODEL.MASK_FORMER.MASK_ANNEALING.STARTS": STARTS,
    "MODEL.MASK_FORMER.MASK_ANNEALING.ENDS": ENDS,
    "INPUT.IMAGE_SIZE": SIZE,
}


class InOrder(ImageOrder):
    def pass_indices(self, seed, number):
        return np.arange(self.size)


def sample(count):
    """A random image with a number of segments; ``seed`` is what the network draws for it."""
    instances = Instances((SIZE, SIZE))
    instances.gt_classes = torch.randint(CLASSES, (count,))
    instances.gt_masks = torch.randn(count, SIZE, SIZE) > 0.3
    image = torch.randint(256, (3, SIZE, SIZE), dtype=torch.uint8)
    return {"image": image, "instances": instances, "seed": torch.randint(2**31, ()).item()}


class ManyProcessesTrainer(Trainer):
    draws: DrawsByImage

    @classmethod
    def build_model(cls, cfg):
        torch.manual_seed(1)
        model = super().build_model(cfg)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.register_forward_pre_hook(cls.start_draws)
        return model

    @classmethod
    def start_draws(cls, model, inputs):
        seeds = [image["seed"] for image in inputs[0]]
        cls.draws.start(seeds, [len(image["instances"]) for image in inputs[0]])

    @classmethod
    def build_train_loader(cls, cfg):
        counts = [count for batch in BATCHES for count in batch]
        return TrainLoader(
            counts, sample, InOrder(len(counts)), seed=0, batch_size=cfg.SOLVER.IMS_PER_BATCH
        )


class Watcher(HookBase):
    def __init__(self):
        self.logged = []

    def after_step(self):
        latest = self.trainer.storage.latest()
        kinds = ("loss", "grad_norm", "lr/", "mask_annealing/")
        names = [name for name in latest if any(kind in name for kind in kinds)]
        self.logged.append({name: latest[name][0] for name in names})


def make_trainer(output_dir, keys):
    cfg = config(output_dir, MAX_ITER=len(BATCHES), IMS_PER_BATCH=4, BASE_LR=0.002)
    cfg.merge_from_list([x for item in {**KEYS, **keys}.items() for x in item])
    draws = DrawsByImage(POINTS, QUERIES)
    return type("WithDraws", (ManyProcessesTrainer,), {"draws": draws})(cfg)


def copied(parameters):
    return {name: p.detach().clone() for name, p in parameters}


def train(output_dir, accumulation_steps=1):
    """Train to the end.

    Returns:
        the weights before and after, what was logged in each iteration, and what kinds of random
        numbers were drawn.
    """
    trainer = make_trainer(output_dir, {"SOLVER.ACCUMULATION_STEPS": accumulation_steps})
    watcher = Watcher()
    trainer.register_hooks([watcher])
    model = trainer.checkpointer.model
    before = copied(model.named_parameters())
    with mock.patch("torch.rand", trainer.draws):
        trainer.train()
    return before, copied(model.named_parameters()), watcher.logged, sorted(trainer.draws.kinds)


def gradients(output_dir, backend=None):
    """Of the first batch, all masks being there and no branch dropped: the compiler cannot trace
    draws that are replaced.

    Args:
        backend: of torch.compile; None does not compile.

    Returns:
        by name, and the number of graphs that were compiled.
    """
    graphs, plain_compile = [], torch.compile

    def count(graph, example_inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, example_inputs)

    def compile_(function, *, mode, **kwargs):
        return plain_compile(function, backend=count, **kwargs)

    keys = {
        "MODEL.COMPILE": "default" if backend else "off",
        "MODEL.VIT.DROP_PATH_RATE": 0.0,
        # Fewer blocks compile sooner.
        "MODEL.VIT.DEPTH": 2,
        "MODEL.EOMT.NUM_BLOCKS": 1,
        "MODEL.MASK_FORMER.MASK_ANNEALING.SCHEDULE": "none",
    }
    with mock.patch("torch.compile", compile_):
        trainer = make_trainer(output_dir, keys)
    model = trainer.checkpointer.model.train()
    parallel = model
    if dist.is_initialized():
        # Several buckets of gradients, as those of a real network are.
        parallel = DistributedDataParallel(model, broadcast_buffers=False, bucket_cap_mb=BUCKET_MB)
    batch = next(iter(trainer.data_loader))
    with mock.patch("torch.rand", trainer.draws):
        sum(parallel(batch).values()).backward()
    return {name: p.grad for name, p in model.named_parameters()}, len(graphs)


def run_rank(rank, folder, backend):
    """Trainings and compiled gradients, on one of two processes."""
    dist.init_process_group("gloo", f"file://{folder}/init", rank=rank, world_size=2)
    results = {"trained": [train(f"{folder}/parts_{parts}", parts) for parts in (1, 2)]}
    # PyTorch's own first bucket, 1 MB, would hold the whole network.
    dist._DEFAULT_FIRST_BUCKET_BYTES = int(BUCKET_MB * 2**20)
    results["gradients"], results["num_graphs"] = gradients(folder, backend)
    torch.save(results, f"{folder}/rank{rank}")
    dist.destroy_process_group()


def run_two_processes(folder, backend):
    """What :func:`run_rank` gives, of both ranks."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, str(rank), folder, backend], env=environment
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"rank{rank}", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Whose compiler traces and differentiates, but runs plain kernels."""
    return run_two_processes(tmp_path_factory.mktemp("two"), "aot_eager")


def test_two_processes_train_like_one_with_all_images(two_processes, tmp_path):
    """Also in parts: 2 processes x 2 parts of 1 image are one process with 4 images.

    Each weight is the same to 1e-6 (training moves them by up to 6e-3), and what is logged to 1e-5
    of itself.
    """
    before, after, logged, kinds = train(tmp_path / "whole")
    assert kinds == ["annealed masks", "mask losses", "matching", "stochastic depth"]
    for entry in logged[2:]:
        assert all(0 < entry[f"mask_annealing/block_{i}"] < 1 for i in range(2))
    assert all((after[name] - before[name]).abs().max() > 1e-3 for name in before)

    for rank in two_processes:
        for other_before, other_after, other_logged, other_kinds in rank["trained"]:
            assert other_kinds == kinds
            torch.testing.assert_close(other_before, before, rtol=0, atol=0)
            torch.testing.assert_close(other_after, after, rtol=0, atol=1e-6)
            for entry, expected in zip(other_logged, logged, strict=True):
                assert entry == pytest.approx(expected, rel=1e-5, abs=1e-6)


def assert_compiled_gradients_are_those_of_one_process(ranks, folder):
    expected, _ = gradients(folder)
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for rank in ranks:
        assert rank["num_graphs"] > 1, "PyTorch cuts the network where a bucket is full"
        torch.testing.assert_close(
            rank["gradients"], expected, rtol=1e-4, atol=1e-5 * largest, check_stride=False
        )


def test_compiled_in_two_processes(two_processes, tmp_path):
    """MODEL.COMPILE and DistributedDataParallel."""
    assert_compiled_gradients_are_those_of_one_process(two_processes, tmp_path)


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), *sys.argv[2:])
