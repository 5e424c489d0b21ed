"""Several connections where one is slower than the link: the same bytes, and one again where that does not help."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.errors import IntegrityError
from modelfleet.core.fetch import lanes
from modelfleet.core.fetch.settings import FetchSettings, Patience
from modelfleet.core.fetch.transfer import fetch
from modelfleet.core.jobs import Progress
from modelfleet.core.pins import PinnedFile
from support.fault_server import Act, FaultServer, fault_server

MIB = 1024 * 1024
CONTENT = random.Random(11).randbytes(2 * MIB + 99)
SEGMENT = 64 * 1024
# About 2 MB a second for each connection.
SLOW = Act(drip=(32 * 1024, 0.016), headers={"Accept-Ranges": "bytes"})
QUICK = Patience(stall_seconds=20.0, first_wait_seconds=0.001, tries=4)
# For a server that says nothing; a machine that is busy elsewhere may look like one.
HASTY = dataclasses.replace(QUICK, stall_seconds=1.0)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a small file show what takes a large one in real life."""
    monkeypatch.setattr(lanes, "SEGMENT_BYTES", SEGMENT)
    monkeypatch.setattr(lanes, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(lanes, "LEFT_SECONDS", 0.05)


def get(server: FaultServer, folder: Path, **settings: Any) -> bytes:
    file = PinnedFile("chat/7b/file.gguf", server.url(), len(CONTENT), server.sha256, None)
    settings.setdefault("patience", QUICK)
    path = Path(fetch(file, str(folder), FetchSettings(**settings), Progress()))
    assert [one.name for one in folder.iterdir()] == [path.name]
    return path.read_bytes()


def segments(server: FaultServer) -> list[tuple[int, int]]:
    """Return the closed ranges that were asked for."""
    asked = [(ranged or "-")[len("bytes=") :].split("-") for ranged in server.ranges]
    return [(int(first), int(last)) for first, last in (one for one in asked if len(one) == 2 and one[1])]


def test_they_bring_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a busy machine more may bring nothing; how much they bring is a matter of the benchmark.
    monkeypatch.setattr(lanes, "WORTH", 0.0)
    with fault_server(CONTENT, SLOW) as server:
        server.segment_acts = [SLOW] * 99
        assert get(server, tmp_path) == CONTENT
        found = sorted(segments(server))
        assert found[-1][1] == len(CONTENT) - 1
        assert all(last - first < SEGMENT for first, last in found)
        assert all(before[1] + 1 == after[0] for before, after in zip(found, found[1:], strict=False)), "nothing twice"
        assert all(headers["If-Range"] == '"one"' for _, headers in server.requests[1:])
        assert server.most_at_once >= 4


def test_a_connection_that_has_little_left_to_do_stays_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "LEFT_SECONDS", 600.0)
    with fault_server(CONTENT, SLOW) as server:
        assert get(server, tmp_path) == CONTENT
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("act", "limit"),
    [
        (Act(drip=(32 * 1024, 0.01)), None),
        (Act(drip=(32 * 1024, 0.01), etag=None, headers={"Accept-Ranges": "bytes"}), None),
        (Act(drip=(32 * 1024, 0.01), headers={"Accept-Ranges": "bytes"}), 50.0 * MIB),
    ],
    ids=["no ranges announced", "nothing tells the version", "a rate limit"],
)
def test_where_it_is_not_tried(tmp_path: Path, act: Act, limit: float | None) -> None:
    with fault_server(CONTENT, act) as server:
        assert get(server, tmp_path, rate_limit=limit) == CONTENT
        assert server.ranges == [None]


@pytest.mark.parametrize(
    "act",
    [
        Act(status=403),
        Act(ranges=False),
        Act(etag='"two"'),
        Act(etag='"two"', if_range=False),
        Act(said_shift=1),
        Act(headers={"Content-Encoding": "gzip"}),
        Act(cut=1000),
        Act(stall=(1000, 30)),
        Act(garbage=b"no"),
        Act(redirect="file:///etc/passwd"),
    ],
)
def test_a_server_that_does_not_like_it(tmp_path: Path, act: Act, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a lane meets, one connection goes on; it begins anew where the file has changed."""
    monkeypatch.setattr(lanes, "WORTH", 0.0)
    with fault_server(CONTENT, SLOW) as server:
        server.segment_acts = [Act(), act]
        assert get(server, tmp_path, patience=HASTY if act.stall else QUICK) == CONTENT
        assert len(segments(server)) >= 2
        assert any(asked is None or asked.endswith("-") for asked in server.ranges[1:])


def test_one_that_answers_ranges_with_other_bytes(tmp_path: Path) -> None:
    with fault_server(CONTENT, SLOW, Act(flip=MIB)) as server:
        server.segment_acts = [Act(flip=3 * MIB // 2)] * 99
        # All but the first answer lie: the file as a whole is asked for once more, and that lies as well.
        with pytest.raises(IntegrityError, match="expected sha256"):
            get(server, tmp_path)
        assert server.ranges[0] is None and None in server.ranges[1:]


def test_a_link_that_is_full_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All connections together get what one gets: one goes on."""
    monkeypatch.setattr(lanes, "WORTH", 100.0)
    with fault_server(CONTENT, SLOW) as server:
        server.segment_acts = [Act(drip=(8 * 1024, 0.02))] * 99
        assert get(server, tmp_path) == CONTENT
        assert 0 < len(segments(server)) < 16
        assert any((asked or "").endswith("-") for asked in server.ranges)


def test_no_lane_stays_behind(tmp_path: Path) -> None:
    before = threading.active_count()
    with fault_server(CONTENT, SLOW) as server:
        server.segment_acts = [SLOW] * 99
        get(server, tmp_path)
    deadline = time.monotonic() + 60
    # Those of the server end in their own time, too.
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
