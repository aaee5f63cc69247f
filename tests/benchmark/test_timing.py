import itertools

import pytest

from eomt_d2.benchmark.timing import TOTAL, Stopwatch, by_turns, timed


@pytest.fixture
def clock(monkeypatch):
    """A clock that is one second later at each look."""
    seconds = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(seconds)))


def test_phases_end_where_the_laps_are_and_add_up(clock):
    watch = Stopwatch("cpu")  # looks at 0
    watch.lap("forward")  # 1
    watch.lap("backward")  # 2
    watch.lap("forward")  # 3
    assert watch.seconds() == {"forward": 2.0, "backward": 1.0, TOTAL: 4.0}


def test_time_of_one_step(clock):
    assert timed(lambda watch: watch.lap("all"), "cpu") == {"all": 1.0, TOTAL: 2.0}


def test_steps_take_turns_and_the_first_turns_do_not_count(clock):
    order, calls = [], {"A": 0, "B": 0}

    def step(name):
        def run(watch):
            order.append(name)
            calls[name] += 1
            for _ in range(calls[name]):
                watch.lap("work")

        return run

    times = by_turns({"A": step("A"), "B": step("B")}, "cpu", repeats=3, warmup=2)
    assert "".join(order) == "ABABABABAB"
    # The third to fifth calls are measured; call n looks at the clock n times.
    assert [turn["work"] for turn in times["A"]] == [3.0, 4.0, 5.0]
    assert times["A"] == times["B"]


@pytest.mark.cuda
def test_a_gpu_is_waited_for():
    import torch

    big = torch.randn(8192, 8192, device="cuda")

    def step(watch):
        for _ in range(10):
            big @ big
        watch.lap("products")

    timed(step, "cuda")
    times = timed(step, "cuda")
    # 1.1e13 operations take no GPU less than 1 ms.
    assert 1e-3 < times["products"] <= times[TOTAL]
