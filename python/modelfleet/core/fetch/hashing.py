"""Work beside the transfer, in threads of their own: the SHA-256 of what arrives, and the way of it to the disk.

Neither thread opens anything: both work on memory and on descriptors that are open already.
"""

import hashlib
import queue
import threading
from typing import Callable, Optional, Tuple

BUFFER_BYTES = 4 * 1024 * 1024
"""One read at most. Smaller ones cost more: at 1 MiB the threads hand over so often that it takes a fifth more time of
the processors, and larger ones are no better (benchmarks/README.md)."""
BUFFERS = 3

Mark = Callable[[int, str], None]
"""Called with an offset and the SHA-256 of all bytes before it."""


class HashingThread:
    """Hashes buffers in the order in which they are put, and gives each back when it is done with it."""

    def __init__(self, mark: Mark, mark_bytes: int) -> None:
        self._mark = mark
        self._mark_bytes = mark_bytes
        self._digest = hashlib.sha256()
        self._offset = 0
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[Optional[Tuple[memoryview, int]]] = queue.SimpleQueue()
        for _ in range(BUFFERS):
            self._free.put(memoryview(bytearray(BUFFER_BYTES)))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def begin(self, digest: "hashlib._Hash", offset: int) -> None:
        """Go on from ``digest``, which has seen the bytes before ``offset``."""
        self._wait()
        self._digest, self._offset = digest, offset

    def buffer(self) -> memoryview:
        """Return a buffer to be filled, once one is free; give it back with ``put``."""
        return self._free.get()

    def put(self, buffer: memoryview, length: int) -> None:
        """Hash the first ``length`` bytes of ``buffer``; it must not be touched any more."""
        self._full.put((buffer, length))

    def hexdigest(self) -> str:
        """Return the SHA-256 of all that was put."""
        self._wait()
        return self._digest.hexdigest()

    def close(self) -> None:
        """End the thread, after what it has been given."""
        self._full.put(None)
        self._thread.join()

    def _wait(self) -> None:
        # All buffers are here only when the thread holds none.
        for buffer in [self._free.get() for _ in range(BUFFERS)]:
            self._free.put(buffer)

    def _run(self) -> None:
        while True:
            work = self._full.get()
            if work is None:
                return
            buffer, length = work
            start = 0
            while start < length:
                room = self._mark_bytes - self._offset % self._mark_bytes
                end = min(length, start + room)
                self._digest.update(buffer[start:end])
                self._offset += end - start
                start = end
                if self._offset % self._mark_bytes == 0:
                    self._mark(self._offset, self._digest.hexdigest())
            self._free.put(buffer)


class DiskThread:
    """Reserves the space of what is coming, then brings to the disk what has come, again and again.

    So the transfer does not wait for the disk, and the last sync has little to do.
    """

    def __init__(self, reserve: Callable[[], None], sync: Callable[[], None]) -> None:
        self._work = {"reserve": reserve, "sync": sync}
        self._wanted: queue.SimpleQueue[Optional[str]] = queue.SimpleQueue()
        self._error: Optional[OSError] = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def reserve(self) -> None:
        """Reserve soon."""
        self._wanted.put("reserve")

    def sync(self) -> None:
        """Sync soon, unless there is something to do already."""
        if self._wanted.empty():
            self._wanted.put("sync")

    def close(self) -> None:
        """End the thread, after what it has been given."""
        self._wanted.put(None)
        self._thread.join()

    def check(self) -> None:
        """Raise the OSError that there was: the system tells it once, and a later sync may call the same file good."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            name = self._wanted.get()
            if name is None:
                return
            if self._error is None:
                try:
                    self._work[name]()
                except OSError as error:
                    self._error = error
