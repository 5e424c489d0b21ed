"""What a verified and durable download costs, beside what one would use instead: wall time and processor time.

Each contestant fetches the same file over loopback, in turn, ``--runs`` times:

- ``ours``: modelfleet's fetch, SHA-256 and fsync included, in a process of its own
- ``curl``: nothing verified, nothing synced
- ``curl, openssl, sync``: the same bytes, then ``openssl dgst -sha256`` and ``sync -d``
- ``aria2c``: with its checksum option
- ``get_url``: Ansible's module, with its checksum option
- ``hf`` and ``ours, hub``: ``hf download`` and modelfleet's fetch, both from the tests' Hub server, which is Python

The others are served by nginx. Needs nginx, curl, aria2c and openssl (Debian's packages nginx-light, curl, aria2,
openssl) and installs nothing: what is missing is left out and said. ``--rate`` limits each of nginx's connections.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(CHECKOUT / "python"), str(CHECKOUT / "tests")]

from support.hub import serve  # noqa: E402

TOOLS = Path(sys.executable).parent
REPOSITORY, NAME = "benchmark/model", "model.gguf"
OURS = """
import os, sys, time
from modelfleet.core.fetch.settings import FetchSettings
from modelfleet.core.fetch.transfer import fetch
from modelfleet.core.jobs import Progress
from modelfleet.core.pins import PinnedFile
source, size, sha256, folder = sys.argv[1:]
class Watch(Progress):
    def update(self, step, item=None, done=None, total=None, unit=None):
        self.last = time.perf_counter()
settings, watch = FetchSettings.from_environment(os.environ), Watch()
fetch(PinnedFile("chat/7b/model.gguf", source, int(size), sha256, None), folder, settings, watch)
print(time.perf_counter() - watch.last)
"""
NGINX = """
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log stderr error;
events {{}}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    root {folder};
    {limit}
  }}
}}
"""


def find(name: str) -> str | None:
    """Return the path of a program, beside this Python or anywhere."""
    return shutil.which(name, path=f"{TOOLS}:{os.environ.get('PATH', '')}:/usr/sbin")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def make_file(path: Path, size: int) -> str:
    """Write ``size`` random bytes to ``path`` and return their SHA-256."""
    digest, left = hashlib.sha256(), size
    with path.open("wb") as target:
        while left:
            block = os.urandom(min(left, 1 << 20))
            digest.update(block)
            target.write(block)
            left -= len(block)
    return digest.hexdigest()


def measure(commands: list[list[str]], environment: dict[str, str]) -> tuple[float, float, str]:
    """Run ``commands`` one after another; returns wall and processor time in seconds, and what the last one said."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    for command in commands:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def contestants(url: str, source: str, size: int, sha256: str) -> dict[str, Callable[[str], list[list[str]]]]:
    """Return what is compared: by name, the commands that fetch into a folder."""
    plain: Callable[[str], list[str]] = lambda folder: ["curl", "-sS", "-o", f"{folder}/x", url]  # noqa: E731
    ours = [sys.executable, "-c", OURS]
    found: dict[str, Callable[[str], list[list[str]]]] = {
        "ours": lambda folder: [[*ours, url, str(size), sha256, folder]],
        "curl": lambda folder: [plain(folder)],
        "curl, openssl, sync": lambda folder: [
            plain(folder),
            ["openssl", "dgst", "-sha256", f"{folder}/x"],
            ["sync", "-d", f"{folder}/x"],
        ],
        "aria2c": lambda folder: [
            ["aria2c", "-q", "--check-integrity=true", f"--checksum=sha-256={sha256}", "-d", folder, "-o", "x", url]
        ],
        "get_url": lambda folder: [
            [
                find("ansible") or "ansible",
                *("localhost", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}"),
                *("-m", "ansible.builtin.get_url", "-a", f"url={url} dest={folder}/x checksum=sha256:{sha256}"),
            ]
        ],
        "hf": lambda folder: [[find("hf") or "hf", "download", REPOSITORY, NAME, "--local-dir", folder, "-q"]],
        "ours, hub": lambda folder: [[*ours, source, str(size), sha256, folder]],
    }
    needed = {"curl": "curl", "curl, openssl, sync": "openssl", "aria2c": "aria2c", "get_url": "ansible", "hf": "hf"}
    for name, program in needed.items():
        if find(program) is None:
            print(f"left out: {name}, for want of the program {program}")  # noqa: T201
            del found[name]
    return found


