"""Disks that are full, have no inodes left, fail, or may not be written: one line says so, the last good model stays,
the next run converges."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz.seeds import safetensors, safetensors_entry
from modelfleet.core.errors import ModelfleetError
from modelfleet.core.jobs import Progress, describe_os_error
from modelfleet.core.planning.document import HostPlan
from modelfleet.core.privilege import Account
from modelfleet.core.publishing import carry_out
from modelfleet.core.store.manifest import read_manifest
from modelfleet.core.store.tree import Tree, converge
from support.carried import carried_out, strace
from support.fault_server import fault_server
from support.settled import soon_settled
from support.units import ONCE, UNIT, Host, embedding

pytestmark = pytest.mark.usefixtures("soon_settled")
__all__ = ["soon_settled", "strace"]

MIB = 1024 * 1024
LARGE_BYTES = 5 * MIB


def model(note: int) -> dict[str, bytes]:
    """Return a folder with a file of 5 MiB."""
    entry = safetensors_entry(0, LARGE_BYTES, [LARGE_BYTES // 4])
    return {**embedding(str(note)), "model.safetensors": safetensors({f"a{note}": entry}, bytes(LARGE_BYTES))}


class Disk:
    """A small file system with a store in which a model was published, a server that has a newer one, and its plan."""

    def __init__(self, path: Path, host: Host) -> None:
        self.path = path
        self.host = host
        self.plan = HostPlan(str(host.store), (host.model(model(1)),))

    def mount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.path], check=True)

    def run(self, progress: Progress) -> str:
        """Let a run update the model; returns the error in one line, empty where there is none."""
        try:
            carry_out(self.plan, ONCE, progress)
        except ModelfleetError as error:
            return str(error)
        except OSError as error:
            return describe_os_error(error)
        return ""

    def require_the_old_one(self) -> None:
        assert self.host.content() == model(0), "the last good model is intact"
        assert set(read_manifest(str(self.host.store))) == {f"{UNIT}/{name}" for name in model(0)}

    def require_convergence(self) -> None:
        self.host.publish(model(1))
        assert self.host.content() == model(1) and self.host.is_kept(model(1)) and self.host.in_flight == []


class AtCall(Progress):
    """Does something when a run tells about itself for the ``number``th time, the first being 0."""

    def __init__(self, number: int, act: Callable[[], None]) -> None:
        self.left = number
        self.act = act

    def update(self, step: str, *_: Any, **__: Any) -> None:
        if self.left == 0:
            user = os.geteuid()
            os.seteuid(os.getuid())
            self.act()
            os.seteuid(user)
        self.left -= 1


@pytest.fixture
def disk(ground: Path, owner: Account) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("mounts a small file system: run it as root")
    path = ground / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", path], capture_output=True).returncode != 0:
        pytest.skip("this machine lets us mount nothing")
    try:
        store = path / "models"
        converge(Tree(str(store), owner, owner.gid, 0o755, None))
        with fault_server(b"") as server:
            host = Host(store, server)
            host.publish(model(0))
            yield Disk(path, host)
    finally:
        subprocess.run(["umount", path], check=True)


def fill(path: Path) -> None:
    """Leave not one block."""
    with (path / "filler").open("ab", buffering=0) as filler:
        # The last write of what fits only in part is a short one.
        for block in (bytes(MIB), bytes(4096)):
            try:
                while True:
                    filler.write(block)
            except OSError as error:
                assert error.errno == errno.ENOSPC


def crowd(path: Path) -> None:
    """Leave not one inode."""
    (path / "crowd").mkdir(exist_ok=True)
    try:
        for number in range(10_000):
            (path / "crowd" / str(number)).touch()
    except OSError as error:
        assert error.errno == errno.ENOSPC
    else:
        pytest.fail("there are inodes left")


class TestFull:
    def test_too_little_space_is_told_before_anything_comes(self, disk: Disk) -> None:
        disk.mount("size=9m")
        told = disk.run(Progress())
        assert told.startswith(f"{disk.host.store}: 5.0 MiB are needed, ") and "free some space" in told
        disk.require_the_old_one()
        assert disk.host.in_flight == []
        disk.mount("size=64m")
        disk.require_convergence()

    def test_too_few_inodes_are_told_before_anything_comes(self, disk: Disk) -> None:
        used = os.statvfs(disk.path).f_files - os.statvfs(disk.path).f_ffree
        disk.mount(f"nr_inodes={used + 10}")
        told = disk.run(Progress())
        assert told.startswith(f"{disk.host.store}: 20 inodes are needed, 10 are free; free some space")
        disk.require_the_old_one()
        disk.mount("nr_inodes=1000")
        disk.require_convergence()

    @pytest.mark.parametrize("what", ["space", "inodes"])
    def test_it_is_used_up_at_any_moment(self, disk: Disk, request: pytest.FixtureRequest, what: str) -> None:
        """Somebody takes all that is left when the run tells about itself for the first, second, … time (without
        --long: every fourth)."""
        failures = 0
        for number in range(0, 100, 1 if request.config.getoption("--long") else 4):
            if what == "space":
                disk.mount("size=20m")
            else:
                disk.mount("nr_inodes=100")
            moment = AtCall(number, lambda: (fill if what == "space" else crowd)(disk.path))
            told = disk.run(moment)
            if told:
                failures += 1
                assert "\n" not in told and "free" in told, told
                # The new one where only its record found no room.
                assert disk.host.content() in (model(0), model(1))
            else:
                assert disk.host.content() == model(1)
            subprocess.run(["rm", "-rf", disk.path / "filler", disk.path / "crowd"], check=True)
            disk.require_convergence()
            if moment.left >= 0:
                break
            disk.host.publish(model(0))
        assert failures > 1 and moment.left >= 0


class TestReadOnly:
    def test_a_file_system_that_may_not_be_written(self, disk: Disk) -> None:
        disk.mount("ro")
        try:
            told = disk.run(Progress())
        finally:
            disk.mount("rw")
        assert told.endswith("Read-only file system; remount the file system writable") and str(disk.path) in told
        disk.require_the_old_one()
        disk.require_convergence()


FAILURES = {
    "EIO": ("pwrite64", "write", "ftruncate", "fsync", "rename", "renameat2", "unlink", "fchmod", "mkdir"),
    "EROFS": ("openat", "rename", "renameat2", "unlink", "unlinkat", "mkdir", "fchmod", "utimensat"),
    "ENOSPC": ("pwrite64", "write", "fallocate", "fsync", "rename", "renameat2", "mkdir"),
    "EDQUOT": ("pwrite64", "write", "fallocate", "rename", "mkdir"),
}


def fails_at(checkout: Path, base: Path, owner: Account, error: str, call: str, number: int) -> tuple[bool, bool]:
    """Let a run's call number ``number`` fail; returns whether it made so many, and whether the run failed, too."""
    store = base / f"{error}-{call}-{number}"
    converge(Tree(str(store), owner, owner.gid, 0o755, None))
    with fault_server(b"") as server:
        host = Host(store, server)
        host.publish(model(0))
        plan = HostPlan(str(store), (host.model(model(1)),))
        status, told, injected = carried_out(checkout, plan, f"{call}:error={error}:when={number}")
        assert status in (0, 1), told
        assert host.content() in (model(0), model(1)), "the old one or the new one"
        if status == 0:
            assert host.content() == model(1), "who says that all is well has published it"
        elif call != "openat":
            # (A call by which Python itself opens a library may have been the one that failed.)
            assert len(told.splitlines()) == 1 and os.strerror(getattr(errno, error)) in told, told
        read_manifest(str(store))
        host.publish(model(1))
        assert host.content() == model(1) and host.is_kept(model(1)) and host.in_flight == []
    subprocess.run(["rm", "-rf", store], check=True)
    return injected, status != 0


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize(
    ("error", "call", "number"),
    [
        *[("EIO", "pwrite64", 2), ("EIO", "fsync", 1), ("EIO", "fsync", 12), ("EIO", "renameat2", 1)],
        *[("ENOSPC", "pwrite64", 1), ("ENOSPC", "fallocate", 1), ("EROFS", "mkdir", 1), ("EROFS", "rename", 2)],
    ],
)
def test_a_call_fails(checkout: Path, ground: Path, owner: Account, error: str, call: str, number: int) -> None:
    assert fails_at(checkout, ground, owner, error, call, number) == (True, True)


@pytest.mark.long
@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize(("error", "call"), [(error, call) for error, calls in FAILURES.items() for call in calls])
def test_any_call_fails(
    checkout: Path,
    ground: Path,
    owner: Account,
    record_property: Callable[[str, object], None],
    error: str,
    call: str,
) -> None:
    """Let the first, second, … call of a kind fail, as often as a run has one."""
    failed = 0
    # Python opens a hundred files before anything is done: every seventh is enough.
    step = 7 if call == "openat" else 1
    for number in range(1, 500, step):
        injected, told = fails_at(checkout, ground, owner, error, call, number)
        if not injected:
            # With --junit-xml=FILE the points can be counted.
            record_property("points", (number - 1) // step)
            assert failed
            return
        failed += told
    pytest.fail("there was always one more")
