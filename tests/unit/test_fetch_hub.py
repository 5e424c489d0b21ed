"""Files of a Hub: mirrors in order, gated repositories, the cache of the host, and who sees the token."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import random
import traceback
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.errors import FetchError, IntegrityError, ModelfleetError
from modelfleet.core.fetch.settings import FetchSettings, Patience
from modelfleet.core.fetch.transfer import fetch
from modelfleet.core.jobs import FileProgress, Progress
from modelfleet.core.pins import PinnedFile
from support import hub
from support.fault_server import Act, fault_server, make_certificate

CONTENT = random.Random(7).randbytes(600_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
REPOSITORY = "Acme-Labs/Model-7B"
NAME = "model.q4_k_m.gguf"
TOKEN = "hf_CanaryTokenThatNobodyMaySee0123456789"
PATIENCE = Patience(stall_seconds=20.0, tries=2, first_wait_seconds=0.001)


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "temp"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"), "DNS:localhost", "IP:127.0.0.1")


@contextmanager
def model_hub(certificate: Path | None = None, **about: Any) -> Iterator[hub.HubServer]:
    """Run a Hub with one repository; its bytes come from another origin, as they do from the real one."""
    with hub.serve(certificate) as server:
        server.tokens.add(TOKEN)
        server.add(REPOSITORY, {NAME: CONTENT, "folder/config.json": b"{}"}, **about)
        yield server


def settings(tmp_path: Path, *endpoints: str, **more: Any) -> FetchSettings:
    environment = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": "http://127.0.0.1:1", **more}
    ca_bundle = environment.pop("ca_bundle", None)
    made = FetchSettings.from_environment(environment, ca_bundle, endpoints)
    return FetchSettings(**{**made.__dict__, "patience": PATIENCE})


def pin(revision: str = "main", name: str = NAME, content: bytes = CONTENT) -> PinnedFile:
    source = f"hf://{REPOSITORY}@{revision}/{name}"
    return PinnedFile("chat/7b/file.gguf", source, len(content), hashlib.sha256(content).hexdigest(), None)


def tokens_seen(server: hub.HubServer) -> list[tuple[str, str | None]]:
    """Return of each request its path's first part, and the token that came with it."""
    return [(path.split("/")[1], headers.get("Authorization")) for _, path, headers in server.requests]


class TestEndpoints:
    def test_a_large_file_by_its_redirect(self, tmp_path: Path, temporary: Path) -> None:
        with model_hub() as server:
            path = fetch(pin(), str(temporary), settings(tmp_path, server.endpoint), Progress())
            assert Path(path).read_bytes() == CONTENT
            assert [path.split("/")[1] for _, path, _ in server.requests] == ["Acme-Labs", "cdn"]

    def test_a_small_file_in_a_folder_at_a_commit(self, tmp_path: Path, temporary: Path) -> None:
        with model_hub() as server:
            commit = server.repositories[REPOSITORY].names["main"]
            file = pin(commit, "folder/config.json", b"{}")
            assert (
                Path(fetch(file, str(temporary), settings(tmp_path, server.endpoint), Progress())).read_bytes() == b"{}"
            )

    def test_the_environment_names_the_endpoint(self, tmp_path: Path, temporary: Path) -> None:
        with model_hub() as server:
            assert fetch(pin(), str(temporary), settings(tmp_path, HF_ENDPOINT=f"{server.endpoint}/"), Progress())

    def test_a_renamed_repository(self, tmp_path: Path, temporary: Path) -> None:
        with model_hub() as server:
            server.renamed["Acme-Labs/Old"] = REPOSITORY
            file = pin()._replace(source=f"hf://Acme-Labs/Old@main/{NAME}")
            assert fetch(file, str(temporary), settings(tmp_path, server.endpoint), Progress())

    def test_mirrors_in_order(self, tmp_path: Path, temporary: Path) -> None:
        with model_hub() as good, model_hub() as liar, model_hub() as absent:
            liar.repositories[REPOSITORY].commit({NAME: CONTENT[::-1]})
            absent.repositories.clear()
            path = fetch(
                pin(), str(temporary), settings(tmp_path, absent.endpoint, liar.endpoint, good.endpoint), Progress()
            )
            assert Path(path).read_bytes() == CONTENT
            assert absent.requests and liar.requests

    def test_a_revision_that_moved(self, tmp_path: Path, temporary: Path) -> None:
        """The lock's hash decides, whatever the branch has become."""
        with model_hub() as server:
            server.repositories[REPOSITORY].commit({NAME: CONTENT + b"newer"})
            with pytest.raises(IntegrityError, match=f"expected {len(CONTENT)} bytes, found {len(CONTENT) + 5} bytes"):
                fetch(pin(), str(temporary), settings(tmp_path, server.endpoint), Progress())
            first = next(iter(server.repositories[REPOSITORY].commits))
            assert fetch(pin(first), str(temporary), settings(tmp_path, server.endpoint), Progress())

    @pytest.mark.parametrize("what", [f"hf://{REPOSITORY}@main/none.gguf", f"hf://{REPOSITORY}@v9/{NAME}"])
    def test_what_is_not_there(self, tmp_path: Path, temporary: Path, what: str) -> None:
        with model_hub() as server, pytest.raises(FetchError, match="answers 404: it has no such file"):
            fetch(pin()._replace(source=what), str(temporary), settings(tmp_path, server.endpoint), Progress())


