"""One file over HTTP: from several places, in several tries, over several runs, until its hash is right.

Bytes of two versions are never mixed knowingly: a part is gone on with by Range
and If-Range, and an answer that is about anything else (200, another offset,
another ETag, another length) begins anew or is refused. Whatever a server says,
the SHA-256 of the bytes that were written decides.
"""

import contextlib
import email.utils
import hashlib
import os
import random
import re
import time
from typing import Callable, List, NamedTuple, Optional, Sequence, Set

from ..errors import FetchError, IntegrityError, ModelfleetError
from ..jobs import Progress
from . import lanes
from .exchange import Answer, TryAgainError, open_answer
from .hashing import DiskThread, HashingThread
from .pace import WRITE_SECONDS, Pace, RateLimit
from .part import MARK_BYTES, Part
from .settings import Credential, FetchSettings, plain_text

SYNC_BYTES = 64 * 1024 * 1024
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,19})-([0-9]{1,19})|\*)/([0-9]{1,19}|\*)", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))
_CONNECT_TRIES = 3
_PAGE = (b"<!doctype html", b"<html")


class Upstream(NamedTuple):
    """One place that has the file: its address, what to call it in messages, the token for it, the Hub's repository."""

    url: str
    label: str
    credential: Optional[Credential] = None
    repository: Optional[str] = None


class Wanted(NamedTuple):
    """What is to be fetched: the name in messages, the key of its part, size in bytes and SHA-256 where pinned."""

    name: str
    key: str
    size: Optional[int]
    sha256: Optional[str]


