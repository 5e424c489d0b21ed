"""What an earlier run left: how far it is trusted, and that no end of a run leaves anything false."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.errors import FetchError, UnsafePathError
from modelfleet.core.fetch.part import MARK_BYTES
from modelfleet.core.fetch.settings import FetchSettings, Patience
from modelfleet.core.fetch.transfer import KEEP_PARTS_SECONDS, PREFIX, bytes_held, fetch, part_key, sweep
from modelfleet.core.jobs import Progress, describe_os_error
from modelfleet.core.pins import PinnedFile
from modelfleet.core.privilege import Account, acting_as
from support.fault_server import Act, FaultServer, fault_server
from support.grounds import needs_root

MIB = 1024 * 1024
CONTENT = random.Random(6).randbytes(13 * MIB + 77)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ONCE = FetchSettings(patience=Patience(stall_seconds=20.0, tries=1, first_wait_seconds=0.001))


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "temp"
    folder.mkdir()
    return folder


def pin(server: FaultServer) -> PinnedFile:
    return PinnedFile("chat/7b/file.gguf", server.url("/file.gguf?signature=SIGNED"), len(CONTENT), SHA256, None)


def part(folder: Path) -> Path:
    return folder / f"{SHA256}.part"


def journal(folder: Path) -> Path:
    return folder / f"{SHA256}.part.journal"


def interrupted(server: FaultServer, folder: Path, cut: int) -> None:
    """Let a run end after ``cut`` bytes."""
    server.acts[:] = [Act(cut=cut)]
    with pytest.raises(FetchError):
        fetch(pin(server), str(folder), ONCE, Progress())
    server.requests.clear()
    server.sent = 0


def resumed(server: FaultServer, folder: Path, offset: int | None) -> None:
    """Let the next run succeed; it must have gone on at ``offset``."""
    path = Path(fetch(pin(server), str(folder), ONCE, Progress()))
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None if offset is None else f"bytes={offset}-"]
    assert os.listdir(folder) == [path.name]


class TestJournal:
    @pytest.mark.parametrize("cut", [0, 1, MARK_BYTES - 1, MARK_BYTES, 11 * MIB, len(CONTENT) - 1])
    def test_the_next_run_goes_on(self, temporary: Path, cut: int) -> None:
        with fault_server(CONTENT) as server:
            interrupted(server, temporary, cut)
            assert not cut or part(temporary).stat().st_size == cut
            marked = cut // MARK_BYTES * MARK_BYTES
            resumed(server, temporary, marked or None)
            assert cut - marked <= 8 * MIB and server.sent == len(CONTENT) - marked
            assert server.requests[0][1].get("If-Range") == ('"one"' if marked else None)

    def test_several_runs(self, temporary: Path) -> None:
        with fault_server(CONTENT) as server:
            for cut in (5 * MIB, 3 * MIB, 5 * MIB):
                interrupted(server, temporary, cut)
            resumed(server, temporary, 8 * MIB)

    def test_its_form(self, temporary: Path) -> None:
        with fault_server(CONTENT) as server:
            interrupted(server, temporary, 9 * MIB)
        lines = [json.loads(line) for line in journal(temporary).read_text().splitlines()]
        assert lines[0] == {"schema_version": 1, "key": SHA256, "size": len(CONTENT)}
        assert lines[1]["validator"] == '"one"' and set(lines[1]) == {"server", "validator"}
        assert lines[2:] == [[end, hashlib.sha256(CONTENT[:end]).hexdigest()] for end in (4 * MIB, 8 * MIB)]
        text = journal(temporary).read_text()
        assert "SIGNED" not in text and "127.0.0.1" not in text, "no address: it may be signed"

    @pytest.mark.parametrize("mask", [0, 0o077, 0o022])
    def test_modes_whatever_the_umask(self, temporary: Path, mask: int) -> None:
        before = os.umask(mask)
        try:
            with fault_server(CONTENT) as server:
                interrupted(server, temporary, 5 * MIB)
                modes = [stat.S_IMODE(path.stat().st_mode) for path in temporary.iterdir()]
                assert modes == [0o600, 0o600]
                path = fetch(pin(server), str(temporary), ONCE, Progress())
                assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        finally:
            os.umask(before)

    @pytest.mark.parametrize(("flip", "offset"), [(0, None), (4 * MIB, 4 * MIB), (9 * MIB, 8 * MIB)])
    def test_bytes_that_changed_meanwhile(self, temporary: Path, flip: int, offset: int | None) -> None:
        """Bit rot, or blocks that a crash did not let reach the disk."""
        with fault_server(CONTENT) as server:
            interrupted(server, temporary, 12 * MIB)
            with part(temporary).open("r+b") as target:
                target.seek(flip)
                target.write(bytes(100_000))
            resumed(server, temporary, offset)

    @pytest.mark.parametrize(("length", "offset"), [(0, None), (MIB, None), (5 * MIB, 4 * MIB), (20 * MIB, 12 * MIB)])
    def test_a_part_of_another_length(self, temporary: Path, length: int, offset: int | None) -> None:
        with fault_server(CONTENT) as server:
            interrupted(server, temporary, 12 * MIB)
            os.truncate(part(temporary), length)
            resumed(server, temporary, offset)

    def test_without_its_part_or_its_journal(self, temporary: Path) -> None:
        for path in (part, journal):
            with fault_server(CONTENT) as server:
                interrupted(server, temporary, 12 * MIB)
                path(temporary).unlink()
                resumed(server, temporary, None)
                (temporary / f"{PREFIX}{SHA256}").unlink()

    @pytest.mark.parametrize(
        ("change", "offset"),
        [
            (lambda text: "", None),
            (lambda text: "\0" * 5000, None),
            (lambda text: text.replace(SHA256, "0" * 64), None),
            (lambda text: text.replace(str(len(CONTENT)), "5"), None),
            (lambda text: text.replace('"schema_version": 1', '"schema_version": 2'), None),
            (lambda text: text[:-1], 8 * MIB),
            (lambda text: text[:-30], 8 * MIB),
            (lambda text: text + "[16777216", 12 * MIB),
            (lambda text: text + "é\n", None),
            (lambda text: text + "[]\n[[]]\nnull\n", 12 * MIB),
            (lambda text: text + f'[{2**80}, "x"]\n', 12 * MIB),
            (lambda text: text + '[Infinity, "x"]\n', 12 * MIB),
            (lambda text: text + '[-5, "x"]\n', 12 * MIB),
            (lambda text: text + "[" * 100_000 + "\n", 12 * MIB),
            (lambda text: text + f'[13631488, "{"0" * 64}"]\n', 12 * MIB),
            (lambda text: text + '{"server": "x"}\n', 12 * MIB),
        ],
    )
    def test_a_journal_that_is_not_what_it_should_be(
        self, temporary: Path, change: Callable[[str], str], offset: int | None
    ) -> None:
        with fault_server(CONTENT) as server:
            interrupted(server, temporary, 13 * MIB)
            journal(temporary).write_text(change(journal(temporary).read_text()), encoding="utf-8")
            if offset is not None:
                interrupted(server, temporary, 1)
                assert len(journal(temporary).read_text().splitlines()) == 2 + offset // MARK_BYTES, "it is whole again"
            resumed(server, temporary, offset)

    def test_a_journal_that_vouches_for_other_bytes(self, temporary: Path) -> None:
        """The part and its journal agree, and both are wrong: the file's own hash has the last word."""
        with fault_server(bytes(len(CONTENT))) as wrong:
            interrupted(wrong, temporary, 12 * MIB)
        with fault_server(CONTENT) as server:
            settings = FetchSettings(patience=Patience(tries=3, first_wait_seconds=0.001))
            path = fetch(pin(server), str(temporary), settings, Progress())
            assert Path(path).read_bytes() == CONTENT
            assert server.ranges == [f"bytes={12 * MIB}-", None]

    def test_a_changed_etag_in_the_next_run(self, temporary: Path) -> None:
        with fault_server(CONTENT) as server:
            interrupted(server, temporary, 12 * MIB)
            server.acts[:] = [Act(etag='"two"')]
            assert Path(fetch(pin(server), str(temporary), ONCE, Progress())).read_bytes() == CONTENT
            assert server.sent == len(CONTENT)

    def test_progress_tells_of_the_reading(self, temporary: Path) -> None:
        told: list[tuple[Any, ...]] = []

        class Recorder(Progress):
            def update(self, *arguments: Any) -> None:
                told.append(arguments)

        with fault_server(CONTENT) as server:
            interrupted(server, temporary, 9 * MIB)
            fetch(pin(server), str(temporary), ONCE, Recorder())
        assert told[0][0] == "reading again what is there of file.gguf" and told[0][2:] == (MIB, len(CONTENT), "bytes")
        assert told[8][0] == "fetching file.gguf" and told[8][2] > 8 * MIB and told[-1][2] == len(CONTENT)


