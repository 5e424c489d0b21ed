"""SIGKILL (strace) at the calls by which a run fetches and publishes: readers find the old or the new model, the next
run converges."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz.seeds import safetensors, safetensors_entry
from modelfleet.core.errors import FetchError
from modelfleet.core.planning.document import HostPlan
from modelfleet.core.privilege import Account
from modelfleet.core.store.manifest import read_manifest
from modelfleet.core.store.tree import Tree, converge
from support.carried import carried_out, strace
from support.fault_server import Act, fault_server
from support.settled import soon_settled
from support.units import ENTRY, UNIT, Host, embedding, split

pytestmark = pytest.mark.usefixtures("soon_settled", "strace")
__all__ = ["soon_settled", "strace"]

CALLS = (
    *("write", "pwrite64", "fallocate", "ftruncate", "fsync", "fdatasync", "fchmod", "fchown", "mkdir", "mkdirat"),
    *("rmdir", "unlink", "unlinkat", "rename", "renameat", "renameat2", "utimensat"),
)
LARGE = "model.safetensors"
LARGE_BYTES = 5 * 1024 * 1024
# Every number beyond means that a run has no such call any more.
MOST = 150


def files_of(kind: str, note: int) -> dict[str, bytes]:
    """Return a model: a folder with a file that is more than one mark of the journal long, or a split one."""
    if kind == "split":
        return split(note)
    entry = safetensors_entry(0, LARGE_BYTES, [LARGE_BYTES // 4])
    return {**embedding(str(note)), LARGE: safetensors({f"a{note}": entry}, bytes(LARGE_BYTES))}


def killed_at(checkout: Path, base: Path, owner: Account, kind: str, state: str, call: str, number: int) -> bool:
    """Kill a run at its call number ``number``; returns whether it came so far."""
    store = base / f"{kind}-{state}-{call}-{number}"
    converge(Tree(str(store), owner, owner.gid, 0o755, None))
    old, new = files_of(kind, 0), files_of(kind, 1)
    folder = "chat/7b" if kind == "split" else UNIT
    with fault_server(b"") as server:
        host = Host(store, server)
        if state == "update":
            host.publish(old, folder)
        model = host.model(new, folder)
        if state == "resume":
            # The last file comes in part, or not at all.
            last = f"/{model.files[-1].sha256}"
            server.by_path[last] = [Act(cut=9 * LARGE_BYTES // 10) if kind == "folder" else Act(status=404)]
            with pytest.raises(FetchError):
                host.run(model)
            del server.by_path[last]
        status, said, _ = carried_out(checkout, HostPlan(str(store), (model,)), f"{call}:signal=KILL:when={number}")
        assert status in (0, -signal.SIGKILL), said
        found = host.content(folder)
        if kind == "folder":
            assert found == new or found == (old if state == "update" else {})
        else:
            whole = (new, old) if state == "update" else (new,)
            assert found in whole or ENTRY not in found, "nobody finds a mixture"
        read_manifest(str(store))
        host.publish(new, folder)
        assert host.content(folder) == new and host.is_kept(new, folder) and host.in_flight == []
    return status != 0


@pytest.mark.parametrize(
    ("state", "call", "number"),
    [
        *[("fresh", "pwrite64", 1), ("fresh", "fsync", 1), ("fresh", "rename", 1), ("fresh", "mkdir", 2)],
        *[("resume", "write", 2), ("resume", "ftruncate", 1), ("resume", "fsync", 2), ("resume", "fallocate", 1)],
        *[("update", "renameat2", 1), ("update", "unlink", 4), ("update", "fchmod", 3), ("update", "rename", 5)],
    ],
)
def test_killed_at_a_call(checkout: Path, ground: Path, owner: Account, state: str, call: str, number: int) -> None:
    assert killed_at(checkout, ground, owner, "folder", state, call, number), "it never came so far"


@pytest.mark.long
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("state", ["fresh", "update", "resume"])
@pytest.mark.parametrize("kind", ["folder", "split"])
def test_killed_at_any_call(
    checkout: Path,
    ground: Path,
    owner: Account,
    record_property: Callable[[str, object], None],
    kind: str,
    state: str,
    call: str,
) -> None:
    """Kill a run at its first, second, … call of a kind until it gets through."""
    for number in range(1, MOST):
        if not killed_at(checkout, ground, owner, kind, state, call, number):
            # With --junit-xml=FILE the points can be counted.
            record_property("points", number - 1)
            return
    pytest.fail("it was always killed")
