"""A repair: what is put right without fetching, what is left to be fetched, and that nothing sound is ever lost."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.errors import ModelfleetError
from modelfleet.core.fetch.package_index import PackageIndexSettings
from modelfleet.core.jobs import Progress
from modelfleet.core.pins import PinnedFile
from modelfleet.core.planning.document import HostPlan
from modelfleet.core.privilege import Account, acting_as
from modelfleet.core.publishing import carry_out
from modelfleet.core.store.audit import Audit, audit
from modelfleet.core.store.manifest import read_manifest, write_manifest
from modelfleet.core.store.repair import put_right
from support.audited import CONTENTS, NAME, OTHER, UNIT, conceal, flip, look, plan, told
from support.ended import killed_at
from support.grounds import needs_root
from support.settled import soon_settled

__all__ = ["look", "plan", "soon_settled"]
pytestmark = pytest.mark.usefixtures("soon_settled")

CALLS = ("unlink", "rename", "replace", "rmdir", "mkdir", "fsync", "open", "chmod", "fchmod", "utime")


class TestRepair:
    def publish(self, plan: HostPlan, done: Audit) -> list[str]:
        """Fetch what a repair left to be fetched, as the role does, and return what came."""
        broken = {one.path for one in done.findings if one.state == "to fetch"}
        models = [
            model._replace(action="replace") for model in plan.models if any(one.path in broken for one in model.files)
        ]
        outcome = carry_out(
            plan._replace(models=tuple(models)), PackageIndexSettings(("http://127.0.0.1:9/simple",)), Progress()
        )
        return outcome.published

    def states(self, done: Audit) -> dict[tuple[str, str], str]:
        return {(one.kind, one.path): one.state for one in done.findings}

    @pytest.mark.parametrize("name", [*CONTENTS])
    def test_rot_is_healed_by_fetching_that_file_alone(
        self, look: Callable[..., Audit], plan: HostPlan, store: Path, owner: Account, name: str
    ) -> None:
        flip(store / name, 1)
        conceal(store, owner, name)
        assert carry_out(plan, PackageIndexSettings(("http://127.0.0.1:9/simple",)), Progress()).published == [], (
            "a stat says so"
        )
        inodes = {other: (store / other).stat().st_ino for other in CONTENTS if other.split("/")[1] != "folder"}
        rotten = (store / name).read_bytes()
        done = look(repair=True)
        assert self.states(done) == {("changed", name): "to fetch"} and done.changed
        assert (store / name).read_bytes() == rotten, "it stays until the right bytes are there"
        assert self.publish(plan, done) == [name]
        assert (store / name).read_bytes() == CONTENTS[name]
        assert all((store / other).stat().st_ino == inode for other, inode in inodes.items() if other != name)
        assert look() == Audit((), 4, sum(map(len, CONTENTS.values())), ())

    def test_all_that_can_break_at_once(
        self, look: Callable[..., Audit], plan: HostPlan, store: Path, ground: Path
    ) -> None:
        (store / NAME).unlink()
        (store / NAME).symlink_to(ground / "sources")
        os.truncate(store / OTHER, 100)
        (store / UNIT[1]).unlink()
        os.mkfifo(store / UNIT[1])
        (store / UNIT[0]).unlink()
        done = look(repair=True)
        assert set(self.states(done).values()) == {"to fetch"} and not os.path.lexists(store / NAME)
        assert sorted(self.publish(plan, done)) == sorted(CONTENTS)
        assert look().findings == () and list((ground / "sources").iterdir())

    def test_modes_are_set_and_cost_no_hash_later(
        self, look: Callable[..., Audit], plan: HostPlan, store: Path
    ) -> None:
        (store / NAME).chmod(0o606)
        (store / OTHER).chmod(0)
        (store / "embeddings/folder/weights").chmod(0o700)
        done = look(repair=True)
        assert set(self.states(done).values()) == {"repaired"} and len(done.findings) == 4
        assert stat.S_IMODE((store / NAME).stat().st_mode) == 0o644
        assert look() == Audit((), 4, sum(map(len, CONTENTS.values())), ())
        manifest = read_manifest(str(store))
        assert all(record.matches((store / name).lstat()) for name, record in manifest.items())

    @needs_root
    def test_folders_of_the_store_and_groups(
        self, look: Callable[..., Audit], store: Path, owner: Account, stranger: Account
    ) -> None:
        for name in (NAME, "chat/7b", "embeddings/folder"):
            os.chown(store / name, -1, stranger.gid)
        for name in ("", "embeddings", "embeddings/folder"):
            (store / name).chmod(0o777)
        done = look(repair=True)
        assert set(self.states(done).values()) == {"repaired"} and len(done.findings) == 6
        for name in ("", "chat/7b", "embeddings", "embeddings/folder"):
            status = (store / name).stat()
            assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o755, owner.gid)
        assert look() == Audit((), 4, sum(map(len, CONTENTS.values())), ())

    def test_a_touched_file_is_trusted_again(self, look: Callable[..., Audit], store: Path) -> None:
        os.utime(store / NAME)
        done = look(repair=True)
        assert (done.findings, done.touched, done.changed) == ((), (NAME,), True)
        assert read_manifest(str(store))[NAME].matches((store / NAME).lstat())
        assert look(repair=True).changed is False

    @needs_root
    @pytest.mark.parametrize("name", [NAME, UNIT[1]])
    def test_another_owner_is_put_right_from_the_files_own_bytes(
        self, look: Callable[..., Audit], store: Path, owner: Account, stranger: Account, ground: Path, name: str
    ) -> None:
        os.chown(store / name, stranger.uid, -1)
        (store / name).chmod(0o664)
        shutil.rmtree(ground / "sources")
        with open(store / name, "rb") as reader:
            done = look(repair=True)
            assert self.states(done) == {("owner", name): "repaired", ("mode", name): "repaired"}
            assert os.fstat(reader.fileno()).st_uid == stranger.uid, "root gave nothing away"
        status = (store / name).stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (owner.uid, 0o644)
        assert look() == Audit((), 4, sum(map(len, CONTENTS.values())), ())
        assert list((store / "cache/temp").iterdir()) == []

    @needs_root
    def test_a_file_that_only_another_account_can_read_comes_anew(
        self, look: Callable[..., Audit], plan: HostPlan, store: Path, stranger: Account
    ) -> None:
        os.chown(store / NAME, stranger.uid, stranger.gid)
        (store / NAME).chmod(0o600)
        done = look(repair=True)
        assert set(self.states(done).values()) == {"to fetch"}
        assert self.publish(plan, done) == [NAME] and look().findings == ()

    def test_nothing_of_the_users_is_touched(
        self, look: Callable[..., Audit], plan: HostPlan, store: Path, owner: Account
    ) -> None:
        (store / NAME).unlink()
        (store / NAME).mkdir()
        (store / NAME / "mine").write_text("mine")
        (store / "embeddings/folder/.mine").write_text("mine")
        os.truncate(store / UNIT[1], 10)
        done = look(repair=True)
        assert set(self.states(done).values()) == {"found"} and done.changed is False
        assert (store / NAME / "mine").read_text() == (store / "embeddings/folder/.mine").read_text() == "mine"

    def test_what_no_wish_keeps_is_not_fetched(self, look: Callable[..., Audit], store: Path, owner: Account) -> None:
        flip(store / NAME)
        conceal(store, owner, NAME)
        done = look(repair=True, wishes={})
        assert self.states(done) == {("changed", NAME): "found"} and done.changed is False

    def test_by_hand_and_with_the_right_bytes_is_taken_in(
        self, look: Callable[..., Audit], plan: HostPlan, store: Path, owner: Account, ground: Path
    ) -> None:
        shutil.rmtree(store / "embeddings/folder")
        shutil.rmtree(ground / "sources")
        with acting_as(owner):
            write_manifest(str(store), {})
            for name in UNIT:
                (store / name).parent.mkdir(parents=True, exist_ok=True)
                (store / name).write_bytes(CONTENTS[name])
        done = look(repair=True)
        assert set(self.states(done)) == {("unrecorded", name) for name in CONTENTS}
        inodes = {name: (store / name).stat().st_ino for name in CONTENTS}
        assert sorted(self.publish(plan, done)) == sorted(CONTENTS), "without a source: nothing was fetched"
        assert {name: (store / name).stat().st_ino for name in CONTENTS} == inodes
        assert look().findings == () and read_manifest(str(store))[UNIT[1]].model == "folder"

    def test_what_of_a_folder_is_there_is_not_fetched(
        self, look: Callable[..., Audit], plan: HostPlan, store: Path, owner: Account, ground: Path
    ) -> None:
        shutil.rmtree(store / "embeddings/folder")
        (ground / "sources" / UNIT[1].replace("/", "_")).unlink()
        with acting_as(owner):
            (store / UNIT[1]).parent.mkdir(parents=True)
            (store / UNIT[1]).write_bytes(CONTENTS[UNIT[1]])
            (store / UNIT[1]).chmod(0o600)
            manifest = read_manifest(str(store))
            write_manifest(str(store), {name: manifest[name] for name in (NAME, OTHER)})
        done = look(repair=True)
        assert self.states(done) == {("missing", UNIT[0]): "to fetch", ("unrecorded", UNIT[1]): "to fetch"}
        assert sorted(self.publish(plan, done)) == sorted(UNIT), "the big one has no source any more"
        assert look() == Audit((), 4, sum(map(len, CONTENTS.values())), ())

    def test_the_mode_of_what_was_taken_in_is_put_right(
        self, look: Callable[..., Audit], plan: HostPlan, store: Path, owner: Account
    ) -> None:
        with acting_as(owner):
            (store / NAME).chmod(0o600)
            manifest = read_manifest(str(store))
            del manifest[NAME]
            write_manifest(str(store), manifest)
        assert carry_out(plan, PackageIndexSettings(("http://127.0.0.1:9/simple",)), Progress()).published == [NAME]
        assert told(look()) == [("mode", NAME)]
        assert self.states(look(repair=True)) == {("mode", NAME): "repaired"} and look().findings == ()

    @pytest.mark.parametrize("name", [NAME, UNIT[1]])
    def test_a_repair_whose_source_is_gone_loses_nothing(
        self, look: Callable[..., Audit], plan: HostPlan, store: Path, owner: Account, ground: Path, name: str
    ) -> None:
        flip(store / name, 1)
        conceal(store, owner, name)
        (ground / "sources" / name.replace("/", "_")).unlink()
        done = look(repair=True)
        with pytest.raises(ModelfleetError, match="cannot be read on the host"):
            self.publish(plan, done)
        assert told(look()) == [("changed", name)], "it is there, and found again"
        (ground / "sources" / name.replace("/", "_")).write_bytes(CONTENTS[name])
        assert self.publish(plan, look(repair=True)) == [name] and look().findings == ()

    def test_a_repair_that_is_killed_anywhere_is_completed_by_the_next(
        self, look: Callable[..., Audit], plan: HostPlan, store: Path, owner: Account, stranger: Account, ground: Path
    ) -> None:
        (store / NAME).chmod(0o666)
        flip(store / UNIT[1], 1)
        (store / UNIT[0]).unlink()
        os.mkfifo(store / UNIT[0])
        if os.geteuid() == 0:
            os.chown(store / OTHER, stranger.uid, -1)
        # Copies have other inodes than the manifest tells: all is touched, too.
        pristine = ground / "pristine"
        subprocess.run(["cp", "-a", str(store), str(pristine)], check=True)
        sound = (NAME, OTHER)
        wishes = {name: PinnedFile(name, "file:///x", 1, None, None) for name in CONTENTS}

        def repair(begin: Callable[[], None]) -> None:
            def then(*arguments: Any) -> Any:
                begin()
                return put_right(*arguments)

            audit(str(store), owner, wishes, Progress(), then)

        for step in range(1, 500):
            shutil.rmtree(store)
            subprocess.run(["cp", "-a", str(pristine), str(store)], check=True)
            killed = killed_at(step, CALLS, repair)
            assert all((store / name).read_bytes() == CONTENTS[name] for name in sound), "nothing sound is ever lost"
            assert (store / UNIT[1]).is_file() and set(read_manifest(str(store))) == set(CONTENTS)
            self.publish(plan, look(repair=True))
            assert look() == Audit((), 4, sum(map(len, CONTENTS.values())), ())
            assert list((store / "cache/temp").iterdir()) == []
            if not killed:
                break
        assert step > 20 and not killed