class TestWhole:
    def test_what_is_there_is_not_fetched(self, temporary: Path) -> None:
        with fault_server(CONTENT) as server:
            (temporary / f"{PREFIX}{SHA256}").write_bytes(CONTENT)
            fetch(pin(server), str(temporary), ONCE, Progress())
            assert server.requests == []

    def test_unless_it_is_wrong(self, temporary: Path) -> None:
        with fault_server(CONTENT) as server:
            (temporary / f"{PREFIX}{SHA256}").write_bytes(bytes(len(CONTENT)))
            resumed(server, temporary, None)


class TestPlanted:
    @pytest.mark.parametrize("name", [part, journal], ids=["part", "journal"])
    @pytest.mark.parametrize("kind", ["symlink", "hard link", "pipe", "folder"])
    def test_nothing_is_written_through_it(
        self, temporary: Path, tmp_path: Path, name: Callable[[Path], Path], kind: str
    ) -> None:
        treasure = tmp_path / "treasure"
        treasure.write_text("mine")
        path = name(temporary)
        if kind == "symlink":
            path.symlink_to(treasure)
        elif kind == "hard link":
            path.hardlink_to(treasure)
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.mkdir()
        with fault_server(CONTENT) as server, pytest.raises((OSError, UnsafePathError)):
            fetch(pin(server), str(temporary), ONCE, Progress())
        assert treasure.read_text() == "mine"


