"""From the image to the prediction the host never waits for the device: no operation hands a number
from a tensor to Python, and none has a result whose size depends on the numbers in a tensor.

On a CPU such operations are recognised by name; on a GPU PyTorch itself raises an error.
"""

import contextlib
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eomt_d2.modeling.postprocessing import PostProcessing
from tests.modeling.test_eomt import SIZE, make_model, perturb
from tests.modeling.test_mask2former_from_config import ADAPTER, tiny

WAITING = (
    "_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "unique", "masked_select",
    "bincount", "repeat_interleave.Tensor", "_unique2", "unique_dim", "unique_consecutive",
)  # fmt: skip


class WaitsForDevice(AssertionError):
    """An operation for which the host waits."""


class NoWaiting(TorchDispatchMode):
    def __enter__(self):
        # The only one that goes past the dispatcher.
        self._tolist = mock.patch.object(torch.Tensor, "tolist", self._refuse)
        self._tolist.start()
        return super().__enter__()

    def __exit__(self, *error):
        self._tolist.stop()
        return super().__exit__(*error)

    @staticmethod
    def _refuse(tensor):
        raise WaitsForDevice("tolist")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::")
        boolean_index = name in ("index.Tensor", "index_put_", "index_put") and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        if boolean_index or name in WAITING or name.split(".")[0] in WAITING:
            raise WaitsForDevice(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: x.tolist(),
        lambda x: bool((x > 0).any()), lambda x: x.int().unique(), lambda x: float(x.max()),
        lambda x: x.long().bincount(),
    ],
)  # fmt: skip
def test_waiting_is_noticed(operation):
    with pytest.raises(WaitsForDevice), NoWaiting():
        operation(torch.ones(2))


class Reached(Exception):
    """Post-processing was called."""


def infer_until_postprocessing(model, images, guard):
    """Run a batch of images through ``forward``, guarded until post-processing begins."""
    inputs = [{"image": image, "height": 90, "width": 120} for image in images]

    def stop(*_):
        raise Reached

    with mock.patch.object(PostProcessing, "__call__", stop):
        with torch.no_grad(), pytest.raises(Reached), guard:
            model(inputs)


CASES = [
    # Probabilities of masking, precision; in between 0 and 1 rows are drawn.
    ((0.0, 0.0), "square", None),
    ((1.0, 1.0), "divisible", None),
    ((0.3, 0.0), "square", None),
    ((0.0, 1.0), "square", torch.bfloat16),
]


def eomt(probs, mode, dtype):
    model = perturb(make_model()).eval()
    model.mask_annealing.set_probs(probs)
    model.test_mode, model.test_dtype = mode, dtype
    return model


@pytest.mark.parametrize("case", CASES)
def test_no_waiting_before_postprocessing(case):
    images = [torch.randint(0, 255, (3, 40, SIZE), dtype=torch.uint8) for _ in range(2)]
    infer_until_postprocessing(eomt(*case), images, NoWaiting())


def test_no_waiting_in_mask2former():
    model, images = tiny(*ADAPTER).eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad(), NoWaiting():
        model.predict(images)


@contextlib.contextmanager
def cuda_errors_on_waiting():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.parametrize("case", CASES)
def test_no_waiting_before_postprocessing_on_a_gpu(case):
    """With images on the device; from pageable memory the copy itself would wait."""
    images = [torch.randint(0, 255, (3, 40, SIZE), dtype=torch.uint8).cuda() for _ in range(2)]
    infer_until_postprocessing(eomt(*case).cuda(), images, cuda_errors_on_waiting())
