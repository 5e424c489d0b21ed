"""The SHA-256 of many files at once: one thread a core, and the page cache left as it was found."""

import contextlib
import ctypes
import hashlib
import mmap
import os
import stat
import sys
import threading
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple

from ..errors import UnsafePathError
from ..jobs import Progress
from .folders import opened

READ_BYTES = 1024 * 1024
CACHE_BLOCK_BYTES = 8 * 1024 * 1024
"""What is let go of, or kept, of the page cache at once."""
_LOOK_AHEAD_BLOCKS = 32
_SHOW_SECONDS = 0.2
_KINDS = (
    (stat.S_ISLNK, "a symlink"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)


class Look(NamedTuple):
    """What a file turned out to be.

    Attributes:
        status: Its stat, None where it is not there, or not to be reached.
        sha256: Of all its bytes, None where they were not read to their end.
        irregular: What it is where it is no regular file, else None.
        error: What the system said where it cannot be read, else None.
        moving: Whether it changed while it was read.
    """

    status: Optional[os.stat_result] = None
    sha256: Optional[str] = None
    irregular: Optional[str] = None
    error: Optional[str] = None
    moving: bool = False


def same_stat(one: Optional[os.stat_result], other: Optional[os.stat_result]) -> bool:
    """Tell whether nothing was written, moved or otherwise touched between two looks at a file."""
    return _key(one) == _key(other)


def _key(status: Optional[os.stat_result]) -> Tuple[int, ...]:
    if status is None:
        return ()
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return (status.st_mode, status.st_dev, status.st_ino, status.st_size, status.st_uid, *times)


def cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def look_at(store_path: str, sizes: Iterable[Tuple[str, int]], progress: Progress, step: str) -> Dict[str, Look]:
    """Return what each file of the store is; ``sizes`` gives the paths, and the bytes that each should have.

    A file of another size is not read: that tells enough. The largest come
    first, so that no core is left with one of them at the end. Nothing on the
    way is followed where it is a symlink.
    """
    waiting = sorted(sizes, key=lambda one: one[1])
    total = sum(size for _, size in waiting)
    found: Dict[str, Look] = {}
    failures: List[BaseException] = []
    done = [0] * min(cores(), len(waiting))

    def work(number: int) -> None:
        buffer = bytearray(READ_BYTES)

        def count(read: int) -> None:
            done[number] += read

        try:
            while not failures:
                try:
                    path, size = waiting.pop()
                except IndexError:
                    return
                found[path] = _look(store_path, path, size, buffer, count)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(done))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                progress.update(step, None, min(sum(done), total), total, "bytes")
                thread.join(_SHOW_SECONDS)
    except BaseException as error:
        failures.append(error)
        raise
    if failures:
        raise failures[0]
    if threads:
        progress.update(step, None, total, total, "bytes")
    return found


def _look(store_path: str, path: str, size: int, buffer: bytearray, count: Callable[[int], None]) -> Look:
    name = os.path.basename(path)
    try:
        with opened(store_path, os.path.dirname(path)) as folder:
            status = os.lstat(name, dir_fd=folder)
            if not stat.S_ISREG(status.st_mode):
                return Look(status, irregular=kind_of(status))
            if status.st_size != size:
                return Look(status)
            # It may be a pipe by now.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=folder)
        try:
            before = os.fstat(descriptor)
            sha256 = _sha256(descriptor, size, buffer, count)
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return Look()
    except UnsafePathError as error:
        return Look(irregular=f"not to be reached: {error.message[len(error.path) + 2 :]}")
    except OSError as error:
        with contextlib.suppress(OSError):
            return Look(os.lstat(os.path.join(store_path, path)), error=error.strerror or str(error))
        return Look(error=error.strerror or str(error))
    if not (same_stat(status, before) and same_stat(before, after)):
        return Look(after, moving=True)
    return Look(after, sha256)


def kind_of(status: os.stat_result) -> str:
    """Return in words what a file is that is no regular one."""
    return next((words for test, words in _KINDS if test(status.st_mode)), "no regular file")


def _sha256(descriptor: int, size: int, buffer: bytearray, count: Callable[[int], None]) -> str:
    """Return the SHA-256 of what is open, and keep no more of it in memory than was there before."""
    digest = hashlib.sha256()
    view = memoryview(buffer)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    cached: List[bool] = []
    offset = 0
    while True:
        if offset % CACHE_BLOCK_BYTES == 0:
            if offset:
                _let_go(descriptor, cached, offset - CACHE_BLOCK_BYTES)
            if offset % (CACHE_BLOCK_BYTES * _LOOK_AHEAD_BLOCKS) == 0:
                cached += _cached(descriptor, offset, size)
        length = os.readv(descriptor, [view[: min(READ_BYTES, CACHE_BLOCK_BYTES - offset % CACHE_BLOCK_BYTES)]])
        # What grows beyond its size while it is read is found by its stat.
        if not length or offset + length > size:
            break
        digest.update(view[:length])
        offset += length
        count(length)
    _let_go(descriptor, cached, offset - offset % CACHE_BLOCK_BYTES)
    return digest.hexdigest()


def _let_go(descriptor: int, cached: List[bool], offset: int) -> None:
    """Drop a block of the page cache that only our reading brought there: it would cost a served model its pages."""
    block = offset // CACHE_BLOCK_BYTES
    if hasattr(os, "posix_fadvise") and block < len(cached) and not cached[block]:
        os.posix_fadvise(descriptor, offset, CACHE_BLOCK_BYTES, os.POSIX_FADV_DONTNEED)


def _cached(descriptor: int, offset: int, size: int) -> List[bool]:
    """Tell of the next blocks whether more than half of each is in the page cache; of none where nobody can tell."""
    length = min(CACHE_BLOCK_BYTES * _LOOK_AHEAD_BLOCKS, size - offset)
    if sys.platform != "linux" or length <= 0:
        return []
    page = mmap.PAGESIZE
    resident = (ctypes.c_ubyte * -(-length // page))()
    try:
        # A private map is the only one whose address Python tells; nothing is ever read or written through it.
        with mmap.mmap(descriptor, length, access=mmap.ACCESS_COPY, offset=offset) as pages:
            first = ctypes.c_char.from_buffer(pages)
            address = ctypes.addressof(first)
            del first
            failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(length), resident)
    except (OSError, ValueError, AttributeError):
        return []
    if failed:
        return []
    each = CACHE_BLOCK_BYTES // page
    bits = bytes(resident)
    blocks = [bits[start : start + each] for start in range(0, len(bits), each)]
    return [sum(one & 1 for one in block) * 2 > len(block) for block in blocks]
