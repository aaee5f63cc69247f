"""What is installed in the running Python already, and does it work."""

import importlib.metadata
import importlib.util
import subprocess
import sys

from . import InstallError
from .wheel import LOCAL_VERSION

# Imported in a fresh process: a half-working Detectron2 must not leak into this one.
_PROBES = {
    "detectron2": "import detectron2.engine, detectron2.evaluation, detectron2.model_zoo, "
    "detectron2.projects.point_rend",
    "panopticapi": "import panopticapi.evaluation, panopticapi.utils",
}

_LR_PROBE = """
import torch
from detectron2.engine.hooks import LRScheduler
optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
raise SystemExit(0 if LRScheduler(optimizer, scheduler).state_dict() else 1)
"""


def require_torch() -> None:
    """Raises InstallError unless PyTorch and torchvision can be imported."""
    error = _run("import torch, torchvision")
    if error is not None:
        raise InstallError(
            f"PyTorch and torchvision do not work in {sys.executable} ({error}); "
            "install them first: python -m pip install torch torchvision"
        )


def fault(module: str) -> str | None:
    """Why a module does not work (last line of the error), or None if it does.

    Args:
        module: ``detectron2`` or ``panopticapi``.
    """
    return _run(_PROBES[module])


def is_present(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def restores_schedules() -> bool:
    """Whether ``hooks.LRScheduler`` saves PyTorch's own schedulers (release 0.6 does not)."""
    if f"+{LOCAL_VERSION}" in version("detectron2"):
        return True
    return _run(_LR_PROBE) is None


def version(module: str) -> str:
    distributions = importlib.metadata.packages_distributions().get(module, [])
    return importlib.metadata.version(distributions[0]) if distributions else "unknown version"


def _run(code: str) -> str | None:
    # -P is not in Python 3.10; a detectron2/ in the working directory must not count.
    prelude = "import sys; sys.path[:] = [p for p in sys.path if p]\n"
    command = [sys.executable, "-W", "ignore", "-c", prelude + code]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode == 0:
        return None
    return (result.stderr.strip().splitlines() or ["no message"])[-1]
