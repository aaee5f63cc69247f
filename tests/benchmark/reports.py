"""A report with made-up numbers."""

import dataclasses

from eomt_d2.benchmark.plan import Point, Settings
from eomt_d2.benchmark.summary import summarize


def model(name, factor=1.0, first=None, **fields):
    turn = {"preparation": 0.01, "network": 0.1 * factor, "post-processing": 0.09}
    turns = [{**turn, "total": 0.2 * factor}] * 2
    summary = summarize(turns, first, images=1, flops=4e9, phase="network", matmul_rate=1e11)
    return {
        "name": name,
        "implementation": "eomt_d2",
        "failure": None,
        "agreement": None,
        "input": [1, 3, 64, 64],
        "parameters": 1_500_000,
        "macs": 2_000_000_000,
        "attention_macs": 500_000_000,
        "peak_bytes": 3 * 2**20,
        **summary,
        **fields,
    }


def failed(name):
    return {"name": name, "implementation": "eomt_d2", "failure": "out of memory",
            "agreement": None}  # fmt: skip


def report(points, models, **settings):
    return {
        "machine": {"date": "2025-01-01", "command": "tools/benchmark.py", "gpu": None},
        "settings": dataclasses.asdict(Settings(**settings)),
        "results": [
            {
                "point": point._asdict(),
                "matmul": {"precision": "float32", "side": 1024, "flops_per_second": 1e11},
                "models": models,
            }
            for point in points
        ],
    }


FIRST = model("one")
SECOND = model("two", 1.5, first=[{"network": 0.1, "total": 0.2}] * 2)
POINT = Point(size=64, batch=1, original_size=(60, 80))
