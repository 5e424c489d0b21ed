"""Work in the background of a host: started at once, found again, ended with a result whatever happens."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core import jobs
from modelfleet.core.errors import ConfigurationError, ModelfleetError, UnsafePathError
from modelfleet.core.jobs import FileProgress, Progress, describe_os_error, start
from modelfleet.core.privilege import Account, acting_as
from support.grounds import account_folder, needs_root

Work = Callable[[Progress], dict[str, Any]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the jobs of tests out of those of this machine."""
    folder = tmp_path / "jobs"
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(jobs, "_jobs_folder", lambda: str(folder))
    return folder


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


def progress_of(job: dict[str, str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(job["progress"]).read_text().splitlines()]


def is_finished(job: dict[str, str]) -> bool:
    return any(line["state"] == "finished" for line in progress_of(job))


def result_of(job: dict[str, str]) -> dict[str, Any]:
    wait_until(lambda: is_finished(job))
    result: dict[str, Any] = json.loads(Path(job["result"]).read_text())
    return result


def wait_for_file(path: Path) -> Work:
    """Return work that goes on until there is a file at ``path``, then tells what it holds."""

    def work(_: Progress) -> dict[str, Any]:
        wait_until(path.exists)
        return {"said": path.read_text(), "pid": os.getpid()}

    return work


def test_it_returns_at_once_and_the_result_comes_later(tmp_path: Path) -> None:
    job = start("long", wait_for_file(tmp_path / "go"))
    assert not os.path.exists(job["result"])
    (tmp_path / "go").write_text("done")
    assert result_of(job)["said"] == "done"


def test_progress_says_where_the_work_is() -> None:
    def work(progress: Progress) -> dict[str, Any]:
        progress.update("fetching", "a.whl", 5, 10, "bytes")
        progress.update("fetching", "a.whl", 6, 10, "bytes")  # Too soon after the last to be written.
        progress.update("fetching", "a.whl", 10, 10, "bytes")
        progress.update("publishing")
        return {"pid": os.getpid()}

    job = start("work", work)
    result = result_of(job)
    lines = progress_of(job)
    assert [(line.get("step"), line.get("done")) for line in lines] == [
        ("starting", None),
        ("fetching", 5),
        ("fetching", 10),
        ("publishing", None),
        (None, None),
    ]
    assert lines[1] == {
        **lines[1],
        "state": "running",
        "item": "a.whl",
        "total": 10,
        "unit": "bytes",
        "pid": result["pid"],
    }
    assert all(isinstance(line["elapsed_seconds"], float) for line in lines)


def test_progress_is_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = FileProgress(str(tmp_path / "progress"))
    for number in range(100):
        progress.update("step", None, number, 1000, "steps")
        now[0] += 0.1
    os.close(progress.descriptor)
    assert 25 <= len((tmp_path / "progress").read_text().splitlines()) <= 35


def test_a_second_start_finds_the_running_work(tmp_path: Path) -> None:
    first = start("same", wait_for_file(tmp_path / "go"))

    def never(_: Progress) -> dict[str, Any]:
        (tmp_path / "twice").touch()
        return {}

    second = start("same", never)
    assert second == first
    other = start("other", lambda _: {"other": True})
    assert result_of(other) == {"other": True}
    (tmp_path / "go").write_text("done")
    assert result_of(second)["said"] == "done"
    assert not (tmp_path / "twice").exists()


def test_after_the_end_the_same_work_starts_anew() -> None:
    first = result_of(start("same", lambda _: {"pid": os.getpid()}))
    wait_until(lambda: not is_alive(first["pid"]))
    second = result_of(start("same", lambda _: {"pid": os.getpid()}))
    assert first["pid"] != second["pid"]


def test_the_result_is_there_for_everyone_who_follows(tmp_path: Path) -> None:
    job = start("same", wait_for_file(tmp_path / "go"))
    (tmp_path / "go").write_text("done")
    assert result_of(job) == result_of(job)


def test_many_starts_at_once_do_the_work_once(tmp_path: Path) -> None:
    def work(_: Progress) -> dict[str, Any]:
        with open(tmp_path / "count", "a") as count:
            count.write("x")
        wait_until((tmp_path / "go").exists)
        return {}

    children = []
    for _ in range(20):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                start("same", work)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 20
    (tmp_path / "go").touch()
    result_of(start("same", work))
    assert (tmp_path / "count").read_text() == "x"


def is_alive(process: int) -> bool:
    """Tell whether a process still does something; one that ended and that nobody has reaped does not."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConfigurationError("a is wrong", "write b"), "a is wrong; write b"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "/x: No space left on device; free some space, or"),
        (RuntimeError("two\nlines \t of it"), "unexpected RuntimeError: two lines of it"),
        (KeyboardInterrupt(), "unexpected KeyboardInterrupt:"),
        (SystemExit(3), "unexpected SystemExit: 3"),
    ],
)
def test_work_that_fails_gives_one_line(error: BaseException, message: str) -> None:
    def work(_: Progress) -> dict[str, Any]:
        raise error

    result = result_of(start("failing", work))
    assert result["failed"] is True
    assert result["msg"].startswith(message) and "\n" not in result["msg"]


def test_work_that_is_killed_leaves_no_result_and_lets_go(tmp_path: Path) -> None:
    job = start("killed", wait_for_file(tmp_path / "go"))
    wait_until(lambda: progress_of(job))
    os.kill(progress_of(job)[0]["pid"], signal.SIGKILL)
    wait_until(lambda: not is_alive(progress_of(job)[0]["pid"]))
    assert not is_finished(job) and not os.path.exists(job["result"])
    (tmp_path / "go").write_text("again")
    assert result_of(start("killed", wait_for_file(tmp_path / "go")))["said"] == "again"


def test_the_work_survives_whoever_started_it(tmp_path: Path, checkout: Path, folder: Path) -> None:
    program = """
import sys, time, os, signal
sys.path.insert(0, sys.argv[1])
from modelfleet.core import jobs
jobs._jobs_folder = lambda: sys.argv[2]
def work(progress):
    while not os.path.exists(sys.argv[3]):
        time.sleep(0.01)
    return {"session": os.getsid(0), "pid": os.getpid()}
jobs.start("survivor", work)
print("started", flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(checkout / "python"), str(folder), str(tmp_path / "go")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"started\n"
    os.killpg(parent.pid, signal.SIGKILL)
    # The work holds neither end of our pipes: their end comes though it goes on.
    assert parent.communicate(timeout=120) == (b"", b"")
    (tmp_path / "go").touch()
    path = str(folder / "survivor")
    result = result_of({"progress": f"{path}/progress", "result": f"{path}/result.json"})
    assert result["session"] != parent.pid


def test_descriptors_and_the_working_directory_are_let_go(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")

    def work(_: Progress) -> dict[str, Any]:
        opened = {}
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # The listing's own.
                opened[name] = os.readlink(f"/proc/self/fd/{name}")
        return {"opened": opened, "folder": os.getcwd()}

    extra = os.open(tmp_path, os.O_RDONLY)
    high = os.dup2(extra, 900)
    try:
        job = start("tidy", work)
    finally:
        os.close(extra)
        os.close(high)
    result = result_of(job)
    assert result["folder"] == "/"
    assert sorted(result["opened"].values()) == ["/dev/null"] * 3 + sorted([f"{job['folder']}/lock", job["progress"]])


def test_the_starter_keeps_no_descriptor() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("counts descriptors in /proc")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        start("same", lambda _: {})
    assert len(os.listdir("/proc/self/fd")) <= before


def test_everything_is_private_whatever_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        job = start("private", lambda _: {"secret": 1})
    finally:
        os.umask(umask)
    result_of(job)
    assert stat.S_IMODE(os.stat(job["folder"]).st_mode) == 0o700
    for name in os.listdir(job["folder"]):
        assert stat.S_IMODE(os.stat(os.path.join(job["folder"], name)).st_mode) == 0o600, name


def test_a_name_cannot_leave_the_folder(folder: Path) -> None:
    job = start("../../etc/x y", lambda _: {})
    result_of(job)
    assert os.path.dirname(job["folder"]) == str(folder) and "/" not in os.path.basename(job["folder"])


def test_a_host_without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    fork, calls = os.fork, [0]

    def second_fails() -> int:
        calls[0] += 1
        if calls[0] == 2:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", second_fails)
    with pytest.raises(ModelfleetError, match=r"^the host starts no more processes; look at its system log"):
        start("none", lambda _: {})


def test_old_jobs_are_forgotten_but_not_those_that_run(folder: Path, tmp_path: Path) -> None:
    running = start("running", wait_for_file(tmp_path / "go"))
    recent = start("recent", lambda _: {})
    old = start("old", lambda _: {})
    result_of(recent), result_of(old)
    wait_until(lambda: not is_alive(progress_of(old)[0]["pid"]))
    (folder / "not-a-folder").touch()
    for job in (running, old):
        os.utime(job["folder"], (0, 0))
    os.utime(folder / "not-a-folder", (0, 0))
    start("new", lambda _: {})
    assert not os.path.exists(old["folder"])
    assert os.path.exists(recent["result"]) and os.path.exists(running["progress"])
    (tmp_path / "go").touch()
    result_of(running)


def test_what_cannot_be_said_as_json_leaves_no_half_result(tmp_path: Path) -> None:
    job = start("odd", lambda _: {"path": tmp_path})
    wait_until(lambda: progress_of(job) and not is_alive(progress_of(job)[0]["pid"]))
    assert not os.path.exists(job["result"]) and not is_finished(job)


class TestFolder:
    """Where the jobs of an account are: nobody else may put anything there."""

    @pytest.fixture(autouse=True)
    def temporary(self, ground: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
        monkeypatch.undo()
        ground.chmod(0o1777)
        monkeypatch.setattr(tempfile, "tempdir", str(ground))
        return ground

    @pytest.fixture
    def name(self, owner: Account) -> str:
        return f"modelfleet-{owner.uid}"

    @pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
    def test_it_is_made_private(self, temporary: Path, owner: Account, name: str, umask: int) -> None:
        before = os.umask(umask)
        try:
            with acting_as(owner):
                made = [jobs._jobs_folder(), jobs._jobs_folder()]
        finally:
            os.umask(before)
        assert made == [str(temporary / name / "jobs")] * 2
        for path in (temporary / name, temporary / name / "jobs"):
            assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (owner.uid, 0o700)

    @pytest.mark.parametrize("what", ["file", "symlink", "open to its group"])
    def test_it_must_be_ours_alone(self, temporary: Path, owner: Account, name: str, what: str) -> None:
        elsewhere = account_folder(temporary / "elsewhere", owner)
        planted = temporary / name
        if what == "file":
            planted.touch()
        elif what == "symlink":
            planted.symlink_to(elsewhere)
        else:
            account_folder(planted, owner).chmod(0o770)
        message = rf"^{planted}: is not a folder of this account alone; remove it$"
        with acting_as(owner), pytest.raises(UnsafePathError, match=message):
            jobs._jobs_folder()
        assert list(elsewhere.iterdir()) == []

    @needs_root
    def test_a_strangers_is_refused(self, temporary: Path, owner: Account, stranger: Account, name: str) -> None:
        account_folder(temporary / name, stranger).chmod(0o777)
        with acting_as(owner), pytest.raises(UnsafePathError, match="is not a folder of this account alone"):
            jobs._jobs_folder()
        assert list((temporary / name).iterdir()) == []

    def test_the_last_logout_does_not_take_it_away(
        self, temporary: Path, owner: Account, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runtime = account_folder(temporary / "run-user", owner)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        with acting_as(owner):
            assert jobs._jobs_folder() == str(temporary / name / "jobs")

    @needs_root
    def test_roots_is_where_only_root_writes(self) -> None:
        assert jobs._jobs_folder() == "/run/modelfleet/jobs"
        assert stat.S_IMODE(os.stat("/run/modelfleet").st_mode) & 0o022 == 0


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; free some space, or set another"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "/x: Read-only file system; remount"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded; raise the quota"),
        (OSError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied; run with become"),
        (OSError(errno.EIO, "Input/output error", "/x"), "/x: Input/output error; look at the host's system log"),
        (OSError("an error\nwithout a number"), "an error without a number; look at the host's system log"),
    ],
)
def test_what_the_system_refuses_is_told_in_one_line(error: OSError, message: str) -> None:
    told = describe_os_error(error)
    assert told.startswith(message) and "\n" not in told
