"""The store's memory of what it holds, and its lock."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from modelfleet.core.errors import ModelfleetError
from modelfleet.core.store.manifest import (
    LOCK,
    MANIFEST,
    RACY_NS,
    FileRecord,
    Manifest,
    clock_ns,
    locked,
    now,
    read_manifest,
    settle,
    write_json,
    write_manifest,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / ".modelfleet").mkdir()
    return tmp_path


def record_of(path: Path) -> FileRecord:
    status = path.lstat()
    return FileRecord(
        "model",
        status.st_size,
        "0" * 64,
        status.st_dev,
        status.st_ino,
        status.st_mtime_ns,
        status.st_ctime_ns,
        "file:///x",
        None,
        now(),
        status.st_ctime_ns + RACY_NS + 1,
    )


class TestRecord:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        file = tmp_path / "model.gguf"
        file.write_bytes(b"GGUF")
        return file

    def test_an_untouched_file_matches(self, file: Path) -> None:
        record = record_of(file)
        file.read_bytes()
        assert record.matches(file.lstat())

    @pytest.mark.parametrize("what", ["same bytes", "other bytes", "appended", "replaced", "mode", "link"])
    def test_any_change_is_noticed(self, file: Path, what: str) -> None:
        record = record_of(file)
        times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
        time.sleep(0.01)
        if what in ("same bytes", "other bytes"):
            with open(file, "r+b") as stream:
                stream.write(b"GGUF" if what == "same bytes" else b"FUGG")
        elif what == "appended":
            with open(file, "ab") as stream:
                stream.write(b"x")
        elif what == "replaced":
            other = file.with_name("other")
            other.write_bytes(b"GGUF")
            other.replace(file)
        elif what == "mode":
            file.chmod(0o600)
        else:
            file.with_name("hard-link").hardlink_to(file)
        # An intruder can set the time of the last change of the content, not that of the last change at all.
        os.utime(file, ns=times)
        assert not record.matches(file.lstat())

    def test_a_symlink_to_the_very_file_is_another_thing(self, file: Path) -> None:
        record = record_of(file)
        moved = file.rename(file.with_name("moved"))
        file.symlink_to(moved)
        assert not record.matches(file.lstat())

    def test_a_record_of_a_directory_never_matches(self, tmp_path: Path) -> None:
        assert not record_of(tmp_path).matches(tmp_path.lstat())

    @pytest.mark.parametrize(("older_by", "trusted"), [(0, False), (RACY_NS, False), (RACY_NS + 1, True)])
    def test_a_stat_proves_something_only_where_it_is_older_than_its_record(
        self, file: Path, older_by: int, trusted: bool
    ) -> None:
        record = record_of(file)
        record = record._replace(recorded_ns=record.ctime_ns + older_by)
        assert record.resembles(file.lstat())
        assert record.matches(file.lstat()) is trusted

    def test_an_edit_in_the_same_tick_of_a_coarse_clock_is_noticed(self, file: Path) -> None:
        before = record_of(file)
        file.write_bytes(b"FUGG")
        status = file.lstat()
        # What a clock that stamps in whole seconds leaves of it: nothing.
        coarse = before._replace(mtime_ns=status.st_mtime_ns, ctime_ns=status.st_ctime_ns)
        assert coarse._replace(recorded_ns=status.st_ctime_ns).resembles(status)
        assert not coarse._replace(recorded_ns=status.st_ctime_ns).matches(status)


class TestSettle:
    """When what was just published can be told by its stat."""

    @pytest.fixture
    def manifest(self, root: Path) -> Manifest:
        (root / "a").write_bytes(b"GGUF")
        known = record_of(root / "a")
        return {"a": known._replace(recorded_ns=known.ctime_ns)}

    @pytest.fixture
    def slept(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        slept: list[float] = []
        sleep = time.sleep

        def watch(seconds: float) -> None:
            slept.append(seconds)
            sleep(seconds)

        monkeypatch.setattr(time, "sleep", watch)
        return slept

    def test_it_waits_until_the_stat_is_old_enough(self, root: Path, manifest: Manifest, slept: list[float]) -> None:
        settle(str(root), manifest, ["a"])
        assert len(slept) == 1 and 1.5 < slept[0] < 2.1
        assert manifest["a"].matches((root / "a").lstat()) and read_manifest(str(root)) == manifest
        settle(str(root), manifest, ["a"])
        assert len(slept) == 1, "it is settled"

    def test_what_is_old_enough_needs_no_wait(self, root: Path, manifest: Manifest, slept: list[float]) -> None:
        manifest["a"] = manifest["a"]._replace(ctime_ns=manifest["a"].ctime_ns - RACY_NS - 1)
        settle(str(root), manifest, ["a"])
        assert slept == [] and not (root / MANIFEST).exists()

    @pytest.mark.parametrize("what", ["changed", "gone"])
    def test_what_changes_meanwhile_is_not_trusted(
        self, root: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        def change(_: float) -> None:
            if what == "gone":
                (root / "a").unlink()
            else:
                os.utime(root / "a")

        monkeypatch.setattr(time, "sleep", change)
        settle(str(root), manifest, ["a"])
        assert manifest["a"].recorded_ns == manifest["a"].ctime_ns

    def test_a_stamp_from_the_future_is_not_waited_for(
        self, root: Path, manifest: Manifest, slept: list[float]
    ) -> None:
        manifest["a"] = manifest["a"]._replace(ctime_ns=manifest["a"].ctime_ns + 3600 * 10**9, recorded_ns=0)
        settle(str(root), manifest, ["a"])
        assert slept == [RACY_NS / 1e9 + 0.02] and manifest["a"].recorded_ns == 0

    def test_the_time_is_that_of_the_file_system(self, root: Path) -> None:
        first = clock_ns(str(root))
        (root / "b").touch()
        assert 0 <= (root / "b").stat().st_ctime_ns - first < 10**9


def test_an_entry_of_the_first_schema_is_proved_anew(root: Path) -> None:
    (root / "a").touch()
    known = record_of(root / "a")
    write_manifest(str(root), {"a": known})
    document = json.loads((root / MANIFEST).read_text())
    del document["files"]["a"]["recorded_ns"]
    (root / MANIFEST).write_text(json.dumps(document))
    read = read_manifest(str(root))["a"]
    assert read.resembles((root / "a").lstat()) and not read.matches((root / "a").lstat())


def test_now_is_rfc_3339() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", now())


class TestManifest:
    def test_what_is_written_is_read(self, root: Path) -> None:
        (root / "a").touch()
        manifest = {"chat/7b/a": record_of(root / "a"), "é": record_of(root / "a")._replace(licence="mit")}
        write_manifest(str(root), manifest)
        assert read_manifest(str(root)) == manifest
        assert json.loads((root / MANIFEST).read_text())["schema_version"] == 1

    @pytest.mark.parametrize("where", ["", "no/such/store"])
    def test_none_yet(self, root: Path, where: str) -> None:
        assert read_manifest(str(root / where)) == {}

    def test_a_file_where_the_store_should_be(self, root: Path) -> None:
        (root / "file").touch()
        assert read_manifest(str(root / "file")) == {}

    @pytest.mark.parametrize(
        "content",
        [
            *(b"", b"{", b"[]", b"5", b'{"files": []}', b'{"files": {"a": {}}}', b'{"files": {"a": 5}}', b"\xff\xfe"),
            *(b'{"files": {"a": {"model": "x", "unknown": 1}}}', b'{"schema_version": 1}', b"\x00" * 4096),
        ],
    )
    def test_a_damaged_one(self, root: Path, content: bytes) -> None:
        (root / MANIFEST).write_bytes(content)
        with pytest.raises(ModelfleetError) as caught:
            read_manifest(str(root))
        assert str(caught.value) == (
            f"{root / MANIFEST} is damaged; move it away: the next run proves the files that are there by their hash"
        )

    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
    def test_everybody_may_read_it_and_only_the_owner_write(self, root: Path, umask: int) -> None:
        before = os.umask(umask)
        try:
            write_manifest(str(root), {})
        finally:
            os.umask(before)
        assert stat.S_IMODE((root / MANIFEST).stat().st_mode) == 0o644
        assert os.listdir(root / ".modelfleet") == ["manifest.json"]


class TestWriteJson:
    def test_the_old_file_stays_where_the_new_one_fails(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = root / "document.json"
        write_json(str(path), {"a": 1})
        with pytest.raises(TypeError):
            write_json(str(path), {"a": object()})

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_json(str(path), {"a": 2})
        assert json.loads(path.read_text()) == {"a": 1}
        assert sorted(os.listdir(root)) == [".modelfleet", "document.json"]

    def test_what_a_killed_run_left_is_no_obstacle(self, root: Path) -> None:
        path = root / "document.json"
        (root / f"document.json.{os.getpid()}").write_text("half")
        write_json(str(path), {"a": 1})
        assert json.loads(path.read_text()) == {"a": 1}
        assert sorted(os.listdir(root)) == [".modelfleet", "document.json"]

    def test_a_symlink_in_the_way_is_replaced_not_followed(self, root: Path) -> None:
        (root / "treasure").write_text("mine")
        for name in ("document.json", f"document.json.{os.getpid()}"):
            (root / name).symlink_to("treasure")
        write_json(str(root / "document.json"), {})
        assert (root / "treasure").read_text() == "mine" and not (root / "document.json").is_symlink()

    def test_a_reader_sees_the_old_or_the_new_one(self, root: Path) -> None:
        path = root / "document.json"
        write_json(str(path), {"number": 0, "padding": "x" * 100_000})
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for number in range(60):
                    write_json(str(path), {"number": number, "padding": "x" * 100_000})
                status = 0
            finally:
                os._exit(status)
        seen = set()
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            seen.add(json.loads(path.read_text())["number"])
        assert seen


class TestLock:
    HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from modelfleet.core.store.manifest import locked
with locked(sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""

    @pytest.fixture
    def holder(self, root: Path, checkout: Path) -> subprocess.Popen[str]:
        holder = subprocess.Popen(
            [sys.executable, "-c", self.HOLDER, str(checkout / "python"), str(root)], stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        return holder

    def test_one_at_a_time_and_a_holder_that_dies_lets_go(self, root: Path, holder: subprocess.Popen[str]) -> None:
        waited = []

        def kill() -> None:
            waited.append(True)
            holder.send_signal(signal.SIGKILL)

        with holder, locked(str(root), kill):
            assert waited == [True]

    def test_nobody_waits_for_himself(self, root: Path) -> None:
        for _ in range(2):
            with locked(str(root), lambda: pytest.fail("nobody holds it")):
                pass

    def test_it_is_let_go_after_an_error(self, root: Path) -> None:
        with pytest.raises(RuntimeError), locked(str(root)):
            raise RuntimeError
        with locked(str(root), lambda: pytest.fail("nobody holds it")):
            pass

    def test_a_program_that_is_started_meanwhile_does_not_hold_it(self, root: Path) -> None:
        with locked(str(root)):
            child = subprocess.Popen(["sleep", "60"], close_fds=False)
        try:
            with locked(str(root), lambda: pytest.fail("the child holds it")):
                pass
        finally:
            child.kill()
            child.wait()

    def test_a_symlink_is_not_followed(self, root: Path) -> None:
        (root / LOCK).symlink_to(root / "elsewhere")
        with pytest.raises(OSError, match="symbolic links"), locked(str(root)):
            pass
        assert not (root / "elsewhere").exists()

    def test_writers_do_not_lose_each_others_records(self, root: Path) -> None:
        (root / "file").touch()

        def add(number: int) -> None:
            with locked(str(root)):
                manifest = read_manifest(str(root))
                manifest[str(number)] = record_of(root / "file")
                write_manifest(str(root), manifest)

        children = []
        for number in range(10):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    add(number)
                    status = 0
                finally:
                    os._exit(status)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 10
        assert set(read_manifest(str(root))) == set(map(str, range(10)))
