import pytest

from eomt_d2.benchmark.summary import summarize

FIRST = [{"network": n, "total": t} for n, t in ((1.0, 2.0), (2.0, 4.0), (1.0, 2.0))]
SECOND = [{"network": n, "total": t} for n, t in ((3.0, 4.0), (6.0, 8.0), (3.0, 2.0))]


def test_numbers_by_hand():
    """Two images; 12 GFLOP in the network, 3 s at the median, on a machine of 8 GFLOP/s."""
    found = summarize(SECOND, FIRST, images=2, flops=12e9, phase="network", matmul_rate=8e9)
    assert found["images"] == 2
    assert found["seconds"] == {"network": [3.0, 6.0, 3.0], "total": [4.0, 8.0, 2.0]}
    assert found["times"]["total"] == pytest.approx({"median": 4.0, "p10": 2.4, "p90": 7.2})
    assert found["images_per_second"] == pytest.approx({"network": 2 / 3, "total": 0.5})
    assert found["flops_per_second"] == 4e9
    assert found["matmul_share"] == 0.5
    # Turn by turn 3, 3, 3 and 2, 2, 1.
    assert found["ratios"]["network"] == {"median": 3.0, "p10": 3.0, "p90": 3.0}
    assert found["ratios"]["total"] == pytest.approx({"median": 2.0, "p10": 1.2, "p90": 2.0})


def test_the_first_model_has_no_ratios():
    found = summarize(FIRST, None, images=1, flops=1.0, phase="total", matmul_rate=1.0)
    assert found["ratios"] is None
