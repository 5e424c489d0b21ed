"""Bytes at an offset, from a file or from anything that answers ranges, and a bounded window that moves over them.

Readers of headers never hold more than one window, and never read or allocate by a count that the file claims before
that count was compared with what is left of the file.
"""

import os
import stat
import struct
from typing import Any, Callable, Tuple, Type

from ..errors import FormatError

# Large enough that a real header takes few reads, small enough to stay far from the 64 MiB a reader may use.
WINDOW_BYTES = 1024 * 1024
SHOWN_CHARACTERS = 80


def shown(value: object) -> str:
    """Return ``value`` as a short piece of plain ASCII: what a hostile file holds must not steer a terminal."""
    text = value if isinstance(value, str) else ascii(value)
    if not (text.isascii() and text.isprintable()):
        text = ascii(text)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}... ({len(text)} characters)"


class Source:
    """Random access to ``size`` bytes called ``name``; ``read(offset, length)`` is asked only for what lies inside."""

    def __init__(self, name: str, size: int, read: Callable[[int, int], bytes]) -> None:
        self.name = name
        self.size = size
        self.bytes_read = 0
        self.reads = 0
        self._read = read

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes at ``offset``. Raises FormatError where the source gives fewer."""
        data = self._read(offset, length)
        self.bytes_read += len(data)
        self.reads += 1
        if len(data) != length:
            raise FormatError(self.name, "size", f"{len(data)} bytes at {offset}", f"{length} bytes")
        return data

    def refuse(self, field: str, found: object, allowed: str) -> FormatError:
        """Return the error that refuses this source's file."""
        return FormatError(shown(self.name), shown(field), shown(found), allowed)


class FileSource(Source):
    """A local regular file, opened once: what is judged is what was opened, whatever the name points to later."""

    def __init__(self, path: str, name: str = "", follow_symlinks: bool = True) -> None:
        """Open ``path``. Raises FormatError where it is no regular file, OSError where it cannot be opened."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_symlinks else os.O_NOFOLLOW)
        self._descriptor = os.open(path, flags)
        status = os.fstat(self._descriptor)
        super().__init__(name or path, status.st_size, self._read_file)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise self.refuse("type", stat.filemode(status.st_mode), "a regular file")

    def _read_file(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "FileSource":
        return self

    def __exit__(self, kind: "Type[BaseException] | None", error: "BaseException | None", trace: Any) -> None:
        self.close()


class Window:
    """A part of a source held in memory, and a position in it that only moves forward.

    ``buffer[cursor]`` is the byte at ``position``. What is passed over without being looked at is never read.
    """

    def __init__(self, source: Source, start: int = 0, window_bytes: int = WINDOW_BYTES) -> None:
        self.source = source
        self.buffer = b""
        self.cursor = 0
        self._buffer_start = start
        self._window_bytes = window_bytes

    @property
    def position(self) -> int:
        """The offset in the file, in bytes."""
        return self._buffer_start + self.cursor

    @property
    def remaining(self) -> int:
        """The bytes of the file after the position."""
        return self.source.size - self._buffer_start - self.cursor

    def load(self, count: int, field: str) -> None:
        """Make the next ``count`` bytes available at ``buffer[cursor]``. Raises FormatError where the file ends."""
        if len(self.buffer) - self.cursor >= count:
            return
        left = self.remaining
        if count > left:
            raise self.source.refuse(field, f"{max(left, 0)} bytes left in the file", f"at least {count} bytes")
        kept = self.buffer[self.cursor :]
        self._buffer_start += self.cursor
        self.cursor = 0
        wanted = min(max(count, self._window_bytes), left)
        self.buffer = kept + self.source.read(self._buffer_start + len(kept), wanted - len(kept))

    def take(self, count: int, field: str) -> bytes:
        """Return the next ``count`` bytes and move past them."""
        self.load(count, field)
        start = self.cursor
        self.cursor = start + count
        return self.buffer[start : self.cursor]

    def unpack(self, layout: struct.Struct, field: str) -> Tuple[Any, ...]:
        """Return the next values of ``layout`` and move past them."""
        self.load(layout.size, field)
        values = layout.unpack_from(self.buffer, self.cursor)
        self.cursor += layout.size
        return values

    def skip(self, count: int, field: str) -> None:
        """Move ``count`` bytes on without reading them. Raises FormatError where the file ends before."""
        if count > self.remaining:
            raise self.source.refuse(field, f"{self.remaining} bytes left in the file", f"at least {count} bytes")
        self.cursor += count
        if self.cursor > len(self.buffer):
            self._buffer_start += self.cursor
            self.buffer = b""
            self.cursor = 0
