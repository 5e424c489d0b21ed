"""Several connections for one file, where a server gives each less than the link could carry.

Each lane fetches one segment at a time into its buffer; the segments are taken
in the order of the file. So the part still grows from its beginning, its journal
stays what it is, and what is in memory is bounded.
"""

import collections
import queue
import threading
import time
from typing import Callable, Deque, List, Optional, Tuple

SEGMENT_BYTES = 4 * 1024 * 1024
LANES = (2, 4)
"""How many are tried, one after the other, as long as more of them bring more."""
PROBE_SECONDS = 3.0
"""How long a number of connections is watched before it is judged."""
WORTH = 1.2
"""How much more they must bring to be kept."""
LEFT_SECONDS = 30.0
"""What one connection must still have to do: for less the change is not worth its cost."""
ENOUGH_RATE = 100e6
"""Bytes per second of one connection that is fast enough."""

Fetch = Callable[[int, memoryview, Callable[[], bool]], None]
"""Fills a buffer from an offset of the file on; returns early where the function that it is given says so."""


class _Lane:
    def __init__(self, fetch: Fetch, stopped: threading.Event) -> None:
        self.buffer = memoryview(bytearray(SEGMENT_BYTES))
        self.work: queue.SimpleQueue[Optional[Tuple[int, int]]] = queue.SimpleQueue()
        self.results: queue.SimpleQueue[Optional[Exception]] = queue.SimpleQueue()
        self._fetch = fetch
        self._stopped = stopped
        # Nobody waits for it: it may sit in a connection that says nothing, and touches nothing but its buffer.
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            work = self.work.get()
            if work is None:
                return
            try:
                offset, length = work
                self._fetch(offset, self.buffer[:length], self._stopped.is_set)
            except Exception as error:
                self.results.put(error)
            else:
                self.results.put(None)


def run_lanes(
    fetch: Fetch, count: int, start: int, end: int, consume: Callable[[memoryview], None], deadline: float
) -> None:
    """Give the bytes from ``start`` to ``end`` to ``consume``, in order; no segment is begun after the ``deadline``.

    That is a time of the monotonic clock. Raises what ``fetch`` raised, after all bytes before it were given.
    """
    stopped = threading.Event()
    lanes: List[_Lane] = []
    pending: Deque[Tuple[_Lane, int]] = collections.deque()

    def begin(lane: _Lane) -> None:
        nonlocal start
        length = min(SEGMENT_BYTES, end - start)
        lane.work.put((start, length))
        pending.append((lane, length))
        start += length

    try:
        while len(lanes) < count and start < end:
            lanes.append(_Lane(fetch, stopped))
            begin(lanes[-1])
        while pending:
            lane, length = pending.popleft()
            error = lane.results.get()
            if error is not None:
                raise error
            consume(lane.buffer[:length])
            if start < end and time.monotonic() < deadline:
                begin(lane)
    finally:
        stopped.set()
        for lane in lanes:
            lane.work.put(None)
