"""./modelfleet: first use, later starts, and everything that can keep it from making its environment.

The package index is a local server that has the real pip wheel and nothing
else; the project that is installed builds itself and needs nothing.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import http.server
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from modelfleet.core.errors import ModelfleetError
from modelfleet.core.fetch.package_index import PackageIndexSettings, download_distribution

LAUNCHER = Path(__file__).resolve().parents[2] / "modelfleet"
PACKAGE = LAUNCHER.parent / "python" / "modelfleet"
PIP_WHEEL = "pip-25.3-py3-none-any.whl"
PIP_SHA256 = "9655943313a94722b7774661c21049070f6bbb0a1516bf02f7c8d5d9201514cd"
NOBODY = 65534

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "modelfleet"
version = "0"
[project.optional-dependencies]
controller = []
"""
BACKEND = '''
import zipfile


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """Write the smallest wheel that an installer takes."""
    name = "modelfleet-0-py3-none-any.whl"
    info = "modelfleet-0.dist-info/"
    with zipfile.ZipFile(wheel_directory + "/" + name, "w") as wheel:
        wheel.writestr("modelfleet.pth", "PYTHON_FOLDER\\n")
        metadata = ("Metadata-Version: 2.1", "Name: modelfleet", "Version: 0", "Provides-Extra: controller", "")
        wheel.writestr(info + "METADATA", "\\n".join(metadata))
        about = ("Wheel-Version: 1.0", "Generator: x", "Root-Is-Purelib: true", "Tag: py3-none-any", "")
        wheel.writestr(info + "WHEEL", "\\n".join(about))
        wheel.writestr(info + "RECORD", "")
    return name
'''
COMMAND_LINE = """
import sys
print("started", sys.argv[1:])
sys.exit(7 if "fail" in sys.argv else 0)
"""


@pytest.fixture(scope="session")
def pip_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the real pip wheel that the launcher pins, from the index that this machine is set to use."""
    path = tmp_path_factory.mktemp("pip") / PIP_WHEEL
    try:
        settings = PackageIndexSettings.from_environment(os.environ)
        download_distribution("pip", PIP_WHEEL, PIP_SHA256, str(path), settings)
    except ModelfleetError as error:
        pytest.skip(f"the real pip wheel cannot be had here: {error}")
    return path


class Index:
    """A package index on this machine, which counts what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        outer = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args: object) -> None:
                super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

            def log_message(self, *args: object) -> None:
                outer.requests.append(self.path)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/simple"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def make_index(folder: Path, pip_wheel: Path) -> None:
    """Lay out a package index that has pip."""
    (folder / "simple" / "pip").mkdir(parents=True)
    shutil.copy(pip_wheel, folder / PIP_WHEEL)
    (folder / "simple" / "pip" / "index.html").write_text(f'<a href="../../{PIP_WHEEL}">{PIP_WHEEL}</a>')


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Index]:
    """Serve the index in ``folder``."""
    index = Index(folder)
    yield index
    index.server.shutdown()
    index.server.server_close()


@contextlib.contextmanager
def make_checkout() -> Iterator[Path]:
    """Make a checkout with a command line that only says that it was started; other accounts may read it."""
    root = Path(tempfile.mkdtemp(prefix="modelfleet-test-"))
    root.chmod(0o755)
    checkout = root / "check out"
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE / "core", checkout / "python" / "modelfleet" / "core", ignore=leave)
    (checkout / "python" / "modelfleet" / "__init__.py").touch()
    command_line = checkout / "python" / "modelfleet" / "cli"
    command_line.mkdir()
    (command_line / "__init__.py").touch()
    (command_line / "__main__.py").write_text(COMMAND_LINE)
    shutil.copy(LAUNCHER, checkout / "modelfleet")
    (checkout / "pyproject.toml").write_text(PYPROJECT)
    (checkout / "backend.py").write_text(BACKEND.replace("PYTHON_FOLDER", str(checkout / "python")))
    yield checkout
    shutil.rmtree(root)


@pytest.fixture
def index_folder(tmp_path: Path, pip_wheel: Path) -> Path:
    """Return the folder of an index that has pip."""
    make_index(tmp_path / "index", pip_wheel)
    return tmp_path / "index"


@pytest.fixture
def index(index_folder: Path) -> Iterator[Index]:
    """Return a package index that is served."""
    with serve(index_folder) as index:
        yield index


@pytest.fixture
def checkout() -> Iterator[Path]:
    """Return a checkout that was never started."""
    with make_checkout() as checkout:
        yield checkout


@dataclass
class FirstUse:
    """A checkout that was started once: what that said, and the index that it asked."""

    checkout: Path
    answer: subprocess.CompletedProcess[str]
    index: Index


