"""What a server can do wrong, fault by fault: the right file comes all the same, or one clear error."""

from __future__ import annotations

import dataclasses
import os
import random
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.errors import FetchError, IntegrityError, ModelfleetError
from modelfleet.core.fetch.settings import FetchSettings, Patience
from modelfleet.core.fetch.transfer import PREFIX, fetch
from modelfleet.core.jobs import Progress
from modelfleet.core.pins import PinnedFile
from support.fault_server import GOOD, PAGE, Act, FaultServer, fault_server

MIB = 1024 * 1024
CONTENT = random.Random(5).randbytes(9 * MIB + 12345)
QUICK = Patience(stall_seconds=20.0, head_seconds=20.0, first_wait_seconds=0.001, longest_wait_seconds=2.0, tries=4)
# For servers that say nothing; a machine that is busy elsewhere may look like one.
HASTY = dataclasses.replace(QUICK, stall_seconds=0.8, head_seconds=5.0)


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "temp"
    folder.mkdir()
    return folder


class Recorder(Progress):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def update(self, *arguments: Any) -> None:
        self.told.append(arguments)


def pinned(server: FaultServer, *more: FaultServer, path: str = "/file.gguf", **changes: Any) -> PinnedFile:
    """Pin the file of ``server`` as it should be, with the same path of ``more`` servers as alternatives."""
    others = tuple(other.url(path) for other in more)
    file = PinnedFile("chat/7b/file.gguf", server.url(path), len(server.content), server.sha256, None, others)
    return file._replace(**changes)


def get(file: PinnedFile, temporary: Path, progress: Progress | None = None, **settings: Any) -> bytes:
    """Fetch ``file``; nothing but it may be in flight afterwards. Returns what came."""
    settings.setdefault("patience", QUICK)
    path = Path(fetch(file, str(temporary), FetchSettings(**settings), progress or Progress()))
    assert os.listdir(temporary) == [path.name]
    content = path.read_bytes()
    path.unlink()
    return content


def refused(
    file: PinnedFile, temporary: Path, kind: type[ModelfleetError] = FetchError, **settings: Any
) -> ModelfleetError:
    """Return the one-line error that says why ``file`` cannot be had; nothing may be there that looks whole."""
    settings.setdefault("patience", QUICK)
    with pytest.raises(ModelfleetError) as caught:
        fetch(file, str(temporary), FetchSettings(**settings), Progress())
    assert type(caught.value) is kind, caught.value
    assert "\n" not in str(caught.value) and caught.value.cure
    assert not [name for name in os.listdir(temporary) if name.startswith(PREFIX)]
    return caught.value


class TestCut:
    @pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
    @pytest.mark.parametrize("length", ["right", "none", "chunked"])
    def test_the_rest_is_fetched_and_nothing_twice(self, temporary: Path, reset: bool, length: str) -> None:
        acts = [Act(cut=cut, reset=reset, length=length) for cut in (5 * MIB + 1, 2 * MIB, 100)]
        with fault_server(CONTENT, *acts) as server:
            assert get(pinned(server), temporary) == CONTENT
            assert len(server.requests) == 4 and server.ranges[0] is None
            offsets = [int((asked or "")[len("bytes=") : -1]) for asked in server.ranges[1:]]
            assert offsets == sorted(offsets) and offsets[-1] <= 7 * MIB + 101
            assert all(headers["If-Range"] == '"one"' for _, headers in server.requests[1:])
            # What a reset overtakes on the way counts as never sent.
            assert server.sent - len(CONTENT) <= (8 * MIB if reset else 0)

    def test_at_every_kind_of_offset(self, temporary: Path) -> None:
        edges = [0, 1, MIB - 1, MIB, MIB + 1, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 8 * MIB, len(CONTENT) - 1]
        for cut in edges:
            with fault_server(CONTENT, Act(cut=cut)) as server:
                assert get(pinned(server), temporary) == CONTENT
                assert server.sent == len(CONTENT)

    def test_one_that_is_always_cut_is_given_up_and_what_came_stays(self, temporary: Path) -> None:
        with fault_server(CONTENT, Act(cut=3 * MIB), *[Act(cut=10)] * 20) as server:
            error = refused(pinned(server), temporary)
            assert str(error) == (
                f"file.gguf from {server.url()}: the connection ended early; "
                "check the network and the source, and run again: what came stays"
            )
            assert len(server.requests) == 1 + QUICK.tries - 1
            assert sorted(os.listdir(temporary)) == [f"{server.sha256}.part", f"{server.sha256}.part.journal"]

    def test_as_long_as_it_gets_on_it_goes_on(self, temporary: Path) -> None:
        with fault_server(CONTENT, *[Act(cut=MIB)] * 9) as server:
            assert get(pinned(server), temporary) == CONTENT
            assert len(server.requests) == 10


