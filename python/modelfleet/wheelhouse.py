"""What is made once for all hosts of a kind, and kept on the controller.

::

    WHEELHOUSE/
      BUILD/*.whl               llama-cpp-python, compiled
      PACKAGES/requirements.txt what else an environment holds, resolved: each package pinned by its hash
      PACKAGES/wheels/*.whl     all of that, and pip, for hosts that reach no package index
      .locks/KEY                held while a host makes what has that key

Beside a file that a host made lie ``FILE.sha256`` and ``FILE.json``: its hash, and who made it when.

What a host says is never used as a path before it has the form of a plain name.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WAIT_SECONDS = 0.5
PACKAGES = "wheels"
_LOCK = "requirements.txt"
_KEY = re.compile(r"(?:llama_cpp_python|stack)-[A-Za-z0-9][A-Za-z0-9_.+-]{0,150}")
_NAME = re.compile(r"llama_cpp_python-[A-Za-z0-9][A-Za-z0-9_.+-]{0,150}\.whl|requirements\.txt")
_WHEEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+!-]{0,200}\.whl")


class Wheelhouse:
    """A wheelhouse at ``folder``, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, key: str, builders: Collection[str] = ()) -> Path | None:
        """Return what is kept under ``key``, a wheel or a lock; where ``builders`` are named, only what one made.

        What was damaged since does not count: it is made anew, and replaced.
        """
        if not _KEY.fullmatch(key):
            return None
        folder = self.folder / key
        for path in sorted([*folder.glob("*.whl"), *folder.glob(_LOCK)]):
            if (not builders or made_by(path) in builders) and is_whole(path):
                return path
        return None

    def packages(self, key: str) -> list[Path]:
        """Return the wheels that are kept for hosts without a package index; none where they are not all there."""
        return sorted((self.folder / key / PACKAGES).glob("*.whl")) if _KEY.fullmatch(key) else []

    @staticmethod
    def pin(kept: Path) -> str:
        """Return the SHA-256 that was written down when the file was kept."""
        return Path(f"{kept}.sha256").read_text(encoding="ascii").strip()

    def keep(self, key: str, remote: str, sha256: str, host: str, fetch: Callable[[str, str], Any]) -> None:
        """Take the file at ``remote`` on ``host``, unless its hash is another; ``fetch`` copies it from there.

        Raises OSError, and what ``fetch`` raises.
        """
        name = remote.rsplit("/", 1)[-1]
        if not (_KEY.fullmatch(key) and _NAME.fullmatch(name)):
            return
        folder = self.folder / key
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{os.getpid()}"
        try:
            fetch(remote, str(temporary))
            if file_sha256(temporary) == sha256:
                # The pin comes last: a file without one does not count.
                Path(f"{folder / name}.sha256").unlink(missing_ok=True)
                temporary.replace(folder / name)
                said = {"made_by": host, "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
                (folder / f"{name}.json").write_text(json.dumps(said) + "\n", encoding="utf-8")
                (folder / f"{name}.sha256").write_text(sha256, encoding="ascii")
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def building(self, key: str, host: str, waiting: Callable[[str], None]) -> Iterator[None]:
        """Hold ``key`` for ``host``, which makes what is kept under it.

        ``waiting`` is called with who holds it, again and again meanwhile. The kernel gives the lock back where its
        holder dies. A wheelhouse that cannot be written is no reason not to build: nothing is held then.
        """
        descriptor = self._open_lock(key)
        try:
            while descriptor is not None and not _taken(descriptor):
                waiting(os.pread(descriptor, 300, 0).decode(errors="replace") or "another run")
                time.sleep(WAIT_SECONDS)
            if descriptor is not None:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, host.encode()[:300], 0)
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _open_lock(self, key: str) -> int | None:
        if not _KEY.fullmatch(key):
            return None
        folder = self.folder / ".locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Not inherited by programs that are started meanwhile and may outlive this one: ssh does.
            return os.open(folder / key, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError:
            return None


def is_whole(kept: Path) -> bool:
    """Tell whether a kept file has the hash that was written down beside it."""
    try:
        return file_sha256(kept) == Wheelhouse.pin(kept)
    except (OSError, ValueError):
        return False


def made_by(kept: Path) -> str | None:
    """Return the host that a kept file was made on, or None where that is not known."""
    name = made(kept).get("made_by")
    return name if isinstance(name, str) else None


def made(kept: Path) -> dict[str, Any]:
    """Return what was written down about the making of a kept file."""
    try:
        said = json.loads(Path(f"{kept}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file. Raises OSError."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
