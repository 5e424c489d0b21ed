"""A model hub of our own: the part of the Hub's protocol that huggingface_hub and this project speak.

::

    GET  /api/models/REPO[/revision/REV]            commit, files
    GET  /api/models/REPO/tree/REV[/FOLDER]         sizes, git's and LFS's ids; in pages
    POST /api/models/REPO/paths-info/REV            the same for named files
    GET  /REPO/resolve/REV/FILE (and HEAD)          the bytes; those in LFS by a redirect to
    GET  /cdn/SHA256?signature=…                    which wants no token and must not be given one

A file is in LFS where its suffix is that of weights. ``tests/unit/test_hub_server.py``
proves this server with the real client.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import ssl
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

WEIGHTS = (".gguf", ".safetensors", ".bin", ".onnx", ".pt", ".pth", ".ckpt")
SIGNATURE = "signature=of-the-cdn"
BLOCK = 1024 * 1024
Content = bytes | Path


def size_of(content: Content) -> int:
    """Return how many bytes a file has."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def blocks(content: Content, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Yield the bytes of a file from ``start`` up to ``end``."""
    left = (size_of(content) if end is None else end) - start
    if isinstance(content, bytes):
        yield content[start : start + left]
        return
    with content.open("rb") as stream:
        stream.seek(start)
        while left > 0:
            block = stream.read(min(BLOCK, left))
            left -= len(block)
            yield block


def sha256_of(content: Content) -> str:
    """Return a file's SHA-256."""
    digest = hashlib.sha256()
    for block in blocks(content):
        digest.update(block)
    return digest.hexdigest()


def git_id(content: Content) -> str:
    """Return the id that git gives to a file."""
    digest = hashlib.sha1(f"blob {size_of(content)}\0".encode())
    for block in blocks(content):
        digest.update(block)
    return digest.hexdigest()


