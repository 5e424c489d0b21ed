"""Whatever servers do, in whatever order, over several runs: the right file, or an error; never another file."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from modelfleet.core.errors import FetchError, IntegrityError
from modelfleet.core.fetch import part
from modelfleet.core.fetch.settings import FetchSettings, Patience
from modelfleet.core.fetch.transfer import PREFIX, fetch, sweep
from modelfleet.core.jobs import Progress
from modelfleet.core.pins import PinnedFile
from support.fault_server import Act, FaultServer, fault_server

# Marks are closer together than in real life, so that a small file has many of them.
MARK_BYTES = 4096
CONTENT = random.Random(9).randbytes(10 * MARK_BYTES + 321)
OTHER = random.Random(10).randbytes(len(CONTENT))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HASTY = FetchSettings(
    patience=Patience(stall_seconds=0.05, head_seconds=0.3, tries=3, progress_bytes=4096, first_wait_seconds=0.0)
)
# A machine that is busy elsewhere may look like a server that says nothing.
CALM = FetchSettings(patience=Patience(first_wait_seconds=0.0))

OFFSETS = st.one_of(st.sampled_from([0, 1, MARK_BYTES, len(CONTENT) - 1]), st.integers(0, len(CONTENT) + 10))
SHIFTS = st.sampled_from([0, 0, 0, 0, 1, -1, MARK_BYTES, -MARK_BYTES])
ACTS = st.builds(
    Act,
    status=st.sampled_from([None] * 12 + [206, 404, 416, 429, 500, 503]),
    headers=st.sampled_from([{}, {}, {}, {}, {}, {"Retry-After": "0"}, {"Content-Range": "bytes 0-99/100"}]),
    content=st.sampled_from([None, None, None, OTHER, CONTENT[:-1], b""]),
    etag=st.sampled_from(['"one"', '"one"', '"two"', 'W/"one"', None]),
    modified=st.sampled_from([None, "Mon, 23 Nov 2026 10:00:00 GMT"]),
    ranges=st.sampled_from([True, True, True, False]),
    if_range=st.booleans(),
    shift=SHIFTS,
    said_shift=SHIFTS,
    most=st.one_of(st.none(), st.none(), OFFSETS.filter(bool)),
    flip=st.one_of(st.none(), st.none(), st.none(), OFFSETS),
    cut=st.one_of(st.none(), OFFSETS),
    length=st.sampled_from(["right"] * 5 + ["none", "chunked", "more", "less"]),
    extra=st.sampled_from([0] * 8 + [1, -1, 5000]),
    gzip=st.sampled_from([False] * 9 + [True]),
    page=st.sampled_from([False] * 12 + [True]),
    page_kind=st.sampled_from(["text/html", "application/octet-stream"]),
    redirect=st.sampled_from([None] * 9 + ["/elsewhere?x=1", "//["]),
    garbage=st.sampled_from([None] * 12 + [b"", b"HTTP/1.1 200 OK\r\nContent-Len"]),
    stall=st.sampled_from([None] * 40 + [(MARK_BYTES + 5, 0.2)]),
)
# What happens to the folder between two runs: nothing, a torn part or journal, other bytes in the part.
BETWEEN = st.sampled_from(["", "", "", "cut", "flip", "journal"])


@pytest.fixture(scope="module")
def servers() -> Iterator[list[FaultServer]]:
    with fault_server(CONTENT) as first, fault_server(CONTENT) as second:
        yield [first, second]


@pytest.fixture(autouse=True)
def small_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    from modelfleet.core.fetch import download

    monkeypatch.setattr(download, "MARK_BYTES", MARK_BYTES)


def disturb(folder: Path, how: str) -> None:
    """Do to what a run left what a crash might do."""
    path = folder / f"{SHA256}{'.part.journal' if how == 'journal' else part.SUFFIXES[0]}"
    if not how or not path.exists():
        return
    size = path.stat().st_size
    if how in ("cut", "journal"):
        os.truncate(path, size * 2 // 3)
    elif size:
        with path.open("r+b") as target:
            target.seek(size // 2)
            target.write(b"\0" * 10)


def run(servers: list[FaultServer], runs: list[tuple[list[Act], list[Act], str]]) -> bool:
    """Carry out a schedule; returns whether the file came in the end."""
    first, second = servers
    folder = Path(tempfile.mkdtemp(prefix="modelfleet-test-"))
    try:
        file = PinnedFile("chat/7b/file.gguf", first.url(), len(CONTENT), SHA256, None, (second.url(),))
        for first.acts, second.acts, how in runs:
            try:
                path = Path(fetch(file, str(folder), HASTY, Progress()))
            except (FetchError, IntegrityError) as error:
                assert "\n" not in str(error)
                assert not [name for name in os.listdir(folder) if name.startswith(PREFIX)]
            else:
                assert path.read_bytes() == CONTENT
                assert os.listdir(folder) == [path.name]
                path.unlink()
                return True
            disturb(folder, how)
            sweep(str(folder), {SHA256})
        # With servers that behave again, the next run converges.
        first.acts = second.acts = []
        path = Path(fetch(file, str(folder), CALM, Progress()))
        assert path.read_bytes() == CONTENT and os.listdir(folder) == [path.name]
        return False
    finally:
        shutil.rmtree(folder)


SCHEDULES = st.lists(
    st.tuples(st.lists(ACTS, min_size=1, max_size=6), st.lists(ACTS, max_size=4), BETWEEN), min_size=1, max_size=3
)
QUIETLY = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=100, deadline=None, suppress_health_check=QUIETLY)
@given(runs=SCHEDULES)
def test_the_right_file_or_an_error(servers: list[FaultServer], runs: list[tuple[list[Act], list[Act], str]]) -> None:
    run(servers, runs)


@pytest.mark.long
@settings(max_examples=10_000, deadline=None, suppress_health_check=QUIETLY, database=None)
@given(runs=SCHEDULES)
def test_ten_thousand_schedules(servers: list[FaultServer], runs: list[tuple[list[Act], list[Act], str]]) -> None:
    run(servers, runs)
