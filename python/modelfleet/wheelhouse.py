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
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .core.errors import IntegrityError

WAIT_SECONDS = 0.5
PACKAGES = "wheels"
_LOCK = "requirements.txt"
_KEY = re.compile(r"(?:llama_cpp_python|stack)-[A-Za-z0-9][A-Za-z0-9_.+-]{0,150}")
_NAME = re.compile(r"llama_cpp_python-[A-Za-z0-9][A-Za-z0-9_.+-]{0,150}\.whl|requirements\.txt")
_WHEEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+!-]{0,200}\.whl")


class Entry(NamedTuple):
    """What is kept under a key: its files and their bytes, those whose hash is another, and who made it when."""

    key: str
    files: int
    bytes: int
    damaged: tuple[str, ...]
    made_by: str | None
    made_at: str | None


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

    def contents(self) -> list[Entry]:
        """Return all that is kept, every file hashed. Raises OSError."""
        folders = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        return [self._entry(folder) for folder in folders if _KEY.fullmatch(folder.name) and folder.is_dir()]

    def _entry(self, folder: Path) -> Entry:
        own = sorted([*folder.glob("*.whl"), *folder.glob(_LOCK)])
        packages = self.packages(folder.name)
        pins = pinned(folder / _LOCK) if packages else frozenset()
        damaged = [path.name for path in own if not is_whole(path)]
        damaged += [path.name for path in packages if file_sha256(path) not in pins]
        said = made(own[0]) if own else {}
        who, when = (said.get(name) if isinstance(said.get(name), str) else None for name in ("made_by", "made_at"))
        size = sum(path.stat().st_size for path in [*own, *packages])
        return Entry(folder.name, len(own) + len(packages), size, tuple(damaged), who, when)

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

    def keep_packages(
        self, key: str, requirements: str, files: Sequence[Sequence[str]], fetch: Callable[[str, str], Any]
    ) -> None:
        """Take wheels (path on the host, SHA-256) that are all an installation takes, all of them or none.

        ``requirements`` pin them, or are empty where the lock of ``key`` is kept already.
        Raises IntegrityError, OSError, and what ``fetch`` raises.
        """
        if not _KEY.fullmatch(key):
            raise IntegrityError("the packages' name", "a plain name", key[:80])
        folder = self.folder / key
        folder.mkdir(parents=True, exist_ok=True)
        if requirements:
            (folder / _LOCK).write_text(requirements, encoding="utf-8")
            (folder / f"{_LOCK}.sha256").write_text(file_sha256(folder / _LOCK), encoding="ascii")
        pins = pinned(folder / _LOCK)
        temporary = folder / f".{PACKAGES}.{os.getpid()}"
        temporary.mkdir()
        try:
            for path, sha256 in files:
                name = path.rsplit("/", 1)[-1]
                if not _WHEEL.fullmatch(name):
                    raise IntegrityError("a package", "the name of a wheel", name[:80])
                fetch(path, str(temporary / name))
                if sha256 not in pins or file_sha256(temporary / name) != sha256:
                    raise IntegrityError(name, "a hash that its lock pins", f"sha256 {sha256[:64]}")
            shutil.rmtree(folder / PACKAGES, ignore_errors=True)
            temporary.replace(folder / PACKAGES)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

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


def pinned(lock: Path) -> frozenset[str]:
    """Return the hashes that a lock pins, and that of pip, which installs from it."""
    # What the action plugin of every task would else wait for.
    from .core.runtime.build import PIP_SHA256

    try:
        return frozenset(re.findall(r"sha256:([0-9a-f]{64})", lock.read_text(encoding="utf-8"))) | {PIP_SHA256}
    except (OSError, ValueError):
        return frozenset()


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
