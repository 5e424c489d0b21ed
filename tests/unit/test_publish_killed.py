"""SIGKILL at each change of the file system: a reader finds the old model or the new one, and one run converges."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from modelfleet.core.errors import FetchError
from modelfleet.core.privilege import Account
from modelfleet.core.store import manifest
from modelfleet.core.store.manifest import read_manifest
from modelfleet.core.store.tree import Tree, converge
from test_publish_units import UNIT, Host, embedding, split

pytestmark = pytest.mark.long

KILLED = """
import sys
sys.path[:0] = sys.argv[1:3]
from test_publish_units import *
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


@pytest.fixture(autouse=True)
def soon_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system of today stamps finely enough: wait less for a stat to prove something."""
    monkeypatch.setattr(manifest, "RACY_NS", 30_000_000)


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
        paths = [str(checkout / "python"), str(tests / "unit"), str(store), str(sources), kind]
        status = subprocess.run(
            ["strace", *inject, sys.executable, "-c", KILLED, *paths], env=environment, capture_output=True, check=False
        ).returncode
        found = host.content(folder)
        if kind == "folder":
            assert found == new or found == (old if state == "update" else {})
        else:
            whole = (new, old) if state == "update" else (new,)
            assert found in whole or "big-00001-of-00003.gguf" not in found, "nobody finds a mixture"
        read_manifest(str(store))
        host.publish(new, folder)
        assert host.content(folder) == new and host.is_kept(new, folder) and host.in_flight == []
        if status == 0:
            return
    pytest.fail("it was always killed")
