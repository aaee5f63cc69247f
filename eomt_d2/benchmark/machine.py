"""The machine that was measured on, and how fast it multiplies matrices."""

import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from eomt_d2.engine.train_step import PRECISIONS

from .timing import Stopwatch

__all__ = ["MatrixProduct", "describe_machine"]


class MatrixProduct:
    """A product of two large square matrices: what the machine can do at most, near enough.

    Args:
        device: "cpu" or "cuda".
        precision: of the matrices, "float32", "bfloat16" or "float16". On a GPU "float32" uses what
            ``torch.get_float32_matmul_precision`` says, as the networks do.
    """

    def __init__(self, device: str, precision: str) -> None:
        self.side = 8192 if device.startswith("cuda") else 1024
        self.flops = 2 * self.side**3
        dtype = PRECISIONS[precision]
        self._left, self._right = (
            torch.randn(self.side, self.side, device=device, dtype=dtype) for _ in range(2)
        )

    @torch.no_grad()
    def __call__(self, _: Stopwatch) -> None:
        torch.mm(self._left, self._right)


def describe_machine(device: str, command: Sequence[str]) -> dict[str, str | int | None]:
    """What one needs to know to make sense of a measurement, or to repeat it.

    Args:
        device: "cpu" or "cuda".
        command: words of the command line.

    Returns:
        Labels and values; None for what is not known or not there.
    """
    cuda = device.startswith("cuda")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(command),
        "commit": _commit(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "float32 matmul": torch.get_float32_matmul_precision() if cuda else None,
        "detectron2": _version("detectron2"),
        "transformers": _version("transformers"),
    }


def _cpu() -> str | None:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the clone that this package is in, with a "+" if tracked files have changed since."""
    folder = Path(__file__).parent
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # no git here, or an installed copy
    return commit + ("+" if changes else "")
