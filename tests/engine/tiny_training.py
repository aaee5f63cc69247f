"""A two-parameter model with mask annealing, trained on batches that depend only on their position,
so that a training can be repeated exactly."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import HookBase
from torch import nn

from eomt_d2.config import add_eomt_config
from eomt_d2.engine import Trainer
from eomt_d2.modeling.masked_attention import MaskAnnealing

ITERATIONS = 12


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.head = nn.Linear(2, 1)
        self.mask_annealing = MaskAnnealing(2)

    def forward(self, batch):
        if not self.training:
            return [{"probs": self.mask_annealing.probs.tolist()} for _ in batch]
        x, y = (torch.stack([sample[key] for sample in batch]) for key in ("x", "y"))
        prediction = self.head(torch.tanh(self.backbone(x) * self.mask_annealing.probs))
        return {"loss": (prediction - y).square().mean()}


class Watcher(HookBase):
    """Notes what each iteration runs with, and may interrupt the training like a lost machine."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after
        self.rates, self.probs = [], []

    def before_step(self):
        self.rates.append([group["lr"] for group in self.trainer.optimizer.param_groups])
        self.probs.append(self.trainer.model.mask_annealing.probs.tolist())

    def after_step(self):
        if self.trainer.iter + 1 == self.stop_after:
            raise InterruptedError


class TinyTrainer(Trainer):
    first_batch = 0

    @classmethod
    def build_model(cls, cfg):
        torch.manual_seed(1)
        return Tiny()

    @classmethod
    def build_train_loader(cls, cfg):
        def batches(i):
            while True:
                generator = torch.Generator().manual_seed(i)
                x = torch.randn(4, 2, generator=generator)
                yield [{"x": sample, "y": sample.sum(0, keepdim=True)} for sample in x]
                i += 1

        return batches(cls.first_batch)


def config(output_dir, **solver):
    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.OUTPUT_DIR = str(output_dir)
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    settings = {
        "MAX_ITER": ITERATIONS,
        "WARMUP_ITERS_HEAD": 2,
        "WARMUP_ITERS_BACKBONE": 2,
        "CHECKPOINT_PERIOD": 6,
        "BASE_LR": 0.1,
    }
    for key, value in {**settings, **solver}.items():
        cfg.SOLVER[key] = value
    return cfg


def train(cfg, *, resume=False, stop_after=None, first_batch=0):
    trainer_class = type("TinyTrainer", (TinyTrainer,), {"first_batch": first_batch})
    trainer = trainer_class(cfg)
    watcher = Watcher(stop_after)
    trainer.register_hooks([watcher])
    trainer.resume_or_load(resume=resume)
    if stop_after is None:
        trainer.train()
    else:
        with pytest.raises(InterruptedError):
            trainer.train()
    return trainer, watcher


def optimizer_tensors(trainer):
    state = trainer.optimizer.state_dict()["state"]
    return {(i, key): value for i, s in state.items() for key, value in s.items()}


def assert_same_training(one, other):
    torch.testing.assert_close(
        dict(one.model.state_dict()), dict(other.model.state_dict()), rtol=0, atol=0
    )
    torch.testing.assert_close(optimizer_tensors(one), optimizer_tensors(other), rtol=0, atol=0)
