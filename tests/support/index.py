"""Small Python distributions, and a package index that serves them: as a folder, as HTML, as JSON, and badly."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

BACKEND = """
import base64, hashlib, os, zipfile

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    name = "%(module)s-%(version)s.dist-info"
    os.mkdir(os.path.join(metadata_directory, name))
    with open(os.path.join(metadata_directory, name, "METADATA"), "w") as target:
        target.write("Metadata-Version: 2.1\\nName: %(module)s\\nVersion: %(version)s\\n")
    return name

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    for step in range(1, 4):
        print(f"[{step}/3] Building C object {step}.c.o", flush=True)
    if os.path.exists("broken"):
        raise SystemExit("fatal error: ggml.h: No such file or directory")
    name = "%(module)s-%(version)s"
    files = {
        "%(package)s/__init__.py": "__version__ = %(version)r",
        "%(package)s/flags.txt": os.environ.get("CMAKE_ARGS", ""),
        "%(package)s/built.txt": "%%s %%s" %% (os.geteuid(), os.environ.get("SECRET", "no secret")),
        name + ".dist-info/METADATA": "Metadata-Version: 2.1\\nName: %(module)s\\nVersion: %(version)s\\n",
        name + ".dist-info/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }
    record = "".join(f"{path},," + chr(10) for path in files) + name + ".dist-info/RECORD,,"
    with zipfile.ZipFile(os.path.join(wheel_directory, name + "-py3-none-any.whl"), "w") as archive:
        for path, text in {**files, name + ".dist-info/RECORD": record}.items():
            archive.writestr(path, text)
    return name + "-py3-none-any.whl"
"""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_wheel(
    folder: Path, name: str, version: str = "1.0", members: Mapping[str, bytes] | None = None, requires: str = ""
) -> Path:
    """Write a wheel that pip installs, with ``members`` beside an empty module."""
    module = name.replace("-", "_")
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    if requires:
        metadata += f"Requires-Dist: {requires}\n"
    information = f"{module}-{version}.dist-info"
    files = {
        f"{module}/__init__.py": b"",
        **(members or {}),
        f"{information}/METADATA": metadata.encode(),
        f"{information}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [f"{path},sha256={_digest(content)},{len(content)}" for path, content in files.items()]
    files[f"{information}/RECORD"] = ("\n".join([*lines, f"{information}/RECORD,,"]) + "\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in files.items():
            archive.writestr(member, content)
    return path


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def make_source(folder: Path, name: str, version: str, broken: bool = False) -> Path:
    """Write a source archive that builds itself without any tool, and tells in its wheel how it was built."""
    module = name.replace("-", "_")
    root = f"{module}-{version}"
    files = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        f'[project]\nname = "{name}"\nversion = "{version}"\n',
        "backend.py": BACKEND % {"module": module, "package": module.replace("_python", ""), "version": version},
    }
    if broken:
        files["broken"] = ""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{root}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for member, text in files.items():
            information = tarfile.TarInfo(f"{root}/{member}")
            information.size = len(text.encode())
            archive.addfile(information, io.BytesIO(text.encode()))
    return path


Answer = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with what the test wants."""

    server: IndexServer

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        self.server.answer(self)

    def send(self, content: bytes, kind: str = "text/html", status: int = 200, **headers: str) -> None:
        """Send a whole answer."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class IndexServer(http.server.ThreadingHTTPServer):
    """An HTTP server on a free port; ``requests`` are the paths and headers that it was asked with."""

    daemon_threads = True

    def __init__(self, answer: Answer, address: str = "127.0.0.1") -> None:
        super().__init__((address, 0), Handler)
        self.answer = answer
        self.requests: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        """Return the index's URL."""
        return f"http://{self.server_address[0]!s}:{self.server_port}/simple"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing where a client gave up."""


@contextmanager
def serve(answer: Answer, address: str = "127.0.0.1") -> Iterator[IndexServer]:
    """Run a server that gives ``answer`` to everything."""
    with IndexServer(answer, address) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def folder_index(folder: Path, kind: str = "html") -> Answer:
    """Return an answer that serves the files of ``folder`` as one project of a simple index, as HTML or JSON."""

    def answer(handler: Handler) -> None:
        path = folder / handler.path.rsplit("/", 1)[-1]
        if handler.path.endswith("/"):
            names = sorted(file.name for file in folder.iterdir())
            if kind == "json":
                files = [{"filename": name, "url": f"../../files/{name}#sha256=x", "hashes": {}} for name in names]
                document = {"meta": {"api-version": "1.0"}, "name": "x", "files": files}
                handler.send(json.dumps(document).encode(), "application/vnd.pypi.simple.v1+json")
            else:
                links = [f'<a href="/files/{name}#sha256=x" data-yanked="">{name}</a><br>' for name in names]
                handler.send(f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode())
        elif path.is_file():
            handler.send(path.read_bytes(), "application/octet-stream")
        else:
            handler.send(b"nothing here", "text/plain", 404)

    return answer
