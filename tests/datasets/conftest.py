"""Running the scripts of datasets/, which is a folder of scripts and no package."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "datasets"


@pytest.fixture
def run_script(monkeypatch):
    """A function that runs a script's command line in this process."""

    def run(name, *arguments):
        spec = importlib.util.spec_from_file_location(f"script_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr("sys.argv", [f"{name}.py", *map(str, arguments)])
        module.main()

    return run
