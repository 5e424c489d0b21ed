"""An environment of a stack's packages: the lock, installing from it, drift, the proof before the switch, the way back.

Real venv and pip, from a folder of tiny packages; ``tiny-torch`` stands for torch and its kinds of builds.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.errors import RuntimeBuildError
from modelfleet.core.fetch.package_index import PackageIndexSettings
from modelfleet.core.jobs import Progress
from modelfleet.core.runtime.build import PIP_WHEEL, Brought, Builder, Done, Package
from modelfleet.core.runtime.environment import HELD, STATE, Wanted, inspect
from modelfleet.core.runtime.lock import PackageSet, Pin, parse_lock
from modelfleet.core.runtime.rollback import go_back
from support.index import make_wheel, sha256
from support.runtime_host import Host, fetch_pip, make_host

SYSTEM = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
PYTHON = subprocess.check_output([SYSTEM, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], text=True).strip()
SET = PackageSet("stack-cuda-one", ("tiny-torch==1.0+cu1",), PYTHON)
NEWER = {"requirements": "# newer\n"}
LIBRARY = "tiny_torch/lib/libtiny.so.1"


@pytest.fixture(scope="session")
def pip_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the pip that hosts install with."""
    path = tmp_path_factory.mktemp("pip") / PIP_WHEEL
    fetch_pip(path)
    return path


def wanted(host: Host, packages: PackageSet = SET, **changes: Any) -> Wanted:
    """Return an environment of packages alone, of this Python."""
    return host.wanted(packages=packages, requirements="", build=None, backend="cuda", python=SYSTEM)._replace(
        **changes
    )


def converge(host: Host, brought: Brought | None = None, packages: PackageSet = SET, **changes: Any) -> Done:
    settings = PackageIndexSettings((), (str(host.index),))
    builder = Builder(wanted(host, packages, **changes), host.owner, settings, host.progress)
    return builder.converge(host.package(), brought or Brought())


@pytest.fixture(scope="module")
def host(pip_wheel: Path) -> Iterator[Host]:
    """Return a host on which the packages were installed."""
    host = make_host(pip_wheel)
    make_wheel(host.index, "tiny-torch", "1.0+cu1", {LIBRARY: b"a library"}, requires="tiny-dep>=1")
    done = converge(host)
    assert done.wheel is None and not done.compiled and done.lock == wanted(host).lock_file
    yield host
    shutil.rmtree(host.root)


def packages_folder(host: Host) -> Path:
    return Path(host.in_use()) / "lib" / f"python{PYTHON}" / "site-packages"


class TestLock:
    def test_every_package_is_pinned_by_its_hash(self, host: Host) -> None:
        text = Path(wanted(host).lock_file).read_text()
        dep, torch = host.index / "tiny_dep-1.0-py3-none-any.whl", host.index / "tiny_torch-1.0+cu1-py3-none-any.whl"
        assert parse_lock(text) == [Pin("tiny-dep", "1.0", sha256(dep)), Pin("tiny-torch", "1.0+cu1", sha256(torch))]
        assert os.stat(wanted(host).lock_file).st_uid == host.owner.uid

    def test_the_environment_is_as_wanted_then(self, host: Host) -> None:
        state = inspect(wanted(host))
        assert state.findings == ()
        assert {name: state.packages[name] for name in ("tiny-dep", "tiny-torch")} == {
            "tiny-dep": "1.0",
            "tiny-torch": "1.0+cu1",
        }

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("--index-url http://evil\n", "holds what is no pin: '--index-url http://evil'"),
            ("tiny-torch==1.0+cu1\n", "holds what is no pin: 'tiny-torch==1.0+cu1'"),
            ("tiny-torch @ file:///x \\\n    --hash=sha256:" + "0" * 64, "holds what is no pin"),
            ("tiny-torch==1.0+cpu \\\n    --hash=sha256:" + "0" * 64, "has tiny-torch 1.0+cpu, not 1.0+cu1"),
            ("# nothing\n", "pins nothing"),
        ],
    )
    def test_a_lock_that_says_something_else_is_refused(
        self, host: Host, tmp_path: Path, text: str, message: str
    ) -> None:
        lock = tmp_path / "requirements.txt"
        lock.write_text(text)
        with pytest.raises(RuntimeBuildError, match=r"^the lock of the packages") as caught:
            converge(host, Brought(lock=Package(str(lock), sha256(lock))), SET._replace(key="stack-cuda-three"))
        assert message in str(caught.value)
        assert not os.path.exists(os.path.join(host.runtime, "wheelhouse", "stack-cuda-three"))


