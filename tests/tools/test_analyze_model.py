"""The command line; one run in a process of its own, the others in this one, which is quicker."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "tools" / "analyze_model.py"
CONFIG = "configs/coco/panoptic/eomt_large_640.yaml"


@pytest.fixture
def analyze(monkeypatch, capsys):
    """Run the script; its exit code, stdout and stderr."""
    monkeypatch.chdir(REPOSITORY)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        code = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return call


def test_json_of_the_published_network():
    result = subprocess.run(
        [sys.executable, SCRIPT, "--config-file", CONFIG, "--json"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    modules = found.pop("modules")
    # 1.258 GMAC: 40 x 40 patches of 3 x 16 x 16 values, 1024 channels.
    assert modules["backbone.patch_embed"] == {"parameters": 787_456, "gmacs": 1.2582912}
    assert {"backbone.blocks.23.attn.qkv", "upscale", "class_head"} < set(modules)
    assert round(found.pop("gmacs"), 1) == 668.0
    assert found == {
        "parameters": 316_695_686,
        "config": CONFIG,
        "overrides": [],
        "input": [1, 3, 640, 640],
        "masked": False,
    }


@pytest.mark.parametrize(
    "how", [("--masked",), ("MODEL.MASK_FORMER.MASK_ANNEALING.SCHEDULE", "none")]
)
def test_table_with_masked_attention(analyze, how):
    code, out, _ = analyze("--config-file", CONFIG, "--depth", "1", "--size", "640", "640", *how)
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == f"EoMT of {CONFIG}, 1 x 3 x 640 x 640, masked attention"
    assert lines[-1].split() == ["total", "316,695,686", "100.0", "826.97", "100.0"]
    assert not any(line.startswith(" ") for line in lines)


def test_another_architecture_and_overrides_in_json(analyze):
    overrides = ["MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.DEVICE", "cuda",
                 "MODEL.SEM_SEG_HEAD.IN_FEATURES", "['vit']"]  # fmt: skip
    code, out, _ = analyze("--config-file", CONFIG, "--json", "--size", "64", "96", *overrides)
    found = json.loads(out)
    assert code == 0
    assert (found["overrides"], found["masked"]) == (overrides, None)
    # 4 x 6 patches and 5 prefix tokens through 24 blocks: 12 C^2 T + 2 T^2 C.
    blocks = 24 * (12 * 1024**2 * 29 + 2 * 29**2 * 1024)
    assert found["modules"]["backbone.blocks"]["gmacs"] == pytest.approx(blocks / 1e9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config-file", "none.yaml"), "The config file none.yaml does not exist."),
        (
            ("--config-file", CONFIG, "MODEL.VIT.NUM_HEAD", "8"),
            "The config key MODEL.VIT.NUM_HEAD in the command line does not exist; the nearest one "
            "is MODEL.VIT.NUM_HEADS.",
        ),
        (
            ("--config-file", CONFIG, "--size", "640", "650"),
            "An input of 640 x 650 pixels does not fit this network, which takes multiples of 16; "
            "choose 640 x 656, for example.",
        ),
        (
            ("--config-file", CONFIG, "--masked", "MODEL.EOMT.MASKED_ATTENTION", "False"),
            "This EoMT has no masked attention to switch on; count it without --masked (an EoMT "
            "has it unless MODEL.EOMT.MASKED_ATTENTION is False).",
        ),
        (
            ("--config-file", CONFIG, "MODEL.DEVICE"),
            "The config in the command line is not valid: Override list has odd length: "
            "['MODEL.DEVICE']; it must be a list of pairs.",
        ),
    ],
    ids=["file", "key", "size", "masked", "odd"],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(analyze, arguments, message):
    code, out, err = analyze(*arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == f"error: {message}"
    assert "Traceback" not in err