class TestRanges:
    def test_the_whole_file_for_a_range_begins_anew(self, temporary: Path) -> None:
        with fault_server(CONTENT, Act(cut=5 * MIB), Act(ranges=False)) as server:
            assert get(pinned(server), temporary) == CONTENT
            assert server.ranges == [None, f"bytes={5 * MIB}-"]

    @pytest.mark.parametrize("wrong", [Act(shift=1), Act(said_shift=1), Act(shift=MIB, said_shift=-MIB + 1)])
    def test_another_range_is_not_spliced(self, temporary: Path, wrong: Act) -> None:
        with fault_server(CONTENT, Act(cut=5 * MIB), wrong) as server:
            assert get(pinned(server), temporary) == CONTENT
            assert server.ranges == [None, f"bytes={5 * MIB}-", None]

    def test_other_bytes_for_a_range_are_found_by_the_hash(self, temporary: Path) -> None:
        """A cache on the way that breaks ranges, say: the file is asked for once more, as a whole."""
        with fault_server(CONTENT, Act(cut=5 * MIB), Act(content=bytes(len(CONTENT)))) as server:
            assert get(pinned(server), temporary) == CONTENT
            assert server.ranges == [None, f"bytes={5 * MIB}-", None]

    @pytest.mark.parametrize("status", [416, 206])
    def test_one_that_refuses_every_range(self, temporary: Path, status: int) -> None:
        with fault_server(CONTENT, Act(cut=5 * MIB), Act(status=status)) as server:
            assert get(pinned(server), temporary) == CONTENT
            assert server.ranges == [None, f"bytes={5 * MIB}-", None]

    def test_416_that_tells_another_size(self, temporary: Path) -> None:
        with fault_server(
            CONTENT, Act(cut=5 * MIB), Act(status=416, headers={"Content-Range": "bytes */77"})
        ) as server:
            assert "expected 9449529 bytes, found 77 bytes" in str(refused(pinned(server), temporary, IntegrityError))

    def test_206_that_nobody_asked_for(self, temporary: Path) -> None:
        partial = Act(status=206, headers={"Content-Range": f"bytes 0-2/{len(CONTENT)}"})
        with fault_server(CONTENT, *[partial] * 9) as server:
            assert "another part of the file" in str(refused(pinned(server), temporary))

    def test_ranges_in_small_pieces(self, temporary: Path) -> None:
        with fault_server(CONTENT, Act(cut=5 * MIB), Act(most=2 * MIB), Act(most=MIB), Act(most=MIB)) as server:
            assert get(pinned(server), temporary) == CONTENT
            assert server.sent == len(CONTENT)


class TestChanged:
    OTHER = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])

    def test_a_new_etag_begins_anew(self, temporary: Path) -> None:
        """The old version was cut; the server has the pinned one by now."""
        with fault_server(CONTENT, Act(content=self.OTHER, cut=5 * MIB, etag='"zero"'), GOOD) as server:
            assert get(pinned(server), temporary) == CONTENT
            assert server.ranges == [None, f"bytes={5 * MIB}-"]
            assert server.requests[1][1]["If-Range"] == '"zero"'

    def test_a_server_that_does_not_know_if_range(self, temporary: Path) -> None:
        old = Act(content=bytes(len(CONTENT)), cut=5 * MIB, etag='"zero"')
        with fault_server(CONTENT, old, Act(if_range=False), GOOD) as server:
            assert get(pinned(server), temporary) == CONTENT
            assert server.ranges == [None, f"bytes={5 * MIB}-", None]

    def test_a_date_where_there_is_no_etag(self, temporary: Path) -> None:
        date = "Mon, 23 Nov 2026 10:00:00 GMT"
        with fault_server(CONTENT, Act(cut=5 * MIB, etag=None, modified=date), Act(etag=None, modified=date)) as server:
            assert get(pinned(server), temporary) == CONTENT
            assert server.requests[1][1]["If-Range"] == date

    def test_a_weak_etag_goes_into_no_condition(self, temporary: Path) -> None:
        with fault_server(CONTENT, Act(cut=5 * MIB, etag='W/"one"')) as server:
            assert get(pinned(server), temporary) == CONTENT
            assert "If-Range" not in server.requests[1][1] and server.ranges[1] == f"bytes={5 * MIB}-"

    def test_a_change_that_nothing_tells_is_found_by_the_hash(self, temporary: Path) -> None:
        old = Act(content=bytes(len(CONTENT)), cut=5 * MIB)
        with fault_server(CONTENT, old, GOOD, old, GOOD, GOOD) as server:
            error = refused(pinned(server), temporary, IntegrityError)
            assert "expected sha256" in str(error)
            assert len(server.requests) == 4, "once more, and no more"


