"""Leaving a training in good order when a signal asks for it."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from detectron2.engine import HookBase

__all__ = ["SIGNALS", "Interrupted", "InterruptionHook", "SignalWatch"]

logger = logging.getLogger(__name__)

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)  # Windows lacks the last two.
)

# One Ctrl-C under torchrun reaches a process twice: from the terminal and from torchrun.
_SECOND_REQUEST = 1.0  # seconds


class Interrupted(SystemExit):
    """A signal asked the training to end. Uncaught, it ends the process with 128 + the signal.

    Args:
        signum: number of the signal.
        by_all: whether all processes end after the same iteration.
    """

    def __init__(self, signum: int, by_all: bool):
        super().__init__(128 + signum)
        self.name = signal.Signals(signum).name
        self.by_all = by_all


class SignalWatch:
    """Notes the first signal of :data:`SIGNALS` instead of dying of it.

    A second SIGINT, at least a second later, raises KeyboardInterrupt.

    Args:
        tell: called with the signal's number when it is noted.
    """

    def __init__(self, tell: Callable[[int], None]):
        self._tell = tell
        self._received = 0
        self._time = 0.0
        self._raises = False
        self._process = 0

    def received(self) -> int:
        """Number of the signal, or 0."""
        return self._received

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen inside of the block, where this is the main thread; others cannot.

        A SIGINT that is ignored, as in background jobs of a shell, stays so.
        """
        if threading.current_thread() is not threading.main_thread():
            logger.info("The training runs in a thread, so it cannot save when a signal ends it.")
            yield
            return
        self._process = os.getpid()
        before = {}
        for signum in SIGNALS:
            if signum == signal.SIGINT and signal.getsignal(signum) == signal.SIG_IGN:
                continue
            before[signum] = signal.signal(signum, self._handle)
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Raise :class:`Interrupted` inside of the block at once, without waiting for its end."""
        self._raises = True
        try:
            if self._received:
                raise Interrupted(self._received, by_all=False)
            yield
        finally:
            self._raises = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        # Forked workers of a loader inherit this; they end with the training.
        if os.getpid() != self._process:
            return
        if self._received:
            is_second = time.monotonic() - self._time >= _SECOND_REQUEST
            if signum == signal.SIGINT and is_second:
                raise KeyboardInterrupt
            return
        self._received, self._time = signum, time.monotonic()
        if self._raises:
            self._raises = False
            raise Interrupted(signum, by_all=False)
        self._tell(signum)


class InterruptionHook(HookBase):
    """Notes that an iteration is complete, and ends the training if any process received a signal.

    It comes after the hooks that complete the state of an iteration, and before those that save
    and evaluate. After the last iteration there is nothing left to interrupt but the evaluation.
    """

    def after_step(self) -> None:
        self.trainer.complete_iteration = self.trainer.iter
        signum = self.trainer.agreed_signal
        if signum and self.trainer.iter + 1 < self.trainer.max_iter:
            raise Interrupted(signum, by_all=True)