@pytest.fixture(scope="module")
def upgraded(host: Host) -> str:
    """Upgrade to another environment of the same packages, and return the one before."""
    before = host.in_use()
    newer = make_wheel(host.index, "tiny-dep", "1.1")
    converge(host, **NEWER)
    newer.unlink()
    assert host.in_use() != before
    return before


class TestRollback:
    def test_the_lock_decides_though_the_index_has_newer_ones_by_now(self, host: Host, upgraded: str) -> None:
        state = inspect(wanted(host, **NEWER))
        assert state.findings == () and state.packages["tiny-dep"] == "1.0"

    def test_there_and_forward_again(self, host: Host, upgraded: str) -> None:
        newer = host.in_use()
        told = go_back(str(host.runtime), host.owner, check_mode=True)
        assert told["changed"] and host.in_use() == newer and not (host.runtime / HELD).exists()
        done = go_back(str(host.runtime), host.owner, check_mode=False)
        assert done["diff"] == told["diff"] and done["packages"]["tiny-torch"] == "1.0+cu1"
        assert host.in_use() == upgraded
        held = json.loads((host.runtime / HELD).read_text())
        assert held["instead_of"] == wanted(host, **NEWER).key and held["key"] == wanted(host).key
        # Wanted again by the next run: it stays. Another is wanted: it does not.
        state = inspect(wanted(host, **NEWER))
        assert state.findings == () and state.held
        assert inspect(wanted(host, requirements="# newest\n")).reasons == (
            "MF-RUN-003: another environment is in use",
        )
        # Damage is told of, and repaired, though it is held.
        library = packages_folder(host) / LIBRARY
        library.rename(f"{library}.gone")
        assert [one.id for one in inspect(wanted(host, **NEWER)).findings] == ["MF-RUN-008"]
        os.rename(f"{library}.gone", library)
        go_back(str(host.runtime), host.owner, check_mode=False)
        assert host.in_use() == newer
        state = inspect(wanted(host, **NEWER))
        assert state.findings == () and not state.held

    def test_a_damaged_one_is_not_gone_back_to(self, host: Host, upgraded: str) -> None:
        in_use = host.in_use()
        state = Path(upgraded, STATE)
        state.rename(f"{state}.gone")
        for check_mode in (True, False):
            with pytest.raises(RuntimeBuildError, match="is damaged: it has no record"):
                go_back(str(host.runtime), host.owner, check_mode)
        assert host.in_use() == in_use
        os.rename(f"{state}.gone", state)

    def test_there_is_none(self, host: Host, ground: Path) -> None:
        with pytest.raises(RuntimeBuildError, match=r"there is no environment in .* to go back from"):
            go_back(str(ground), host.owner, check_mode=False)


@pytest.fixture(scope="class")
def repaired(host: Host) -> Iterator[None]:
    """Leave what the tests found to be repaired: another environment comes, and the damaged one is forgotten."""
    yield
    for damage in (
        lambda folder: (folder / LIBRARY).unlink(),
        lambda folder: (folder / "tiny_torch-1.0+cu1.dist-info").rename(folder / "tiny_torch-1.0+cpu.dist-info"),
    ):
        damaged = host.in_use()
        damage(packages_folder(host))
        assert inspect(wanted(host, **NEWER)).findings != ()
        converge(host, **NEWER)
        assert inspect(wanted(host, **NEWER)).findings == () and host.in_use() != damaged


