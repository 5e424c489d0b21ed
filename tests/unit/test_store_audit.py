"""The audit: each fault of a real file found, nothing else, whatever others do meanwhile."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import mmap
import os
import shutil
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
from modelfleet.core.planning.document import HostPlan
from modelfleet.core.privilege import Account
from modelfleet.core.store import hashing
from modelfleet.core.store.audit import Audit, audit
from modelfleet.core.store.manifest import MANIFEST, locked, read_manifest, write_manifest
from support.audited import CONTENTS, NAME, OTHER, UNIT, conceal, flip, look, plan, told, wished
from support.grounds import needs_root
from support.models import gguf
from support.settled import soon_settled

__all__ = ["look", "plan", "soon_settled"]
pytestmark = pytest.mark.usefixtures("soon_settled")


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

    def test_the_stores_own_folders(self, look: Callable[..., Audit], store: Path) -> None:
        """Most of them tell what all of them should be, the store itself among them."""
        store.chmod(0o777)
        (store / "chat/13b").chmod(0o700)
        (store / "cache/temp").chmod(0o1777)
        done = look()
        assert told(done) == [("mode", "."), ("mode", "cache/temp"), ("mode", "chat/13b")]
        assert done.findings[1].detail == "has mode 1777, not 0755"

    @needs_root
    def test_another_group(self, look: Callable[..., Audit], store: Path, owner: Account, stranger: Account) -> None:
        changed = (NAME, "chat/13b", "embeddings/folder")
        for name in changed:
            os.chown(store / name, -1, stranger.gid)
        done = look()
        assert told(done) == sorted(("group", name) for name in changed)
        assert done.findings[0].detail == f"belongs to group {stranger.gid}, not to {owner.gid}"

    @needs_root
    def test_a_group_that_the_owner_is_not_in(self, look: Callable[..., Audit], store: Path, stranger: Account) -> None:
        """Nothing that he publishes can have it."""
        for path in (store, *store.rglob("*")):
            if path.is_dir():
                os.chown(path, -1, stranger.gid)
        assert told(look()) == []

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
                published.wait(120)
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
        assert held.wait(120)
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
        # Not all: the memory of a busy machine is taken back page by page.
        assert self.resident(file) > 0.9
        self.hash(ground)
        # Not all: the memory of a busy machine is taken back page by page.
        assert self.resident(file) > 0.9