def compare(folder: Path, runs: int, commands: dict[str, Callable[[str], list[list[str]]]], endpoint: str) -> None:
    """Let all contestants take turns in ``folder`` and print a table."""
    results: dict[str, list[tuple[float, float, str]]] = {name: [] for name in commands}
    for number in range(runs + 1):
        for name, command in commands.items():
            with tempfile.TemporaryDirectory(dir=folder) as place:
                kept = {"HOME": place, "HF_HOME": f"{place}/hf", "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
                path = {"PATH": f"{TOOLS}:{os.environ['PATH']}", "PYTHONPATH": str(CHECKOUT / "python")}
                ansible = {"ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"), "LANG": "C.UTF-8"}
                seconds = measure(command(place), {**path, **kept, **ansible})
                # The first round warms caches.
                if number:
                    results[name].append(seconds)
        # What one contestant left to be written is not paid for by the next.
        os.sync()
    ours = {name: statistics.median(wall for wall, *_ in results[name]) for name in ("ours", "ours, hub")}
    print(f"\n{folder}\n{'':22}wall: median    min    max   processor   against ours")  # noqa: T201
    for name, seconds in results.items():
        walls = [wall for wall, *_ in seconds]
        median = statistics.median(walls)
        rival = ours["ours, hub" if name == "hf" else "ours"]
        processor = statistics.median(used for _, used, _ in seconds)
        wall = f"{median:6.2f} {min(walls):6.2f} {max(walls):6.2f}"
        print(f"{name:22}      {wall}      {processor:6.2f}         {median / rival:5.2f}")  # noqa: T201

    lags = [float(said) for _, _, said in results["ours"]]
    print(f"ours: verdict and sync {statistics.median(lags):.2f} s after the last byte, at most {max(lags):.2f}")  # noqa: T201


def main() -> None:
    """Serve a file and let all fetch it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mebibytes", type=int, default=2048, help="size of the file")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--folder", type=Path, action="append", help="where to fetch to; several may be named")
    parser.add_argument("--source", type=Path, default=Path("/dev/shm"), help="where the served file is kept")
    parser.add_argument("--rate", help="of each connection to nginx, as 25m for 25 MiB/s")
    parser.add_argument("--only", action="append", help="compare these only, besides ours")
    arguments = parser.parse_args()
    # The server and the file go, too, where somebody ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if find("nginx") is None:
        sys.exit("nginx is missing: install Debian's package nginx-light")
    size = arguments.mebibytes * 1024 * 1024
    with tempfile.TemporaryDirectory(dir=arguments.source) as text, serve() as hub:
        folder, port = Path(text), free_port()
        folder.chmod(0o755)
        sha256 = make_file(folder / NAME, size)
        hub.add(REPOSITORY, {NAME: folder / NAME})
        # Warmed: the server keeps the hash.
        hub.sha256(folder / NAME)
        limit = f"limit_rate {arguments.rate};" if arguments.rate else ""
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, limit=limit), encoding="utf-8")
        server = subprocess.Popen([find("nginx") or "nginx", "-p", text, "-c", f"{text}/nginx.conf"])
        try:
            threading.Event().wait(0.5)
            url, source = f"http://127.0.0.1:{port}/{NAME}", f"hf://{REPOSITORY}@main/{NAME}"
            commands = contestants(url, source, size, sha256)
            if arguments.only:
                commands = {
                    name: made for name, made in commands.items() if name in (*arguments.only, "ours", "ours, hub")
                }
            print(f"{arguments.mebibytes} MiB, {arguments.runs} runs in turn, seconds; load {os.getloadavg()[0]:.1f}")  # noqa: T201
            for place in arguments.folder or [Path("/dev/shm"), Path(tempfile.gettempdir())]:
                compare(place, arguments.runs, commands, hub.endpoint)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