class Download:
    """Fetches one file into its part; to be used once."""

    def __init__(
        self,
        wanted: Wanted,
        folder: str,
        settings: FetchSettings,
        progress: Progress,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._wanted = wanted
        self._folder = folder
        self._settings = settings
        self._progress = progress
        self._sleep = sleep
        self._step = f"fetching {wanted.name}"
        self._size = wanted.size
        self._sha256 = wanted.sha256
        self._limit = RateLimit(settings.rate_limit, sleep)
        self._without_ranges: Set[str] = set()
        # How many answers made what the part holds; an earlier run counts as one.
        self._pieces = 0
        # Whether several connections may be tried: once, and not where the user limits the rate.
        self._may_widen = settings.rate_limit is None
        self._highest = 0
        self._synced = 0

    def run(self, upstreams: Sequence[Upstream], final: str) -> str:
        """Write the file to ``final``, proved and durable, and return its SHA-256.

        Each of ``upstreams`` is tried in turn. Where none has the right bytes,
        raises what the only one failed with, or a FetchError that tells of all;
        a part that can be gone on with stays then.
        """
        failures: List[ModelfleetError] = []
        with contextlib.ExitStack() as stack:
            self._part = Part(self._folder, self._wanted.key, self._size)
            stack.callback(self._part.close)
            stack.callback(self._part.release)
            self._hasher = HashingThread(self._part.mark, MARK_BYTES)
            stack.callback(self._hasher.close)
            self._disk = DiskThread(self._part.reserve, self._part.sync)
            stack.callback(self._disk.close)
            proving = f"reading again what is there of {self._wanted.name}"
            digest = self._part.resume(lambda done: self._progress.update(proving, None, done, self._size, "bytes"))
            self._hasher.begin(digest, self._part.offset)
            if self._sha256 is None:
                self._restart()
            if self._part.offset:
                self._pieces = 1
            self._highest = self._synced = self._part.offset
            for upstream in upstreams:
                try:
                    found = self._from(upstream)
                    self._disk.close()
                    self._disk.check()
                    self._part.finish(final)
                    return found
                except (FetchError, IntegrityError) as error:
                    failures.append(error)
        if len(failures) == 1:
            raise failures[0]
        told = "; ".join(f"{number}. {failure.message}" for number, failure in enumerate(failures, 1))
        raise FetchError(
            f"{self._wanted.name} could not be fetched from any of its {len(failures)} sources ({told})",
            failures[0].cure,
        )

    def _from(self, upstream: Upstream) -> str:
        """Return the file's SHA-256 once all of it has come from ``upstream``, or from it and those before it."""
        patience = self._settings.patience
        tries, proved = 0, False
        while True:
            before = self._highest
            try:
                self._try(upstream)
                found = self._hasher.hexdigest()
                if self._sha256 in (None, found):
                    return found
                final, proved = proved or self._pieces == 1, True
                page = self._begins_like_a_page()
                self._restart()
                if page:
                    raise self._portal(upstream)
                if final:
                    raise IntegrityError(
                        f"{self._wanted.name} from {upstream.label}", f"sha256 {self._sha256}", f"sha256 {found}"
                    )
                # Which of the answers it was cannot be told: once more, from the beginning.
                trouble = TryAgainError("its pieces do not make the pinned file", at_once=True)
                self._may_widen = False
            except TryAgainError as error:
                trouble = error
                if self._begins_like_a_page():
                    self._restart()
                    raise self._portal(upstream) from None
            tries = 1 if self._highest - before >= patience.progress_bytes else tries + 1
            if tries >= (patience.tries if trouble.connected else min(_CONNECT_TRIES, patience.tries)):
                raise self._failed(
                    upstream, trouble.reason, "check the network and the source, and run again: what came stays"
                )
            self._wait(upstream, trouble, tries)

    def _wait(self, upstream: Upstream, trouble: TryAgainError, tries: int) -> None:
        patience = self._settings.patience
        if trouble.after is not None and trouble.after > patience.longest_wait_seconds:
            raise self._failed(
                upstream, f"{trouble.reason}, and asks to come back in {trouble.after:.0f} s", "run again then"
            )
        if trouble.at_once:
            return
        backoff = min(patience.longest_wait_seconds, patience.first_wait_seconds * 2 ** (tries - 1))
        # Between half of it and all of it: hosts that failed together do not come back together.
        seconds = backoff * random.uniform(0.5, 1.0) + (trouble.after or 0.0)
        note = f"waiting {seconds:.0f} s: {trouble.reason}"
        self._progress.update(self._step, note, self._part.offset, self._size, "bytes")
        self._sleep(seconds)

    def _try(self, upstream: Upstream) -> None:
        if self._size is not None and self._part.offset == self._size:
            return
        headers = {"Accept-Encoding": "identity", "Accept": "*/*"}
        server = _fingerprint(upstream)
        start = self._part.offset
        known = self._part.validators.get(server)
        # What the lock does not pin has no hash that would tell a mixture.
        if upstream.label in self._without_ranges or (self._sha256 is None and known is None):
            start = 0
        if start:
            headers["Range"] = f"bytes={start}-"
            if known is not None:
                headers["If-Range"] = known
        try:
            with open_answer(upstream.url, headers, self._settings, upstream.credential) as answer:
                length = self._accept(answer, upstream, start)
                self._pieces += 1
                validator = _validator(answer)
                if validator:
                    self._part.remember(server, validator)
                self._disk.reserve()
                rate = self._receive(answer, length, validator is not None and _takes_ranges(answer))
            if rate is not None and validator is not None:
                self._widen(upstream, validator, rate)
        except IntegrityError:
            raise
        except FetchError as error:
            raise self._failed(upstream, error.message, error.cure) from None

    def _accept(self, answer: Answer, upstream: Upstream, start: int) -> Optional[int]:
        """Judge the head of an answer to a request from ``start`` on; returns the body's length where it is told."""
        self._judge_status(answer, upstream)
        encoding = (answer.headers.get("Content-Encoding") or "identity").strip().lower()
        if encoding != "identity":
            raise FetchError(
                f"it sends the file packed ({plain_text(encoding, 40)}), though asked not to", "name another source"
            )
        kind = (answer.headers.get("Content-Type") or "").split(";")[0].strip().lower()
        if kind in ("text/html", "application/xhtml+xml") and not self._wanted.name.lower().endswith((".html", ".htm")):
            raise self._portal(upstream, answer)
        self._judge_promise(answer, upstream)
        length = answer.length
        if answer.status == 206:
            total = self._range(answer, upstream, start)
            known = self._part.validators.get(_fingerprint(upstream))
            if known is not None and _comparable(known, answer) not in (None, known):
                self._restart()
                raise TryAgainError("the file there has changed", at_once=True)
            if total is not None:
                self._judge_size(total, upstream)
            return length
        if length is not None:
            self._judge_size(length, upstream)
        elif self._size is None:
            raise FetchError("it tells no length, and the lock pins no size", "lock the file first: modelfleet lock")
        if self._part.offset:
            # All of it again, or another version of it: nothing of ours is put before it.
            self._restart()
        return length

    def _judge_status(self, answer: Answer, upstream: Upstream) -> None:
        status = answer.status
        if status in (200, 206):
            return
        if status == 416:
            total = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range") or "")
            if total and total[3] != "*":
                self._judge_size(int(total[3]), upstream)
            self._without_ranges.add(upstream.label)
            raise TryAgainError("it refuses the rest of the file (416)", at_once=True)
        if status in _AGAIN:
            raise TryAgainError(f"the server answers {status}", _retry_after(answer.headers.get("Retry-After")))
        if status == 511:
            raise self._portal(upstream, answer)
        if status in (401, 403):
            raise self._denied(answer, upstream)
        if status in (404, 410):
            raise FetchError(f"the server answers {status}: it has no such file", "correct the source and the lock")
        raise FetchError(f"the server answers {status}", "check the source")

    def _denied(self, answer: Answer, upstream: Upstream) -> FetchError:
        credential = upstream.credential
        if upstream.repository is None:
            return FetchError(
                f"the server answers {answer.status}: it does not let everybody read the file",
                "name a source that does",
            )
        shown = (
            "it was given a token that may not read it"
            if credential is not None and credential.for_url(upstream.url)
            else "it was given no token, which goes to the first endpoint alone and only over https"
            if credential is not None
            else "no token is set"
        )
        return FetchError(
            f"the server answers {answer.status}: {upstream.repository} is gated or private, and {shown}",
            "accept its terms on the Hub, and give a token that may read it (models_hub_token, or HF_TOKEN)",
        )

    def _judge_promise(self, answer: Answer, upstream: Upstream) -> None:
        """Refuse early what the Hub itself says is another file: it tells size and SHA-256 before it redirects."""
        if upstream.repository is None:
            return
        for headers in [*answer.redirects, answer.headers]:
            size = headers.get("X-Linked-Size") or ""
            if re.fullmatch("[0-9]{1,19}", size):
                self._judge_size(int(size), upstream)
            tag = (headers.get("X-Linked-ETag") or "").strip('"')
            if _SHA256.fullmatch(tag):
                if self._sha256 is None:
                    self._sha256 = tag
                elif tag != self._sha256:
                    raise IntegrityError(
                        f"{self._wanted.name} from {upstream.label}", f"sha256 {self._sha256}", f"sha256 {tag}"
                    )

    def _judge_size(self, size: int, upstream: Upstream) -> None:
        if self._size is None:
            self._size = size
        elif size != self._size:
            raise IntegrityError(f"{self._wanted.name} from {upstream.label}", f"{self._size} bytes", f"{size} bytes")

    def _range(self, answer: Answer, upstream: Upstream, start: int) -> Optional[int]:
        """Return the file's size as a 206 tells it, where it begins at ``start``."""
        said = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range") or "")
        if start == 0 or said is None or said[1] is None or int(said[1]) != start or int(said[2]) < start:
            self._without_ranges.add(upstream.label)
            raise TryAgainError("it sends another part of the file than the one it was asked for", at_once=True)
        return None if said[3] == "*" else int(said[3])

    def _receive(self, answer: Answer, length: Optional[int], may_widen: bool) -> Optional[float]:
        """Write what comes until the file is whole; raises TryAgainError where it ends before that.

        Returns the rate in bytes per second where it was left because several connections may be faster, else None.
        """
        assert self._size is not None
        trouble: Optional[TryAgainError] = None
        pace = Pace(self._settings)
        left = self._size - self._part.offset if length is None else min(length, self._size - self._part.offset)
        while left and trouble is None:
            buffer = self._hasher.buffer()
            goal, filled, due = min(self._limit.step, left), 0, time.monotonic() + WRITE_SECONDS
            try:
                while filled < goal and time.monotonic() < due:
                    count = pace.measure(answer, buffer[filled:goal])
                    if count == 0:
                        raise TryAgainError("the connection ended early")
                    filled += count
            except TryAgainError as error:
                trouble = error
            try:
                self._disk.check()
                self._part.write(buffer[:filled])
            except BaseException:
                filled = 0
                raise
            finally:
                self._hasher.put(buffer, filled)
            left -= filled
            self._limit.passed(filled)
            self._told()
            if may_widen and self._may_widen and trouble is None and pace.is_worth_widening(left):
                return pace.rate
        if trouble is not None or self._part.offset < self._size:
            raise trouble or TryAgainError("the answer ended early")
        if length is None and answer.readinto(memoryview(bytearray(1))):
            self._restart()
            raise IntegrityError(self._wanted.name, f"{self._size} bytes", "more")
        return None

    def _told(self) -> None:
        """Tell how far it is, and have it synced now and then."""
        self._highest = max(self._highest, self._part.offset)
        self._progress.update(self._step, None, self._part.offset, self._size, "bytes")
        if self._part.offset - self._synced >= SYNC_BYTES:
            self._synced = self._part.offset
            self._disk.sync()

    def _widen(self, upstream: Upstream, validator: str, rate: float) -> None:
        """Go on over several connections, as long as more of them bring more than the ``rate`` before."""
        assert self._size is not None
        size = self._size
        self._may_widen = False
        self._pieces += 1

        def fetch(offset: int, view: memoryview, stopped: Callable[[], bool]) -> None:
            try:
                self._fetch_range(upstream, validator, offset, view, stopped)
            except FetchError as error:
                # One connection will find out whether that is so for it, too.
                raise TryAgainError(error.message, at_once=True) from None

        def consume(view: memoryview) -> None:
            while view:
                buffer = self._hasher.buffer()
                count = min(len(buffer), len(view))
                buffer[:count] = view[:count]
                try:
                    self._disk.check()
                    self._part.write(buffer[:count])
                finally:
                    self._hasher.put(buffer, count)
                view = view[count:]
            self._told()

        for count in lanes.LANES:
            started, before = time.monotonic(), self._part.offset
            deadline = float("inf") if count == lanes.LANES[-1] else started + lanes.PROBE_SECONDS
            lanes.run_lanes(fetch, count, before, size, consume, deadline)
            found = (self._part.offset - before) / max(time.monotonic() - started, 1e-9)
            if self._part.offset == size:
                return
            if found < rate * lanes.WORTH:
                raise TryAgainError("more connections do not bring more", at_once=True)
            rate = found

    def _fetch_range(
        self, upstream: Upstream, validator: str, offset: int, view: memoryview, stopped: Callable[[], bool]
    ) -> None:
        """Fill ``view`` from ``offset`` of the very version that ``validator`` names; touches nothing else."""
        said = f"bytes {offset}-{offset + len(view) - 1}"
        headers = {"Accept-Encoding": "identity", "Accept": "*/*", "If-Range": validator}
        headers["Range"] = said.replace(" ", "=")
        with open_answer(upstream.url, headers, self._settings, upstream.credential) as answer:
            packed = (answer.headers.get("Content-Encoding") or "identity").strip().lower() != "identity"
            if answer.status != 206 or answer.headers.get("Content-Range") != f"{said}/{self._size}" or packed:
                raise TryAgainError("it does not give several ranges at once", at_once=True)
            if _comparable(validator, answer) not in (None, validator):
                raise TryAgainError("the file there has changed", at_once=True)
            pace, filled = Pace(self._settings), 0
            while filled < len(view) and not stopped():
                count = pace.measure(answer, view[filled:])
                if count == 0:
                    raise TryAgainError("the connection ended early")
                filled += count

    def _restart(self) -> None:
        """Begin with nothing, and wait until the hashing has let go of what there was."""
        self._hasher.begin(hashlib.sha256(), 0)
        self._part.restart()
        self._pieces = 0
        self._synced = 0

    def _begins_like_a_page(self) -> bool:
        start = os.pread(self._part.file, 64, 0).lstrip().lower()
        return start.startswith(_PAGE) and not self._wanted.name.lower().endswith((".html", ".htm"))

    def _portal(self, upstream: Upstream, answer: Optional[Answer] = None) -> FetchError:
        where = f" at {plain_text(answer.host)}" if answer is not None and answer.redirects else ""
        return FetchError(
            f"a web page came{where} instead of the file: a login page of the network, or of the source",
            "sign in to the network, set the proxy, or correct the source",
        )

    def _failed(self, upstream: Upstream, reason: str, cure: Optional[str]) -> FetchError:
        return FetchError(f"{self._wanted.name} from {upstream.label}: {reason}", cure)


def _fingerprint(upstream: Upstream) -> str:
    """Name a source in the journal without its address, which may be signed."""
    return hashlib.sha256(upstream.url.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _validator(answer: Answer) -> Optional[str]:
    """Return what If-Range may carry: a strong ETag, else a date."""
    tag = (answer.headers.get("ETag") or "").strip()
    if tag:
        return tag if re.fullmatch(r'"[\x21\x23-\x7e]{0,512}"', tag) else None
    date = (answer.headers.get("Last-Modified") or "").strip()
    return date if re.fullmatch(r"[A-Za-z0-9,: +-]{1,64}", date) else None


def _takes_ranges(answer: Answer) -> bool:
    return answer.status == 206 or "bytes" in (answer.headers.get("Accept-Ranges") or "").lower()


def _comparable(known: str, answer: Answer) -> Optional[str]:
    """Return the answer's mark of the same kind as ``known``, or None where it has none."""
    header = "ETag" if known.startswith('"') else "Last-Modified"
    return (answer.headers.get(header) or "").strip() or None


def _retry_after(value: Optional[str]) -> Optional[float]:
    if not value:
        return None
    if re.fullmatch("[0-9]{1,9}", value.strip()):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
