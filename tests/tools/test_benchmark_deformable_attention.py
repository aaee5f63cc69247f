import json

import benchmark_deformable_attention
import pytest
import torch

from eomt_d2.errors import UserError


def test_bytes_and_arithmetic():
    """Two images, 5 tokens, 3 heads of 4 channels, 5 queries, one level, 2 points; by hand."""
    value = torch.zeros(2, 5, 3, 4)  # 120 numbers
    locations = torch.zeros(2, 5, 3, 1, 2, 2)  # 120
    weights = torch.zeros(2, 5, 3, 1, 2)  # 60, and the output has 120
    moved, operations = benchmark_deformable_attention.costs(value, locations, weights)
    assert moved == 4 * (120 + 120 + 60 + 120)
    assert operations == 2 * 60 * 4 * 5


def test_plain_pytorch_on_a_cpu(tmp_path, capsys):
    file = tmp_path / "times.json"
    benchmark_deformable_attention.main(
        ["--device", "cpu", "--size", "64", "--repeats", "2", "--json", str(file)]
    )
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| forward")]
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| forward", "plain PyTorch"],
        ["| forward + backward", "plain PyTorch"],
    ]
    assert all(row.endswith("| 1.00 |") for row in rows), "it is its own measure"
    report = json.loads(file.read_text())
    assert report["forward, plain PyTorch"]["median_s"] > 0


@pytest.mark.cuda
def test_both_on_a_gpu(capsys):
    benchmark_deformable_attention.main(["--size", "64", "--repeats", "2"])
    assert capsys.readouterr().out.count("| Triton |") == 2


def test_a_size_without_maps():
    with pytest.raises(UserError, match="must be a multiple of 32"):
        benchmark_deformable_attention.main(["--device", "cpu", "--size", "300"])
