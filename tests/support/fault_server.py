"""An HTTP server that misbehaves on request: what it does to each request in turn is told by a list of acts."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

PAGE = b"<!DOCTYPE html><html><head><title>Sign in to Hotel WiFi</title></head><body>Room number?</body></html>"


@dataclasses.dataclass(frozen=True)
class Act:
    """What the server does to one request. As it is, it sends the file, or the range that is asked for."""

    status: int | None = None
    """Answer with this status and a short text."""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    content: bytes | None = None
    """Send these bytes in the place of the file."""
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    """Whether Range is understood; without it the whole file comes with 200."""
    if_range: bool = True
    """Whether If-Range is understood; without it the range comes whatever the ETag is."""
    shift: int = 0
    """Send another range, so many bytes later, and say so."""
    said_shift: int = 0
    """Say of the range that it is another one than it is."""
    most: int | None = None
    """Send at most so many bytes of a range, as a whole answer of its own."""
    flip: int | None = None
    """Turn over one bit of the byte at this offset of the file."""
    cut: int | None = None
    """End the connection after so many bytes of the body."""
    reset: bool = False
    """End it with a reset rather than as if all had been said."""
    length: str = "right"
    """``right``, ``none`` (until the connection ends), ``chunked``, ``more`` or ``less`` than what is sent."""
    extra: int = 0
    """So many bytes more than the file has, or fewer."""
    gzip: bool = False
    page: bool = False
    """A login page in the place of the file."""
    page_kind: str = "text/html; charset=utf-8"
    redirect: str | None = None
    stall: tuple[int, float] | None = None
    """After so many bytes of the body, send nothing for so many seconds."""
    drip: tuple[int, float] | None = None
    """Send so many bytes at a time, with so many seconds in between."""
    head_drip: float | None = None
    """Send the head byte by byte, with so many seconds in between."""
    garbage: bytes | None = None
    """Send this and close the connection."""


GOOD = Act()


class FaultServer(http.server.ThreadingHTTPServer):
    """Serves ``content`` under every path that ``files`` does not have. ``acts`` are used up in turn, by path; then
    all goes well.

    Requests for a range that has an end use up ``segment_acts``.

    ``requests`` are the paths and headers that it was asked with, ``sent`` counts the bytes of bodies,
    ``most_at_once`` the requests that were answered at the same time.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, content: bytes, acts: Sequence[Act] = (), address: str = "127.0.0.1") -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, 0), _Handler)
        self.content = content
        self.files: dict[str, bytes] = {}
        self.acts = list(acts)
        self.segment_acts: list[Act] = []
        self.by_path: dict[str, list[Act]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.sent = 0
        self.now = self.most_at_once = 0
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.scheme = "http"

    @property
    def origin(self) -> str:
        """Return scheme, host and port."""
        host = str(self.server_address[0])
        return f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{self.server_port}"

    def url(self, path: str = "/file.gguf") -> str:
        """Return the address of ``path``."""
        return f"{self.origin}{path}"

    @property
    def sha256(self) -> str:
        """Return the hash of the file as it should be."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def ranges(self) -> list[str | None]:
        """Return what ranges were asked for, in turn."""
        return [headers.get("Range") for _, headers in self.requests]

    def next_act(self, path: str, asked: str | None) -> Act:
        """Return what is to be done now, for a request of ``path`` and a range."""
        if asked and not asked.endswith("-"):
            return self.segment_acts.pop(0) if self.segment_acts else GOOD
        acts = self.by_path.get(path.split("?")[0], self.acts)
        return acts.pop(0) if acts else GOOD

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing where a client gave up."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultServer

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.now += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.now)
        try:
            self._answer()
        finally:
            with self.server.lock:
                self.server.now -= 1

    def _answer(self) -> None:
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers)))
            act = self.server.next_act(self.path, self.headers.get("Range"))
        self.close_connection = True
        if act.garbage is not None:
            self.wfile.write(act.garbage)
        elif act.redirect is not None:
            self._head(act.status or 302, {"Location": act.redirect, "Content-Length": "0", **act.headers}, act)
        elif act.page:
            content = act.content if act.content is not None else PAGE
            headers = {"Content-Type": act.page_kind, **self._length(act, len(content)), **act.headers}
            self._head(act.status or 200, headers, act)
            self._body(content, act)
        elif act.status is not None:
            text = b"no\n"
            self._head(act.status, {"Content-Length": str(len(text)), **act.headers}, act)
            self.wfile.write(text)
        else:
            self._file(act)

    def _file(self, act: Act) -> None:
        content = act.content
        if content is None:
            content = self.server.files.get(self.path, self.server.content)
        if act.flip is not None and content:
            changed = bytearray(content)
            changed[act.flip % len(changed)] ^= 0x10
            content = bytes(changed)
        if act.extra > 0:
            content += bytes(act.extra)
        elif act.extra < 0:
            content = content[: act.extra]
        if act.gzip:
            content = gzip.compress(content, 1)
        total, status = len(content), 200
        headers = {"Content-Type": "application/octet-stream"}
        asked = self.headers.get("Range")
        condition = self.headers.get("If-Range")
        fresh = condition is None or not act.if_range or condition in (act.etag, act.modified)
        if asked and act.ranges and fresh:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start = int(first) + act.shift
            if start >= total:
                self._head(416, {"Content-Range": f"bytes */{total}", "Content-Length": "0"}, act)
                return
            end = min(total, int(last) + 1 + act.shift) if last else total
            end = end if act.most is None else min(end, start + act.most)
            content, status = content[start:end], 206
            said = start + act.said_shift
            headers["Content-Range"] = f"bytes {said}-{said + len(content) - 1}/{total}"
        if act.etag is not None:
            headers["ETag"] = act.etag
        if act.modified is not None:
            headers["Last-Modified"] = act.modified
        if act.gzip:
            headers["Content-Encoding"] = "gzip"
        self._head(status, {**headers, **self._length(act, len(content)), **act.headers}, act)
        self._body(content, act)

    def _length(self, act: Act, length: int) -> dict[str, str]:
        if act.length == "none":
            return {}
        if act.length == "chunked":
            return {"Transfer-Encoding": "chunked"}
        return {"Content-Length": str(length + {"more": 7, "less": -7}.get(act.length, 0))}

    def _head(self, status: int, headers: Mapping[str, str], act: Act) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", "Connection: close"]
        head = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode("latin-1")
        if act.head_drip is None:
            self.wfile.write(head)
            return
        for number in range(len(head)):
            self.wfile.write(head[number : number + 1])
            if self.server.ended.wait(act.head_drip):
                return

    def _body(self, content: bytes, act: Act) -> None:
        end = len(content) if act.cut is None else min(act.cut, len(content))
        position = 0
        step = act.drip[0] if act.drip else 256 * 1024
        while position < end:
            until = min(end, position + step)
            if act.stall and position <= act.stall[0] < until:
                until = max(act.stall[0], position)
                if until == position:
                    self.server.ended.wait(act.stall[1])
                    act = dataclasses.replace(act, stall=None)
                    continue
            piece = content[position:until]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if act.length == "chunked" else piece)
            self.server.sent += len(piece)
            position = until
            if act.drip and self.server.ended.wait(act.drip[1]):
                return
        if act.length == "chunked" and act.cut is None:
            self.wfile.write(b"0\r\n\r\n")
        if act.reset:
            # The bytes before it shall arrive: a reset overtakes what waits to be sent.
            time.sleep(0.02)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def fault_server(
    content: bytes,
    *acts: Act,
    address: str = "127.0.0.1",
    certificate: Path | None = None,
) -> Iterator[FaultServer]:
    """Run a server that does ``acts`` in turn; with a certificate (and its key, in one file) it speaks TLS."""
    with FaultServer(content, acts, address) as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
            server.scheme = "https"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()


def make_certificate(folder: Path, *names: str) -> Path:
    """Return a file with a key and a certificate signed by itself for ``names`` (as openssl writes them: IP:…)."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl to make a certificate")
    key, certificate, both = folder / "key.pem", folder / "certificate.pem", folder / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=modelfleet test", "-addext", f"subjectAltName={','.join(names)}"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    return both
