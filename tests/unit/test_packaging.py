"""The wheel of modelfleet itself: the same bytes everywhere, and a real wheel."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from modelfleet import __version__, packaging
from modelfleet.packaging import build_wheel


@pytest.fixture(scope="module")
def sources(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the package, which nobody edits meanwhile, with what a working copy has besides."""
    folder = tmp_path_factory.mktemp("sources")
    shutil.copytree(checkout / "python" / "modelfleet", folder / "modelfleet")
    (folder / "modelfleet/core/__pycache__").mkdir(exist_ok=True)
    (folder / "modelfleet/core/__pycache__/errors.cpython-311.pyc").touch()
    (folder / "modelfleet/core/notes.txt").touch()
    return folder


@pytest.fixture
def from_sources(sources: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(packaging, "__file__", str(sources / "modelfleet" / "packaging.py"))
    return sources


@pytest.mark.usefixtures("from_sources")
class TestWheel:
    def test_the_same_bytes_twice(self) -> None:
        assert build_wheel() == build_wheel()
        wheel = build_wheel()
        assert wheel.sha256 == hashlib.sha256(wheel.content).hexdigest()
        assert wheel.filename == f"modelfleet-{__version__}-py3-none-any.whl"

    def test_times_and_modes_of_the_sources_change_nothing(self, from_sources: Path) -> None:
        before = build_wheel()
        for path in from_sources.rglob("*.py"):
            os.utime(path, (1, 1))
            path.chmod(0o755)
        assert build_wheel() == before

    def test_any_change_of_what_it_holds_changes_it(self, from_sources: Path) -> None:
        before = build_wheel()
        config = from_sources / "modelfleet" / "config.py"
        text = config.read_bytes()
        try:
            config.write_bytes(text + b"# more\n")
            assert build_wheel().sha256 != before.sha256
        finally:
            config.write_bytes(text)

    def test_it_holds_what_hosts_use_and_nothing_else(self) -> None:
        names = zipfile.ZipFile(io.BytesIO(build_wheel().content)).namelist()
        assert len(names) == len(set(names))
        modules = {name for name in names if not name.startswith(f"modelfleet-{__version__}.dist-info/")}
        assert {"modelfleet/__init__.py", "modelfleet/config.py", "modelfleet/py.typed"} <= modules
        assert "modelfleet/core/inference/__main__.py" in modules
        others = modules - {"modelfleet/__init__.py", "modelfleet/config.py", "modelfleet/py.typed"}
        assert all(name.startswith("modelfleet/core/") and name.endswith(".py") for name in others)

    def test_its_record_is_true(self) -> None:
        archive = zipfile.ZipFile(io.BytesIO(build_wheel().content))
        own = f"modelfleet-{__version__}.dist-info/RECORD"
        lines = [line.rsplit(",", 2) for line in archive.read(own).decode().splitlines()]
        assert [name for name, _, _ in lines] == archive.namelist()
        assert lines[-1] == [own, "", ""]
        assert all(int(size) == len(archive.read(name)) for name, _, size in lines[:-1])
        assert archive.testzip() is None

    def test_it_is_installed_by_pip_and_imported(self, tmp_path: Path) -> None:
        wheel = build_wheel()
        path = tmp_path / wheel.filename
        path.write_bytes(wheel.content)
        target = tmp_path / "target"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(target)]
        done = subprocess.run([*pip, str(path)], capture_output=True, text=True)
        if "No module named pip" in done.stderr:
            pytest.skip("this Python has no pip")
        assert done.returncode == 0, done.stderr
        program = (
            "import importlib.metadata as m, modelfleet, modelfleet.config, modelfleet.core.inference.proof; "
            "print(m.version('modelfleet'), modelfleet.__file__, m.requires('modelfleet'))"
        )
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(target)},
            cwd="/",
        )
        assert done.stdout.split() == [__version__, str(target / "modelfleet/__init__.py"), "None"], done.stderr


PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); from modelfleet.packaging import build_wheel as b; print(b().sha256)"
)


def test_every_python_makes_the_same_bytes(sources: Path) -> None:
    """Two controllers must not take each other's package for another."""
    answers: dict[str, str] = {}
    found = sorted(Path.home().glob(".pyenv/versions/*/bin/python3"))
    for python in [sys.executable, *filter(None, [shutil.which("python3")]), *map(str, found)]:
        answer = subprocess.run([python, "-I", "-c", PROGRAM, str(sources)], capture_output=True, text=True)
        # A Python below 3.8 or a shim that leads nowhere cannot.
        if answer.returncode == 0:
            answers[python] = answer.stdout
    assert len(set(answers.values())) == 1, answers