CHILD = """
    import sys
    from modelfleet.core.fetch.settings import FetchSettings
    from modelfleet.core.fetch.transfer import fetch
    from modelfleet.core.jobs import Progress
    from modelfleet.core.pins import PinnedFile
    from modelfleet.core.fetch import download
    download.SYNC_BYTES = 2 * 1024 * 1024
    url, size, sha256, folder = sys.argv[1:]
    fetch(PinnedFile("chat/7b/file.gguf", url, int(size), sha256, None), folder, FetchSettings(), Progress())
"""


def command(checkout: Path, server: FaultServer, folder: Path) -> tuple[list[str], dict[str, str]]:
    arguments = [pin(server).source, str(len(CONTENT)), SHA256, str(folder)]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(checkout / "python")}
    return [sys.executable, "-B", "-c", textwrap.dedent(CHILD), *arguments], environment


class TestKilled:
    @pytest.mark.parametrize("reached", [1, 4 * MIB + 1, 10 * MIB])
    def test_while_bytes_arrive(self, checkout: Path, temporary: Path, reached: int) -> None:
        with fault_server(CONTENT, Act(drip=(256 * 1024, 0.01))) as server:
            line, environment = command(checkout, server, temporary)
            with subprocess.Popen(line, env=environment) as child:
                deadline = time.monotonic() + 300
                while not part(temporary).exists() or part(temporary).stat().st_size < reached:
                    assert child.poll() is None and time.monotonic() < deadline
                    time.sleep(0.002)
                child.send_signal(signal.SIGKILL)
            had = part(temporary).stat().st_size
            server.requests.clear()
            assert Path(fetch(pin(server), str(temporary), ONCE, Progress())).read_bytes() == CONTENT
            began = int((server.ranges[0] or "bytes=0-")[len("bytes=") : -1])
            assert had - began <= 8 * MIB, "at most so much is fetched twice"
            assert len(os.listdir(temporary)) == 1

    @pytest.mark.parametrize(
        ("call", "number"),
        [
            *[(call, number) for call in ("pwrite64", "write", "ftruncate", "fdatasync") for number in (1, 2)],
            *[("pwrite64", 3), ("fallocate", 1), ("fsync", 1), ("rename", 1), ("unlink", 1)],
        ],
    )
    def test_at_a_call_of_the_system(self, checkout: Path, temporary: Path, call: str, number: int) -> None:
        """SIGKILL when the call is made, in a run that goes on with a part; the next one converges."""
        with fault_server(CONTENT) as server:
            interrupted(server, temporary, 5 * MIB)
            done = injected(checkout, server, temporary, f"{call}:signal=KILL:when={number}")
            assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
            whole = temporary / f"{PREFIX}{SHA256}"
            assert whole.exists() == (call == "unlink")
            assert not whole.exists() or whole.read_bytes() == CONTENT, "half a file never has its name"
            path = fetch(pin(server), str(temporary), ONCE, Progress())
            assert Path(path).read_bytes() == CONTENT and os.listdir(temporary) == [whole.name]

    @pytest.mark.parametrize(
        ("call", "error"),
        [("pwrite64", "EIO"), ("pwrite64", "EDQUOT"), ("fsync", "EIO"), ("fdatasync", "EIO"), ("rename", "EROFS")],
    )
    def test_a_disk_that_fails(self, checkout: Path, temporary: Path, call: str, error: str) -> None:
        with fault_server(CONTENT) as server:
            interrupted(server, temporary, 5 * MIB)
            done = injected(checkout, server, temporary, f"{call}:error={error}:when=1")
            assert done.returncode == 1 and f"OSError: [Errno {getattr(errno, error)}]" in done.stderr, done.stderr
            assert not (temporary / f"{PREFIX}{SHA256}").exists()
            server.requests.clear()
            # What was read again after a failed sync may be memory that the disk will never have.
            resumed(server, temporary, None if "sync" in call else 12 * MIB if call == "rename" else 4 * MIB)


