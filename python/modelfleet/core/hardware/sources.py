"""Where the probe reads: files under a root directory, and commands with a time limit.

With another root than ``/`` a recorded tree is replayed: nothing of the running
machine is mixed in, so commands are not run and what only a live system call
can tell stays unknown.
"""

import os
import selectors
import signal
import subprocess
import threading
import time
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

# No file or output that the probe reads comes near this; a planted endless one must not fill the memory.
READ_LIMIT_BYTES = 8 * 1024 * 1024

COMMAND_TIMEOUT_SECONDS = 10.0
VOLUME_TIMEOUT_SECONDS = 5.0
# A killed process that waits inside a driver does not die: it is left behind after this long.
KILL_WAIT_SECONDS = 0.5
# What a login shell finds and a module started over SSH may not.
MORE_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/opt/rocm/bin", "/usr/lib/wsl/lib")

OK, FAILED, ABSENT, SLOW = "ok", "failed", "absent", "slow"


class CommandResult(NamedTuple):
    """What a command came to. ``status``: ok, failed (it ended with another code than 0), absent, or slow."""

    status: str
    output: str = ""
    error: str = ""
    exit_code: Optional[int] = None


Runner = Callable[[Sequence[str], float], CommandResult]
"""Takes a command line and a time limit in seconds; never raises, never takes much longer."""


class Volume(NamedTuple):
    """The nearest directory that exists, its device as ``major:minor``, and the room on its file system in bytes."""

    existing_path: Optional[str] = None
    device_number: str = ""
    total_bytes: Optional[int] = None
    free_bytes: Optional[int] = None
    inodes_free: Optional[int] = None
    problem: str = "the file system has no fixed number of inodes"


def nearest_existing(path: str) -> str:
    """Return ``path`` or the nearest directory above it that exists, symlinks resolved."""
    current = os.path.abspath(path)
    while not os.path.isdir(current) and current != os.path.dirname(current):
        current = os.path.dirname(current)
    return os.path.realpath(current)


def live_volume(path: str) -> Volume:
    """Ask the running system about the file system of ``path``; waits as long as that does."""
    existing = nearest_existing(path)
    try:
        number = os.stat(existing).st_dev
        usage = os.statvfs(existing)
    except OSError as error:
        return Volume(existing, problem=f"{existing}: {error.strerror}")
    return Volume(
        existing,
        f"{os.major(number)}:{os.minor(number)}",
        usage.f_blocks * usage.f_frsize,
        usage.f_bavail * usage.f_frsize,
        # btrfs and others make inodes as they go and report none.
        usage.f_favail if usage.f_files else None,
    )


