"""Trainings by tools/train_net.py, one process each, that note exact losses and end where asked.

python watched_training.py PLAN RESULTS

PLAN is a JSON list of runs, which are forked one after the other from this process, so that they
need not import everything again:

- ``arguments``: of train_net.py
- ``losses``: a file that gets a line "iteration loss" for each iteration
- ``log``: a file for all that the process prints
- ``signal``, ``iteration``: when the network has seen the batch of that iteration, before any
  update, the process gets this signal; "" for none

RESULTS becomes the list of exit codes; that of a process which a signal killed is negative.
"""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

from detectron2.engine import HookBase, default_argument_parser

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tools"))

import train_net  # noqa: E402


class LossWriter(HookBase):
    def __init__(self, path):
        self.path = path

    def after_step(self):
        value, iteration = self.trainer.storage.latest()["total_loss"]
        with open(self.path, "a") as file:
            print(iteration, value.hex(), file=file)


def watched_trainer(run, trainer_class):
    class WatchedTrainer(trainer_class):
        def build_hooks(self):
            timer, *others = super().build_hooks()
            return [timer, LossWriter(run["losses"]), *others]

        def run_step(self):
            if run["signal"] and self.iter == run["iteration"]:
                signum = getattr(signal, run["signal"])
                self.model.register_forward_hook(lambda *_: os.kill(os.getpid(), signum))
            super().run_step()

    return WatchedTrainer


def train(run):
    with open(run["log"], "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    train_net.Trainer = watched_trainer(run, train_net.Trainer)
    train_net.launch(train_net.main, default_argument_parser().parse_args(run["arguments"]))


if __name__ == "__main__":
    plan, results = map(Path, sys.argv[1:])
    codes = []
    for run in json.loads(plan.read_text()):
        process = multiprocessing.get_context("fork").Process(target=train, args=(run,))
        process.start()
        process.join()
        codes.append(process.exitcode)
    results.write_text(json.dumps(codes))
