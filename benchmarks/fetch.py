"""What a verified and durable download costs, beside what one would use instead: wall time and processor time.

    fetch.py [--runs N] [--mode tmpfs|disk|connection|link ...] [--only NAME ...]

Each contestant fetches the same file, in turn, ``--runs`` times:

- ``ours``: modelfleet's fetch, SHA-256 and fsync included, in a process of its own
- ``curl``: nothing verified, nothing synced
- ``curl, openssl, sync``: the same bytes, then ``openssl dgst -sha256`` and ``sync -d``
- ``aria2c``: with its checksum option
- ``get_url``: Ansible's module, with its checksum option
- ``hf`` and ``ours, hub``: ``hf download`` and modelfleet's fetch, both from the tests' Hub server, which is Python

The others are served by nginx. The modes, one after another (default: all):

- ``tmpfs`` and ``disk``: over loopback, to ``/dev/shm`` and to ``--disk``
- ``connection``: nginx gives each connection 25 MiB/s; ours and curl, half the file, once: it takes a minute and a half
- ``link``: nginx in a network namespace, behind a link that ``tc tbf`` shapes to 1 Gbit; ours and curl, 3 times at most

The first round of the first mode warms caches and is not counted. Needs nginx, curl, aria2c and openssl, and as root
``ip`` and ``tc`` for ``link`` (Debian's packages nginx-light, curl, aria2, openssl, iproute2) and installs nothing:
what is missing is left out and said.
"""

from __future__ import annotations

import argparse
import contextlib
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
import time
from collections.abc import Callable, Iterator
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
pid {folder}/{host}.pid;
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
    listen {host}:{port};
    root {folder};
  }}
  server {{
    listen {host}:{limited};
    root {folder};
    limit_rate 25m;
  }}
}}
"""
HALF = "half.gguf"
MODES = ("tmpfs", "disk", "connection", "link")
# Addresses that are set aside for benchmarks (RFC 2544).
FAR, NEAR = "198.18.0.1", "198.18.0.2"
GOALS = (
    *(
        (mode, rival, ratio)
        for mode in ("tmpfs", "disk")
        for rival, ratio in (("hf", 3), ("get_url", 3), ("aria2c", 2))
    ),
    ("tmpfs", "curl", 1),
    ("link", "curl", 1 / 1.02),
)
"""By how much ours is to be faster: the rival's median by ours."""

Commands = dict[str, Callable[[str], list[list[str]]]]


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


