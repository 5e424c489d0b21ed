"""How long the header of a GGUF with a large vocabulary takes: ours beside the reader of the package ``gguf``.

Both read the same file in turns: by default one with the shape of Llama 3.1 8B
(128,256 tokens, 280,147 merges, 291 tensors, sparse zeros for weights), or the
one that is named. The same file is then read over HTTP from a server on this
machine, and the ranges are counted.

    python benchmarks/header_read.py [--runs 5] [FILE]
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(CHECKOUT / "python"), str(CHECKOUT / "tests")]

from fuzz import seeds  # noqa: E402
from modelfleet.core.fetch.remote import open_url  # noqa: E402
from modelfleet.core.formats.gguf import read_gguf  # noqa: E402
from modelfleet.core.formats.source import FileSource  # noqa: E402

TOKENS, MERGES, LAYERS = 128_256, 280_147, 32
WIDTH, KEY_WIDTH, FEED_FORWARD = 4096, 1024, 14_336
F32, Q4_K, Q6_K = 0, 12, 14
FLOAT32, INT32 = 6, 5


def vocabulary(chance: random.Random, count: int, mean: int) -> bytes:
    """Return ``count`` GGUF strings; in Llama 3's own, tokens have 8.4 bytes on average, merges 10.6."""
    words = (
        bytes(chance.choices(b"etaoinshrdlu", k=min(128, max(1, int(chance.gammavariate(4, mean / 4))))))
        for _ in range(count)
    )
    return b"".join(seeds.string(word) for word in words)


def make(path: Path) -> None:
    """Write a file with the header of Llama 3.1 8B (Q4_K) and no weights."""
    chance = random.Random(0)
    texts = {"general.architecture": "llama", "general.name": "Llama 3.1 8B", "tokenizer.ggml.model": "gpt2"}
    numbers = {"context_length": 131_072, "embedding_length": WIDTH, "block_count": LAYERS, "attention.head_count": 32}
    pairs = [seeds.pair(key, seeds.STRING, seeds.string(text)) for key, text in texts.items()]
    pairs += [seeds.pair(f"llama.{key}", seeds.UINT32, struct.pack("<I", one)) for key, one in numbers.items()]
    arrays = {
        "tokenizer.ggml.tokens": (seeds.STRING, TOKENS, vocabulary(chance, TOKENS, 8)),
        "tokenizer.ggml.scores": (FLOAT32, TOKENS, bytes(4 * TOKENS)),
        "tokenizer.ggml.token_type": (INT32, TOKENS, bytes(4 * TOKENS)),
        "tokenizer.ggml.merges": (seeds.STRING, MERGES, vocabulary(chance, MERGES, 10)),
    }
    pairs += [seeds.pair(key, seeds.ARRAY, seeds.array(*value)) for key, value in arrays.items()]
    table: list[tuple[str, list[int], int]] = [("token_embd.weight", [WIDTH, TOKENS], Q4_K)]
    for layer in range(LAYERS):
        table += [
            (f"blk.{layer}.attn_norm.weight", [WIDTH], F32),
            (f"blk.{layer}.attn_q.weight", [WIDTH, WIDTH], Q4_K),
            (f"blk.{layer}.attn_k.weight", [WIDTH, KEY_WIDTH], Q4_K),
            (f"blk.{layer}.attn_v.weight", [WIDTH, KEY_WIDTH], Q6_K),
            (f"blk.{layer}.attn_output.weight", [WIDTH, WIDTH], Q4_K),
            (f"blk.{layer}.ffn_norm.weight", [WIDTH], F32),
            (f"blk.{layer}.ffn_gate.weight", [WIDTH, FEED_FORWARD], Q4_K),
            (f"blk.{layer}.ffn_up.weight", [WIDTH, FEED_FORWARD], Q4_K),
            (f"blk.{layer}.ffn_down.weight", [FEED_FORWARD, WIDTH], Q6_K),
        ]
    table += [("output_norm.weight", [WIDTH], F32), ("output.weight", [WIDTH, TOKENS], Q6_K)]
    blocks = {F32: (1, 4), Q4_K: (256, 144), Q6_K: (256, 210)}
    tensors, offset = [], 0
    for name, shape, kind in table:
        tensors.append(seeds.tensor(name, shape, kind, offset))
        elements = shape[0] * (shape[1] if len(shape) == 2 else 1)
        block, size = blocks[kind]
        offset += elements // block * size
        offset += -offset % 32
    header = seeds.gguf(pairs, tensors)
    with path.open("wb") as target:
        target.write(header)
        target.truncate(len(header) + offset)


class Ranges(BaseHTTPRequestHandler):
    """Serves ranges of one file."""

    file: Path
    asked: list[int]

    def do_GET(self) -> None:
        """Answer one range."""
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert match is not None
        size = self.file.stat().st_size
        start, end = int(match[1]), min(int(match[2]) + 1, size)
        self.asked.append(end - start)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        with self.file.open("rb") as source:
            source.seek(start)
            self.wfile.write(source.read(end - start))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def ours(path: Path) -> None:
    """Read and judge the header."""
    with FileSource(str(path)) as source:
        read_gguf(source)


def theirs(path: Path) -> None:
    """Read the header with the package gguf."""
    import gguf

    gguf.GGUFReader(path)


def told(name: str, seconds: list[tuple[float, float]]) -> None:
    """Print median and spread in milliseconds, and the median of processor time, which a busy machine spoils less."""
    walls = [1000 * wall for wall, _ in seconds]
    processor = 1000 * statistics.median(one for _, one in seconds)
    row = f"{statistics.median(walls):>10.1f}{min(walls):>10.1f}{max(walls):>10.1f}{processor:>14.1f}"
    print(f"{name:<24}{row}")  # noqa: T201


def main() -> None:
    """Measure in turns and print medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("file", nargs="?", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.file or Path(folder) / "llama-3.1-8b.gguf"
        if arguments.file is None:
            make(path)
        Ranges.file, Ranges.asked = path, []
        server = ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/model.gguf"
        readers: dict[str, Callable[[], object]] = {
            "modelfleet": lambda: ours(path),
            "modelfleet over HTTP": lambda: read_gguf(open_url(url, {})),
            "gguf": lambda: theirs(path),
        }
        try:
            theirs(path)
        except ImportError:
            print("the package gguf is not installed: measuring ours alone", file=sys.stderr)  # noqa: T201
            del readers["gguf"]
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
        for _ in range(arguments.runs):
            for name, read in readers.items():
                started, used = time.perf_counter(), time.process_time()
                read()
                seconds[name].append((time.perf_counter() - started, time.process_time() - used))
        server.shutdown()
        with FileSource(str(path)) as source:
            model = read_gguf(source)
    count = model.array_lengths.get("tokenizer.ggml.tokens")
    print(f"{count} tokens, {len(model.tensors)} tensors, header of {(model.data_offset or 0) / 1e6:.1f} MB")  # noqa: T201
    print(f"{'milliseconds':<24}{'median':>10}{'min':>10}{'max':>10}{'processor':>14}")  # noqa: T201
    for name, times in seconds.items():
        told(name, times)
    per_run = len(Ranges.asked) // arguments.runs
    print(f"ranges: {per_run} ({', '.join(f'{size / 1e6:.1f} MB' for size in Ranges.asked[:per_run])})")  # noqa: T201
    if "gguf" in seconds:
        theirs_median, ours_median = (
            statistics.median(wall for wall, _ in seconds[name]) for name in ("gguf", "modelfleet")
        )
        print(f"gguf / modelfleet = {theirs_median / ours_median:.0f}")  # noqa: T201


if __name__ == "__main__":
    main()