class TestLies:
    @pytest.mark.parametrize("flip", [0, 5 * MIB, len(CONTENT) - 1])
    def test_a_bit_flip(self, temporary: Path, flip: int) -> None:
        with fault_server(CONTENT, *[Act(flip=flip)] * 9) as server:
            error = refused(pinned(server), temporary, IntegrityError)
            assert str(error).startswith(
                f"file.gguf from {server.url()}: expected sha256 {server.sha256}, found sha256 "
            )
            assert os.listdir(temporary) == [], "the part is dropped"
            assert len(server.requests) == 1, "who lies is not asked again"

    def test_the_next_source_is_tried(self, temporary: Path) -> None:
        with fault_server(CONTENT, Act(flip=77)) as liar, fault_server(CONTENT) as honest:
            assert get(pinned(liar, honest), temporary) == CONTENT
            assert honest.ranges == [None]

    def test_a_bit_flip_in_the_rest_of_an_earlier_part(self, temporary: Path) -> None:
        """Which of the two lied cannot be told: the second is asked for all of it."""
        with fault_server(CONTENT, Act(cut=5 * MIB, flip=3), *[Act(status=500)] * 9) as first, fault_server(
            CONTENT
        ) as second:
            assert get(pinned(first, second), temporary) == CONTENT
            assert second.ranges == [f"bytes={5 * MIB}-", None]

    @pytest.mark.parametrize("extra", [-1, 1, -len(CONTENT), 10 * MIB])
    @pytest.mark.parametrize("length", ["right", "none", "chunked"])
    def test_another_length(self, temporary: Path, extra: int, length: str) -> None:
        with fault_server(CONTENT, *[Act(extra=extra, length=length, ranges=False)] * 9) as server:
            kind = IntegrityError if extra > 0 or length == "right" else FetchError
            error = refused(pinned(server), temporary, kind)
            if kind is IntegrityError:
                assert f"expected {len(CONTENT)} bytes, found " in str(error)
                assert os.listdir(temporary) == []

    @pytest.mark.parametrize("length", ["more", "less"])
    def test_a_wrong_content_length(self, temporary: Path, length: str) -> None:
        with fault_server(CONTENT, *[Act(length=length)] * 9) as server:
            assert "expected 9449529 bytes" in str(refused(pinned(server), temporary, IntegrityError))

    @pytest.mark.parametrize("value", ["9" * 5000, "-1", "1e3", "", "0x10", "5, 5"])
    def test_a_content_length_that_is_none(self, temporary: Path, value: str) -> None:
        """It counts as untold: the body is read to its end."""
        with fault_server(CONTENT, Act(headers={"Content-Length": value})) as server:
            assert get(pinned(server), temporary) == CONTENT

    def test_an_endless_body_is_left_at_one_byte_too_many(self, temporary: Path) -> None:
        with fault_server(CONTENT, Act(extra=40 * MIB, length="none")) as server:
            assert f"expected {len(CONTENT)} bytes, found more" in str(
                refused(pinned(server), temporary, IntegrityError)
            )
        assert server.sent < len(CONTENT) + 20 * MIB

    @pytest.mark.parametrize("kind", ["gzip", "deflate, gzip", "br", "zstd"])
    def test_a_packed_body(self, temporary: Path, kind: str) -> None:
        with fault_server(CONTENT, Act(headers={"Content-Encoding": kind})) as server:
            message = str(refused(pinned(server), temporary))
            assert f"it sends the file packed ({kind}), though asked not to; name another source" in message
            assert server.requests[0][1]["Accept-Encoding"] == "identity"

    def test_identity_is_no_packing(self, temporary: Path) -> None:
        with fault_server(CONTENT, Act(headers={"Content-Encoding": "Identity"})) as server:
            assert get(pinned(server), temporary) == CONTENT

    @pytest.mark.parametrize("garbage", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\0" * 100])
    def test_no_http_at_all(self, temporary: Path, garbage: bytes) -> None:
        with fault_server(CONTENT, *[Act(garbage=garbage)] * 9) as server:
            refused(pinned(server), temporary)
            assert len(server.requests) == QUICK.tries


class TestPortal:
    SAID = "a web page came instead of the file: a login page of the network, or of the source; sign in to the network"

    @pytest.mark.parametrize(
        "act",
        [
            Act(page=True),
            Act(page=True, status=511),
            Act(page=True, page_kind="application/octet-stream", length="none"),
            Act(page=True, content=PAGE.ljust(len(CONTENT)), page_kind="application/octet-stream"),
        ],
        ids=["by its kind", "by its status", "by its beginning", "of the right size"],
    )
    def test_a_page_is_told_as_one(self, temporary: Path, act: Act) -> None:
        with fault_server(CONTENT, act) as server:
            assert self.SAID in str(refused(pinned(server), temporary))
            assert len(server.requests) == 1
        assert not list(temporary.glob("*.part"))

    def test_a_redirect_to_a_page(self, temporary: Path) -> None:
        with fault_server(b"", Act(page=True)) as portal, fault_server(
            CONTENT, Act(redirect=portal.url("/?u=me"))
        ) as server:
            message = str(refused(pinned(server), temporary))
            assert "a web page came at 127.0.0.1 instead of the file" in message and "u=me" not in message

    def test_behind_it_the_part_goes_on(self, temporary: Path) -> None:
        with fault_server(CONTENT, Act(cut=5 * MIB), Act(page=True), GOOD) as server:
            refused(pinned(server), temporary)
            assert get(pinned(server), temporary) == CONTENT
            assert server.ranges[-1] == f"bytes={4 * MIB}-"

    def test_a_file_that_is_a_page(self, temporary: Path) -> None:
        with fault_server(PAGE, Act(headers={"Content-Type": "text/html"})) as server:
            assert get(pinned(server)._replace(path="cache/index.html"), temporary) == PAGE


class TestStatus:
    @pytest.mark.parametrize("status", [401, 403])
    def test_denied_is_said_at_once(self, temporary: Path, status: int) -> None:
        with fault_server(CONTENT, Act(status=status)) as server:
            assert str(refused(pinned(server), temporary)) == (
                f"file.gguf from {server.url()}: the server answers {status}: it does not let everybody read the file; "
                "name a source that does"
            )
            assert len(server.requests) == 1

    @pytest.mark.parametrize("status", [400, 404, 405, 410, 418, 451, 501, 304, 203])
    def test_others_that_asking_again_does_not_cure(self, temporary: Path, status: int) -> None:
        with fault_server(CONTENT, Act(status=status)) as server:
            assert f"the server answers {status}" in str(refused(pinned(server), temporary))
            assert len(server.requests) == 1

    @pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
    def test_those_that_it_may_cure(self, temporary: Path, status: int) -> None:
        with fault_server(CONTENT, Act(status=status), Act(status=status)) as server:
            assert get(pinned(server), temporary) == CONTENT
            assert len(server.requests) == 3

    def test_not_for_ever(self, temporary: Path) -> None:
        with fault_server(CONTENT, *[Act(status=503)] * 99) as server:
            assert "the server answers 503" in str(refused(pinned(server), temporary))
            assert len(server.requests) == QUICK.tries

    @pytest.mark.parametrize("form", ["1", "date"])
    def test_retry_after_is_kept(self, temporary: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
        # The clock stands still: on a slow machine the moment would be over before it is asked for.
        now = float(int(time.time()))
        monkeypatch.setattr(time, "time", lambda: now)
        value = form if form == "1" else time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now + 1))
        with fault_server(CONTENT, Act(status=429, headers={"Retry-After": value})) as server:
            started = time.monotonic()
            progress = Recorder()
            assert get(pinned(server), temporary, progress) == CONTENT
            assert time.monotonic() - started > 0.9
        assert [said[1] for said in progress.told if said[1]] == ["waiting 1 s: the server answers 429"]

    def test_more_patience_than_we_have(self, temporary: Path) -> None:
        with fault_server(CONTENT, Act(status=503, headers={"Retry-After": "86400"})) as server:
            message = str(refused(pinned(server), temporary))
            assert "answers 503, and asks to come back in 86400 s; run again then" in message
            assert len(server.requests) == 1

    @pytest.mark.parametrize("value", ["soon", "-1", "1e9", "99999999999999", "Mon, 99 Foo"])
    def test_a_retry_after_that_is_none(self, temporary: Path, value: str) -> None:
        with fault_server(CONTENT, Act(status=503, headers={"Retry-After": value})) as server:
            assert get(pinned(server), temporary) == CONTENT

    def test_waits_grow_and_differ(self, temporary: Path) -> None:
        from modelfleet.core.fetch.download import Download, Upstream, Wanted

        waits: list[float] = []
        patience = Patience(first_wait_seconds=1.0, longest_wait_seconds=5.0, tries=8)
        with fault_server(CONTENT, *[Act(status=500)] * 9) as server, pytest.raises(FetchError):
            wanted = Wanted("file.gguf", server.sha256, len(CONTENT), server.sha256)
            Download(wanted, str(temporary), FetchSettings(patience=patience), Progress(), waits.append).run(
                [Upstream(server.url(), "here")], str(temporary / "x")
            )
        assert len(waits) == 7 and len(set(waits)) == 7
        assert all(least / 2 <= wait <= least for wait, least in zip(waits, [1, 2, 4, 5, 5, 5, 5], strict=True))


