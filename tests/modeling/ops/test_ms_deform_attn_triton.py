"""Runs the cases of ``triton_cases.py`` in a process of its own: whether Triton interprets kernels
on the CPU or compiles them is decided when it is imported."""

import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from eomt_d2.modeling.ops import ms_deform_attn, ms_deform_attn_reference
from tests.modeling.ops.test_ms_deform_attn import make_inputs

CASES = Path(__file__).with_name("triton_cases.py")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Triton is made for Linux")


def run_cases(**environment):
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed and int(passed[1]) >= 9, result.stdout[-1000:]
    assert "skipped" not in result.stdout


@linux_only
@pytest.mark.slow
def test_kernels_in_the_interpreter():
    run_cases(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.cuda
def test_kernels_on_the_gpu():
    run_cases(TRITON_INTERPRET="0")


@pytest.mark.cuda
def test_cuda_tensors_choose_the_kernels():
    value, locations, weights = (x.cuda() for x in make_inputs(1, [(4, 4)], 3, 2, 8, 2))
    inputs = value.float(), [(4, 4)], locations.float(), weights.float()
    torch.testing.assert_close(ms_deform_attn(*inputs), ms_deform_attn_reference(*inputs))
    with mock.patch.object(torch.ops.eomt_d2, "ms_deform_attn", side_effect=RuntimeError("chosen")):
        with pytest.raises(RuntimeError, match="chosen"):
            ms_deform_attn(*inputs)


@linux_only
@pytest.mark.parametrize("kernel", ["_forward_kernel", "_backward_kernel"])
def test_kernels_compile_for_a_gpu_that_is_not_there(kernel, tmp_path, monkeypatch):
    """Down to machine code of compute capability 8.0, values in bfloat16."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from eomt_d2.modeling.ops import ms_deform_attn_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(ms_deform_attn_triton, kernel)
    types = {"value": "*bf16", "out": "*bf16", "grad_out": "*bf16", "levels": "*i32"}
    sizes = {"NUM_LEVELS": 3, "NUM_POINTS": 4, "BLOCK_Q": 32, "BLOCK_D": 32}
    signature = {}
    for name in function.arg_names:
        default = "i32" if name.startswith(("num_", "head_dim")) else "*fp32"
        signature[name] = "constexpr" if name in sizes else types.get(name, default)
    compiled = compile(ASTSource(function, signature, sizes), target=GPUTarget("cuda", 80, 32))
    assert len(compiled.asm["cubin"]) > 1000


def test_where_triton_is_missing_the_reference_runs_and_says_so(monkeypatch, caplog):
    import importlib

    module = importlib.import_module("eomt_d2.modeling.ops.ms_deform_attn")
    monkeypatch.setattr(module, "_import_kernels", module._import_kernels.__wrapped__)
    name = "eomt_d2.modeling.ops.ms_deform_attn_triton"
    monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError
    monkeypatch.delattr("eomt_d2.modeling.ops.ms_deform_attn_triton", raising=False)
    assert module._triton_is_there() is False
    assert "runs in plain PyTorch" in caplog.text


def test_importing_the_package_needs_no_triton():
    code = (
        "import sys; sys.modules['triton'] = None; import eomt_d2, torch;"
        "from eomt_d2.modeling.ops import ms_deform_attn as f;"
        "print(f(torch.ones(1, 1, 1, 1), [(1, 1)], torch.full((1, 1, 1, 1, 1, 2), 0.5),"
        " torch.ones(1, 1, 1, 1, 1)).item())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert out.stdout.strip() == "1.0"
