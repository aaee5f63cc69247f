"""What quickstart.sh and test.sh do when the environment is not as it should be."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import remove_broken_packages
from detectron2_wheel.wheel import write_wheel

TOOLS = Path(remove_broken_packages.__file__).parent
METADATA = "Metadata-Version: 2.1\nName: example\nVersion: 1.0\n"


@pytest.fixture(scope="module")
def installed_packages(tmp_path_factory):
    """A directory with two packages that pip has installed into it."""
    directory = tmp_path_factory.mktemp("installed")
    wheels = []
    for name in ("example", "other"):
        files = {f"{name}/__init__.py": b"x = 1\n", f"{name}/data.txt": b"0123456789"}
        metadata = METADATA.replace("example", name)
        wheels.append(str(write_wheel(directory / "wheels", name, "1.0", files, metadata)))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--target", str(directory / "site-packages"), *wheels]
    subprocess.run(command, check=True)
    return directory / "site-packages"


@pytest.fixture
def environment(installed_packages, tmp_path):
    return Path(shutil.copytree(installed_packages, tmp_path / "site-packages"))


class TestRemoveBrokenPackages:
    def test_intact_packages_stay(self, environment, capsys):
        before = sorted(environment.rglob("*"))
        remove_broken_packages.main(environment, environment)
        assert sorted(environment.rglob("*")) == before
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize(
        "file, content, reason",
        [
            ("example/data.txt", None, "example/data.txt is missing"),
            ("example/data.txt", "01234", "example/data.txt has 5 bytes instead of 10"),
            ("example-1.0.dist-info/RECORD", None, "no RECORD"),
            ("example-1.0.dist-info/RECORD", "example/__init__.py,sha2", "RECORD is cut short"),
            ("example-1.0.dist-info/INSTALLER", None, "no INSTALLER"),
        ],
    )
    def test_half_written_package_goes(self, environment, capsys, file, content, reason):
        (environment / file).unlink()
        if content is not None:
            (environment / file).write_text(content)
        remove_broken_packages.main(environment, environment)
        assert capsys.readouterr().out == f"example-1.0 is installed again: {reason}\n"
        assert not (environment / "example-1.0.dist-info").exists()
        assert (environment / "other-1.0.dist-info").exists()
        assert (environment / "other/data.txt").read_text() == "0123456789"

    def test_nothing_outside_the_environment_is_deleted(self, environment):
        outside = environment.parent / "outside.txt"
        outside.write_text("keep")
        with (environment / "example-1.0.dist-info/RECORD").open("a") as f:
            f.write("../outside.txt,,4\nexample/gone.txt,,1\n")
        remove_broken_packages.main(environment, environment)
        assert not (environment / "example-1.0.dist-info").exists()
        assert outside.read_text() == "keep"

    def test_what_pip_moved_aside_goes(self, environment):
        (environment / "~xample").mkdir()
        remove_broken_packages.main(environment, environment)
        assert not (environment / "~xample").exists()


class TestSetup:
    """The scripts in a clone without an environment, with interpreters that will not do."""

    @pytest.fixture
    def clone(self, tmp_path):
        clone = tmp_path / "a clone"
        shutil.copytree(TOOLS, clone / "tools", ignore=shutil.ignore_patterns("__pycache__"))
        return clone

    def run(self, clone, python):
        environment = {**os.environ, "PYTHON": str(python)}
        command = ["bash", str(clone / "tools/test.sh")]
        # From another directory than the clone's.
        return subprocess.run(
            command, env=environment, cwd=clone.parent, capture_output=True, text=True
        )

    def interpreter(self, clone, script):
        path = clone / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def test_no_such_interpreter(self, clone):
        result = self.run(clone, "no-such-python")
        assert result.returncode == 1
        assert "error: there is no program no-such-python; install Python 3.10" in result.stderr
        assert "The set-up stopped in step [1/4] Virtual environment" in result.stderr

    def test_old_interpreter(self, clone):
        script = '[ "$1" = --version ] && echo "Python 3.8.1"; exit 1'
        result = self.run(clone, self.interpreter(clone, script))
        assert result.returncode == 1
        assert "error: Python 3.8.1 is too old; install Python 3.10 or newer" in result.stderr

    def test_interpreter_without_venv(self, clone):
        script = 'case "$2" in *ensurepip*) exit 1;; esac'
        result = self.run(clone, self.interpreter(clone, script))
        assert result.returncode == 1
        assert "lacks the modules venv and ensurepip; install them" in result.stderr

    def test_interrupted_before_anything_was_installed(self, clone):
        """A first run that dies while pip is put in place, then one that gets further.

        The second run finds an interpreter without pip and repairs it; it stops at PyTorch, which
        an empty index does not have.
        """
        venv = clone / ".venv"
        command = [sys.executable, "-m", "venv", "--without-pip", str(venv)]
        subprocess.run(command, check=True)
        environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
        environment.pop("PIP_FIND_LINKS", None)
        result = subprocess.run(
            ["bash", str(clone / "tools/test.sh")], env=environment, capture_output=True, text=True
        )
        assert result.returncode != 0
        assert (venv / "bin/pip").exists()
        assert "The set-up stopped in step [2/4] PyTorch" in result.stderr
        assert "Run the same command again" in result.stderr
        assert (venv / ".eomt_d2-unfinished").exists()
