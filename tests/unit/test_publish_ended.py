"""Runs that end at any change of the file system: readers find the old or the new model, the next run converges."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.errors import FetchError
from modelfleet.core.privilege import Account
from modelfleet.core.store import publish
from modelfleet.core.store.manifest import RACY_NS, read_manifest
from modelfleet.core.store.tree import Tree, converge
from support.units import ENTRY, UNIT, Host, embedding, host, soon_settled, split

pytestmark = pytest.mark.usefixtures("soon_settled")
__all__ = ["host", "soon_settled"]

KILLED = """
import sys
sys.path[:0] = sys.argv[1:3]
from support.units import *
from pathlib import Path
manifest.RACY_NS = 30_000_000
host = Host(Path(sys.argv[3]), Path(sys.argv[4]))
host.publish(embedding("1") if sys.argv[5] == "folder" else split(1), UNIT if sys.argv[5] == "folder" else "chat/7b")
"""
CALLS = (
    *("write", "fsync", "fdatasync", "ftruncate", "fchmod", "fchown", "mkdir", "rmdir", "unlink", "unlinkat"),
    *("rename", "renameat", "renameat2", "utimensat"),
)
# Python's own start writes nothing; every number beyond means that a run has no such call any more.
MOST = 40


class Killed(BaseException):
    """The end of a run: nothing after it happens, as after SIGKILL."""


STEPS = ("rename", "replace", "unlink", "mkdir", "rmdir", "fsync", "fchmod", "utime")


@contextlib.contextmanager
def ended_at(number: int, patch: pytest.MonkeyPatch, error: bool) -> Iterator[list[str]]:
    """Do ``number`` changes of the file system and then none any more, or let only the next one fail."""
    done: list[str] = []

    def limit(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def then(*arguments: Any, **more: Any) -> Any:
            done.append(name)
            if error and len(done) == number + 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if not error and len(done) > number:
                raise Killed(name)
            return step(*arguments, **more)

        return then

    with patch.context() as context:
        for name in STEPS:
            context.setattr(os, name, limit(name, getattr(os, name)))
        context.setattr(publish, "exchange", limit("exchange", publish.exchange))
        try:
            yield done
        except Killed:
            pass
        except OSError as failure:
            assert failure.errno == errno.EIO
        else:
            done.append("end")


@pytest.mark.parametrize("error", [False, True], ids=["killed", "error"])
@pytest.mark.parametrize("kind", ["folder", "folder without exchange", "split"])
@pytest.mark.parametrize("update", [False, True], ids=["fresh", "update"])
def test_ended_at_any_step_the_old_or_the_new_is_there_and_the_next_run_converges(
    host: Host, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, kind: str, update: bool, error: bool
) -> None:
    """After each number of steps (each third without --long): never a mixture, no false record; one run repairs."""
    folder = "chat/7b" if kind == "split" else UNIT
    make: Callable[[int], dict[str, bytes]] = split if kind == "split" else lambda note: embedding(str(note))
    if kind == "folder without exchange":
        monkeypatch.setattr(publish, "exchange", lambda *_: False)
    for number in range(0, 200, 1 if request.config.getoption("--long") else 3):
        if update:
            host.publish(make(0), folder)
        with ended_at(number, monkeypatch, error) as done:
            host.publish(make(1), folder)
        found = host.content(folder)
        allowed = [make(1), *([make(0)] if update else [{}])]
        if kind == "folder without exchange":
            allowed.append({})
        if kind == "split":
            assert found in allowed or ENTRY not in found, "a reader that finds the first file finds all that belong"
        else:
            assert found in allowed
        for name, known in read_manifest(str(host.store)).items():
            path = host.store / name
            if path.exists() and known._replace(recorded_ns=known.ctime_ns + RACY_NS + 1).matches(path.lstat()):
                assert hashlib.sha256(path.read_bytes()).hexdigest() == known.sha256
        host.publish(make(1), folder)
        assert host.content(folder) == make(1) and host.is_kept(make(1), folder) and host.in_flight == []
        if len(done) <= number or (done[-1:] == ["end"] and not error):
            assert number > 20
            return
        host.publish(make(1), folder, action="remove")
        assert host.content(folder) == {}
    pytest.fail("it was always ended")


@pytest.mark.long
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("state", ["fresh", "update", "resume"])
@pytest.mark.parametrize("kind", ["folder", "split"])
def test_killed_at_any_call(
    checkout: Path,
    ground: Path,
    owner: Account,
    kind: str,
    state: str,
    call: str,
) -> None:
    """Kill a run at its first, second, … call of a kind until it gets through."""
    if subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs strace, and the right to trace")
    tests = checkout / "tests"
    old, new = (embedding("0"), embedding("1")) if kind == "folder" else (split(0), split(1))
    folder = UNIT if kind == "folder" else "chat/7b"
    environment = {**os.environ, "PYTHONPATH": str(tests), "PYTHONDONTWRITEBYTECODE": "1"}
    for number in range(1, MOST):
        store, sources = ground / f"store{number}", ground / f"sources{number}"
        converge(Tree(str(store), owner, owner.gid, 0o755, None))
        sources.mkdir(mode=0o755)
        host = Host(store, sources)
        if state == "update":
            host.publish(old, folder)
        model = host.model(new, folder)
        if state == "resume":
            last = sources / str(model.files[-1].sha256)
            content = last.read_bytes()
            last.unlink()
            with pytest.raises(FetchError):
                host.run(model)
            last.write_bytes(content)
        inject = ["-f", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}", "-o", os.devnull]
        paths = [str(checkout / "python"), str(tests), str(store), str(sources), kind]
        status = subprocess.run(
            ["strace", *inject, sys.executable, "-c", KILLED, *paths], env=environment, capture_output=True, check=False
        ).returncode
        found = host.content(folder)
        if kind == "folder":
            assert found == new or found == (old if state == "update" else {})
        else:
            whole = (new, old) if state == "update" else (new,)
            assert found in whole or ENTRY not in found, "nobody finds a mixture"
        read_manifest(str(store))
        host.publish(new, folder)
        assert host.content(folder) == new and host.is_kept(new, folder) and host.in_flight == []
        if status == 0:
            return
    pytest.fail("it was always killed")
