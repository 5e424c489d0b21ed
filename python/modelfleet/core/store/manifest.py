"""What the store holds and can prove: ``.modelfleet/manifest.json``.

::

    {"schema_version": 1,
     "files": {"chat/7b/NAME.gguf": {"model": …, "size": bytes, "sha256": hex, "device": …, "inode": …,
                                     "mtime_ns": …, "ctime_ns": …, "source": …, "licence": …,
                                     "published_at": RFC 3339, "recorded_ns": …}}}

A file whose stat still equals its entry is the file that was proved: it is not
hashed again. That holds only where its ctime is over two seconds older than
the entry (``recorded_ns``, by the file system's own clock): file systems stamp
coarsely, and an edit right after the last one can leave the same time behind.
Only the store's owner writes here; anybody may read.
"""

import contextlib
import fcntl
import json
import os
import stat
import time
from typing import Any, Callable, ContextManager, Dict, Iterable, Iterator, NamedTuple, Optional

from ..errors import ModelfleetError
from .layout import STATE

SCHEMA_VERSION = 1
MANIFEST = f"{STATE}/manifest.json"
LOCK = f"{STATE}/lock"
RACY_NS = 2_000_000_000
"""How much older than its entry a file's ctime must be for its stat to prove anything (nanoseconds)."""

# How far a stamp may lie behind the time: a tick of the kernel's clock is 1 to 10 ms.
_COARSE_NS = 20_000_000


class FileRecord(NamedTuple):
    """One published file: what it is, and its stat when it was published (bytes, nanoseconds)."""

    model: str
    size: int
    sha256: str
    device: int
    inode: int
    mtime_ns: int
    ctime_ns: int
    source: str
    licence: Optional[str]
    published_at: str
    recorded_ns: int = 0

    def matches(self, status: os.stat_result) -> bool:
        """Tell whether ``status`` proves that this is the very file that was published, untouched since."""
        return self.ctime_ns + RACY_NS < self.recorded_ns and self.resembles(status)

    def resembles(self, status: os.stat_result) -> bool:
        """Tell whether ``status`` is the one that was recorded."""
        return stat.S_ISREG(status.st_mode) and (
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        ) == (self.device, self.inode, self.size, self.mtime_ns, self.ctime_ns)


Manifest = Dict[str, FileRecord]
"""Records by path relative to the store's root."""


def now() -> str:
    """Return the time in RFC 3339, UTC, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def read_manifest(store_path: str) -> Manifest:
    """Return the manifest; empty where there is none yet. Raises ModelfleetError where it is damaged."""
    path = os.path.join(store_path, MANIFEST)
    try:
        with open(path, encoding="utf-8") as source:
            document = json.load(source)
        return {name: FileRecord(**record) for name, record in document["files"].items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelfleetError(
            f"{path} is damaged", "move it away: the next run proves the files that are there by their hash"
        ) from None


def write_manifest(store_path: str, manifest: Manifest) -> None:
    """Replace the manifest atomically and durably; to be called with the owner's rights and the store's lock held."""
    files = {name: record._asdict() for name, record in sorted(manifest.items())}
    write_json(os.path.join(store_path, MANIFEST), {"schema_version": SCHEMA_VERSION, "files": files})


def write_json(path: str, document: Dict[str, Any]) -> None:
    """Replace ``path`` by ``document`` as JSON: the old file or the new one is there, never half of it."""
    temporary = f"{path}.{os.getpid()}"
    # Of a run that was killed; in a container the numbers of processes come again soon.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "w", encoding="utf-8") as target:
            os.fchmod(descriptor, 0o644)
            json.dump(document, target, indent=1, sort_keys=True)
            target.write("\n")
            target.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(os.path.dirname(path))


def clock_ns(store_path: str) -> int:
    """Return the time as the store's file system stamps it: another machine's, where that is on a network."""
    state = os.path.join(store_path, STATE)
    os.utime(state)
    return os.stat(state).st_mtime_ns


def settle(store_path: str, manifest: Manifest, names: Iterable[str]) -> None:
    """Wait, two seconds at most, until the stat of what was just recorded proves something, and record that.

    A run that is killed here leaves entries that the next one proves by their hash.
    """
    fresh = [name for name in names if not manifest[name].recorded_ns > manifest[name].ctime_ns + RACY_NS]
    if not fresh:
        return
    left = max(manifest[name].ctime_ns for name in fresh) + RACY_NS - clock_ns(store_path)
    if left >= 0:
        time.sleep((min(left, RACY_NS) + _COARSE_NS) / 1e9)
    recorded = clock_ns(store_path)
    for name in fresh:
        with contextlib.suppress(FileNotFoundError):
            if manifest[name].resembles(os.lstat(os.path.join(store_path, name))):
                manifest[name] = manifest[name]._replace(recorded_ns=recorded)
    write_manifest(store_path, manifest)


def sync_directory(path: str) -> None:
    """Make renames in the directory ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def locked(store_path: str, waiting: Optional[Callable[[], None]] = None) -> ContextManager[None]:
    """Hold the store's lock, see ``hold``."""
    return hold(os.path.join(store_path, LOCK), waiting)


@contextlib.contextmanager
def hold(path: str, waiting: Optional[Callable[[], None]] = None) -> Iterator[None]:
    """Hold the lock file ``path``: one holder at a time on this host; a holder that dies lets go of it.

    ``waiting`` is called once where somebody else holds it, before the wait.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
