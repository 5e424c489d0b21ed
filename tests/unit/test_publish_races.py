"""Publishing while somebody swaps the store's folders for symlinks all the time: nothing is written elsewhere."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from modelfleet.core.planning.document import HostPlan
from modelfleet.core.privilege import Account
from support.carried import carried_out
from support.fault_server import fault_server
from support.grounds import account_folder, needs_root
from support.settled import soon_settled
from support.units import UNIT, Host, embedding, split

pytestmark = [pytest.mark.usefixtures("soon_settled"), needs_root]
__all__ = ["soon_settled"]

Planted = Callable[[str, Path, Account], Callable[[], None]]
# Whoever it takes by surprise shall find a folder, a symlink, or nothing.
PLANTER = """
use strict; chdir $ARGV[0] or die; my ($folder, $treasure) = @ARGV[1, 2]; my $number = 0;
while (1) {
    my $hidden = "$folder.hidden$number";
    rename $folder, $hidden; select undef, undef, undef, 0.0003;
    symlink $treasure, $folder; select undef, undef, undef, 0.0003;
    unlink $folder; rename $hidden, $folder or $number++; select undef, undef, undef, 0.002;
}"""


@pytest.fixture
def planted(store: Path) -> Iterator[Planted]:
    """Return a function that lets an account swap a folder of the store for a symlink to elsewhere; it returns one that
    ends that."""
    perl = shutil.which("perl")
    if perl is None:
        pytest.skip("the planter is written in Perl, and there is none here")
    planters: list[subprocess.Popen[bytes]] = []

    def plant(folder: str, treasure: Path, account: Account) -> Callable[[], None]:
        line = [perl, "-e", PLANTER, str(store), folder, str(treasure)]
        planter = subprocess.Popen(line, user=account.uid, group=account.gid)
        planters.append(planter)

        def end() -> None:
            assert planter.poll() is None, "the planter did not plant"
            planter.send_signal(signal.SIGKILL)
            planter.wait()
            path = store / folder
            if path.is_symlink():
                path.unlink()
            for hidden in sorted(path.parent.glob(f"{path.name}.hidden*"), key=lambda one: -one.stat().st_ctime_ns):
                if path.exists():
                    shutil.rmtree(hidden)
                else:
                    hidden.rename(path)

        return end

    yield plant
    for planter in planters:
        planter.kill()
        planter.wait()


def seen(folder: Path) -> list[tuple[str, int, int, int, int]]:
    """Return all that is to be known about a folder and what is below it."""
    statuses = [(str(path), path.lstat()) for path in [folder, *sorted(folder.rglob("*"))]]
    return [(name, one.st_mode, one.st_uid, one.st_gid, one.st_ctime_ns) for name, one in statuses]


FOLDERS = ("chat", "chat/7b", "embeddings", UNIT, "cache", "cache/temp", ".modelfleet")
FEW = (("chat/7b", "owner"), (UNIT, "root"), ("cache/temp", "root"))


@pytest.mark.parametrize(
    ("folder", "who"),
    [
        pytest.param(folder, who, marks=() if (folder, who) in FEW else pytest.mark.long)
        for folder in FOLDERS
        for who in ("root", "owner")
    ],
)
def test_a_racing_planter(
    store: Path,
    ground: Path,
    owner: Account,
    planted: Planted,
    checkout: Path,
    request: pytest.FixtureRequest,
    folder: str,
    who: str,
) -> None:
    """The symlinks lead to a folder of root's, and of what is written with descriptors to one of the owner's, too."""
    flight = folder.startswith(("cache", "."))
    treasure = ground / "treasure"
    if flight:
        treasure.mkdir(mode=0o755)
    else:
        account_folder(treasure, owner)
    for name in ("7b", "small", "temp", "manifest.json"):
        (treasure / name).mkdir()
        if not flight:
            os.chown(treasure / name, owner.uid, owner.gid)
    before = seen(treasure)
    with fault_server(b"") as server:
        host = Host(store, server)
        host.publish(embedding("0"))
        end = planted(folder, treasure, owner)
        statuses: list[int] = []
        note = 1
        least = 40 if request.config.getoption("--long") else 2
        while len(statuses) < least or 1 not in statuses:
            assert len(statuses) < 300, "it never met the planter"
            # What a run published and could not record any more is adopted by one that wishes the same.
            note += statuses[-1:] == [0]
            models = (host.model(embedding(str(note))), host.model(split(note), "chat/7b"))
            plan = HostPlan(str(store), models)
            status, told, _ = carried_out(checkout, plan, account=owner if who == "owner" else None)
            assert status == 0 or (status == 1 and len(told.splitlines()) == 1), told
            statuses.append(status)
        end()
        assert seen(treasure) == before
        host.run(*models)
        assert host.content() == embedding(str(note)) and seen(treasure) == before
