"""The command line; what it prints and writes."""

import json

import benchmark
import pytest

from eomt_d2.errors import UserError
from tests.benchmark.models import DINOV2, EOMT, NARROW, QUICK

SHORT = ["--device", "cpu", "--repeats", "2", "--warmup", "1", "--active-queries", "5"]


def run(tmp_path, *arguments):
    benchmark.main([*SHORT, "--output", str(tmp_path), *arguments])
    return json.loads((tmp_path / "benchmark.json").read_text())


def test_two_models_over_a_grid(tmp_path, capsys):
    report = run(
        tmp_path, "--config-file", EOMT, "--config-file", EOMT, "--original-size", "60x80",
        "--sizes", "64", "96", *QUICK,
    )  # fmt: skip
    assert [r["point"]["size"] for r in report["results"]] == [64, 96]
    for result in report["results"]:
        assert [m["name"] for m in result["models"]] == ["eomt_tiny", "eomt_tiny #2"]
        assert all(len(m["seconds"]["total"]) == 2 for m in result["models"])
        assert result["point"]["original_size"] == [60, 80]
    out = capsys.readouterr().out
    text = (tmp_path / "benchmark.md").read_text()
    assert text in out
    assert "## 64 pixels, batch 1, original 60 x 80" in text
    assert (tmp_path / "benchmark.png").is_file() and (tmp_path / "curve_size.png").is_file()


def test_training_against_transformers(tmp_path):
    report = run(
        tmp_path, "--config-file", DINOV2, "--against", "transformers", "--mode", "train",
        "--sizes", "64", "--segments", "3", "--batch", "2", *NARROW,
    )  # fmt: skip
    ours, theirs = report["results"][0]["models"]
    assert theirs["implementation"] == "transformers"
    assert list(ours["times"]) == list(theirs["times"])
    assert set(theirs["ratios"]) == {"forward", "loss", "backward", "optimizer", "total"}
    assert report["results"][0]["point"]["original_size"] is None


def test_what_was_measured_is_written_when_a_later_point_fails(tmp_path, monkeypatch):
    measured = []

    def measure(models, point, settings, measure=benchmark.measure):
        if measured:
            raise RuntimeError("the machine is on fire")
        measured.append(measure(models, point, settings))
        return measured[0]

    monkeypatch.setattr(benchmark, "measure", measure)
    with pytest.raises(RuntimeError, match="on fire"):
        run(tmp_path, "--config-file", EOMT, "--sizes", "64", "--batch", "1", "2",
            "--original-size", "60x80", *QUICK)  # fmt: skip
    report = json.loads((tmp_path / "benchmark.json").read_text())
    assert report["results"] == json.loads(json.dumps(measured))
    assert (tmp_path / "benchmark.png").is_file()


def test_keys_begin_where_they_look_like_keys():
    args = benchmark.parse_arguments(
        ["--config-file", "A.yaml", "--output", "OUT", "--sizes", "64", "96", "MODEL.DEVICE", "cpu"]
    )
    assert args.sizes == [64, 96]
    assert args.opts == ["MODEL.DEVICE", "cpu"]
    assert benchmark.parse_arguments(["--config-file", "A", "--output", "O"]).opts == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "none.yaml"], "The config file none.yaml does not exist."),
        (["--config-file", EOMT, "--sizes", "60"], "INPUT.IMAGE_SIZE is 60; it must be a multiple"),
        (["--config-file", EOMT, "--repeats", "0"], "--repeats is 0; it must be at least 1."),
        (["--config-file", EOMT, "--threads", "0"], "--threads is 0; it must be at least 1."),
        (["--config-file", EOMT, "--precision", "float16"], "--precision float16 needs a GPU"),
        (["--config-file", EOMT, "--queries", "3"], "has 3 queries; lower it"),
        (["--config-file", EOMT, "MODEL.DEVICE"], "Override list has odd length"),
        (["--config-file", EOMT, "MODEL.VIT.DEPHT", "3"], "MODEL.VIT.DEPHT in the command line"),
        (
            ["--config-file", EOMT, "--mode", "train", "--original-size", "6x8"],
            "--original-size belongs to --mode infer",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_measured(
    tmp_path, monkeypatch, arguments, message
):
    monkeypatch.setattr(benchmark, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(UserError, match=message) as error:
        run(tmp_path, *arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --config-file"),
        (["--config-file", EOMT, "--precision", "int8"], "invalid choice: 'int8'"),
        (["--config-file", EOMT, "--original-size", "480"], "'480' is not HEIGHTxWIDTH in pixels"),
        (["--config-file", EOMT, "--sizes", "64", "SEED"], "invalid int value: 'SEED'"),
        (["--config-file", EOMT, "stray"], "unrecognized arguments: stray"),
    ],
)
def test_a_wrong_command_line(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        run(tmp_path, *arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
