"""Certificates, proxies, and what the settings of a fetch are read from."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.errors import ConfigurationError, FetchError
from modelfleet.core.fetch.settings import FetchSettings, Patience
from modelfleet.core.fetch.transfer import fetch
from modelfleet.core.jobs import Progress
from modelfleet.core.pins import PinnedFile
from support.fault_server import Act, fault_server, make_certificate

CONTENT = random.Random(8).randbytes(600_000)
TOKEN = "hf_CanaryTokenThatNobodyMaySee0123456789"


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "temp"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"), "DNS:localhost", "IP:127.0.0.1")


def settings(tmp_path: Path, **more: Any) -> FetchSettings:
    environment = {"HF_HUB_CACHE": str(tmp_path / "cache"), **more}
    ca_bundle = environment.pop("ca_bundle", None)
    patience = Patience(stall_seconds=20.0, tries=2, first_wait_seconds=0.001)
    return dataclasses.replace(FetchSettings.from_environment(environment, ca_bundle), patience=patience)


def pin(source: str) -> PinnedFile:
    return PinnedFile("chat/7b/file.gguf", source, len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), None)


class TestCertificates:
    def test_one_that_nobody_trusts(self, tmp_path: Path, temporary: Path, certificate: Path) -> None:
        with fault_server(CONTENT, certificate=certificate) as server, pytest.raises(FetchError) as caught:
            fetch(pin(server.url()), str(temporary), settings(tmp_path), Progress())
        assert "the certificate of 127.0.0.1 is not trusted (self-signed certificate)" in str(caught.value)
        assert str(caught.value).endswith("name the bundle that it is signed by (modelfleet_ca_bundle)")
        assert server.requests == []

    def test_the_bundle_is_used(self, tmp_path: Path, temporary: Path, certificate: Path) -> None:
        with fault_server(CONTENT, Act(cut=100_000), certificate=certificate) as server:
            known = settings(tmp_path, SSL_CERT_FILE=str(certificate))
            path = fetch(pin(server.url()), str(temporary), known, Progress())
            assert Path(path).read_bytes() == CONTENT

    def test_another_name(self, tmp_path: Path, temporary: Path) -> None:
        other = make_certificate(tmp_path, "DNS:elsewhere.example")
        with fault_server(CONTENT, certificate=other) as server, pytest.raises(FetchError, match="is not trusted"):
            known = settings(tmp_path, ca_bundle=str(other))
            fetch(pin(server.url()), str(temporary), known, Progress())

    @pytest.mark.parametrize("text", [None, "no certificate"])
    def test_a_bundle_that_is_none(self, tmp_path: Path, temporary: Path, certificate: Path, text: str | None) -> None:
        if text is not None:
            (tmp_path / "bundle.pem").write_text(text)
        with fault_server(CONTENT, certificate=certificate) as server, pytest.raises(FetchError) as caught:
            known = settings(tmp_path, ca_bundle=str(tmp_path / "bundle.pem"))
            fetch(pin(server.url()), str(temporary), known, Progress())
        assert f"the certificates in {tmp_path}/bundle.pem cannot be read" in str(caught.value)

    def test_plain_http_where_tls_is_spoken(self, tmp_path: Path, temporary: Path, certificate: Path) -> None:
        with fault_server(CONTENT, certificate=certificate) as server, pytest.raises(FetchError):
            source = server.url().replace("https:", "http:")
            fetch(pin(source), str(temporary), settings(tmp_path), Progress())

    def test_tls_where_plain_http_is_spoken(self, tmp_path: Path, temporary: Path) -> None:
        with fault_server(CONTENT) as server, pytest.raises(FetchError, match="TLS failed"):
            source = server.url().replace("http:", "https:")
            fetch(pin(source), str(temporary), settings(tmp_path), Progress())


LATE = """
import sys
from modelfleet.core.fetch.settings import FetchSettings, Patience
from modelfleet.core.fetch.transfer import fetch
from modelfleet.core.jobs import Progress
from modelfleet.core.pins import PinnedFile
url, size, sha256, folder, ca_bundle = sys.argv[1:]
settings = FetchSettings(ca_bundle=ca_bundle, patience=Patience(first_wait_seconds=0.001))
before = set(sys.modules)
fetch(PinnedFile("chat/7b/file.gguf", url, int(size), sha256, None), folder, settings, Progress())
print(sorted(set(sys.modules) - before))
"""


def test_nothing_is_imported_late(checkout: Path, temporary: Path, certificate: Path) -> None:
    """The archive that a module came in is gone by then, and the owner may not read root's Python."""
    acts = [
        Act(cut=100_000),
        Act(status=503, headers={"Retry-After": "Mon, 23 Nov 2026 10:00:00 GMT"}),
        Act(redirect="/x", length="chunked"),
        Act(garbage=b"no"),
    ]
    with fault_server(CONTENT, *acts, certificate=certificate) as server:
        url = server.url().replace("127.0.0.1", "localhost")
        line = [sys.executable, "-c", LATE, url, str(len(CONTENT)), server.sha256, str(temporary), str(certificate)]
        environment = {"PYTHONPATH": str(checkout / "python"), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(line, env=environment, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("[]\n", "") and len(server.requests) == 5


class TestSettings:
    def test_what_is_given_wins(self) -> None:
        known = FetchSettings.from_environment(
            {"HF_ENDPOINT": "https://a.example", "SSL_CERT_FILE": "/a", "HF_TOKEN": "environment"},
            "/b",
            ["https://B.example/hub/", "https://c.example:8443"],
            token="given",
            rate_limit=5,
        )
        assert known.hub_endpoints == ("https://B.example/hub", "https://c.example:8443")
        assert known.ca_bundle == "/b" and known.rate_limit == 5 and not known.offline
        assert known.credential is not None and known.credential.origin == ("https", "b.example", 443)
        assert known.credential.token.reveal() == "given"

    def test_defaults(self) -> None:
        known = FetchSettings.from_environment({"PIP_CONFIG_FILE": os.devnull, "HF_TOKEN": " \n"}, rate_limit=0)
        assert known.hub_endpoints == ("https://huggingface.co",) and known.credential is None
        assert known.rate_limit is None and known.hub_cache is None and known.proxies == {}

    @pytest.mark.parametrize(
        ("variables", "expected"),
        [
            ({"HF_HUB_CACHE": "/x", "HF_HOME": "/y"}, "/x"),
            ({"HF_HOME": "/y"}, "/y/hub"),
            ({"XDG_CACHE_HOME": "/z"}, "/z/huggingface/hub"),
        ],
    )
    def test_the_cache(self, variables: dict[str, str], expected: str) -> None:
        assert FetchSettings.from_environment(variables).hub_cache == expected

    @pytest.mark.parametrize("offline", ["1", "true", "YES", "on"])
    def test_offline(self, offline: str) -> None:
        assert FetchSettings.from_environment({"HF_HUB_OFFLINE": offline}).offline

    @pytest.mark.parametrize(
        "endpoint", ["huggingface.co", "ftp://h", "https://", "https://me:SECRET@h", "https://h/?SECRET", "https://h x"]
    )
    def test_an_endpoint_that_is_none(self, endpoint: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            FetchSettings.from_environment({}, hub_endpoints=[endpoint])
        assert "SECRET" not in str(caught.value)

    @pytest.mark.parametrize("token", ["SECRET with spaces", "SECRET\r\nX-Evil: 1", "SECRÉT", "S" * 5000])
    def test_a_token_that_is_none(self, token: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            FetchSettings.from_environment({"HF_TOKEN": token})
        assert "SEC" not in str(caught.value) and "SSS" not in str(caught.value)

    def test_a_token_file(self, tmp_path: Path) -> None:
        path = tmp_path / "token"
        path.write_text(f"{TOKEN}\n")
        path.chmod(0o600)
        known = FetchSettings.from_environment({"HF_TOKEN": "other"}, token_file=str(path))
        assert known.credential is not None and known.credential.token.reveal() == TOKEN

    @pytest.mark.parametrize("what", ["mode", "missing", "empty", "folder", "pipe", "binary"])
    def test_a_token_file_that_is_none(self, tmp_path: Path, what: str) -> None:
        path = tmp_path / "token"
        if what == "folder":
            path.mkdir()
        elif what == "pipe":
            os.mkfifo(path, 0o600)
        elif what != "missing":
            path.write_bytes({"mode": TOKEN.encode(), "empty": b" \n", "binary": bytes(range(256))}[what])
            path.chmod(0o640 if what == "mode" else 0o600)
        with pytest.raises(ConfigurationError) as caught:
            FetchSettings.from_environment({}, token_file=str(path))
        assert TOKEN not in str(caught.value) and "\n" not in str(caught.value)


class TestProxies:
    def test_a_plain_url_through_a_proxy(self, tmp_path: Path, temporary: Path) -> None:
        with fault_server(CONTENT) as proxy:
            address = proxy.origin.replace("http://", "http://me:p%40ss@")
            known = settings(tmp_path, http_proxy=address)
            fetch(pin("http://far.example/x?y=1"), str(temporary), known, Progress())
            path, headers = proxy.requests[0]
            assert path == "http://far.example/x?y=1" and headers["Host"] == "far.example"
            assert headers["Proxy-Authorization"] == "Basic " + base64.b64encode(b"me:p@ss").decode()

    def test_without_a_scheme(self, tmp_path: Path, temporary: Path) -> None:
        with fault_server(CONTENT) as proxy:
            known = settings(tmp_path, ALL_PROXY=proxy.origin.replace("http://", ""))
            assert fetch(pin("http://far.example/x"), str(temporary), known, Progress())

    @pytest.mark.parametrize(
        "no_proxy", ["*", "127.0.0.1", "example, 127.0.0.1", "0.0.1", "127.0.0.1:{port}", ".0.0.1:{port}"]
    )
    def test_hosts_that_are_asked_directly(self, tmp_path: Path, temporary: Path, no_proxy: str) -> None:
        with fault_server(CONTENT) as server:
            known = settings(
                tmp_path, http_proxy="http://127.0.0.1:1", no_proxy=no_proxy.format(port=server.server_port)
            )
            assert fetch(pin(server.url()), str(temporary), known, Progress())

    @pytest.mark.parametrize("no_proxy", ["", "127.0.0.11", "27.0.0.1", "127.0.0.1:1", "other"])
    def test_hosts_that_are_not(self, tmp_path: Path, temporary: Path, no_proxy: str) -> None:
        with fault_server(CONTENT) as server, pytest.raises(FetchError, match=r"the proxy 127\.0\.0\.1: no connection"):
            known = settings(tmp_path, http_proxy="http://me:SECRET@127.0.0.1:1", NO_PROXY=no_proxy)
            fetch(pin(server.url()), str(temporary), known, Progress())

    def test_a_proxy_that_refuses_the_tunnel(self, tmp_path: Path, temporary: Path) -> None:
        with fault_server(CONTENT) as proxy:
            # The method CONNECT is one that this server does not know.
            known = settings(tmp_path, https_proxy=proxy.origin.replace("http://", "http://me:SECRET@"))
            with pytest.raises(FetchError, match=r"the proxy 127\.0\.0\.1 answers 501; correct the proxy") as caught:
                fetch(pin("https://far.example/x"), str(temporary), known, Progress())
            assert "SECRET" not in str(caught.value)

    def test_a_tunnel(self, tmp_path: Path, temporary: Path, certificate: Path) -> None:
        with fault_server(CONTENT, certificate=certificate) as server, tunnel() as (address, asked):
            known = settings(tmp_path, https_proxy=address, ca_bundle=str(certificate))
            path = fetch(pin(server.url()), str(temporary), known, Progress())
            assert Path(path).read_bytes() == CONTENT
            assert asked[0].startswith(f"CONNECT 127.0.0.1:{server.server_port} HTTP/1.1\r\n")
            assert "Proxy-Authorization" not in server.requests[0][1]

    @pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "https://127.0.0.1:1"])
    def test_kinds_that_are_not_spoken(self, tmp_path: Path, temporary: Path, proxy: str) -> None:
        with pytest.raises(ConfigurationError, match="of a kind that is not spoken here"):
            known = settings(tmp_path, http_proxy=proxy)
            fetch(pin("http://far.example/x"), str(temporary), known, Progress())

    def test_a_header_of_a_web_server_sets_none(self) -> None:
        known = FetchSettings.from_environment({"HTTP_PROXY": "http://evil", "REQUEST_METHOD": "GET"})
        assert known.proxies == {}


@contextmanager
def tunnel() -> Iterator[tuple[str, list[str]]]:
    """Run a proxy that knows CONNECT alone, for one connection."""
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pump(source: socket.socket, target: socket.socket) -> None:
            try:
                while data := source.recv(65536):
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)
            except OSError:
                pass

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                asked.append(client.recv(65536).decode())
                host, port = asked[0].split()[1].split(":")
                with socket.create_connection((host, int(port))) as server:
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    back = threading.Thread(target=pump, args=(server, client))
                    back.start()
                    pump(client, server)
                    back.join()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
        thread.join(10)
