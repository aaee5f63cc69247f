"""Threads that evaluate one image while the model works on the next."""

import collections
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from detectron2.utils import comm

__all__ = ["BackgroundWork", "available_cores", "threads_of_this_process"]

_CGROUPS = Path("/sys/fs/cgroup")


def available_cores(cgroups: Path = _CGROUPS) -> int:
    """Cores that this process may use, at least 1.

    What ``taskset``, a batch system or a container allows, not what the machine has: the CPU
    affinity and, on Linux, the CPU time that the process's control group may spend
    (``docker run --cpus 2``; ``cpu.max`` of version 2, ``cpu.cfs_quota_us`` of version 1).

    Args:
        cgroups: where the control groups are mounted.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _cgroup_quota(cgroups)
    return max(1, min(cores, int(quota))) if quota else cores


def _cgroup_quota(cgroups: Path) -> float | None:
    """CPU seconds per second that the control group may spend; None where it has no limit."""
    if (cgroups / "cpu.max").is_file():
        quota, period = (cgroups / "cpu.max").read_text().split()
    elif (cgroups / "cpu/cpu.cfs_quota_us").is_file():
        quota = (cgroups / "cpu/cpu.cfs_quota_us").read_text().strip()
        period = (cgroups / "cpu/cpu.cfs_period_us").read_text()
    else:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def threads_of_this_process() -> int:
    """This process's share of the cores, less the one that feeds the model; at least 1.

    The processes of a run that share a machine share its cores. Where Detectron2 was not told
    which those are (its launcher and ours say so), all processes are taken to be on one machine.
    """
    return max(1, available_cores() // comm.get_local_size() - 1)


class BackgroundWork:
    """Runs functions in a few threads and keeps their results in order.

    Threads rather than processes: PNG compression, sorting and counting, which are nearly all of
    an evaluator's work, do not hold Python's global lock; forking is unsafe once CUDA or any thread
    has been started; and processes that are not forked import the user's program and PyTorch anew.

    At most two functions per thread are under way or waiting, so that their inputs, which may be
    as large as images, never pile up: :meth:`submit` waits instead.

    Args:
        threads: their number; None means :func:`threads_of_this_process`.
    """

    def __init__(self, threads: int | None = None) -> None:
        threads = threads or threads_of_this_process()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="evaluation")
        self._limit = 2 * threads
        self._pending: collections.deque[Future] = collections.deque()
        self._results: list[Any] = []

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Let ``function(*arguments)`` run soon.

        Raises:
            Exception: what an earlier function has raised.
        """
        while self._pending and (len(self._pending) >= self._limit or self._pending[0].done()):
            self._take_oldest()
        self._pending.append(self._pool.submit(function, *arguments))

    def results(self) -> list[Any]:
        """Wait for all that was submitted, and stop the threads.

        Returns:
            What the functions returned, in the order of :meth:`submit`.

        Raises:
            Exception: what a function has raised.
        """
        try:
            while self._pending:
                self._take_oldest()
        finally:
            self.stop()
        return self._results

    def stop(self) -> None:
        """Stop the threads; what waits is dropped."""
        self._pool.shutdown(cancel_futures=True)

    def _take_oldest(self) -> None:
        self._results.append(self._pending.popleft().result())
