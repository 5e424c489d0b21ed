"""How fast bytes come: not faster than the user allows, and not so slowly that another connection would be better."""

import time
from typing import Callable, Optional

from . import lanes
from .exchange import Answer, TryAgainError
from .hashing import BUFFER_BYTES
from .settings import FetchSettings

WRITE_SECONDS = 0.5
"""For how long bytes are gathered before they are written and told, where the buffer is not full by then."""


class RateLimit:
    """Sleeps so that no more than so many bytes a second come through it."""

    def __init__(self, rate: Optional[float], sleep: Callable[[float], None]) -> None:
        self._rate = rate
        self._sleep = sleep
        self._ahead = 0.0
        self._last = time.monotonic()
        # Small steps where the rate is small: a connection that is not read for long is closed by the other side.
        self.step = BUFFER_BYTES if rate is None else max(1, min(BUFFER_BYTES, int(rate / 4)))

    def passed(self, count: int) -> None:
        """Take note of ``count`` bytes; returns when the next may come."""
        if self._rate is None:
            return
        now = time.monotonic()
        self._ahead = max(0.0, self._ahead - (now - self._last)) + count / self._rate
        self._last = now
        if self._ahead > 0:
            self._sleep(self._ahead)


class Pace:
    """Tells when a connection is so slow that another would be better."""

    def __init__(self, settings: FetchSettings) -> None:
        self._window = settings.patience.stall_seconds
        limit = settings.rate_limit
        self._least = settings.patience.least_rate * self._window
        if limit is not None:
            self._least = min(self._least, limit * self._window / 4)
        self._seconds = 0.0
        self._bytes = 0
        self._all_seconds = 0.0
        self._all_bytes = 0

    @property
    def rate(self) -> float:
        """Bytes per second of waiting for the network."""
        return self._all_bytes / max(self._all_seconds, 1e-9)

    def is_worth_widening(self, left: int) -> bool:
        """Tell whether the connection was watched long enough, is slow, and has much to bring."""
        rate = self.rate
        return (
            self._all_seconds >= lanes.PROBE_SECONDS
            and rate < lanes.ENOUGH_RATE
            and left > max(lanes.LEFT_SECONDS * rate, lanes.SEGMENT_BYTES)
        )

    def measure(self, answer: Answer, view: memoryview) -> int:
        """Read once. Only waiting for the network counts: a slow disk is no reason to change the connection."""
        started = time.monotonic()
        count = answer.readinto(view)
        seconds = time.monotonic() - started
        self._seconds += seconds
        self._bytes += count
        self._all_seconds += seconds
        self._all_bytes += count
        if self._seconds >= self._window:
            if self._bytes < self._least:
                raise TryAgainError(f"only {self._bytes} bytes came in {self._seconds:.0f} s")
            self._seconds, self._bytes = 0.0, 0
        return count
