import os
import signal
import threading
import time

import pytest

from eomt_d2.engine import interruption
from eomt_d2.engine.interruption import SIGNALS, Interrupted, SignalWatch
from tests.engine.tiny_training import (
    ITERATIONS,
    TinyTrainer,
    assert_same_training,
    config,
    train,
)


@pytest.fixture(autouse=True)
def as_in_the_foreground():
    """Background jobs of a shell ignore SIGINT, and what starts the tests may be one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def told():
    return []


@pytest.fixture
def watch(told):
    return SignalWatch(told.append)


def send(signum):
    os.kill(os.getpid(), signum)
    time.sleep(0.001)  # Python runs handlers between two of its instructions.


def handlers():
    return [signal.getsignal(signum) for signum in SIGNALS]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_noted_and_nothing_else_happens(watch, told, signum):
    before = handlers()
    with watch.listening():
        assert watch.received() == 0
        send(signum)
        send(signal.SIGTERM)
        assert (watch.received(), told) == (signum, [signum])
    assert handlers() == before


def test_only_a_later_ctrl_c_leaves_at_once(watch, monkeypatch):
    with watch.listening():
        # From the terminal and from torchrun.
        send(signal.SIGINT)
        send(signal.SIGINT)
        monkeypatch.setattr(interruption, "_SECOND_REQUEST", 0.01)
        time.sleep(0.02)
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_inside_an_evaluation_it_raises_at_once(watch):
    with watch.listening():
        with pytest.raises(Interrupted) as raised, watch.raising():
            send(signal.SIGUSR1)
        assert raised.value.code == 128 + signal.SIGUSR1
        assert (raised.value.name, raised.value.by_all) == ("SIGUSR1", False)
        # An evaluation that begins after a signal does not even start.
        with pytest.raises(Interrupted), watch.raising():
            pytest.fail("started")


def test_a_sigint_that_the_shell_ignores_stays_ignored(watch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with watch.listening():
            send(signal.SIGINT)
            assert watch.received() == 0
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_ignored_usr1_is_listened_to(watch):
    """``trap '' USR1`` protects torchrun; its processes inherit that."""
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with watch.listening():
            send(signal.SIGUSR1)
            assert watch.received() == signal.SIGUSR1
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_forked_processes_ignore_what_they_inherit(watch, told):
    with watch.listening():
        child = os.fork()
        if child == 0:
            send(signal.SIGTERM)
            os._exit(7 if watch.received() == 0 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert not told


def test_threads_cannot_listen(watch):
    before = handlers()
    inside = []

    def listen():
        with watch.listening():
            inside.extend(handlers())

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert inside == before


class Signalled(TinyTrainer):
    """Gets a signal in an iteration, or in its first evaluation."""

    at = None

    def run_step(self):
        super().run_step()
        if self.iter == self.at:
            send(signal.SIGUSR1)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        if cls.at is None:
            send(signal.SIGTERM)
        return {"task": {"metric": 1.0}}


def leave(cfg, iteration):
    trainer = type("Signalled", (Signalled,), {"at": iteration})(cfg)
    with pytest.raises(Interrupted) as raised:
        trainer.train()
    return trainer, raised.value


def last_checkpoint(folder):
    return (folder / "last_checkpoint").read_text()


@pytest.mark.parametrize("iteration", [0, 7])
def test_a_training_ends_after_the_iteration_that_sees_the_signal(tmp_path, iteration):
    # The signal came when the iteration had already told the others, so the next one sees it.
    _, interruption = leave(config(tmp_path / "parts"), iteration)
    assert (interruption.code, interruption.by_all) == (128 + signal.SIGUSR1, True)
    assert last_checkpoint(tmp_path / "parts") == f"model_{iteration + 1:07d}.pth"
    whole, seen = train(config(tmp_path / "whole"))
    resumed, rest = train(config(tmp_path / "parts"), resume=True, first_batch=iteration + 2)
    assert rest.rates == seen.rates[iteration + 2 :]
    assert_same_training(resumed, whole)


def test_an_evaluation_is_left_at_once(tmp_path):
    cfg = config(tmp_path)
    cfg.TEST.EVAL_PERIOD = 5
    _, interruption = leave(cfg, None)
    assert (interruption.name, interruption.by_all) == ("SIGTERM", False)
    assert last_checkpoint(tmp_path) == "model_0000004.pth"


def test_after_the_last_iteration_only_the_evaluation_is_left_out(tmp_path):
    trainer, _ = leave(config(tmp_path), ITERATIONS - 1)
    assert last_checkpoint(tmp_path) == "model_final.pth"
    assert not hasattr(trainer, "_last_eval_results")
    # Resumed, there is nothing left to do but the evaluation.
    resumed, seen = train(config(tmp_path), resume=True)
    assert seen.rates == []