class Reader:
    """Reads files and directories under ``root``; whatever cannot be read is None or empty, never an error."""

    def __init__(self, root: str = "/") -> None:
        self.root = root.rstrip("/")
        # What is there and this account may not read.
        self.denied: Set[str] = set()

    @property
    def live(self) -> bool:
        """True when this is the running machine, not a recorded tree."""
        return self.root == ""

    def _inside(self, path: str) -> bool:
        """Tell whether what ``path`` names lies under the root: a link in a record must not lead to this machine."""
        top = os.path.realpath(self.root) + "/"
        return self.live or (os.path.realpath(self.root + path) + "/").startswith(top)

    def read(self, path: str) -> Optional[str]:
        """Return the text of the file at the absolute ``path``, None where it cannot be read."""
        try:
            # Not blocking: a record may hold a named pipe.
            descriptor = os.open(self.root + path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as stream:
                if not self._inside(path):
                    return None
                return stream.read(READ_LIMIT_BYTES).decode("utf-8", "replace")
        except PermissionError:
            self.denied.add(path)
            return None
        except OSError:
            return None

    def read_line(self, path: str) -> Optional[str]:
        """Return the stripped text of a one-line file, None where it cannot be read or is empty."""
        text = self.read(path)
        return (text.strip("\0 \t\r\n") or None) if text is not None else None

    def exists(self, path: str) -> bool:
        """True when ``path`` names anything."""
        return os.path.lexists(self.root + path)

    def list(self, path: str) -> List[str]:
        """Return the sorted names in the directory ``path``, none where it cannot be read."""
        try:
            return sorted(os.listdir(self.root + path)) if self._inside(path) else []
        except OSError:
            return []

    def read_link(self, path: str) -> Optional[str]:
        """Return what the symlink ``path`` holds, None where it is none."""
        try:
            return os.readlink(self.root + path)
        except OSError:
            return None

    def link_name(self, path: str) -> Optional[str]:
        """Return the last part of what the symlink ``path`` points to: in sysfs, the name of a driver or a device."""
        return os.path.basename((self.read_link(path) or "").rstrip("/")) or None

    def link_target(self, path: str) -> Optional[str]:
        """Return what the symlink ``path`` points to, as a path under the same root."""
        target = self.read_link(path)
        return None if target is None else os.path.normpath(os.path.join(os.path.dirname(path), target))

    def machine(self) -> Optional[str]:
        """Return the architecture as the running kernel names it, None for a record."""
        return os.uname().machine if self.live else None

    def volume(self, path: str) -> Volume:
        """Return the place that the absolute ``path`` has, or will have, in a live file system."""
        if not self.live:
            return Volume(problem="a record has no live file system")
        found: List[Volume] = []
        # A server of a network file system that is gone lets a process wait for ever; only this thread waits then.
        asking = threading.Thread(target=lambda: found.append(live_volume(path)), daemon=True)
        asking.start()
        asking.join(VOLUME_TIMEOUT_SECONDS)
        if not found:
            return Volume(problem=f"{path}: its file system does not answer within {VOLUME_TIMEOUT_SECONDS:g} s")
        return found[0]


class Sources(Reader):
    """A machine, or the record of one: its files as Reader reads them, and its commands, each run once."""

    def __init__(self, root: str = "/", runner: Optional[Runner] = None) -> None:
        super().__init__(root)
        # A record's commands are the record's own; this machine's are another machine's.
        self.runner: Runner = runner or (run_command if self.live else run_nothing)
        self._results: Dict[Tuple[str, ...], CommandResult] = {}

    def run(self, arguments: Sequence[str], timeout: float = COMMAND_TIMEOUT_SECONDS) -> CommandResult:
        """Return what the command came to within ``timeout`` seconds, the same answer each time it is asked."""
        key = tuple(arguments)
        if key not in self._results:
            self._results[key] = self.runner(key, timeout)
        return self._results[key]


def command_environment() -> Dict[str, str]:
    """Return the environment of the probe's commands: English words, and the places of the vendors' tools."""
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return dict(os.environ, LC_ALL="C", PATH=os.pathsep.join([*path, *(one for one in MORE_PATH if one not in path)]))


def kill_hard(process: "subprocess.Popen[bytes]") -> None:
    """Kill a command with all that it started, and leave behind what does not die."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        process.kill()
    try:
        process.wait(KILL_WAIT_SECONDS)
    except subprocess.TimeoutExpired:
        # It hangs in the kernel; whoever inherits it reaps it. Without this, Python would warn at its end.
        process.returncode = -signal.SIGKILL


def run_command(arguments: Sequence[str], timeout: float = COMMAND_TIMEOUT_SECONDS) -> CommandResult:
    """Run a command for at most ``timeout`` seconds, whatever it does."""
    environment = command_environment()
    try:
        process = subprocess.Popen(
            list(arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        return CommandResult(ABSENT, error=error.strerror or str(error))
    deadline = time.monotonic() + timeout
    finished, streams = read_streams(process, deadline)
    if finished:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            finished = False
    output, error_output = (stream.decode("utf-8", "replace") for stream in streams)
    if not finished:
        kill_hard(process)
        return CommandResult(SLOW, output, f"no answer within {timeout:g} s")
    code = process.returncode
    return CommandResult(OK if code == 0 else FAILED, output, error_output, code)


def read_streams(process: "subprocess.Popen[bytes]", deadline: float) -> Tuple[bool, Tuple[bytes, bytes]]:
    """Read both outputs to their ends; False where the deadline or the limit of size came first."""
    assert process.stdout is not None and process.stderr is not None
    chunks: Dict[int, List[bytes]] = {process.stdout.fileno(): [], process.stderr.fileno(): []}
    size = 0
    with process.stdout, process.stderr, selectors.DefaultSelector() as selector:
        for stream in (process.stdout, process.stderr):
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0 or size > READ_LIMIT_BYTES:
                break
            for key, _ in selector.select(left):
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fileobj)
                size += len(chunk)
                chunks[key.fd].append(chunk)
        finished = not selector.get_map()
    first, second = (b"".join(parts) for parts in chunks.values())
    return finished, (first, second)


def run_nothing(arguments: Sequence[str], timeout: float = 0.0) -> CommandResult:
    """Stand in for a runner where a recorded tree is replayed."""
    return CommandResult(ABSENT, error="not in the record")
