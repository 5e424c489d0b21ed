"""A file on its way: the part that is there, and a journal by which a later run knows how far it can be trusted.

::

    cache/temp/
      SHA256.part               what has arrived, in order, from its beginning; mode 0600
      SHA256.part.journal       lines of JSON:
                                  {"schema_version": 1, "key": SHA256, "size": bytes}
                                  {"server": hex, "validator": ETag or date}     what If-Range needs; no address
                                  [offset, hex]                                  SHA-256 of all bytes before offset
      modelfleet-SHA256         the whole file, proved and durable, about to be published

A running SHA-256 cannot be saved, but it can be told at each mark on the way:
who resumes reads the part again and finds out how far it still has the bytes
that arrived. So neither file has to reach the disk in any order, and a part
that a crash has left with holes costs the bytes behind the last good mark.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import stat
import sys
from typing import Callable, Dict, Iterator, List, Optional, Tuple

from ..errors import UnsafePathError
from .package_index import LOCAL_ERRORS, READ_SIZE

MARK_BYTES = 4 * 1024 * 1024
SCHEMA_VERSION = 1
SUFFIXES = (".part", ".part.journal")
_JOURNAL_LIMIT = 64 * 1024 * 1024
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

_KEEP_SIZE = 1  # linux/falloc.h
_fallocate: Optional[Callable[..., int]] = None
if sys.platform == "linux":
    _libc = ctypes.CDLL(None, use_errno=True)
    _fallocate = getattr(_libc, "fallocate64", None) or getattr(_libc, "fallocate", None)
    if _fallocate is not None:
        _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

Tell = Callable[[int], None]
"""Called with the bytes that were read again."""


class Part:
    """The part of one file; everything is done through two descriptors that are opened once."""

    def __init__(self, folder: str, key: str, size: Optional[int]) -> None:
        """Open or make the part of the file ``key``, of ``size`` bytes where that is known."""
        self.path = os.path.join(folder, f"{key}.part")
        self.journal_path = f"{self.path}.journal"
        self.key = key
        self.size = size
        self.offset = 0
        self.validators: Dict[str, str] = {}
        self._torn = True
        self._finished = False
        self.file = _open(self.path, 0)
        try:
            self.journal = _open(self.journal_path, os.O_APPEND)
        except BaseException:
            os.close(self.file)
            raise

    def resume(self, tell: Tell) -> "hashlib._Hash":
        """Read what is there as far as the journal vouches for it; returns its SHA-256, to be gone on with."""
        marks = self._read_journal()
        digest = good = hashlib.sha256()
        done = 0
        for offset, expected in marks:
            while done < offset:
                block = os.pread(self.file, min(READ_SIZE, offset - done), done)
                if not block:
                    break
                digest.update(block)
                done += len(block)
                tell(done)
            if done < offset or digest.hexdigest() != expected:
                break
            self.offset, good = offset, digest.copy()
        if self.offset == 0:
            self.restart()
            return hashlib.sha256()
        if self._torn or marks[-1][0] != self.offset:
            # Written anew: behind a line that is torn or wrong nothing would be believed.
            validators = self.validators
            self._begin_journal()
            for server, validator in validators.items():
                self.remember(server, validator)
            for offset, expected in marks:
                if offset <= self.offset:
                    self.mark(offset, expected)
        with self._naming_the_path():
            os.ftruncate(self.file, self.offset)
        return good

    def restart(self) -> None:
        """Forget all that is there. The journal goes first: it never vouches for what is gone."""
        self._begin_journal()
        self.offset = 0
        with self._naming_the_path():
            os.ftruncate(self.file, 0)

    def write(self, data: memoryview) -> None:
        """Append ``data``. Raises OSError with the part's path where the system refuses."""
        with self._naming_the_path():
            while data:
                count = os.pwrite(self.file, data, self.offset)
                self.offset += count
                data = data[count:]

    def mark(self, offset: int, digest: str) -> None:
        """Note the SHA-256 of all bytes before ``offset``."""
        self._note([offset, digest])

    def remember(self, server: str, validator: str) -> None:
        """Note by what a server tells this version of the file from another."""
        if self.validators.get(server) != validator:
            self.validators[server] = validator
            self._note({"server": server, "validator": validator})

    def reserve(self) -> None:
        """Take the space of the whole file, so that a disk that is too small says so early, and files lie in one piece.

        Not with posix_fallocate: where the file system cannot, that writes zeros itself, and could write them over
        what arrives meanwhile.
        """
        if _fallocate is None or self.size is None:
            return
        if _fallocate(self.file, _KEEP_SIZE, 0, self.size) != 0 and ctypes.get_errno() in LOCAL_ERRORS:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), self.path)

    def sync(self) -> None:
        """Bring to the disk what is there, the journal last."""
        with self._naming_the_path(), self._distrusting():
            _sync(self.file)
            _sync(self.journal)

    def finish(self, final: str) -> None:
        """Make the part durable and give it its final name; nothing of it is left then."""
        with self._naming_the_path(), self._distrusting():
            os.ftruncate(self.file, self.offset)
            os.fsync(self.file)
        self._finished = True
        os.replace(self.path, final)
        os.unlink(self.journal_path)

    def release(self) -> None:
        """Give back what was reserved beyond what is there; where that is nothing, leave nothing."""
        if self._finished:
            return
        if self.offset == 0:
            self.remove()
        with contextlib.suppress(OSError):
            os.ftruncate(self.file, self.offset)

    def remove(self) -> None:
        """Leave nothing of the part."""
        for path in (self.journal_path, self.path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def close(self) -> None:
        """Let go of the files; they stay for whoever resumes."""
        os.close(self.file)
        os.close(self.journal)

    @contextlib.contextmanager
    def _naming_the_path(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = self.path
            raise

    @contextlib.contextmanager
    def _distrusting(self) -> Iterator[None]:
        """Where a sync fails, vouch for nothing: what is read again may be memory that the disk will never have."""
        try:
            yield
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self.journal, 0)
            raise

    def _begin_journal(self) -> None:
        os.ftruncate(self.journal, 0)
        self.validators = {}
        self._note({"schema_version": SCHEMA_VERSION, "key": self.key, "size": self.size})

    def _note(self, line: object) -> None:
        # Without a note, or with half of one, a later run fetches more than it had to: no reason to stop this one.
        with contextlib.suppress(OSError):
            os.write(self.journal, (json.dumps(line) + "\n").encode("ascii"))

    def _read_journal(self) -> List[Tuple[int, str]]:
        marks: List[Tuple[int, str]] = []
        try:
            content = os.pread(self.journal, _JOURNAL_LIMIT, 0).decode("ascii")
            first, *lines = content.split("\n")
            about = json.loads(first)
            if (about["schema_version"], about["key"], about["size"]) != (SCHEMA_VERSION, self.key, self.size):
                return []
            whole = lines[-1:] == [""]
            # Behind the last line's end is nothing, or half a line.
            for line in map(json.loads, lines[:-1]):
                if isinstance(line, dict):
                    self.validators[str(line["server"])] = str(line["validator"])
                    continue
                offset, digest = line
                if (
                    not isinstance(offset, int)
                    or not isinstance(digest, str)
                    or offset <= (marks[-1][0] if marks else 0)
                    or (self.size is not None and offset > self.size)
                ):
                    return marks
                marks.append((offset, digest))
            self._torn = not whole
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        return marks


def _open(path: str, flags: int) -> int:
    descriptor = os.open(path, _FLAGS | flags, 0o600)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_uid != os.geteuid():
        os.close(descriptor)
        raise UnsafePathError(path, "is not a file of this account alone", "remove it")
    return descriptor


def _sync(descriptor: int) -> None:
    if hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
    else:
        os.fsync(descriptor)
