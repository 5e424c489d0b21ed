"""Compiled wheels on the controller, so that each kind of host is compiled for once.

::

    WHEELHOUSE/
      BUILD/*.whl, *.whl.sha256, *.whl.json    a wheel, its hash, and who built it when
      .locks/BUILD                             held while a host compiles that build

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
_KEY = re.compile(r"llama_cpp_python-[A-Za-z0-9][A-Za-z0-9_.+-]{0,150}")
_NAME = re.compile(r"llama_cpp_python-[A-Za-z0-9][A-Za-z0-9_.+-]{0,150}\.whl")


class Wheelhouse:
    """A wheelhouse at ``folder``, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, key: str, builders: Collection[str] = ()) -> Path | None:
        """Return the wheel that is kept of a build, or None; where ``builders`` are named, only one of theirs."""
        if not _KEY.fullmatch(key):
            return None
        for wheel in sorted((self.folder / key).glob("*.whl")):
            if Path(f"{wheel}.sha256").exists() and (not builders or built_by(wheel) in builders):
                return wheel
        return None

    @staticmethod
    def pin(wheel: Path) -> str:
        """Return the SHA-256 that was written down when the wheel was kept."""
        return Path(f"{wheel}.sha256").read_text(encoding="ascii").strip()

    def keep(self, key: str, remote: str, sha256: str, host: str, fetch: Callable[[str, str], Any]) -> None:
        """Take the wheel at ``remote`` on ``host``, unless its hash is another; ``fetch`` copies it from there.

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
                # The pin comes last: a wheel without one does not count.
                Path(f"{folder / name}.sha256").unlink(missing_ok=True)
                temporary.replace(folder / name)
                said = {"built_by": host, "built_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
                (folder / f"{name}.json").write_text(json.dumps(said) + "\n", encoding="utf-8")
                (folder / f"{name}.sha256").write_text(sha256, encoding="ascii")
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def building(self, key: str, host: str, waiting: Callable[[str], None]) -> Iterator[None]:
        """Hold the build ``key`` for ``host``; ``waiting`` is called with who holds it, again and again meanwhile.

        The kernel gives the lock back where its holder dies. A wheelhouse that cannot be written is no reason not to
        build: nothing is held then.
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


def built_by(wheel: Path) -> str | None:
    """Return the host that a kept wheel was compiled on, or None where that is not known."""
    try:
        said = json.loads(Path(f"{wheel}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    name = said.get("built_by") if isinstance(said, dict) else None
    return name if isinstance(name, str) else None


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
