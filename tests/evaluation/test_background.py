import os
import threading
import time

import pytest

from eomt_d2.evaluation import background
from eomt_d2.evaluation.background import (
    BackgroundWork,
    available_cores,
    threads_of_this_process,
)


def fail(message):
    raise RuntimeError(message)


def test_results_are_in_the_order_of_submission():
    work = BackgroundWork(threads=3)
    first_may_end = threading.Event()
    work.submit(lambda: first_may_end.wait(60) and 0)
    for number in range(1, 4):
        work.submit(lambda n: n, number)
    first_may_end.set()
    for number in range(4, 50):
        work.submit(lambda n: n, number)
    assert work.results() == list(range(50))


def test_submit_waits_while_two_per_thread_are_under_way():
    work = BackgroundWork(threads=2)
    proceed = threading.Event()
    submitted = []

    def submit_five():
        for number in range(5):
            work.submit(proceed.wait, 60)
            submitted.append(number)

    thread = threading.Thread(target=submit_five)
    thread.start()
    while len(submitted) < 4:
        time.sleep(0.001)
    thread.join(0.1)
    waiting = thread.is_alive()
    proceed.set()
    thread.join(60)
    assert waiting
    assert work.results() == [True] * 5


def test_a_failure_is_raised_by_a_later_submit():
    work = BackgroundWork(threads=1)
    work.submit(fail, "image 1")
    with pytest.raises(RuntimeError, match="image 1"):
        for _ in range(10):
            work.submit(int)
    work.stop()


def test_a_failure_of_the_last_is_raised_with_the_results():
    work = BackgroundWork(threads=1)
    work.submit(fail, "last image")
    with pytest.raises(RuntimeError, match="last image"):
        work.results()


def test_stopped_threads_end():
    before = threading.active_count()
    work = BackgroundWork(threads=4)
    for _ in range(8):
        work.submit(int)
    assert threading.active_count() > before
    work.results()
    assert threading.active_count() == before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_cores_are_those_of_the_affinity(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 6})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert available_cores(tmp_path) == 3


@pytest.mark.parametrize(
    "files, cores",
    [
        ({}, 16),
        ({"cpu.max": "max 100000\n"}, 16),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "3200000 100000\n"}, 16),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
    ],
)
def test_cores_are_no_more_than_the_container_may_use(monkeypatch, tmp_path, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    (tmp_path / "cpu").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert available_cores(tmp_path) == cores


@pytest.mark.parametrize(
    "cores, processes, threads", [(16, 1, 15), (16, 4, 3), (16, 8, 1), (2, 1, 1), (1, 4, 1)]
)
def test_processes_share_the_cores(monkeypatch, cores, processes, threads):
    monkeypatch.setattr(background, "available_cores", lambda: cores)
    monkeypatch.setattr(background.comm, "get_local_size", lambda: processes)
    assert threads_of_this_process() == threads
