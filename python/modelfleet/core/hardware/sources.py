"""Where the probe reads: files under a root directory, and commands with a time limit.

With another root than ``/`` a recorded tree is replayed: nothing of the running
machine is mixed in, so commands are not run and what only a live system call
can tell stays unknown.
"""

import os
import subprocess
from typing import Callable, List, Optional, Sequence

# No file that the probe reads comes near this; a planted endless one must not fill the memory.
READ_LIMIT_BYTES = 8 * 1024 * 1024

COMMAND_TIMEOUT_SECONDS = 10.0

Runner = Callable[[Sequence[str]], Optional[str]]
"""Takes a command line, returns its standard output, or None when it is missing, failed or took too long."""


class Reader:
    """Reads files and directories under ``root``; whatever cannot be read is None or empty, never an error."""

    def __init__(self, root: str = "/") -> None:
        self.root = root.rstrip("/")

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

    def link_name(self, path: str) -> Optional[str]:
        """Return the last part of what the symlink ``path`` points to: in sysfs, the name of a driver or a device."""
        try:
            return os.path.basename(os.readlink(self.root + path).rstrip("/")) or None
        except OSError:
            return None

    def link_target(self, path: str) -> Optional[str]:
        """Return what the symlink ``path`` points to, as a path under the same root."""
        try:
            target = os.readlink(self.root + path)
        except OSError:
            return None
        return os.path.normpath(os.path.join(os.path.dirname(path), target))


def run_command(arguments: Sequence[str]) -> Optional[str]:
    """Run a command with a time limit and return its standard output, None when it gives none."""
    environment = dict(os.environ, LC_ALL="C")
    try:
        finished = subprocess.run(
            list(arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=COMMAND_TIMEOUT_SECONDS,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return finished.stdout.decode("utf-8", "replace") if finished.returncode == 0 else None


def run_nothing(arguments: Sequence[str]) -> Optional[str]:
    """Stand in for a runner where a recorded tree is replayed."""
    return None
