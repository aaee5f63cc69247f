"""Whatever happened to a config file: it loads, or our own sentences say why not."""

import argparse
import json
from pathlib import Path

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eomt_d2.engine import load_config
from eomt_d2.errors import UserError
from tests.properties.mutations import JUNK, mutated

TINY = Path(__file__).parents[2] / "configs/shapes/panoptic/eomt_tiny.yaml"
OVERRIDES = ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "False"]
QUICK = settings(
    max_examples=150,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def load(path):
    try:
        return load_config(argparse.Namespace(config_file=str(path), opts=OVERRIDES))
    except UserError as error:
        assert str(error)
        return None


def flat(path):
    """The content of a config with that of its bases."""
    content = yaml.safe_load(path.read_text())
    base = content.pop("_BASE_", None)
    below = flat(path.parent / base) if base else {}

    def merged(a, b):
        return {
            key: merged(a[key], b[key])
            if isinstance(a.get(key), dict) and isinstance(b.get(key), dict)
            else b.get(key, a.get(key))
            for key in {**a, **b}
        }

    return merged(below, content)


def test_the_unchanged_config_loads(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(flat(TINY)))
    assert load(path).MODEL.META_ARCHITECTURE == "EoMT"


@given(content=mutated(flat(TINY)))
@QUICK
def test_changed_values(tmp_path, content):
    path = tmp_path / "config.yaml"
    # JSON is YAML, apart from the names of what is no finite number.
    path.write_text(json.dumps(content).replace("NaN", ".nan").replace("Infinity", ".inf"))
    load(path)


@given(text=st.text(max_size=60) | st.text("[]{}:,&*!|>-?#\"' \nab1", max_size=60))
@QUICK
def test_any_text(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    load(path)


@given(entry=st.lists(JUNK, max_size=2))
@settings(QUICK, max_examples=60)
def test_any_list_of_data_sets(tmp_path, entry):
    path = tmp_path / "config.yaml"
    content = {"_BASE_": str(TINY), "DATASETS": {"REGISTER": entry}}
    path.write_text(json.dumps(content).replace("NaN", ".nan").replace("Infinity", ".inf"))
    load(path)
