"""The installer: what it builds, and that every mistake ends in one sentence."""

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import install_detectron2
import numpy as np
import pytest
from detectron2.utils.file_io import PathManager
from detectron2_wheel import InstallError, installed, source, substitutions, wheel
from PIL import Image

from tests.tools.detectron2_like_sources import MODEL_ZOO_FILE, write_main_branch, write_release

INSTALLER = Path(install_detectron2.__file__)


@pytest.fixture
def release(tmp_path):
    return write_release(tmp_path / "detectron2 0.6")


def build(tree: Path, tmp_path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(wheel.build_detectron2(tree, tmp_path / "work", tmp_path / "wheels"))


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class TestSubstitutions:
    def test_release_is_changed_everywhere(self, release):
        changed = substitutions.apply_substitutions(release)
        assert len(changed) == len({s.file for s in substitutions.SUBSTITUTIONS}) == 18
        lines = (release / "detectron2/evaluation/sem_seg_evaluation.py").read_text().splitlines()
        assert lines[0] == "pred = np.array(output, dtype=int)"
        assert lines[2] == "acc = np.full(self._num_classes, np.nan, dtype=float)"
        masks = (release / "detectron2/structures/masks.py").read_text()
        assert "astype(bool)" in masks and "d = np.bool_" in masks

    def test_changed_files_are_python(self, release):
        for name in substitutions.apply_substitutions(release):
            compile((release / name).read_text(), name, "exec")

    def test_changed_files_say_so(self, release):
        substitutions.apply_substitutions(release)
        text = (release / "detectron2/engine/hooks.py").read_text()
        assert "Changed by tools/install_detectron2.py" in text
        assert "else resume restarts the schedule" in text

    @pytest.mark.parametrize("copies", [0, 2])
    def test_another_number_of_matches_stops(self, release, copies):
        file = release / "detectron2/data/common.py"
        file.write_text(file.read_text() * copies)
        message = rf"data/common\.py.*must match 1 time\(s\) but matches {copies}"
        with pytest.raises(InstallError, match=message):
            substitutions.apply_substitutions(release)

    def test_missing_file_stops(self, release):
        (release / "detectron2/engine/hooks.py").unlink()
        with pytest.raises(InstallError, match=r"engine/hooks\.py.*must match 2.*matches 0"):
            substitutions.apply_substitutions(release)

    def test_fault_without_a_record_stops(self, release):
        (release / "detectron2/engine/new.py").write_text("x = np.float(1)\n")
        with pytest.raises(InstallError, match=r"engine/new\.py: 'np\.float' breaks NumPy"):
            substitutions.apply_substitutions(release)

    def test_main_branch_may_have_changes_already(self, tmp_path):
        tree = write_main_branch(tmp_path / "main")
        changed = substitutions.apply_substitutions(tree)
        assert "detectron2/data/build.py" not in changed
        assert "detectron2/engine/hooks.py" not in changed
        assert "detectron2/model_zoo/model_zoo.py" in changed

    def test_main_branch_reads_images_on_numpy_2(self, tmp_path):
        tree = write_main_branch(tmp_path / "main")
        file = tree / "detectron2/evaluation/sem_seg_evaluation.py"
        Image.new("L", (3, 2), 7).save(tmp_path / "labels.png")
        namespace = {"np": np, "Image": Image, "PathManager": PathManager}
        exec(file.read_text(), namespace)
        with pytest.raises(ValueError, match="[Uu]nable to avoid copy"):
            namespace["load_image_into_numpy_array"](tmp_path / "labels.png", dtype=int)
        substitutions.apply_substitutions(tree)
        exec(file.read_text(), namespace)
        array = namespace["load_image_into_numpy_array"](tmp_path / "labels.png", dtype=int)
        assert array.tolist() == [[7, 7, 7], [7, 7, 7]]

    def test_main_branch_that_reads_images_otherwise(self, tmp_path):
        tree = write_main_branch(tmp_path / "main")
        file = tree / "detectron2/evaluation/sem_seg_evaluation.py"
        file.write_text("array = np.asarray(Image.open(f), dtype=dtype)\n")
        assert "detectron2/evaluation/sem_seg_evaluation.py" not in (
            substitutions.apply_substitutions(tree)
        )
        file.write_text("array = np.array(Image.open(g), copy=copy, dtype=dtype)\n")
        with pytest.raises(InstallError, match=r"sem_seg_evaluation\.py: .* breaks NumPy >= 2"):
            substitutions.apply_substitutions(tree)

    def test_main_branch_is_counted_too(self, tmp_path):
        tree = write_main_branch(tmp_path / "main")
        (tree / "detectron2/data/build.py").write_text("a = np.int\n")
        with pytest.raises(InstallError, match=r"build\.py.*must match 2 time\(s\) but matches 1"):
            substitutions.apply_substitutions(tree)

    def test_missing_operators_are_named_when_used(self):
        namespace = {}
        exec(substitutions.MISSING_OPS, namespace)
        with pytest.raises(ImportError, match=r"_C\.nms_rotated is a compiled operator"):
            namespace["_C"].nms_rotated(1, 2)
        assert not hasattr(namespace["_C"], "__wrapped__")


class TestWheel:
    def test_content_and_metadata(self, release, tmp_path):
        with build(release, tmp_path) as archive:
            names = set(archive.namelist())
            info = "detectron2-0.6+eomt1.dist-info"
            metadata = archive.read(f"{info}/METADATA").decode()
            assert "Root-Is-Purelib: true" in archive.read(f"{info}/WHEEL").decode()
        assert f"detectron2/model_zoo/configs/{MODEL_ZOO_FILE}" in names
        assert "detectron2/projects/point_rend/point_features.py" in names
        assert "detectron2/projects/panoptic_deeplab/__init__.py" in names
        assert "detectron2/_missing_ops.py" in names
        assert f"{info}/LICENSE" in names
        assert "setup.py" not in names
        assert "Requires-Dist: iopath>=0.1.7\n" in metadata
        assert "black" not in metadata and "<0.1.10" not in metadata

    def test_source_tree_is_not_touched(self, release, tmp_path):
        before = {p: p.read_bytes() for p in release.rglob("*") if p.is_file()}
        build(release, tmp_path).close()
        assert {p: p.read_bytes() for p in release.rglob("*") if p.is_file()} == before

    def test_record_lists_every_file_with_its_hash(self, release, tmp_path):
        with build(release, tmp_path) as archive:
            record = archive.read("detectron2-0.6+eomt1.dist-info/RECORD").decode().splitlines()
            assert [line.split(",")[0] for line in record] == archive.namelist()
        # base64 of the SHA-256 of no bytes at all
        empty = "sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0"
        assert f"detectron2/projects/point_rend/__init__.py,{empty}" in record

    def test_same_sources_give_the_same_bytes(self, release, tmp_path):
        first = wheel.build_detectron2(release, tmp_path / "1", tmp_path / "a").read_bytes()
        assert wheel.build_detectron2(release, tmp_path / "2", tmp_path / "b").read_bytes() == first

    def test_compiled_operators_stay_out(self, release, tmp_path):
        (release / "detectron2/_C.cpython-311-x86_64-linux-gnu.so").touch()
        (release / "detectron2/layers/csrc").mkdir()
        (release / "detectron2/layers/csrc/vision.cpp").touch()
        with build(release, tmp_path) as archive:
            assert not [n for n in archive.namelist() if n.endswith(".so") or "csrc" in n]

    def test_main_branch_says_so_in_its_version(self, tmp_path):
        tree = write_main_branch(tmp_path / "main")
        git(tree.parent, "init", "--quiet", str(tree))
        git(tree, "add", ".")
        git(tree, "commit", "--quiet", "-m", "sources")
        commit = git(tree, "rev-parse", "--short=9", "HEAD")
        with build(tree, tmp_path) as archive:
            info = f"detectron2-0.6+eomt1.main.{commit}.dist-info"
            assert "Requires-Dist: timm\n" in archive.read(f"{info}/METADATA").decode()
            assert f"detectron2/model_zoo/configs/{MODEL_ZOO_FILE}" in archive.namelist()

    def test_requirements_of_another_wheel_are_replaced(self, tmp_path):
        original = write_capped_panopticapi(tmp_path)
        result = wheel.with_honest_requirements(original, ["numpy"], tmp_path / "out")
        with zipfile.ZipFile(result) as archive:
            info = "panopticapi_lite-0.2.0+eomt1.dist-info"
            metadata = archive.read(f"{info}/METADATA").decode()
            assert archive.read("panopticapi/__init__.py") == b"x = 1\n"
        assert "Requires-Dist: numpy\n" in metadata and "<2" not in metadata
        assert "Version: 0.2.0+eomt1" in metadata
        assert "# A description" in metadata


class TestSources:
    @pytest.mark.parametrize("by", ["commit", "tag"])
    def test_git(self, release, tmp_path, by):
        git(tmp_path, "init", "--quiet", str(release))
        git(release, "add", ".")
        git(release, "commit", "--quiet", "-m", "release")
        git(release, "tag", "v0.6")
        wanted = git(release, "rev-parse", "HEAD") if by == "commit" else "v0.6"
        (release / "detectron2/__init__.py").write_text("later\n")
        git(release, "commit", "--quiet", "-am", "later")
        tree = source.from_git(tmp_path / "work", str(release), wanted)
        assert (tree / "detectron2/__init__.py").read_text() == '__version__ = "0.6"\n'

    def test_unreachable_repository(self, tmp_path):
        with pytest.raises(InstallError, match="git .* failed .* or use --source pypi"):
            source.from_git(tmp_path / "work", str(tmp_path / "nowhere"), "v0.6")

    def test_archive(self, release, tmp_path):
        archive = tmp_path / "sources.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(release, "pb1-detectron2-0.6")
        tree = source.from_path(tmp_path / "work", archive)
        assert tree.name == "pb1-detectron2-0.6"

    def test_incomplete_checkout(self, release, tmp_path):
        (release / "detectron2/model_zoo/configs" / MODEL_ZOO_FILE).unlink()
        with pytest.raises(InstallError, match="no model zoo"):
            source.stage(release, tmp_path / "staged")


def write_capped_panopticapi(directory: Path) -> Path:
    metadata = (
        "Metadata-Version: 2.1\nName: panopticapi-lite\nVersion: 0.2.0\n"
        "Requires-Dist: numpy<2.0.0,>=1.23.5\n\n# A description\n"
    )
    files = {"panopticapi/__init__.py": b"x = 1\n"}
    return wheel.write_wheel(directory, "panopticapi-lite", "0.2.0", files, metadata)


def write_sdist(directory: Path, name: str, files) -> Path:
    """Pack files into ``<name>.tar.gz``."""
    top = directory / name
    for path, text in files.items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(text)
    archive = directory / f"{name}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(top, name)
    return archive


# A requirement that comes without a wheel; it brings its own build backend, so pip needs no
# network to build it.
SOURCE_ONLY = {
    "PKG-INFO": "Metadata-Version: 2.1\nName: sourceonly\nVersion: 1.0\n",
    "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "b"\nbackend-path = ["."]\n',
    "b.py": (
        "import zipfile\n"
        "def build_wheel(directory, config_settings=None, metadata_directory=None):\n"
        "    name = 'sourceonly-1.0-py3-none-any.whl'\n"
        "    with zipfile.ZipFile(f'{directory}/{name}', 'w') as z:\n"
        "        i = 'sourceonly-1.0.dist-info'\n"
        "        z.writestr(f'{i}/METADATA', 'Metadata-Version: 2.1\\nName: sourceonly\\n'\n"
        "                   'Version: 1.0\\n')\n"
        "        z.writestr(f'{i}/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\n'\n"
        "                   'Tag: py3-none-any\\n')\n"
        "        z.writestr(f'{i}/RECORD', '')\n"
        "    return name\n"
    ),
}


@pytest.fixture
def index(release, tmp_path, monkeypatch):
    """A folder that pip takes for its only source of packages, with a miniature Detectron2."""
    folder = tmp_path / "index"
    folder.mkdir()
    archive = folder / "pb1-detectron2-0.6.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(release, "pb1-detectron2-0.6")
    panopticapi = write_capped_panopticapi(folder)
    write_sdist(folder, "sourceonly-1.0", SOURCE_ONLY)
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", folder.as_uri())
    monkeypatch.setattr(source, "SDIST_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    digest = hashlib.sha256(panopticapi.read_bytes()).hexdigest()
    monkeypatch.setattr(install_detectron2, "PANOPTICAPI_SHA256", digest)
    monkeypatch.setattr(wheel, "REQUIREMENTS", ("torch>=2.0", "sourceonly"))
    monkeypatch.setattr(install_detectron2, "EVALUATION_REQUIREMENTS", ())
    return folder


class TestCommandLine:
    def test_wheel_dir_gets_everything_that_lacks_a_wheel(self, index, tmp_path, capsys):
        wheels = tmp_path / "wheels"
        assert install_detectron2.main(["--wheel-dir", str(wheels)]) == 0
        assert sorted(f.name for f in wheels.iterdir()) == [
            "detectron2-0.6+eomt1-py3-none-any.whl",
            "panopticapi_lite-0.2.0+eomt1-py3-none-any.whl",
            "sourceonly-1.0-py3-none-any.whl",
        ]
        assert "detectron2-0.6+eomt1-py3-none-any.whl  (adapted)" in capsys.readouterr().out

    def test_another_file_under_the_same_name_stops(self, index, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(source, "SDIST_SHA256", "0" * 64)
        assert install_detectron2.main(["--wheel-dir", str(tmp_path / "wheels")]) == 1
        error = capsys.readouterr().err
        assert "pb1-detectron2-0.6.tar.gz has sha256" in error and "instead of 000" in error

    def test_empty_index(self, index, tmp_path, capsys):
        (index / "pb1-detectron2-0.6.tar.gz").unlink()
        assert install_detectron2.main(["--wheel-dir", str(tmp_path / "wheels")]) == 1
        assert "does not hand out pb1-detectron2 0.6" in capsys.readouterr().err

    @pytest.mark.parametrize("kind", ["missing", "other directory", "no archive"])
    def test_wrong_source(self, tmp_path, kind):
        path = tmp_path / kind
        if kind == "other directory":
            path.mkdir()
        elif kind == "no archive":
            path.write_text("text")
        command = [sys.executable, str(INSTALLER), "--source", str(path)]
        command += ["--wheel-dir", str(tmp_path / "wheels")]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 1
        assert len(result.stderr.splitlines()) == 1
        assert str(path) in result.stderr and "give " in result.stderr

    def test_working_detectron2_is_left_alone(self):
        # The environment that runs this test has one.
        before = installed.version("detectron2")
        result = subprocess.run([sys.executable, str(INSTALLER)], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert f"detectron2 {before} works and is left alone." in result.stdout
        assert "Installing" not in result.stdout