@pytest.mark.usefixtures("repaired")
class TestDrift:
    """Each change is found by the right check; the environment is put right by the usual run, and then quiet."""

    @contextmanager
    def planted(self, host: Host, version: str) -> Iterator[None]:
        folder = packages_folder(host)
        ours, planted = folder / "tiny_torch-1.0+cu1.dist-info", folder / f"tiny_torch-{version}.dist-info"
        ours.rename(planted)
        yield
        planted.rename(ours)

    def test_a_build_for_the_processor(self, host: Host) -> None:
        with self.planted(host, "1.0+cpu"):
            found = inspect(wanted(host, **NEWER)).reasons
        assert found == ("MF-RUN-007: tiny-torch is 1.0+cpu, not 1.0+cu1: another build",)

    def test_a_build_for_the_processor_with_the_record_made_to_fit(self, host: Host) -> None:
        path = Path(host.in_use(), STATE)
        text = path.read_text()
        path.write_text(text.replace("tiny_torch-1.0+cu1", "tiny_torch-1.0+cpu"))
        with self.planted(host, "1.0+cpu"):
            found = inspect(wanted(host, **NEWER)).reasons
        path.write_text(text)
        assert found == ("MF-RUN-007: tiny-torch is 1.0+cpu, not 1.0+cu1: another build",)

    @pytest.mark.parametrize("content", [None, b"", b"another library"])
    def test_a_library(self, host: Host, content: bytes | None) -> None:
        path = packages_folder(host) / LIBRARY
        before = path.read_bytes()
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        (finding,) = inspect(wanted(host, **NEWER)).findings
        said = "is missing" if content is None else f"has {len(content)} bytes, not {len(before)}"
        assert finding.text == f"MF-RUN-008: the library lib/python{PYTHON}/site-packages/{LIBRARY} {said}"
        assert finding.to_dict()["cure"].startswith("run ./modelfleet apply")
        path.write_bytes(before)


class TestProof:
    """What does not work is never switched to."""

    def refused(self, host: Host, packages: PackageSet, **changes: Any) -> str:
        before = (host.in_use(), sorted(os.listdir(host.runtime / "environments")))
        with pytest.raises(RuntimeBuildError) as caught:
            converge(host, packages=packages, **changes)
        assert (host.in_use(), sorted(os.listdir(host.runtime / "environments"))) == before
        return str(caught.value)

    def test_a_package_that_cannot_be_imported(self, host: Host) -> None:
        make_wheel(host.index, "tiny-broken", "1.0", {"tiny_broken/__init__.py": b"raise OSError('libcudart.so.13')"})
        said = self.refused(host, PackageSet("stack-broken", ("tiny-broken==1.0",), PYTHON))
        assert said == (
            "the new environment does not work, and is not used: tiny_broken cannot be imported: OSError: "
            "libcudart.so.13; correct that, and run again"
        )

    def test_torch_that_finds_no_gpu(self, host: Host) -> None:
        module = b"class cuda:\n    is_available = staticmethod(lambda: False)\n__version__ = '1.0+cpu'\n"
        make_wheel(host.index, "torch", "1.0", {"torch/__init__.py": module})
        wished = PackageSet("stack-torch", ("torch==1.0",), PYTHON)
        said = self.refused(host, wished, gpu=True)
        assert "torch 1.0+cpu finds no GPU through cuda: it would compute on the processor" in said


@pytest.mark.long
def test_a_lock_that_was_brought_decides(host: Host, tmp_path: Path) -> None:
    """Also without any index: what it pins is installed from the folder that was brought."""
    other = SET._replace(key="stack-cuda-two")
    lock, folder = tmp_path / "requirements.txt", tmp_path / "wheels"
    lock.write_text(Path(wanted(host).lock_file).read_text())
    shutil.copytree(host.index, folder)
    brought = Brought(lock=Package(str(lock), sha256(lock)), packages=str(folder), offline=True)
    builder = Builder(wanted(host, other), host.owner, PackageIndexSettings(("http://127.0.0.1:1",)), Progress())
    builder.converge(host.package(), brought)
    assert inspect(wanted(host, other)).findings == ()
