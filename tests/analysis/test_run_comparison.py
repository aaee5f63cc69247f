"""Means, deviations and the table of numbers small enough to check by hand."""

import json

import pytest

from eomt_d2.analysis import compare_runs, comparison_table

RUNS = {
    "EoMT": [
        {"PQ": 50.0, "parameters": 1200, "seed": 0},
        {"PQ": 54.0, "parameters": 1200, "seed": 1},
        {"PQ": 58.0, "parameters": 1200, "seed": 2},
    ],
    "Mask2Former": [{"PQ": 61.25, "parameters": 3400, "seed": 0}],
}


def test_mean_and_sample_deviation():
    comparison = compare_runs(RUNS, ("PQ", "parameters"))
    assert comparison["EoMT"].keys() == {"PQ", "parameters"}
    # Squared distances 16 + 0 + 16, over n - 1 = 2: the root of 16.
    spread = comparison["EoMT"]["PQ"]
    assert (spread["mean"], spread["deviation"]) == pytest.approx((54, 4))
    assert spread["values"] == [50, 54, 58]
    assert comparison["EoMT"]["parameters"]["deviation"] == 0
    # One training has no deviation, which JSON must be able to say.
    assert comparison["Mask2Former"]["PQ"]["deviation"] is None
    assert json.loads(json.dumps(comparison, allow_nan=False)) == comparison


def test_table():
    comparison = compare_runs(RUNS, ("PQ", "parameters"))
    assert comparison_table(comparison, {"PQ": "{:.1f}", "parameters": "{:,.0f}"}).splitlines() == [
        "| network     |         PQ |   parameters |",
        "|:------------|-----------:|-------------:|",
        "| EoMT        | 54.0 ± 4.0 |        1,200 |",
        "| Mask2Former |       61.2 |        3,400 |",
    ]
