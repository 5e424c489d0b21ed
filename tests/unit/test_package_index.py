"""Distributions from the configured package index: pip's settings, every kind of index, every kind of trouble."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from modelfleet.core.errors import FetchError, IntegrityError
from modelfleet.core.fetch import package_index
from modelfleet.core.fetch.package_index import (
    PackageIndexSettings,
    download_distribution,
)
from support.grounds import needs_root
from support.index import Handler, IndexServer, folder_index, make_wheel, serve, sha256

CANARY = "canary-3141"
WHEEL = "tiny_model-1.0-py3-none-any.whl"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask this machine's own server without this machine's proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    make_wheel(folder, "tiny-model", members={"tiny_model/weights.bin": bytes(100_000)})
    return folder


Fetch = Callable[..., bytes]


@pytest.fixture
def fetch(folder: Path, tmp_path: Path) -> Fetch:
    """Return a function that fetches the wheel of ``folder`` and returns its bytes."""

    def run(sha: str = "", limit: int | None = None, name: str = WHEEL, **settings: object) -> bytes:
        destination = tmp_path / "fetched"
        expected = sha or sha256(folder / WHEEL)
        download_distribution(
            "tiny-model",
            name,
            expected,
            str(destination),
            PackageIndexSettings(**{"index_urls": (), **settings}),  # type: ignore[arg-type]
            size_limit=limit,
        )
        return destination.read_bytes()

    return run


def refused(fetch: Fetch, tmp_path: Path, kind: type[Exception] = FetchError, **arguments: object) -> str:
    """Return the message of a fetch that fails; nothing may be left."""
    with pytest.raises(kind) as caught:
        fetch(**arguments)
    assert not (tmp_path / "fetched").exists()
    message = str(caught.value)
    assert "\n" not in message and CANARY not in message
    return message


class TestPlaces:
    def test_a_folder_of_wheels(self, folder: Path, fetch: Fetch) -> None:
        assert fetch(find_links=(str(folder),)) == (folder / WHEEL).read_bytes()
        assert fetch(find_links=(folder.as_uri(),)) == (folder / WHEEL).read_bytes()

    def test_a_folder_with_odd_characters(self, folder: Path, fetch: Fetch, tmp_path: Path) -> None:
        odd = tmp_path / "a#b?c%20é"
        folder.rename(odd)
        odd_wheel = (odd / WHEEL).read_bytes()
        assert fetch(sha=hashlib.sha256(odd_wheel).hexdigest(), find_links=(str(odd),)) == odd_wheel

    @pytest.mark.parametrize("kind", ["html", "json"])
    def test_a_simple_index(self, folder: Path, fetch: Fetch, kind: str) -> None:
        with serve(folder_index(folder, kind)) as server:
            assert fetch(index_urls=(server.url,)) == (folder / WHEEL).read_bytes()
        page, file = server.requests
        assert page[0] == "/simple/tiny-model/" and "application/vnd.pypi.simple.v1+json" in page[1]["Accept"]
        assert file[0] == f"/files/{WHEEL}"
        assert all(headers["Accept-Encoding"] == "identity" for _, headers in server.requests)

    def test_the_projects_name_is_normalized(self, folder: Path, tmp_path: Path) -> None:
        with serve(folder_index(folder)) as server:
            settings = PackageIndexSettings(index_urls=(server.url,))
            download_distribution("Tiny.._Model", WHEEL, sha256(folder / WHEEL), str(tmp_path / "x"), settings)
        assert server.requests[0][0] == "/simple/tiny-model/"

    def test_a_page_of_links(self, folder: Path, fetch: Fetch) -> None:
        with serve(folder_index(folder)) as server:
            assert fetch(find_links=(f"{server.url}/",)) == (folder / WHEEL).read_bytes()

    def test_an_index_in_a_folder(self, folder: Path, fetch: Fetch, tmp_path: Path) -> None:
        page = tmp_path / "simple" / "tiny-model"
        page.mkdir(parents=True)
        (page / "index.html").write_text(f'<a href="../../wheels/{WHEEL}#sha256=0">{WHEEL}</a>')
        assert fetch(index_urls=((tmp_path / "simple").as_uri(),)) == (folder / WHEEL).read_bytes()

    def test_a_link_after_a_redirect(self, folder: Path, fetch: Fetch) -> None:
        inner = folder_index(folder)

        def answer(handler: Handler) -> None:
            if handler.path.startswith("/simple/"):
                handler.send(b"", status=302, Location="/elsewhere/tiny-model/")
            else:
                inner(handler)

        with serve(answer) as server:
            assert fetch(index_urls=(server.url,)) == (folder / WHEEL).read_bytes()

    def test_one_place_after_another_until_one_has_it(self, folder: Path, fetch: Fetch, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        liar = make_wheel(tmp_path / "liar", "tiny-model", members={"other": b"bytes"})
        with serve(lambda handler: handler.send(b"", status=500)) as broken, serve(folder_index(folder)) as good:
            content = fetch(
                find_links=(str(tmp_path / "empty"), str(tmp_path / "missing"), str(liar.parent)),
                index_urls=(broken.url, good.url),
            )
        assert content == (folder / WHEEL).read_bytes()

    def test_progress(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(package_index, "READ_SIZE", 100)
        told: list[tuple[int, int | None]] = []
        settings = PackageIndexSettings((), (str(folder),))
        size = download_distribution(
            "x", WHEEL, sha256(folder / WHEEL), str(tmp_path / "x"), settings, lambda *a: told.append(a)
        )
        assert size == (folder / WHEEL).stat().st_size
        assert told[-1] == (size, size) and told[0] == (100, size)


class TestTrouble:
    """One line each, nothing left, no password told."""

    def test_wrong_bytes_everywhere(self, folder: Path, fetch: Fetch, tmp_path: Path) -> None:
        message = refused(fetch, tmp_path, IntegrityError, sha="0" * 64, find_links=(str(folder),))
        assert message.startswith(f"{WHEEL}: expected sha256 {'0' * 64}, found sha256 {sha256(folder / WHEEL)}")

    def test_no_place_is_configured(self, fetch: Fetch, tmp_path: Path) -> None:
        message = refused(fetch, tmp_path)
        assert "(no index is configured); check the package index (PIP_INDEX_URL, pip.conf)" in message

    def test_the_index_does_not_have_it(self, folder: Path, fetch: Fetch, tmp_path: Path) -> None:
        with serve(folder_index(folder)) as server:
            message = refused(fetch, tmp_path, name="other-1.0.whl", index_urls=(server.url,))
        assert f"{server.url}/tiny-model/: has no other-1.0.whl" in message

    def test_nobody_listens(self, fetch: Fetch, tmp_path: Path) -> None:
        with serve(folder_index(tmp_path)) as server:
            url = server.url
        assert f"{url}/tiny-model/: [Errno 111] Connection refused" in refused(fetch, tmp_path, index_urls=(url,))

    @pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
    def test_a_refusal(self, fetch: Fetch, tmp_path: Path, status: int) -> None:
        with serve(lambda handler: handler.send(b"<html>no</html>", status=status)) as server:
            message = refused(fetch, tmp_path, index_urls=(server.url,))
        assert f"{server.url}/tiny-model/: HTTP status {status}" in message

    @pytest.mark.parametrize(
        ("content", "kind"),
        [
            (b"", "text/html"),
            (b"<html>sign in to the network</html>", "text/html"),
            (b"\xff\xfe\x00<a href=", "text/html"),
            (b"<a href='http://[broken/x.whl'>", "text/html"),
            (b"not json", "application/json"),
            (b"[]", "application/json"),
            (b'{"error": "no"}', "application/json"),
            (b'{"files": 5}', "application/json"),
            (b'{"files": [5, {"filename": 7}, {"url": []}]}', "application/json"),
        ],
    )
    def test_a_page_that_is_no_index(self, fetch: Fetch, tmp_path: Path, content: bytes, kind: str) -> None:
        with serve(lambda handler: handler.send(content, kind)) as server:
            assert "/tiny-model/: " in refused(fetch, tmp_path, index_urls=(server.url,))

    def test_a_page_with_a_broken_link_for_the_file(self, fetch: Fetch, tmp_path: Path) -> None:
        with serve(lambda handler: handler.send(f'<a href="http://[x/{WHEEL}">x</a>'.encode())) as server:
            assert "/tiny-model/: " in refused(fetch, tmp_path, index_urls=(server.url,))

    @pytest.mark.parametrize("what", [b"this is not HTTP\r\n\r\n", b"HTTP/1.1 200 OK\r\nbroken", b""])
    def test_a_server_that_speaks_no_http(self, fetch: Fetch, tmp_path: Path, what: bytes) -> None:
        with serve(lambda handler: handler.wfile.write(what) and None) as server:
            assert "/tiny-model/: " in refused(fetch, tmp_path, index_urls=(server.url,))

    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_connection_that_is_cut(self, folder: Path, fetch: Fetch, tmp_path: Path, chunked: bool) -> None:
        inner = folder_index(folder)

        def answer(handler: Handler) -> None:
            if handler.path.endswith("/"):
                return inner(handler)
            handler.protocol_version = "HTTP/1.1"
            handler.send_response(200)
            if chunked:
                handler.send_header("Transfer-Encoding", "chunked")
            else:
                handler.send_header("Content-Length", "4000")
            handler.end_headers()
            handler.wfile.write(b"fff\r\nhalf a chunk" if chunked else bytes(1000))
            handler.close_connection = True

        with serve(answer) as server:
            message = refused(fetch, tmp_path, index_urls=(server.url,))
        if not chunked:
            assert f"{WHEEL}: the connection was cut after 1000 of 4000 bytes" in message

    def test_an_endless_body(self, folder: Path, fetch: Fetch, tmp_path: Path) -> None:
        inner = folder_index(folder)
        limit = 1_000_000

        def answer(handler: Handler) -> None:
            if handler.path.endswith("/"):
                return inner(handler)
            handler.send_response(200)
            handler.end_headers()
            while True:
                handler.wfile.write(bytes(65536))

        with serve(answer) as server:
            message = refused(fetch, tmp_path, IntegrityError, limit=limit, index_urls=(server.url,))
        assert f"expected {limit} bytes, found more" in message

    def test_a_server_that_sleeps(self, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(package_index, "TIMEOUT_SECONDS", 0.2)
        over = threading.Event()
        with serve(lambda handler: over.wait(20) and None) as server:
            message = refused(fetch, tmp_path, index_urls=(server.url,))
            over.set()
        assert "timed out" in message

    @pytest.mark.parametrize("link", ["file:///etc/passwd", "ftp://host/", "data:,", "javascript:0"])
    def test_a_page_that_names_what_is_no_download(self, fetch: Fetch, tmp_path: Path, link: str) -> None:
        with serve(lambda handler: handler.send(f'<a href="{link}/{WHEEL}">x</a>'.encode())) as server:
            message = refused(fetch, tmp_path, index_urls=(server.url,))
        assert "it names a file of this host" in message or "it is no http, https or file URL" in message

    @pytest.mark.parametrize(
        "index",
        ["host/simple", "//host/simple", "ftp://host/simple", "https://", "http:///x", "http://a b/", "http://[::"],
    )
    def test_an_index_that_is_no_url(self, fetch: Fetch, tmp_path: Path, index: str) -> None:
        refused(fetch, tmp_path, index_urls=(index,))

    def test_a_full_disk_is_not_the_indexs_fault(
        self, folder: Path, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with serve(folder_index(folder)) as server, pytest.raises(OSError, match="No space left") as caught:
            fetch(index_urls=(server.url, server.url))
        assert caught.value.filename == str(tmp_path / "fetched")
        assert len(server.requests) == 2, "it was not fetched again from the next place"
        assert not (tmp_path / "fetched").exists()

    def test_a_place_that_cannot_be_written_to(self, folder: Path, tmp_path: Path) -> None:
        settings = PackageIndexSettings((), (str(folder),))
        with pytest.raises(FileNotFoundError):
            download_distribution("x", WHEEL, sha256(folder / WHEEL), str(tmp_path / "no" / "x"), settings)


class TestPasswords:
    USER, PASSWORD = "ashley", f"{CANARY}@:/"

    def guarded(self, folder: Path) -> Callable[[Handler], None]:
        inner = folder_index(folder)
        expected = "Basic " + base64.b64encode(f"{self.USER}:{self.PASSWORD}".encode()).decode()

        def answer(handler: Handler) -> None:
            if handler.headers.get("Authorization") == expected:
                inner(handler)
            else:
                handler.send(b"", status=401, WWW_Authenticate='Basic realm="x"')

        return answer

    def with_password(self, url: str) -> str:
        return url.replace("://", f"://{self.USER}:{CANARY}%40%3A%2F@")

    @pytest.mark.parametrize("where", ["index", "links"])
    def test_page_and_file_are_fetched_with_the_indexs_password(self, folder: Path, fetch: Fetch, where: str) -> None:
        with serve(self.guarded(folder)) as server:
            url = self.with_password(server.url)
            place = {"index_urls": (url,)} if where == "index" else {"find_links": (f"{url}/",)}
            assert fetch(**place) == (folder / WHEEL).read_bytes()
        assert CANARY not in "".join(path for path, _ in server.requests)

    def test_a_file_on_another_server_is_fetched_without(self, folder: Path, fetch: Fetch) -> None:
        with serve(folder_index(folder)) as files:
            page = f'<a href="http://127.0.0.1:{files.server_port}/files/{WHEEL}">x</a>'.encode()
            with serve(lambda handler: handler.send(page)) as index:
                fetch(index_urls=(self.with_password(index.url),))
        assert "Authorization" in index.requests[0][1]
        assert "Authorization" not in files.requests[0][1]

    def test_a_redirect_to_another_address_drops_it(self, folder: Path, fetch: Fetch) -> None:
        with serve(folder_index(folder), "127.0.0.2") as other:
            location = f"http://127.0.0.2:{other.server_port}/files/{WHEEL}"

            def answer(handler: Handler) -> None:
                if handler.path.endswith("/"):
                    handler.send(f'<a href="/x/{WHEEL}">x</a>'.encode())
                else:
                    handler.send(b"", status=302, Location=location)

            with serve(answer) as index:
                fetch(index_urls=(self.with_password(index.url),))
        assert len(index.requests) == 2 and all("Authorization" in headers for _, headers in index.requests)
        assert "Authorization" not in other.requests[0][1]

    @pytest.mark.parametrize(
        "url",
        [
            "http://user:{}@127.0.0.1:1/simple",
            "http://{}@127.0.0.1:1/simple",
            "https://user:{}@127.0.0.1:1/simple",
            "http://user:{}/with/slashes@127.0.0.1:1/simple",
            "http://user:#{}@127.0.0.1:1/simple",
            "http://user:a@b@{}@127.0.0.1:1/simple",
            "user:{}@127.0.0.1:1/simple",
            "{}@127.0.0.1:1/simple",
            "http:/user:{}@127.0.0.1:1/simple",
            "http://user:[{}@127.0.0.1:1/simple",
            "ftp://user:{}@127.0.0.1/simple",
        ],
    )
    def test_it_is_in_no_message(self, fetch: Fetch, tmp_path: Path, url: str) -> None:
        refused(fetch, tmp_path, index_urls=(url.format(CANARY),))
        refused(fetch, tmp_path, find_links=(url.format(CANARY),))
        page = f'<a href="{url.format(CANARY)}/{WHEEL}">x</a>'.encode()
        with serve(
            lambda handler: handler.send(page) if handler.path.endswith("/") else handler.send(b"", status=404)
        ) as server:
            refused(fetch, tmp_path, index_urls=(server.url,))

    @pytest.mark.parametrize("proxy", ["http://u:{}@127.0.0.1:1", "http:/u:{}@127.0.0.1:1", "u:{}@127.0.0.1:1"])
    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_a_proxys_is_in_no_message(self, fetch: Fetch, tmp_path: Path, proxy: str, scheme: str) -> None:
        refused(fetch, tmp_path, index_urls=(f"{scheme}://host.invalid/simple",), proxy=proxy.format(CANARY))


def test_the_proxy_is_asked(folder: Path, fetch: Fetch) -> None:
    with serve(folder_index(folder)) as proxy:
        address = f"http://u:p@127.0.0.1:{proxy.server_port}"
        assert fetch(index_urls=("http://index.invalid/simple",), proxy=address) == (folder / WHEEL).read_bytes()
    assert proxy.requests[0][0] == "http://index.invalid/simple/tiny-model/"
    assert proxy.requests[0][1]["Proxy-Authorization"] == "Basic " + base64.b64encode(b"u:p").decode()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a certificate for 127.0.0.1 that only itself vouches for, with its key in the same file."""
    folder = tmp_path_factory.mktemp("certificate")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    try:
        subprocess.run(
            [*command.split(), "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("needs the program openssl")
    return folder


class TestCertificates:
    def secured(self, server: IndexServer, certificate: Path) -> str:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        return server.url.replace("http:", "https:")

    def test_a_bundle_that_vouches(self, folder: Path, fetch: Fetch, certificate: Path) -> None:
        with serve(folder_index(folder)) as server:
            url = self.secured(server, certificate)
            content = fetch(index_urls=(url,), ca_bundle=str(certificate / "cert.pem"))
        assert content == (folder / WHEEL).read_bytes()

    def test_none_vouches(self, folder: Path, fetch: Fetch, tmp_path: Path, certificate: Path) -> None:
        with serve(folder_index(folder)) as server:
            message = refused(fetch, tmp_path, index_urls=(self.secured(server, certificate),))
        assert "CERTIFICATE_VERIFY_FAILED" in message and "(modelfleet_ca_bundle)" in message

    @pytest.mark.parametrize("content", [None, b"", b"no certificate\n"], ids=["missing", "empty", "no certificate"])
    def test_a_bundle_that_is_none(self, fetch: Fetch, tmp_path: Path, content: bytes | None) -> None:
        bundle = tmp_path / "ca.pem"
        if content is not None:
            bundle.write_bytes(content)
        message = refused(fetch, tmp_path, index_urls=("https://127.0.0.1:1/simple",), ca_bundle=str(bundle))
        assert f"the certificates in {bundle} cannot be read: " in message
        assert "; name a bundle in PEM form (modelfleet_ca_bundle, PIP_CERT or SSL_CERT_FILE)" in message


@needs_root
def test_an_account_that_cannot_read_our_python_downloads_all_the_same(
    ground: Path, folder: Path, checkout: Path
) -> None:
    """Every import is done before we act as somebody else."""
    make_wheel(ground / "wheels", "tiny-model")
    (ground / "wheels" / WHEEL).write_bytes((folder / WHEEL).read_bytes())
    (ground / "out").mkdir()
    (ground / "out").chmod(0o777)
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from modelfleet.core.privilege import acting_as, find_account
from modelfleet.core.fetch.package_index import *
def refuse(*_):
    raise ImportError("the files of Python are out of reach")
with acting_as(find_account("nobody")):
    sys.meta_path[:] = [type("Nothing", (), {"find_spec": staticmethod(refuse)})]
    for number, settings in enumerate((
        PackageIndexSettings((), (sys.argv[2],)),
        PackageIndexSettings((sys.argv[3],)),
        PackageIndexSettings((sys.argv[3].replace("127.0.0.1", "localhost"),)),
    )):
        download_distribution("tiny-model", sys.argv[4], sys.argv[5], sys.argv[6] + str(number), settings)
    for url in ("https://127.0.0.1:1/x", "http://host.invalid", "http://x y/"):
        try:
            download_distribution("x", "x", "", sys.argv[6], PackageIndexSettings((url,)))
        except FetchError as error:
            assert "out of reach" not in str(error), error
"""
    with serve(folder_index(folder)) as server:
        arguments = [str(checkout / "python"), str(ground / "wheels"), server.url, WHEEL, sha256(folder / WHEEL)]
        subprocess.run([sys.executable, "-I", "-c", program, *arguments, str(ground / "out" / "x")], check=True)
    assert len(list((ground / "out").iterdir())) == 3