class TestSlow:
    def test_a_stall_is_given_up_and_gone_on_with(self, temporary: Path) -> None:
        with fault_server(CONTENT, Act(stall=(3 * MIB + 5, 60))) as server:
            assert get(pinned(server), temporary, patience=HASTY) == CONTENT
            # A few bytes that had come without filling a read may be asked for again.
            again = [int(asked[len("bytes=") : -1]) for asked in server.ranges if asked is not None]
            assert again and 3 * MIB <= again[0] <= 3 * MIB + 5

    def test_the_default_gives_up_in_under_30_seconds(self) -> None:
        patience = Patience()
        assert max(patience.stall_seconds, patience.head_seconds) < 30 and patience.connect_seconds < 30

    def test_a_drip(self, temporary: Path) -> None:
        with fault_server(CONTENT, *[Act(drip=(1, 0.05))] * 9) as server:
            assert "bytes came in" in str(refused(pinned(server), temporary, patience=HASTY))
            assert len(server.requests) == QUICK.tries

    def test_a_drip_in_the_head(self, temporary: Path) -> None:
        with fault_server(CONTENT, *[Act(head_drip=0.05)] * 9) as server:
            patience = Patience(stall_seconds=0.4, head_seconds=0.5, first_wait_seconds=0.001, tries=2)
            assert "the answer took too long" in str(refused(pinned(server), temporary, patience=patience))

    def test_one_that_accepts_and_says_nothing(self, temporary: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            file = PinnedFile("chat/7b/x", f"http://127.0.0.1:{listener.getsockname()[1]}/x", 5, "0" * 64, None)
            assert "nothing came for too long" in str(refused(file, temporary, patience=HASTY))

    def test_a_host_that_cannot_be(self, temporary: Path) -> None:
        file = PinnedFile("chat/7b/x", f"http://{'x' * 64}.example/x", 5, "0" * 64, None)
        assert "its host has no valid name" in str(refused(file, temporary))

    def test_nobody_there(self, temporary: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        file = PinnedFile("chat/7b/x", f"http://127.0.0.1:{port}/x", 5, "0" * 64, None)
        assert "no connection: Connection refused" in str(refused(file, temporary))
        assert os.listdir(temporary) == []

    def test_a_rate_limit(self, temporary: Path) -> None:
        content = CONTENT[: 2 * MIB]
        with fault_server(content) as server:
            started = time.monotonic()
            assert get(pinned(server), temporary, rate_limit=2.0 * MIB) == content
            assert time.monotonic() - started > 0.7


class TestRedirects:
    def test_they_are_followed_with_the_range(self, temporary: Path) -> None:
        with fault_server(CONTENT, Act(cut=5 * MIB)) as storage, fault_server(CONTENT) as server:
            server.acts += [Act(redirect=storage.url("/blob?signature=SECRET"))] * 2
            assert get(pinned(server), temporary) == CONTENT
            assert storage.ranges == [None, f"bytes={5 * MIB}-"]

    def test_relative_ones(self, temporary: Path) -> None:
        with fault_server(CONTENT, Act(redirect="/else where/ü?x=1#y"), Act(redirect="../there", status=307)) as server:
            assert get(pinned(server), temporary) == CONTENT
            assert [path for path, _ in server.requests] == ["/file.gguf", "/else%20where/%C3%BC?x=1", "/there"]

    def test_a_circle(self, temporary: Path) -> None:
        with fault_server(CONTENT, *[Act(redirect="/file.gguf")] * 50) as server:
            assert "it redirects more than 5 times" in str(refused(pinned(server), temporary))
            assert len(server.requests) == 6

    @pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://host/x", "gopher:x", "http://h:x/", "//["])
    def test_to_what_is_no_http(self, temporary: Path, target: str) -> None:
        with fault_server(CONTENT, Act(redirect=target)) as server:
            assert "it redirects to what is no http or https address" in str(refused(pinned(server), temporary))


class TestSeveralSources:
    def test_all_fail(self, temporary: Path) -> None:
        with fault_server(CONTENT, Act(status=404)) as first, fault_server(CONTENT, Act(flip=3)) as second:
            error = refused(pinned(first, second), temporary)
            assert str(error).startswith("file.gguf could not be fetched from any of its 2 sources (1. file.gguf from ")
            assert "answers 404" in str(error) and "expected sha256" in str(error)

    def test_the_second_goes_on_where_the_first_was_cut(self, temporary: Path) -> None:
        with fault_server(CONTENT, Act(cut=5 * MIB), *[Act(status=500)] * 9) as first, fault_server(CONTENT) as second:
            assert get(pinned(first, second), temporary) == CONTENT
            assert second.ranges == [f"bytes={5 * MIB}-"]
            assert "If-Range" not in second.requests[0][1], "another server's ETag says nothing here"

    def test_a_file_of_the_host_first(self, temporary: Path, tmp_path: Path) -> None:
        with fault_server(CONTENT) as server:
            file = pinned(server)._replace(source=f"file://{tmp_path}/none", alternatives=(server.url(),))
            assert get(file, temporary) == CONTENT

    def test_a_file_of_the_host_last(self, temporary: Path, tmp_path: Path) -> None:
        (tmp_path / "copy").write_bytes(CONTENT)
        with fault_server(CONTENT, Act(cut=5 * MIB), *[Act(status=500)] * 9) as server:
            assert get(pinned(server, alternatives=(f"file://{tmp_path}/copy",)), temporary) == CONTENT


class TestUnlocked:
    def test_what_nothing_pins_comes_as_it_is(self, temporary: Path) -> None:
        with fault_server(CONTENT, Act(cut=5 * MIB)) as server:
            assert get(pinned(server, size=None, sha256=None), temporary) == CONTENT
            assert server.requests[1][1]["If-Range"] == '"one"'

    def test_it_is_not_gone_on_with_where_nothing_tells_its_version(self, temporary: Path) -> None:
        with fault_server(CONTENT, Act(cut=5 * MIB, etag=None)) as server:
            assert get(pinned(server, size=None, sha256=None), temporary) == CONTENT
            assert server.ranges == [None, None]

    def test_without_a_length_its_end_cannot_be_told(self, temporary: Path) -> None:
        with fault_server(CONTENT, Act(length="none")) as server:
            message = str(refused(pinned(server, size=None, sha256=None), temporary))
            assert "it tells no length, and the lock pins no size; lock the file first" in message


def test_an_address_over_ipv6(temporary: Path) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        with fault_server(CONTENT, address="::1") as server:
            assert get(pinned(server), temporary) == CONTENT
            assert server.requests[0][1]["Host"] == f"[::1]:{server.server_port}"
    except OSError as error:
        pytest.skip(f"this machine has no IPv6: {error}")


def test_progress_tells_bytes_of_the_whole(temporary: Path) -> None:
    progress = Recorder()
    with fault_server(CONTENT) as server:
        get(pinned(server), temporary, progress)
    assert {said[0] for said in progress.told} == {"fetching file.gguf"}
    done = [said[2] for said in progress.told]
    assert done == sorted(done) and done[-1] == len(CONTENT)
    assert {said[3:] for said in progress.told} == {(len(CONTENT), "bytes")}


def test_no_thread_is_left(temporary: Path) -> None:
    with fault_server(CONTENT, Act(cut=5 * MIB), Act(status=404)) as server:
        refused(pinned(server), temporary)
        get(pinned(server), temporary)
    assert [thread for thread in threading.enumerate() if "watch" in thread.name or "_run" in thread.name] == []