@dataclass
class Repository:
    """A repository: its commits, newest last, each with its files; branches are ``main`` and what ``names`` says.

    A ``gated`` one shows what it has to everybody and gives bytes only for a token; a ``private`` one shows nothing.
    """

    commits: dict[str, dict[str, Content]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    licence: str = "apache-2.0"

    def commit(self, files: Mapping[str, Content]) -> str:
        """Make ``files`` the newest commit and return its id."""
        text = f"{len(self.commits)}" + "".join(f"{name} {git_id(files[name])}\n" for name in sorted(files))
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.names["main"] = commit
        return commit

    def find(self, revision: str) -> str | None:
        """Return the commit that a branch, a tag or an id means."""
        commit = self.names.get(revision, revision)
        return commit if commit in self.commits else None


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request; what ``server.lie`` answers goes before."""

    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        # Clients write the names of headers in different cases.
        self.server.requests.append((self.command, self.path, {key.title(): self.headers[key] for key in self.headers}))
        if self.server.lie is not None and self.server.lie(self):
            return
        parts = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(parts.path)
        query = dict(urllib.parse.parse_qsl(parts.query))
        if path.startswith("/cdn/"):
            self._cdn(path.removeprefix("/cdn/"), parts.query)
            return
        for pattern, answer in (
            (r"/api/models/([^/]+/[^/]+)()", self._model),
            (r"/api/models/([^/]+/[^/]+)/revision/(.+)", self._model),
            (r"/api/models/([^/]+/[^/]+)/paths-info/(.+)", self._paths),
        ):
            match = re.fullmatch(pattern, path)
            if match:
                self._in_repository(match[1], match[2] or "main", answer)
                return
        # A revision may hold slashes, which then come quoted.
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", parts.path)
        if match:
            folder = urllib.parse.unquote(match[3])
            self._in_repository(
                match[1],
                urllib.parse.unquote(match[2]),
                lambda name, repository, commit: self._tree(repository, commit, folder, query),
            )
            return
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", parts.path)
        if match:
            file = urllib.parse.unquote(match[3])
            self._in_repository(
                match[1],
                urllib.parse.unquote(match[2]),
                lambda name, repository, commit: self._resolve(name, repository, commit, file),
            )
            return
        self.error(404, "NotFound", "Sorry, we can't find the page you are looking for.")

    do_HEAD = do_POST = do_GET  # noqa: N815 - the names that http.server looks for

    @property
    def authorised(self) -> bool:
        """Whether the request carries a token that the server knows."""
        return self.headers.get("Authorization", "").removeprefix("Bearer ") in self.server.tokens

    def _in_repository(self, name: str, revision: str, answer: Callable[..., None]) -> None:
        if name in self.server.renamed:
            self.send_response(307)
            self.send_header("Location", self.path.replace(name, self.server.renamed[name], 1))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not self.authorised):
            # The Hub does not tell who has no token whether a repository exists.
            status = 404 if self.authorised else 401
            self.error(
                status, "RepoNotFound", "Repository not found" if self.authorised else "Invalid username or password."
            )
            return
        commit = repository.find(revision)
        if commit is None:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            answer(name, repository, commit)

    def _model(self, name: str, repository: Repository, commit: str) -> None:
        self.send_json(
            {
                "_id": hashlib.sha1(name.encode()).hexdigest()[:24],
                "id": name,
                "modelId": name,
                "sha": commit,
                "private": repository.private,
                "gated": "manual" if repository.gated else False,
                "disabled": False,
                "downloads": 1,
                "likes": 0,
                "tags": [f"license:{repository.licence}"],
                "cardData": {"license": repository.licence},
                "siblings": [{"rfilename": file} for file in sorted(repository.commits[commit])],
            }
        )

    def _listing(self, repository: Repository, commit: str, paths: list[str]) -> list[dict[str, Any]]:
        files = repository.commits[commit]
        found = []
        for path in paths:
            content = files.get(path)
            if content is None:
                found.append(
                    {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}
                )
                continue
            one: dict[str, Any] = {"type": "file", "oid": git_id(content), "size": size_of(content), "path": path}
            if path.endswith(WEIGHTS):
                one["lfs"] = {"oid": self.server.sha256(content), "size": size_of(content), "pointerSize": 134}
            found.append(one)
        return found

    def _paths(self, name: str, repository: Repository, commit: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        asked = urllib.parse.parse_qs(body).get("paths", [])
        self.send_json(
            self._listing(repository, commit, [path for path in asked if path in repository.commits[commit]])
        )

    def _tree(self, repository: Repository, commit: str, folder: str, query: dict[str, str]) -> None:
        below = f"{folder}/" if folder else ""
        inside = [path[len(below) :] for path in repository.commits[commit] if path.startswith(below)]
        if folder and not inside:
            self.error(404, "EntryNotFound", f'{folder} does not exist on "main"')
            return
        names = {
            part for path in inside for part in _prefixes(path, query.get("recursive", "").lower() in ("true", "1"))
        }
        paths = [below + part for part in sorted(names)]
        first = int(query.get("cursor", "0"))
        page = paths[first : first + self.server.page_size]
        headers = {}
        if first + len(page) < len(paths):
            cursor = urllib.parse.urlencode({**query, "cursor": first + len(page)})
            address = f"{self.server.endpoint}{urllib.parse.urlsplit(self.path).path}?{cursor}"
            headers["Link"] = f'<{address}>; rel="next"'
        self.send_json(self._listing(repository, commit, page), headers)

    def _resolve(self, name: str, repository: Repository, commit: str, file: str) -> None:
        if repository.gated and not self.authorised:
            self.error(401, "GatedRepo", f"Access to model {name} is restricted. You must have access to it.", commit)
            return
        content = repository.commits[commit].get(file)
        if content is None:
            self.error(404, "EntryNotFound", "Entry not found", commit)
        elif file.endswith(WEIGHTS):
            digest = self.server.sha256(content)
            self.send_response(302)
            for key, value in {
                "X-Repo-Commit": commit,
                "X-Linked-Size": str(size_of(content)),
                "X-Linked-ETag": f'"{digest}"',
                "ETag": f'"{digest[:32]}"',
                "Location": f"{self.server.cdn}/cdn/{digest}?{SIGNATURE}",
                "Content-Length": "0",
            }.items():
                self.send_header(key, value)
            self.end_headers()
        else:
            self.send_content(content, git_id(content), {"X-Repo-Commit": commit})

    def _cdn(self, digest: str, query: str) -> None:
        content = self.server.find(digest)
        if content is None or query != SIGNATURE:
            self.error(403, "AccessDenied", "no such object, or no signature")
        else:
            self.send_content(content, digest[:32])

    def send_content(self, content: Content, tag: str, headers: Mapping[str, str] | None = None) -> None:
        """Send a file, or the range of it that is asked for."""
        size = size_of(content)
        start, end, status = 0, size, 200
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match and self.headers.get("If-Range") in (None, f'"{tag}"'):
            start, end, status = int(match[1]), min(int(match[2] or size - 1) + 1, size), 206
            if start >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(status)
        for key, value in {
            **(headers or {}),
            "Content-Type": "application/octet-stream",
            "Content-Length": str(end - start),
            "Accept-Ranges": "bytes",
            "ETag": f'"{tag}"',
        }.items():
            self.send_header(key, value)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.end_headers()
        if self.command != "HEAD":
            for block in blocks(content, start, end):
                self.wfile.write(block)

    def send_json(self, document: Any, headers: Mapping[str, str] | None = None, status: int = 200) -> None:
        """Send a document."""
        self.send_text(json.dumps(document).encode(), {"Content-Type": "application/json", **(headers or {})}, status)

    def send_text(self, body: bytes, headers: Mapping[str, str] | None = None, status: int = 200) -> None:
        """Send a whole answer."""
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status: int, code: str, message: str, commit: str = "") -> None:
        """Send an error as the Hub does: its kind in a header."""
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        if commit:
            headers["X-Repo-Commit"] = commit
        self.send_json({"error": message}, headers, status)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _prefixes(path: str, recursive: bool) -> Iterator[str]:
    """Yield a path's folders, and the path itself where no folder hides it."""
    parts = path.split("/")
    if not recursive:
        yield parts[0]
        return
    for depth in range(1, len(parts) + 1):
        yield "/".join(parts[:depth])


class HubServer(http.server.ThreadingHTTPServer):
    """A hub on a free port.

    ``requests`` are the methods, paths and headers (their names as in ``If-Range``) that it was asked with,
    ``tokens`` those that it accepts, ``renamed`` leads from old names to new ones, ``cdn`` is the address that the
    bytes in LFS are sent from, and ``lie`` may answer before everything else: it returns whether it did.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        # Another origin: the client goes there only for the bytes, and without its token.
        self.cdn = f"http://localhost:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.renamed: dict[str, str] = {}
        self.tokens: set[str] = set()
        self.page_size = 50
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.lie: Callable[[Handler], bool] | None = None
        self._digests: dict[tuple[str, int, int] | bytes, str] = {}

    def add(self, name: str, files: Mapping[str, Content], **about: Any) -> Repository:
        """Add a repository with one commit."""
        repository = Repository(**about)
        repository.commit(files)
        self.repositories[name] = repository
        return repository

    def sha256(self, content: Content) -> str:
        """Return a file's SHA-256; that of a large one is kept."""
        if isinstance(content, bytes):
            key: tuple[str, int, int] | bytes = content
        else:
            status = content.stat()
            key = (str(content), status.st_size, status.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = sha256_of(content)
        return self._digests[key]

    def find(self, digest: str) -> Content | None:
        """Return the file with a SHA-256."""
        for repository in self.repositories.values():
            for files in repository.commits.values():
                for name, content in files.items():
                    if name.endswith(WEIGHTS) and self.sha256(content) == digest:
                        return content
        return None

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing where a client gave up."""


def trust(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process's clients believe a certificate."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    # What urllib has read before it keeps for good.
    monkeypatch.setattr(urllib.request, "_opener", None)


@contextmanager
def serve(certificate: Path | None = None) -> Iterator[HubServer]:
    """Run a hub; over https where ``certificate``, for 127.0.0.1 and localhost, is given with its key."""
    with HubServer() as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            # The handshake in the thread of each request: a client that stalls in it holds nobody up.
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
            server.endpoint = server.endpoint.replace("http:", "https:")
            server.cdn = server.cdn.replace("http:", "https:")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
