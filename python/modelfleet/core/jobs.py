"""Long work in the background of a host, with a progress file that anybody with our rights can read.

A module that has much to do starts a job and returns at once; the controller
reads the last line of the job's ``progress`` until it says that the work is over, then
``result.json``. The work outlives the connection: a controller that was
interrupted finds the same job again by its id, and several may follow one job.

::

    JOBS/ID/                    mode 0700; JOBS is /run/modelfleet/jobs for root, else /tmp/modelfleet-UID/jobs
      lock                      held while the job runs
      progress                  lines of {"state": "running" | "finished", "step", "item", "done", "total", "unit",
                                          "pid", "elapsed_seconds"}
      result.json               what the module returns

The job inherits what it needs by being forked from the module: no argument is
ever written to a file.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import stat
import tempfile
import time
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

from .errors import ModelfleetError, UnsafePathError

UPDATE_SECONDS = 0.3
_FORGET_SECONDS = 24 * 3600.0


class Progress:
    """Tells where a long piece of work is; this one tells nobody."""

    def update(
        self,
        step: str,
        item: Optional[str] = None,
        done: Optional[float] = None,
        total: Optional[float] = None,
        unit: Optional[str] = None,
    ) -> None:
        """Say what is being done; ``done`` of ``total`` count ``unit`` (``bytes`` or ``steps``)."""


class FileProgress(Progress):
    """Appends where the work is to a file, at most every 0.3 s unless the step or item changes.

    The file stays open: the work may act as an account that could not open it.
    """

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._started = time.monotonic()
        self._written = float("-inf")
        self._last: Tuple[str, Optional[str]] = ("", None)

    def update(
        self,
        step: str,
        item: Optional[str] = None,
        done: Optional[float] = None,
        total: Optional[float] = None,
        unit: Optional[str] = None,
    ) -> None:
        """See Progress."""
        now = time.monotonic()
        if (step, item) == self._last and now - self._written < UPDATE_SECONDS and done != total:
            return
        self._last, self._written = (step, item), now
        self._write({"state": "running", "step": step, "item": item, "done": done, "total": total, "unit": unit})

    def finish(self) -> None:
        """Say that the result is there."""
        self._write({"state": "finished"})

    def _write(self, document: Dict[str, Any]) -> None:
        document["pid"] = os.getpid()
        document["elapsed_seconds"] = round(time.monotonic() - self._started, 1)
        os.write(self.descriptor, (json.dumps(document) + "\n").encode())


def start(name: str, work: Callable[[Progress], Dict[str, Any]], secrets: Sequence[str] = ()) -> Dict[str, str]:
    """Run ``work`` in a process of its own, or find the one of that name that runs already.

    Returns the paths of its progress and result files and its folder. Every
    module that ``work`` needs must be imported already: the archive that a
    module came in is gone soon after this returns. Raises UnsafePathError
    where the folder for jobs is not ours alone, ModelfleetError where no
    process can be started. Where an error of the work's has one of ``secrets``
    in its text, the result has stars.
    """
    jobs = _jobs_folder()
    _forget_old(jobs)
    folder = os.path.join(jobs, re.sub(r"[^A-Za-z0-9_.-]", "-", name))
    os.makedirs(folder, mode=0o700, exist_ok=True)
    job = {
        "folder": folder,
        "progress": os.path.join(folder, "progress"),
        "result": os.path.join(folder, "result.json"),
    }
    lock = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return job
    for left in ("result", "progress"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(job[left])
    progress = FileProgress(job["progress"])
    child = os.fork()
    if child:
        os.close(lock)
        os.close(progress.descriptor)
        if os.waitpid(child, 0)[1] != 0:
            raise ModelfleetError("the host starts no more processes", "look at its system log, and run again")
        return job
    # The lock's description is shared with the process that does the work: it lets go of it when it ends.
    status = 1
    try:
        os.setsid()
        if os.fork() == 0:
            _detach(keep=(lock, progress.descriptor))
            _work(work, progress, job["result"], secrets)
        status = 0
    finally:
        os._exit(status)


def _jobs_folder() -> str:
    if os.geteuid() == 0:
        folder, names = "/run" if os.path.isdir("/run") else "/var/run", ("modelfleet", "jobs")
    else:
        # Not XDG_RUNTIME_DIR: it goes with the account's last login, and the work must not lose its files then.
        folder, names = tempfile.gettempdir(), (f"modelfleet-{os.geteuid()}", "jobs")
    for name in names:
        folder = os.path.join(folder, name)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        status = os.lstat(folder)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise UnsafePathError(folder, "is not a folder of this account alone", "remove it")
    return folder


def _forget_old(jobs: str) -> None:
    """Remove what is left of jobs that ended long ago; until then whoever followed one may still read its result."""
    for entry in list(os.scandir(jobs)):
        with contextlib.suppress(OSError):
            if time.time() - entry.stat(follow_symlinks=False).st_mtime < _FORGET_SECONDS:
                continue
            lock = os.open(os.path.join(entry.path, "lock"), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry.path)
            finally:
                os.close(lock)


def _detach(keep: Tuple[int, ...]) -> None:
    """Let go of the module's pipes, so that the connection can end."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    try:
        opened = [int(name) for name in os.listdir("/dev/fd")]
    except OSError:
        opened = list(range(1024))
    for descriptor in opened:
        if descriptor > 2 and descriptor not in keep:
            with contextlib.suppress(OSError):
                os.close(descriptor)
    os.chdir("/")


def _work(
    work: Callable[[Progress], Dict[str, Any]], progress: FileProgress, result_path: str, secrets: Sequence[str]
) -> None:
    try:
        progress.update("starting")
        result = work(progress)
    except ModelfleetError as error:
        result = {"failed": True, "msg": str(error)}
    except OSError as error:
        result = {"failed": True, "msg": describe_os_error(error)}
    except BaseException as error:
        result = {"failed": True, "msg": " ".join(f"unexpected {type(error).__name__}: {error}".split())}
    if result.get("failed"):
        for secret in secrets:
            result["msg"] = result["msg"].replace(secret, "********")
    _write_json(result_path, result)
    progress.finish()


def describe_os_error(error: OSError) -> str:
    """Return what the system refused, about which path, and what to do, in one line."""
    cure = {
        28: "free some space, or set another path",
        30: "remount the file system writable",
        122: "raise the quota, or set another path",
        13: "run with become, or choose a path of your own",
        1: "run with become, or choose a path of your own",
    }.get(error.errno or 0, "look at the host's system log")
    where = f"{error.filename}: " if error.filename else ""
    return " ".join(f"{where}{error.strerror or error}; {cure}".split())


def _write_json(path: str, document: Dict[str, Any]) -> None:
    temporary = f"{path}.new"
    with open(temporary, "w", encoding="utf-8", opener=_private) as target:
        json.dump(document, target)
    os.replace(temporary, path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