@pytest.fixture(scope="module")
def first_use(pip_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FirstUse]:
    """Start a checkout for the first time."""
    folder = tmp_path_factory.mktemp("index")
    make_index(folder, pip_wheel)
    with serve(folder) as index, make_checkout() as checkout:
        yield FirstUse(checkout, launch(checkout, index.url, "apply", "-l", "a b"), index)


def environment_for(index_url: str, changes: Mapping[str, str]) -> dict[str, str]:
    """Return an environment that knows one package index and nothing else of this machine's settings."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, "HOME": "/nonexistent", "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index_url, **changes}


def launch(
    checkout: Path,
    index_url: str,
    *arguments: str,
    python: tuple[str, ...] = (sys.executable,),
    user: int | None = None,
    folder: str = "/",
    **changes: str,
) -> subprocess.CompletedProcess[str]:
    """Start the launcher of ``checkout`` with a Python, in a folder, and return its answer."""
    return subprocess.run(
        [*python, str(checkout / "modelfleet"), *arguments],
        env=environment_for(index_url, changes),
        cwd=folder,
        text=True,
        capture_output=True,
        timeout=300,
        user=user,
    )


Start = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def start(checkout: Path, index: Index) -> Start:
    """Return ``launch`` for a checkout that was never started."""
    return functools.partial(launch, checkout, index.url)


def is_one_line(said: str) -> bool:
    """Tell whether the last thing said is one line of ours and there was no traceback."""
    last = said.splitlines()[-1]
    return last.startswith("modelfleet: ") and "Traceback" not in said


def test_first_use_makes_the_environment_and_later_starts_only_start(first_use: FirstUse) -> None:
    first, checkout, index = first_use.answer, first_use.checkout, first_use.index
    assert (first.returncode, first.stdout) == (0, "started ['apply', '-l', 'a b']\n"), first.stderr
    assert "Setting up .venv (first use): " in first.stderr
    assert (checkout / ".venv" / "bin" / "pip").exists(), "./modelfleet test installs with it"
    asked = len(index.requests)
    second = launch(checkout, index.url, "fail")
    assert (second.returncode, second.stdout, second.stderr) == (7, "started ['fail']\n", "")
    assert len(index.requests) == asked


def test_a_link_to_the_launcher_starts_its_checkout(first_use: FirstUse, tmp_path: Path) -> None:
    (tmp_path / "modelfleet").symlink_to(first_use.checkout / "modelfleet")
    assert launch(tmp_path, "", "x").stdout == "started ['x']\n"


def test_the_working_directory_cannot_slip_in_a_module(first_use: FirstUse, tmp_path: Path) -> None:
    (tmp_path / "modelfleet.py").write_text("raise SystemExit('taken in')")
    answer = launch(first_use.checkout, "", folder=str(tmp_path))
    assert (answer.returncode, answer.stdout) == (0, "started []\n"), answer.stderr


def test_an_interrupted_set_up_is_made_again(start: Start, checkout: Path) -> None:
    environment = checkout / ".venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "modelfleet-setup.lock").touch()
    (environment / "bin" / "python").symlink_to(sys.executable)
    (environment / "lib").symlink_to("/")
    (environment / "modelfleet-setup.stamp.partial").write_text("half")
    answer = start()
    assert (answer.returncode, answer.stdout) == (0, "started []\n"), answer.stderr
    assert not (environment / "lib").is_symlink()


def test_a_changed_pyproject_renews_and_a_python_that_is_gone_rebuilds(start: Start, checkout: Path) -> None:
    start()
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    changed = start()
    assert (changed.returncode, changed.stdout) == (0, "started []\n")
    assert "(pyproject.toml has changed)" in changed.stderr
    python = checkout / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nonexistent/python3")
    gone = start()
    assert (gone.returncode, gone.stdout) == (0, "started []\n")
    assert "(first use)" in gone.stderr


def test_of_two_first_starts_one_waits_for_the_other(checkout: Path, index: Index) -> None:
    command = [sys.executable, str(checkout / "modelfleet")]
    both = [
        subprocess.Popen(
            command, env=environment_for(index.url, {}), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=120) for process in both]
    assert [(process.returncode, said) for process, (said, _) in zip(both, answers)] == [(0, "started []\n")] * 2
    assert sum("installing packages" in notes for _, notes in answers) == 1


def test_a_wheel_that_is_not_the_pinned_pip_is_refused_and_the_next_start_heals(
    start: Start, checkout: Path, index_folder: Path, pip_wheel: Path
) -> None:
    with (index_folder / PIP_WHEEL).open("ab") as file:
        file.write(b"tail")
    answer = start()
    assert answer.returncode == 1
    assert is_one_line(answer.stderr) and PIP_SHA256 in answer.stderr
    assert not (checkout / ".venv" / PIP_WHEEL).exists()
    shutil.copy(pip_wheel, index_folder / PIP_WHEEL)
    assert start().returncode == 0


def test_no_package_index_is_one_line(start: Start) -> None:
    answer = start(PIP_INDEX_URL="http://127.0.0.1:9/simple")
    assert answer.returncode == 1
    assert is_one_line(answer.stderr) and "127.0.0.1:9" in answer.stderr


def test_a_package_that_cannot_be_had_is_one_line(start: Start, checkout: Path) -> None:
    pyproject = checkout / "pyproject.toml"
    pyproject.write_text(PYPROJECT.replace("requires = []", 'requires = ["no-such-backend==1"]'))
    answer = start()
    assert answer.returncode == 1
    assert is_one_line(answer.stderr) and "no-such-backend==1" in answer.stderr
    assert "modelfleet-setup.log" in answer.stderr


def test_a_checkout_that_may_not_be_written(start: Start, checkout: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to start it as an account that owns nothing")
    # An account of no rights has to be able to run the interpreter itself.
    python = ("/usr/bin/python3",)
    if subprocess.run([*python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], user=NOBODY).returncode:
        pytest.skip("needs a system Python 3.11")
    refused = start(python=python, user=NOBODY)
    assert refused.returncode == 1
    assert is_one_line(refused.stderr) and "Permission denied" in refused.stderr
    assert start(python=python).returncode == 0
    used = start("x", python=python, user=NOBODY)
    assert (used.returncode, used.stdout, used.stderr) == (0, "started ['x']\n", "")


def test_a_foreign_environment_is_left_alone(start: Start, checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "pyvenv.cfg").write_text("home = /usr/bin\n")
    answer = start()
    assert answer.returncode == 1
    assert is_one_line(answer.stderr) and "was not made by ./modelfleet" in answer.stderr
    assert os.listdir(checkout / ".venv") == ["pyvenv.cfg"]


def test_a_python_without_venv_is_one_line(start: Start, tmp_path: Path) -> None:
    (tmp_path / "venv.py").write_text("raise ImportError('left out')")
    answer = start(PYTHONPATH=str(tmp_path))
    assert answer.returncode == 1
    assert is_one_line(answer.stderr) and "python3-venv" in answer.stderr


def old_python(tmp_path: Path) -> tuple[str, ...]:
    """Return a command that runs the launcher as Python 3.8 would."""
    script = tmp_path / "old.py"
    script.write_text(
        "import runpy, sys\n"
        "sys.version_info = (3, 8, 18, 'final', 0)\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    return (sys.executable, str(script))


def test_an_old_python_that_finds_no_newer_one_is_one_line(start: Start, tmp_path: Path) -> None:
    broken = tmp_path / "python3.13"
    broken.write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    broken.chmod(0o755)
    answer = start(python=old_python(tmp_path), PATH=str(tmp_path))
    assert answer.returncode == 1
    assert is_one_line(answer.stderr) and "needs Python 3.11 or newer; this is 3.8.18" in answer.stderr


def test_an_old_python_gives_way_to_a_newer_one_that_really_runs(start: Start, tmp_path: Path) -> None:
    newer = tmp_path / "python3.12"
    newer.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    newer.chmod(0o755)
    answer = start("x", python=old_python(tmp_path), PATH=str(tmp_path), PIP_INDEX_URL="http://127.0.0.1:9/simple")
    assert is_one_line(answer.stderr) and "pip could not be fetched" in answer.stderr


def test_an_old_python_can_start_what_a_newer_one_has_made(first_use: FirstUse, tmp_path: Path) -> None:
    answer = launch(first_use.checkout, "", "y", python=old_python(tmp_path), PATH="/nonexistent")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "started ['y']\n", "")


def test_old_pythons_can_parse_the_launcher() -> None:
    source = LAUNCHER.read_text()
    ast.parse(source, feature_version=(3, 5))
    assert not any(isinstance(node, ast.JoinedStr) for node in ast.walk(ast.parse(source))), "f-strings came with 3.6"


def test_the_pip_that_is_tested_is_the_one_that_is_pinned() -> None:
    source = LAUNCHER.read_text()
    assert f'PIP_WHEEL = "{PIP_WHEEL}"' in source
    assert f'PIP_SHA256 = "{PIP_SHA256}"' in source
    assert os.access(LAUNCHER, os.X_OK)