class TestToken:
    """It goes to the first endpoint's own origin, over https, and nowhere else."""

    def test_a_gated_repository(self, tmp_path: Path, temporary: Path, certificate: Path) -> None:
        with model_hub(certificate, gated=True) as server:
            known = settings(tmp_path, server.endpoint, HF_TOKEN=TOKEN, ca_bundle=str(certificate))
            assert Path(fetch(pin(), str(temporary), known, Progress())).read_bytes() == CONTENT
            assert tokens_seen(server) == [("Acme-Labs", f"Bearer {TOKEN}"), ("cdn", None)]

    def test_not_over_plain_http(self, tmp_path: Path, temporary: Path) -> None:
        with model_hub(gated=True) as server:
            known = settings(tmp_path, server.endpoint, HF_TOKEN=TOKEN)
            with pytest.raises(FetchError) as caught:
                fetch(pin(), str(temporary), known, Progress())
            assert str(caught.value) == (
                f"file.gguf from {REPOSITORY} at 127.0.0.1: the server answers 401: {REPOSITORY} is gated or "
                "private, and it was given no token, which goes to the first endpoint alone and only over https; "
                "accept its terms on the Hub, and give a token that may read it (models_hub_token, or HF_TOKEN)"
            )
            assert tokens_seen(server) == [("Acme-Labs", None)]

    def test_not_to_mirrors(self, tmp_path: Path, temporary: Path, certificate: Path) -> None:
        with model_hub(certificate) as first, model_hub(certificate) as mirror:
            first.repositories.clear()
            known = settings(tmp_path, first.endpoint, mirror.endpoint, HF_TOKEN=TOKEN, ca_bundle=str(certificate))
            assert fetch(pin(), str(temporary), known, Progress())
            assert tokens_seen(first) == [("Acme-Labs", f"Bearer {TOKEN}")]
            assert {token for _, token in tokens_seen(mirror)} == {None}

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1"], ids=["another host", "another port"])
    def test_not_behind_a_redirect_nor_on_the_way_back(
        self, tmp_path: Path, temporary: Path, certificate: Path, host: str
    ) -> None:
        with fault_server(CONTENT, certificate=certificate) as server, fault_server(
            CONTENT, certificate=certificate
        ) as other:
            server.acts += [Act(redirect="/same"), Act(redirect=other.url("/there").replace("127.0.0.1", host)), Act()]
            other.acts += [Act(redirect=server.url("/back"))]
            known = settings(tmp_path, server.origin, HF_TOKEN=TOKEN, ca_bundle=str(certificate))
            assert fetch(pin(), str(temporary), known, Progress())
            seen = [(path.rsplit("/", 1)[1], headers.get("Authorization")) for path, headers in server.requests]
            assert seen == [(NAME, f"Bearer {TOKEN}"), ("same", f"Bearer {TOKEN}"), ("back", None)]
            assert "Authorization" not in other.requests[0][1]

    def test_a_redirect_to_plain_http_is_refused(self, tmp_path: Path, temporary: Path, certificate: Path) -> None:
        with fault_server(CONTENT) as plain, fault_server(CONTENT, certificate=certificate) as server:
            server.acts += [Act(redirect=plain.url("/x?signature=SIGNED"))]
            known = settings(tmp_path, server.origin, HF_TOKEN=TOKEN, ca_bundle=str(certificate))
            with pytest.raises(FetchError, match=r"it redirects from https to http at 127\.0\.0\.1; name a source"):
                fetch(pin(), str(temporary), known, Progress())
            assert plain.requests == []

    def test_not_to_a_plain_url(self, tmp_path: Path, temporary: Path, certificate: Path) -> None:
        """A catalog that names an address of the same server as a URL is no reason to show the token."""
        with fault_server(CONTENT, certificate=certificate) as server:
            known = settings(tmp_path, server.origin, HF_TOKEN=TOKEN, ca_bundle=str(certificate))
            fetch(pin()._replace(source=server.url("/x")), str(temporary), known, Progress())
            assert "Authorization" not in server.requests[0][1]

    def test_one_that_is_not_enough(self, tmp_path: Path, temporary: Path, certificate: Path) -> None:
        with fault_server(CONTENT, Act(status=403), certificate=certificate) as server:
            known = settings(tmp_path, server.origin, HF_TOKEN=TOKEN, ca_bundle=str(certificate))
            with pytest.raises(FetchError, match="gated or private, and it was given a token that may not read it"):
                fetch(pin(), str(temporary), known, Progress())
            assert len(server.requests) == 1

    def test_none(self, tmp_path: Path, temporary: Path) -> None:
        with model_hub(private=True) as server, pytest.raises(FetchError, match=r"answers 401.* and no token is set"):
            fetch(pin(), str(temporary), settings(tmp_path, server.endpoint), Progress())

    def test_it_shows_nowhere(
        self, tmp_path: Path, temporary: Path, certificate: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Everything that is written, said or raised in runs that fail and succeed, in plain and in other forms."""
        caplog.set_level(logging.DEBUG)
        shown: list[str] = []
        progress = FileProgress(str(tmp_path / "progress"))
        echo = {"X-Error-Message": f"bad token {TOKEN}", "Retry-After": TOKEN}
        acts = [Act(status=status, headers=echo) for status in (401, 403, 404, 418, 500, 500)]
        acts += [Act(garbage=f"{TOKEN}\r\n\r\n".encode())] * 2
        acts += [Act(garbage=f"HTTP/1.1 200 {TOKEN}\r\n{TOKEN}\r\n\r\n".encode())] * 2
        acts += [Act(redirect=f"https://{TOKEN}@[/{TOKEN}"), Act(redirect=f"ftp://x/{TOKEN}")]
        acts += [Act(redirect=f"https://127.0.0.1:1/?X-Amz-Signature={TOKEN}")] * 2
        acts += [Act(headers={"Content-Encoding": TOKEN.lower()[:3]}), Act(page=True), Act(cut=100_000, etag=None)]
        with fault_server(CONTENT, *acts, certificate=certificate) as server:
            known = settings(tmp_path, server.origin, HF_TOKEN=TOKEN, ca_bundle=str(certificate))
            file = pin()
            failures = 0
            while server.acts:
                try:
                    fetch(file, str(temporary), known, progress)
                except ModelfleetError as error:
                    failures += 1
                    shown += [str(error), repr(error), *traceback.format_exception(error)]
                    cause: BaseException | None = error
                    while cause is not None:
                        shown += [str(cause), repr(cause), repr(vars(cause))]
                        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
            fetch(file, str(temporary), known, progress)
            assert failures >= 9
            assert server.requests[0][1]["Authorization"] == f"Bearer {TOKEN}", "it was there to be shown"
        shown += [repr(known), str(known), repr(known.credential), caplog.text, *map(str, os.environ.items())]
        shown += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
        text = "".join(shown)
        plain = TOKEN.encode()
        forms = [TOKEN, TOKEN.lower(), plain.hex(), urllib.parse.quote(TOKEN.replace("_", "\x7f"))]
        forms += [base64.b64encode(b" " * pad + plain)[4:-4].decode() for pad in range(3)]
        assert [form for form in forms if form in text] == []

    def test_what_is_signed_shows_nowhere(self, tmp_path: Path, temporary: Path) -> None:
        with fault_server(CONTENT, Act(cut=300_000), Act(cut=10)) as server:
            source = server.url("/file?X-Amz-Signature=SIGNED#SIGNED")
            with pytest.raises(FetchError) as caught:
                fetch(pin()._replace(source=source), str(temporary), settings(tmp_path), Progress())
            assert server.requests[0][0] == "/file?X-Amz-Signature=SIGNED"
        assert "SIGNED" not in str(caught.value)
        assert all(b"SIGNED" not in path.read_bytes() for path in temporary.iterdir())


class TestCache:
    """A Hugging Face cache on the host: what it has with the right hash is not fetched."""

    def fill(self, tmp_path: Path, content: bytes = CONTENT, blob: str = SHA256, revision: str = "a" * 40) -> Path:
        repository = tmp_path / "cache" / f"models--{REPOSITORY.replace('/', '--')}"
        for name in ("blobs", f"snapshots/{revision}", "refs"):
            (repository / name).mkdir(parents=True)
        (repository / "blobs" / blob).write_bytes(content)
        (repository / "snapshots" / revision / NAME).symlink_to(f"../../blobs/{blob}")
        (repository / "refs" / "main").write_text(revision)
        return repository / "blobs" / blob

    @pytest.mark.parametrize("offline", ["", "1"])
    def test_by_its_hash(self, tmp_path: Path, temporary: Path, offline: str) -> None:
        blob = self.fill(tmp_path)
        path = Path(fetch(pin("c" * 40), str(temporary), settings(tmp_path, HF_HUB_OFFLINE=offline), Progress()))
        assert path.read_bytes() == CONTENT
        assert path.stat().st_ino != blob.stat().st_ino and path.stat().st_nlink == 1 and not path.is_symlink()
        assert os.listdir(temporary) == [path.name]

    @pytest.mark.parametrize("revision", ["main", "a" * 40])
    def test_by_its_name(self, tmp_path: Path, temporary: Path, revision: str) -> None:
        self.fill(tmp_path, blob="git-id-of-a-small-file")
        assert fetch(pin(revision), str(temporary), settings(tmp_path, HF_HUB_OFFLINE="1"), Progress())

    @pytest.mark.parametrize("content", [CONTENT[::-1], CONTENT[:-1], b""], ids=["other bytes", "short", "empty"])
    def test_wrong_bytes_are_passed_over(self, tmp_path: Path, temporary: Path, content: bytes) -> None:
        self.fill(tmp_path, content)
        with model_hub() as server:
            path = fetch(pin(), str(temporary), settings(tmp_path, server.endpoint), Progress())
            assert Path(path).read_bytes() == CONTENT and server.requests
        assert os.listdir(temporary) == [Path(path).name]

    def test_offline_and_not_there(self, tmp_path: Path, temporary: Path) -> None:
        with model_hub() as server, pytest.raises(FetchError) as caught:
            fetch(pin(), str(temporary), settings(tmp_path, server.endpoint, HF_HUB_OFFLINE="1"), Progress())
        assert str(caught.value) == (
            "file.gguf: HF_HUB_OFFLINE is set, and the Hugging Face cache of this host does not have the pinned file "
            f"of {REPOSITORY}; unset it, or bring the file into the cache"
        )
        assert server.requests == [] and os.listdir(temporary) == []

    def test_a_reference_that_leads_out(self, tmp_path: Path, temporary: Path) -> None:
        self.fill(tmp_path, content=b"x")
        (tmp_path / "cache" / f"models--{REPOSITORY.replace('/', '--')}" / "refs" / "main").write_text("../../..")
        with pytest.raises(FetchError):
            fetch(pin(), str(temporary), settings(tmp_path, HF_HUB_OFFLINE="1"), Progress())

    def test_a_pipe_in_it_is_not_waited_for(self, tmp_path: Path, temporary: Path) -> None:
        blob = self.fill(tmp_path)
        blob.unlink()
        os.mkfifo(blob)
        with pytest.raises(FetchError):
            fetch(pin(), str(temporary), settings(tmp_path, HF_HUB_OFFLINE="1"), Progress())
