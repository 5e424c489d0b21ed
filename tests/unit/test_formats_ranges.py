"""Headers over HTTP: how many ranges they take, and what goes wrong on the way."""

from __future__ import annotations

import re
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner
from fuzz.seeds import ARCHITECTURE, ARRAY, STRING, array, gguf, gguf_seed, pair, safetensors_seed, string, tensor
from modelfleet.cli import main
from modelfleet.core.errors import ConfigurationError, FetchError, FormatError
from modelfleet.core.fetch.remote import open_url
from modelfleet.core.formats.judge import describe_source
from support import hub
from support.fault_server import make_certificate


class Server(ThreadingHTTPServer):
    """Serves ``files`` by path, with the misbehaviour of ``mode``, and keeps what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.mode = ""
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, said = self.server, self.headers.get("Range")
        server.asked.append((self.path, said, self.headers.get("Authorization")))
        if self.path.startswith("/hub/"):
            self.send_response(302)
            self.send_header("Location", server.url + "/" + self.path.rsplit("/", 1)[-1])
            self.end_headers()
            return
        raw = server.files.get(self.path.split("?")[0])
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", said or "")
        if raw is None or match is None:
            self.send_error(404)
            return
        start, end = int(match[1]), min(int(match[2]) + 1, len(raw))
        self.send_response(200 if server.mode == "no ranges" else 206)
        if server.mode == "no ranges":
            start, end = 0, len(raw)
        else:
            shift = 1 if server.mode == "another range" else 0
            self.send_header("Content-Range", f"bytes {start + shift}-{end - 1}/{len(raw)}")
        self.send_header("Content-Length", str(end - start))
        self.send_header("ETag", f'"{len(server.asked) if server.mode == "changing" else 1}"')
        self.end_headers()
        if server.mode == "cut off":
            end = start + (end - start) // 2
        try:
            self.wfile.write(raw[start:end])
        except OSError:
            return
        server.sent += end - start

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    threading.Thread(target=one.serve_forever, daemon=True).start()
    yield one
    one.shutdown()
    one.server_close()


def large_vocabulary(tokens: int, data_bytes: int = 0) -> bytes:
    """Return a GGUF with a vocabulary of ``tokens`` words of 60 bytes."""
    words = b"".join(string(f"{one:060d}") for one in range(tokens))
    pairs = [ARCHITECTURE, pair("tokenizer.ggml.tokens", ARRAY, array(STRING, tokens, words))]
    return gguf(pairs, [tensor("a", [data_bytes // 4])], bytes(data_bytes))


def test_a_small_header_takes_one_range(server: Server) -> None:
    server.files["/m.gguf"] = gguf_seed()
    server.files["/m.safetensors"] = safetensors_seed()
    for name in ("m.gguf", "m.safetensors"):
        assert describe_source(open_url(f"{server.url}/{name}?secret=1")).tensors
    assert len(server.asked) == 2


def test_a_vocabulary_of_128k_takes_at_most_three_ranges_and_no_weights(server: Server) -> None:
    server.files["/m.gguf"] = large_vocabulary(128 * 1024, 32 * 1024 * 1024)
    model = describe_source(open_url(f"{server.url}/m.gguf"))
    assert model.vocabulary_size == 128 * 1024
    assert len(server.asked) == 2
    assert server.sent <= 16 * 1024 * 1024


def test_the_third_range_is_the_last(server: Server) -> None:
    server.files["/m.gguf"] = large_vocabulary(400_000)
    assert describe_source(open_url(f"{server.url}/m.gguf")).vocabulary_size == 400_000
    assert len(server.asked) == 3
    long = [pair(f"k{one}", STRING, struct.pack("<Q", 12_000_000) + bytes(12_000_000)) for one in range(7)]
    server.files["/m.gguf"] = gguf([ARCHITECTURE, *long])
    with pytest.raises(FetchError, match="3 ranges"):
        describe_source(open_url(f"{server.url}/m.gguf"))


def test_a_file_on_the_hub_is_found(server: Server) -> None:
    """The token stays here: this Hub does not speak https, and being on the same machine is no reason."""
    server.files["/m.gguf"] = gguf_seed()
    environment = {"HF_ENDPOINT": server.url + "/hub/", "HF_TOKEN": "hf_secret"}
    describe_source(open_url("hf://owner/name@v1.0/folder/m.gguf", environment))
    assert [(path, token) for path, _, token in server.asked] == [
        ("/hub/owner/name/resolve/v1.0/folder/m.gguf", None),
        ("/m.gguf", None),
    ]
    describe_source(open_url("hf://owner/name/m.gguf", {"HF_ENDPOINT": server.url + "/hub"}))
    assert server.asked[2][0] == "/hub/owner/name/resolve/main/m.gguf"


def test_the_token_stays_with_its_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = make_certificate(tmp_path, "DNS:localhost", "IP:127.0.0.1")
    hub.trust(certificate, monkeypatch)
    with hub.serve(certificate) as first, hub.serve(certificate) as second:
        for one in (first, second):
            one.tokens.add("hf_secret")
            one.add("owner/name", {"m.gguf": gguf_seed()}, gated=True)
        environment = {"HF_ENDPOINT": first.endpoint, "HF_TOKEN": "hf_secret"}
        assert describe_source(open_url("hf://owner/name/m.gguf", environment)).tensors
        assert [headers.get("Authorization") for _, _, headers in first.requests] == ["Bearer hf_secret", None]
        # A plain address is no file of the Hub, wherever it leads.
        with pytest.raises(FetchError, match="answers 401"):
            open_url(f"{first.endpoint}/owner/name/resolve/main/m.gguf", environment)
        first.lie = lambda handler: handler.send_text(b"", {"Location": second.endpoint + handler.path}, 307) or True
        with pytest.raises(FetchError, match="answers 401"):
            open_url("hf://owner/name/m.gguf", environment)
        assert [headers.get("Authorization") for _, _, headers in second.requests] == [None]


def test_a_token_that_is_none_is_not_sent_and_not_shown(server: Server) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_url("hf://owner/name/m.gguf", {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_one\r\nX-Other: 1"})
    assert "hf_one" not in str(caught.value) and server.asked == []


def test_a_server_without_ranges_gives_the_beginning(server: Server) -> None:
    server.mode = "no ranges"
    server.files["/m.gguf"] = gguf_seed()
    assert describe_source(open_url(f"{server.url}/m.gguf")).architecture == "llama"
    server.files["/m.gguf"] = large_vocabulary(50_000)
    with pytest.raises(FetchError, match="no ranges"):
        describe_source(open_url(f"{server.url}/m.gguf"))


@pytest.mark.parametrize(
    ("mode", "said"), [("another range", "no ranges"), ("changing", "changed"), ("cut off", "connection ended")]
)
def test_a_server_that_misbehaves_is_named(server: Server, mode: str, said: str) -> None:
    server.mode = mode
    server.files["/m.gguf"] = large_vocabulary(50_000)
    with pytest.raises(FetchError, match=said):
        describe_source(open_url(f"{server.url}/m.gguf"))


def test_an_attack_over_http_is_refused(server: Server) -> None:
    server.files["/m.gguf"] = b"\x80\x04evil."
    with pytest.raises(FormatError, match="pickle"):
        describe_source(open_url(f"{server.url}/m.gguf"))
    said = CliRunner().invoke(main, ["inspect", f"{server.url}/m.gguf"])
    assert (said.exit_code, said.stdout, said.stderr.count("\n")) == (1, "", 1)


def test_inspect_tells_no_secret_of_an_address(server: Server) -> None:
    server.files["/m.gguf"] = gguf_seed()
    for address in (server.url.replace("//", "//user:word@") + "/m.gguf", server.url + "/absent?sig=word"):
        said = CliRunner().invoke(main, ["inspect", address])
        assert said.exit_code == 1
        assert "word" not in said.output
    for arguments in ([], ["--json"]):
        said = CliRunner().invoke(main, ["inspect", server.url + "/m.gguf?sig=word", *arguments])
        assert said.exit_code == 0
        assert "word" not in said.output


@pytest.mark.parametrize("url", ["hf://name", "hf://a/b", "https://", "https://[::1/x"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises((ConfigurationError, FetchError)):
        open_url(url, {})
