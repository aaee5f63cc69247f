"""Times of the phases of a step, and several steps timed by turns."""

import time
from collections.abc import Callable, Mapping

import torch

__all__ = ["TOTAL", "Stopwatch", "Step", "by_turns", "timed"]

TOTAL = "total"


class Stopwatch:
    """Marks where the phases of one step end, on a GPU in the GPU's own time.

    Nothing waits for the device before :meth:`seconds`, so a step runs as it would unwatched.

    Args:
        device: "cpu" or "cuda". The first phase begins now.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._marks = [("", self._now())]

    def lap(self, phase: str) -> None:
        """End a phase; the next one begins. Phases of the same name add up."""
        self._marks.append((phase, self._now()))

    def seconds(self) -> dict[str, float]:
        """Seconds of each phase by its name, and of all from the first mark to now (``TOTAL``)."""
        end = self._now()
        if self._cuda:
            end.synchronize()
        times: dict[str, float] = {}
        for (_, start), (phase, stop) in zip(self._marks, self._marks[1:], strict=False):
            times[phase] = times.get(phase, 0.0) + self._between(start, stop)
        return {**times, TOTAL: self._between(self._marks[0][1], end)}

    def _now(self):
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start, stop) -> float:
        return start.elapsed_time(stop) / 1e3 if self._cuda else stop - start


Step = Callable[[Stopwatch], object]
"""What is measured: does its work once and tells the stopwatch where its phases end."""


def timed(step: Step, device: str) -> dict[str, float]:
    """Seconds of one step, see :meth:`Stopwatch.seconds`."""
    watch = Stopwatch(device)
    step(watch)
    return watch.seconds()


def by_turns(
    steps: Mapping[str, Step], device: str, repeats: int, warmup: int = 0
) -> dict[str, list[dict[str, float]]]:
    """Time steps by turns, A B C A B C ..., so that what slows the machine down meets all alike.

    Args:
        steps: by name, in the order of a turn.
        device: "cpu" or "cuda".
        repeats: measured turns.
        warmup: turns before them that are not measured.

    Returns:
        By name, the times of each measured turn; those of one index belong to one turn.
    """
    times: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for turn in range(-warmup, repeats):
        for name, step in steps.items():
            seconds = timed(step, device)
            if turn >= 0:
                times[name].append(seconds)
    return times