def contestants(url: str, source: str, size: int, sha256: str) -> Commands:
    """Return what is compared: by name, the commands that fetch into a folder."""
    plain: Callable[[str], list[str]] = lambda folder: ["curl", "-sS", "-o", f"{folder}/x", url]  # noqa: E731
    ours = [sys.executable, "-c", OURS]
    found: Commands = {
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
    return {name: made for name, made in found.items() if name not in missing()}


def missing() -> dict[str, str]:
    """Return the contestants whose program is not here, with its name."""
    needed = {"curl": "curl", "curl, openssl, sync": "openssl", "aria2c": "aria2c", "get_url": "ansible", "hf": "hf"}
    return {name: program for name, program in needed.items() if find(program) is None}


@contextlib.contextmanager
def nginx(folder: Path, host: str, port: int, limited: int, inside: list[str]) -> Iterator[None]:
    """Serve ``folder`` at ``port``, and at ``limited`` 25 MiB/s a connection; ``inside`` goes before the command."""
    configuration = folder / f"{host}.conf"
    configuration.write_text(NGINX.format(folder=folder, host=host, port=port, limited=limited), encoding="utf-8")
    server = subprocess.Popen([*inside, find("nginx") or "nginx", "-p", str(folder), "-c", str(configuration)])
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection((host, limited), timeout=1):
                break
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def shaped_link(name: str) -> Iterator[list[str]]:
    """Make a network namespace behind a link of 1 Gbit; yields what goes before a command that is to run in it."""

    def do(*words: str) -> None:
        subprocess.run(words, check=True, capture_output=True)

    do("ip", "netns", "add", name)
    try:
        do("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        do("ip", "-n", name, "address", "add", f"{FAR}/30", "dev", "eth0")
        do("ip", "address", "add", f"{NEAR}/30", "dev", name)
        do("ip", "link", "set", name, "up")
        do("ip", "-n", name, "link", "set", "eth0", "up")
        shape = ("root", "tbf", "rate", "1gbit", "burst", "256kb", "latency", "50ms")
        do("tc", "-n", name, "qdisc", "add", "dev", "eth0", *shape)
        yield ["ip", "netns", "exec", name]
    finally:
        # The link goes with it.
        do("ip", "netns", "delete", name)


def compare(
    title: str, folder: Path, runs: int, commands: Commands, endpoint: str, warm: bool = False
) -> dict[str, float]:
    """Let all contestants take turns in ``folder`` and print a table; returns their median wall times in seconds."""
    results: dict[str, list[tuple[float, float, str]]] = {name: [] for name in commands}
    for number in range(0 if warm else 1, runs + 1):
        for name, command in commands.items():
            with tempfile.TemporaryDirectory(dir=folder) as place:
                kept = {"HOME": place, "HF_HOME": f"{place}/hf", "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
                path = {"PATH": f"{TOOLS}:{os.environ['PATH']}", "PYTHONPATH": str(CHECKOUT / "python")}
                ansible = {"ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"), "LANG": "C.UTF-8"}
                seconds = measure(command(place), {**path, **kept, **ansible})
                if number:
                    results[name].append(seconds)
            # What one contestant left to be written is not paid for by the next.
            os.sync()
    medians = {name: statistics.median(wall for wall, *_ in seconds) for name, seconds in results.items()}
    said = f"{title}, {runs} runs in turn, seconds; load {os.getloadavg()[0]:.1f}"
    print(f"\n{said}\n{'':22}wall: median    min    max   processor   against ours")  # noqa: T201
    for name, seconds in results.items():
        walls = [wall for wall, *_ in seconds]
        rival = medians["ours, hub" if name == "hf" and "ours, hub" in medians else "ours"]
        processor = statistics.median(used for _, used, _ in seconds)
        wall = f"{medians[name]:6.2f} {min(walls):6.2f} {max(walls):6.2f}"
        print(f"{name:22}      {wall}      {processor:6.2f}         {medians[name] / rival:5.2f}")  # noqa: T201
    lags = [float(said) for _, _, said in results["ours"]]
    told = f"{statistics.median(lags):.2f} s after the last byte, at most {max(lags):.2f}"
    print(f"ours: verdict and sync {told}", flush=True)  # noqa: T201
    return medians


def judge(medians: dict[str, dict[str, float]]) -> None:
    """Print which goals were met."""
    print()  # noqa: T201
    for mode, rival, goal in GOALS:
        found = medians.get(mode, {})
        if rival in found:
            ratio = found[rival] / found["ours, hub" if rival == "hf" and "ours, hub" in found else "ours"]
            verdict = "met" if ratio >= goal else "not met"
            print(f"{mode}: {rival} takes {ratio:.2f} times as long as ours; goal {goal:.2f}: {verdict}")  # noqa: T201


def main() -> None:
    """Serve a file and let all fetch it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mebibytes", type=int, default=2048, help="size of the file")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--mode", choices=MODES, action="append", help="default: all")
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"), help="a folder on a disk")
    parser.add_argument("--source", type=Path, default=Path("/dev/shm"), help="where the served file is kept")
    parser.add_argument("--only", action="append", help="compare these only, besides ours")
    arguments = parser.parse_args()
    # The server and the file go, too, where somebody ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if find("nginx") is None:
        sys.exit("nginx is missing: install Debian's package nginx-light")
    modes = list(dict.fromkeys(arguments.mode or MODES))
    if "link" in modes and (os.geteuid() != 0 or find("ip") is None or find("tc") is None):
        print("left out: link, which needs root, and the programs ip and tc")  # noqa: T201
        modes.remove("link")
    for name, program in missing().items():
        print(f"left out: {name}, for want of the program {program}")  # noqa: T201
    size = arguments.mebibytes * 1024 * 1024
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=arguments.source) as text, serve() as hub, contextlib.ExitStack() as stack:
        folder, port, limited = Path(text), free_port(), free_port()
        folder.chmod(0o755)
        sha256, half = make_file(folder / NAME, size), make_file(folder / HALF, size // 2)
        hub.add(REPOSITORY, {NAME: folder / NAME})
        # Warmed: the server keeps the hash.
        hub.sha256(folder / NAME)
        stack.enter_context(nginx(folder, "127.0.0.1", port, limited, []))
        source, endpoint = f"hf://{REPOSITORY}@main/{NAME}", hub.endpoint
        every = contestants(f"http://127.0.0.1:{port}/{NAME}", source, size, sha256)
        wanted = {"ours", "ours, hub", *(arguments.only or every)}
        commands = {name: made for name, made in every.items() if name in wanted}
        medians = {}
        for mode in modes:
            title, warm = f"{mode}: {arguments.mebibytes} MiB", mode == modes[0]
            if mode in ("tmpfs", "disk"):
                place = memory if mode == "tmpfs" else arguments.disk
                medians[mode] = compare(f"{title} to {place}", place, arguments.runs, commands, endpoint, warm)
            elif mode == "connection":
                made = two(contestants(f"http://127.0.0.1:{limited}/{HALF}", "", size // 2, half))
                title = f"{mode}: {arguments.mebibytes // 2} MiB at 25 MiB/s a connection"
                medians[mode] = compare(title, memory, 1, made, endpoint)
            else:
                inside = stack.enter_context(shaped_link(f"mf-{os.getpid()}"))
                stack.enter_context(nginx(folder, FAR, port, limited, inside))
                made = two(contestants(f"http://{FAR}:{port}/{NAME}", "", size, sha256))
                medians[mode] = compare(f"{title} at 1 Gbit", memory, min(arguments.runs, 3), made, endpoint)
        judge(medians)


def two(commands: Commands) -> Commands:
    """Leave those that a slow link is measured with."""
    return {name: made for name, made in commands.items() if name in ("ours", "curl")}


if __name__ == "__main__":
    main()