def injected(checkout: Path, server: FaultServer, folder: Path, what: str) -> subprocess.CompletedProcess[str]:
    """Fetch in a child whose calls on part and journal fail as ``what`` says."""
    probe = ["strace", "-qq", "-o", os.devnull, "-e", "inject=sync:error=EIO", "true"]
    if shutil.which("strace") is None or subprocess.run(probe, capture_output=True).returncode != 0:
        pytest.skip("needs the program strace, and to be allowed to trace")
    line, environment = command(checkout, server, folder)
    paths = [option for path in (part(folder), journal(folder)) for option in ("-P", str(path))]
    strace = ["strace", "-f", "-qq", "-o", os.devnull, *paths, "-e", f"inject={what}"]
    return subprocess.run([*strace, *line], env=environment, capture_output=True, text=True, timeout=300)


def test_an_interrupted_run_can_be_gone_on_with(temporary: Path) -> None:
    class Impatient(Progress):
        done = 0

        def update(self, step: str, item: Any = None, done: Any = 0, *_: Any) -> None:
            self.done = done
            if done > 5 * MIB:
                raise KeyboardInterrupt

    impatient = Impatient()
    with fault_server(CONTENT) as server:
        with pytest.raises(KeyboardInterrupt):
            fetch(pin(server), str(temporary), ONCE, impatient)
        server.requests.clear()
        resumed(server, temporary, impatient.done // MARK_BYTES * MARK_BYTES)


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a file system of 10 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounts a small file system: run it as root")
    folder = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("this machine lets us mount nothing")
    yield folder
    subprocess.run(["umount", folder], check=True)


class TestFullDisk:
    def test_it_is_told_and_nothing_is_taken(self, small_disk: Path) -> None:
        with fault_server(CONTENT) as server, pytest.raises(OSError, match="No space left on device") as caught:
            fetch(pin(server), str(small_disk), ONCE, Progress())
        assert caught.value.errno == errno.ENOSPC
        told = describe_os_error(caught.value)
        assert told.startswith(f"{small_disk}/{SHA256}.part: ") and told.endswith(
            "; free some space, or set another path"
        )
        # What came before may stay, to be gone on with; the space that was reserved for the rest does not.
        held = sum(path.stat().st_blocks * 512 for path in small_disk.iterdir())
        assert held <= part(small_disk).stat().st_size + MIB if part(small_disk).exists() else held == 0
        sweep(str(small_disk), set())
        for path in small_disk.iterdir():
            path.unlink()

    def test_a_part_is_not_lost(self, small_disk: Path, temporary: Path) -> None:
        with fault_server(CONTENT) as server:
            interrupted(server, temporary, 9 * MIB)
            for path in temporary.iterdir():
                shutil.copy(path, small_disk)
            with pytest.raises(OSError, match="No space left on device"):
                fetch(pin(server), str(small_disk), ONCE, Progress())
            assert part(small_disk).stat().st_size >= 8 * MIB
            for path in small_disk.iterdir():
                shutil.copy(path, temporary)
                path.unlink()
            server.requests.clear()
            resumed(server, temporary, 8 * MIB)


class TestSweep:
    def test_what_is_wanted_stays(self, temporary: Path) -> None:
        other = "f" * 64
        names = [f"{key}{suffix}" for key in (SHA256, other) for suffix in (".part", ".part.journal")]
        names += [f"{PREFIX}{SHA256}", f"{PREFIX}{other}", f"{PREFIX}{other}.whl", "mine.part", "mine"]
        for name in names:
            (temporary / name).touch()
        (temporary / f"{PREFIX}folder").mkdir()
        old = time.time() - KEEP_PARTS_SECONDS - 1
        for name in (f"{SHA256}.part", f"{other}.part"):
            os.utime(temporary / name, (old, old))
        sweep(str(temporary), {SHA256})
        left = {f"{SHA256}.part", f"{SHA256}.part.journal", f"{PREFIX}{SHA256}", "mine.part", "mine", f"{PREFIX}folder"}
        assert set(os.listdir(temporary)) == left | {f"{other}.part.journal"}

    def test_a_link_in_the_place_of_a_part_goes(self, temporary: Path, tmp_path: Path) -> None:
        (tmp_path / "treasure").write_text("mine")
        (temporary / f"{PREFIX}{SHA256}").symlink_to(tmp_path / "treasure")
        sweep(str(temporary), {SHA256})
        assert os.listdir(temporary) == [] and (tmp_path / "treasure").read_text() == "mine"

    def test_the_space_that_a_part_has_is_told(self, temporary: Path) -> None:
        with fault_server(CONTENT) as server:
            assert bytes_held(str(temporary), pin(server)) == 0
            interrupted(server, temporary, 9 * MIB)
            assert 9 * MIB <= bytes_held(str(temporary), pin(server)) <= 10 * MIB
            assert part_key(pin(server)) == SHA256


@needs_root
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_all_threads_act_as_the_owner(ground: Path, owner: Account) -> None:
    """On Linux every thread has credentials of its own: none may be root's while the owner's files are written."""
    seen: set[str] = set()

    class Looking(Progress):
        def update(self, *_: Any) -> None:
            for task in Path("/proc/self/task").iterdir():
                try:
                    lines = (task / "status").read_text().splitlines()
                except (FileNotFoundError, ProcessLookupError):
                    continue  # it ended meanwhile: the server's do
                fields = dict(line.split(":", 1) for line in lines if ":" in line)
                seen.add(f"{fields['Name'].strip()} {fields['Uid'].split()[1]} {fields['Gid'].split()[1]}")

    folder = ground / "temp"
    folder.mkdir()
    os.chown(folder, owner.uid, owner.gid)
    folder.chmod(0o700)
    with fault_server(CONTENT) as server:
        with acting_as(owner):
            path = Path(fetch(pin(server), str(folder), ONCE, Looking()))
        assert {tuple(line.split()[-2:]) for line in seen} == {(str(owner.uid), str(owner.gid))}
        assert (path.stat().st_uid, path.stat().st_gid) == (owner.uid, owner.gid)


def test_only_the_main_thread_opens_files(checkout: Path, temporary: Path) -> None:
    script = """
        import sys, threading
        opened = set()
        def hook(event, arguments):
            if event in ("open", "os.rename", "os.remove", "os.truncate", "import"):
                opened.add(threading.current_thread() is threading.main_thread())
        sys.addaudithook(hook)
    """
    with fault_server(CONTENT, Act(cut=9 * MIB)) as server:
        line, environment = command(checkout, server, temporary)
        line[3] = textwrap.dedent(script) + line[3] + "\nassert opened == {True}, opened\n"
        done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
