"""Config files that nobody should have to trust."""

import argparse

import pytest

from eomt_d2.engine import load_config
from eomt_d2.engine.config_file import check_config_file
from eomt_d2.errors import UserError

# Nine lists, each of nine times the one before: 9^9 values, 387 million, in ten lines.
LAUGHS = "\n".join(
    ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    + [
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", r"is empty; it has to be a mapping"),
        ("[1, 2]", r"is a list; it has to be a mapping"),
        ("\tSOLVER: 1", r"is no plain YAML: found character .* \(line 1\)\."),
        ("a: \0", r"is no plain YAML"),
        ("a: 2020-99-99", r"is no plain YAML: month must be"),
        ("1: 2", r"has a key that is no name \(line 1\)"),
        ("SOLVER:\n  BASE_LR: 1.0\n  BASE_LR: 2.0", r"has the key BASE_LR twice .*\(line 3\)"),
        ("a: " + "[" * 3000 + "]" * 3000, r"is nested too deeply"),
        ("a: &a [*a]", r"has a value inside of itself \(line 1\)"),
        (LAUGHS, r"has more than 100000 values once its aliases are replaced \(line 6\)"),
        ("a: " + "x" * (1 << 18), r"is longer than 262144 bytes"),
        ("_BASE_: config.yaml", r"is based on itself \(.*config.yaml -> .*config.yaml\)"),
        ("_BASE_: 5", r"_BASE_ in the config file .* is 5; it has to be the path"),
        ("_BASE_: [{a: 1}]", r"_BASE_ in .* is {'a': 1}; it has to be the path"),
        ("_BASE_: http://127.0.0.1:9/a.yaml", r"is the address http.*; nothing is downloaded"),
        ("_BASE_: nowhere.yaml", r"nowhere.yaml cannot be read: No such file"),
        ("_BASE_: bad.yaml", r"bad.yaml is a list"),
    ],
)
def test_one_sentence(tmp_path, text, sentence):
    (tmp_path / "bad.yaml").write_text("[1]")
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence) as caught:
        check_config_file(str(path))
    assert len(str(caught.value).splitlines()) == 1


def test_no_text(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"a: \xff\xfe\xfa")
    with pytest.raises(UserError, match="is no text"):
        check_config_file(str(path))


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch {}']",
        "!!python/object/new:os.system ['touch {}']",
        "!!python/object/apply:subprocess.check_output [[touch, '{}']]",
        "!!python/name:os.system",
        "!!python/module:os",
    ],
)
@pytest.mark.parametrize("in_base", [False, True])
def test_no_code_is_executed(tmp_path, tag, in_base):
    harmed = tmp_path / "harmed"
    evil, path = tmp_path / "evil.yaml", tmp_path / "config.yaml"
    evil.write_text(f"OUTPUT_DIR: {tag.format(harmed)}")
    path.write_text("_BASE_: evil.yaml" if in_base else evil.read_text())
    with pytest.raises(UserError, match="is no plain YAML"):
        load_config(argparse.Namespace(config_file=str(path), opts=[]))
    assert not harmed.exists()


def test_private_text_of_a_base_is_not_shown(tmp_path):
    (tmp_path / "key").write_text("-----BEGIN KEY-----\nsecret: {[\n")
    path = tmp_path / "config.yaml"
    path.write_text(f"_BASE_: {tmp_path / 'key'}")
    with pytest.raises(UserError) as caught:
        check_config_file(str(path))
    assert "secret" not in str(caught.value) and "BEGIN" not in str(caught.value)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("SOLVER: hello", r"SOLVER in .* is a text; it has to be a group of keys\."),
        ("SOLVER:", r"SOLVER in .* is empty; it has to be a group of keys\."),
        ("SOLVER: {BASE_LR: [1.0]}", r"SOLVER.BASE_LR in .* is a list; it has to be a number\."),
        ("MODEL: {WEIGHTS: 5}", r"MODEL.WEIGHTS in .* is a whole number; it has to be a text\."),
        ("DATASETS: {TRAIN: a}", r"DATASETS.TRAIN in .* is a text; it has to be a list\."),
        ("SOLVER: {BASE_LR: '" + "-" * 100_000 + "1'}", r"has a value that is nested too deeply"),
        ("VERSION: 3", r"Cannot merge a v3 config"),
        ("VERSION: x", r"is not valid"),
        ("MODEL: {VIT: {NAMEE: x}}", r"MODEL.VIT.NAMEE in .* nearest one is MODEL.VIT.NAME\."),
    ],
)
def test_values_of_another_kind(tmp_path, text, sentence):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence) as caught:
        load_config(argparse.Namespace(config_file=str(path), opts=[]))
    assert len(str(caught.value).splitlines()) == 1


def test_aliases_and_several_bases_are_fine(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.yaml").write_text("_BASE_: ../root.yaml")
    (tmp_path / "root.yaml").write_text("SOLVER: &s {BASE_LR: 1.0}\nOTHER: {<<: *s}")
    path = tmp_path / "config.yaml"
    path.write_text("_BASE_: [folder/a.yaml, root.yaml]\nOUTPUT_DIR: x")
    check_config_file(str(path))
