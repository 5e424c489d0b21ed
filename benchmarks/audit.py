"""Auditing a store, beside ``openssl dgst -sha256`` over the cores; and the look that a run with nothing to do takes.

    audit.py [--folder FOLDER ...] [--files N] [--mebibytes N] [--runs N]

Fills a store of its own in each folder (default: /dev/shm and the working
directory's file system) with random files and removes it. The contestants
take turns; before each one the files are dropped from the page cache, where
they are on a disk, and so are read from it. Ours is the whole of
``core.store.audit``: manifest, stats, hashes, verdict.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT / "python"))

from modelfleet.core.jobs import Progress  # noqa: E402
from modelfleet.core.pins import PinnedFile  # noqa: E402
from modelfleet.core.planning.state import read_state, why_missing  # noqa: E402
from modelfleet.core.privilege import current_account  # noqa: E402
from modelfleet.core.store.audit import audit  # noqa: E402
from modelfleet.core.store.hashing import cores  # noqa: E402
from modelfleet.core.store.manifest import read_manifest, settle  # noqa: E402
from modelfleet.core.store.publish import Proof, record  # noqa: E402
from modelfleet.core.store.tree import Tree, converge  # noqa: E402

STEADY_FILES = 1000


def make_store(folder: Path, count: int, size: int) -> tuple[str, list[PinnedFile]]:
    """Return a store with ``count`` recorded files of ``size`` bytes."""
    owner = current_account()
    path = str(folder / "base" / "models")
    converge(Tree(path, owner, owner.gid, 0o755, None))
    files, proofs = [], {}
    for number in range(count):
        name = f"chat/7b/model-{number:04}.gguf"
        digest = hashlib.sha256()
        with open(f"{path}/{name}", "wb") as target:
            os.fchmod(target.fileno(), 0o644)
            for start in range(0, size, 1 << 20):
                block = os.urandom(min(1 << 20, size - start))
                digest.update(block)
                target.write(block)
            target.flush()
            os.fsync(target.fileno())
        files.append(PinnedFile(name, "file:///x", size, digest.hexdigest(), None))
        proofs[name] = Proof("m", digest.hexdigest(), "file:///x", None, os.lstat(f"{path}/{name}"))
    manifest = read_manifest(path)
    record(path, manifest, proofs)
    settle(path, manifest, proofs)
    return path, files


def drop(path: str, files: list[PinnedFile]) -> None:
    """Drop the files from the page cache; those of a tmpfs stay."""
    for file in files:
        descriptor = os.open(f"{path}/{file.path}", os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def timed(work: Callable[[], None]) -> float:
    """Return the wall time of ``work`` in seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(folder: Path, count: int, size: int, runs: int) -> None:
    """Print what each contestant needed, and the ratio of their medians."""
    path, files = make_store(folder, count, size)
    names = "\0".join(f"{path}/{file.path}" for file in files).encode()
    openssl = ["xargs", "-0", "-n", "1", "-P", str(cores()), "openssl", "dgst", "-sha256"]

    def ours() -> None:
        done = audit(path, current_account(), {}, Progress())
        assert not done.findings and done.hashed_bytes == count * size

    def theirs() -> None:
        subprocess.run(openssl, input=names, check=True, stdout=subprocess.DEVNULL)

    contestants = {"modelfleet audit": ours, "openssl dgst, xargs -P": theirs}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(runs + 1):
        for name, work in contestants.items():
            drop(path, files)
            seconds = timed(work)
            if turn:
                times[name].append(seconds)
    print(f"{folder}: {count} files of {size >> 20} MiB, {cores()} cores, {runs} runs")  # noqa: T201
    for name, seen in times.items():
        median = statistics.median(seen)
        speed = count * size / median / 1e6
        print(f"  {name:24}{median:6.2f} s  ({min(seen):.2f} to {max(seen):.2f})  {speed:6.0f} MB/s")  # noqa: T201
    ours_median, openssl_median = (statistics.median(seen) for seen in times.values())
    print(f"  ratio of speeds         {openssl_median / ours_median:6.2f}")  # noqa: T201


def steady(folder: Path, runs: int) -> None:
    """Print how long it takes to see that nothing changed: the manifest read, one stat a file."""
    path, files = make_store(folder, STEADY_FILES, 4096)
    seen = []
    for _ in range(runs):
        state = None

        def look() -> None:
            nonlocal state
            state = read_state(path, files)
            assert not any(why_missing(state, file) for file in files)

        seen.append(timed(look) * 1000)
    median = statistics.median(seen)
    print(f"{STEADY_FILES} published files are as they were: {median:.1f} ms ({min(seen):.1f} to {max(seen):.1f})")  # noqa: T201


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", action="append", type=Path)
    parser.add_argument("--files", type=int, default=6)
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    for parent in arguments.folder or [Path("/dev/shm"), Path.cwd()]:
        folder = Path(tempfile.mkdtemp(prefix="modelfleet-bench-", dir=parent))
        try:
            compare(folder, arguments.files, arguments.mebibytes << 20, arguments.runs)
        finally:
            shutil.rmtree(folder)
    folder = Path(tempfile.mkdtemp(prefix="modelfleet-bench-", dir=(arguments.folder or [Path.cwd()])[-1]))
    try:
        steady(folder, arguments.runs * 3)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
