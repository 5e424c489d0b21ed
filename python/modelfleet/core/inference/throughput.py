"""How fast a model should generate, and how fast it did.

Each generated token reads every weight that takes part once, so no machine generates faster than its memory's
bandwidth over those bytes (Pope et al., "Efficiently Scaling Transformer Inference", 2022, section 2; llama.cpp's
discussion 4167 shows the same for Apple's chips). Of the embedding one row is read; of a mixture the experts in use;
what is tied serves as output too, and is read whole.

The main memory's bandwidth is measured here; a GPU's is what its maker states, where the card is in the table.
"""

import ctypes
import os
import re
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Sequence

from ..formats.model import ModelFile

GB = 1_000_000_000
# GB/s as NVIDIA's, AMD's and Apple's data sheets state them, taken down by hand. Left out: names that were given to
# cards of several bandwidths (GTX 1080, RTX 3060, RTX 3080, Tesla P100, Apple's M3 Max and M4 Max).
CARD_BANDWIDTH: Dict[str, float] = {
    "GTX 1070": 256,
    "GTX 1080 Ti": 484,
    "RTX 2060": 336,
    "RTX 2070": 448,
    "RTX 2080": 448,
    "RTX 2080 Ti": 616,
    "RTX 3060 Ti": 448,
    "RTX 3070": 448,
    "RTX 3070 Ti": 608,
    "RTX 3090": 936,
    "RTX 3090 Ti": 1008,
    "RTX 4060": 272,
    "RTX 4060 Ti": 288,
    "RTX 4070": 504,
    "RTX 4070 SUPER": 504,
    "RTX 4070 Ti": 504,
    "RTX 4070 Ti SUPER": 672,
    "RTX 4080": 717,
    "RTX 4080 SUPER": 736,
    "RTX 4090": 1008,
    "RTX 5070": 672,
    "RTX 5070 Ti": 896,
    "RTX 5080": 960,
    "RTX 5090": 1792,
    "RTX A6000": 768,
    "RTX 6000 Ada": 960,
    "Tesla P40": 346,
    "Tesla V100": 900,
    "Tesla T4": 320,
    "A10": 600,
    "A30": 933,
    "A40": 696,
    "A100-SXM4-40GB": 1555,
    "A100-SXM4-80GB": 2039,
    "A100-PCIE-40GB": 1555,
    "A100 80GB PCIe": 1935,
    "L4": 300,
    "L40": 864,
    "L40S": 864,
    "H100 PCIe": 2039,
    "H100 80GB HBM3": 3350,
    "H100 NVL": 3938,
    "H200": 4800,
    "B200": 8000,
    "GB10": 273,
    "Radeon RX 6800": 512,
    "Radeon RX 6800 XT": 512,
    "Radeon RX 6900 XT": 512,
    "Radeon RX 7600": 288,
    "Radeon RX 7700 XT": 432,
    "Radeon RX 7800 XT": 624,
    "Radeon RX 7900 XT": 800,
    "Radeon RX 7900 XTX": 960,
    "Radeon RX 9070": 640,
    "Radeon RX 9070 XT": 640,
    "MI210": 1638,
    "MI250X": 3277,
    "MI300X": 5300,
    "Apple M1": 68.25,
    "Apple M1 Max": 400,
    "Apple M1 Ultra": 800,
    "Apple M2": 100,
    "Apple M2 Pro": 200,
    "Apple M2 Max": 400,
    "Apple M2 Ultra": 800,
    "Apple M3": 100,
    "Apple M3 Pro": 150,
    "Apple M4": 120,
    "Apple M4 Pro": 273,
    "Apple M5": 153.6,
}

_READ_BYTES = 64 * 1024 * 1024
"""What each thread reads over and over: together more than the caches of most processors."""
_MOST_THREADS = 8
_READ_SECONDS = 0.25


def card_bandwidth(name: Optional[str]) -> Optional[float]:
    """Return the bytes per second of a GPU's memory by its name; None where the table does not know exactly it."""
    words = _words(name or "")
    found = [known for known in CARD_BANDWIDTH if _fits(words, _words(known))]
    if not found:
        return None
    return CARD_BANDWIDTH[max(found, key=lambda known: len(_words(known)))] * GB


# What may stand after a card's name without making another card of it.
_HARMLESS = re.compile(
    r"(?:[0-9]+gb|gpu|graphics|nvidia|amd|geforce|corporation|pcie|sxm[0-9]?|hbm[0-9]e?|generation)\Z"
)


def _words(name: str) -> List[str]:
    return re.split(r"[ \-/()\[\]]+", name.lower().strip())


def _fits(words: Sequence[str], known: Sequence[str]) -> bool:
    """Tell whether ``known`` stands in ``words``, and the rest is no part of another card's name (Laptop, Ti)."""
    for start in range(len(words) - len(known) + 1):
        if list(words[start : start + len(known)]) == list(known):
            rest = words[start + len(known) :]
            return all(not word or _HARMLESS.match(word) for word in rest)
    return False


def bytes_per_token(model: ModelFile) -> Optional[int]:
    """Return the bytes of weights that one generated token reads; None where the header does not say."""
    if not model.tensors:
        return None
    tied = not any(tensor.name == "output.weight" for tensor in model.tensors)
    experts, used = _of(model, "expert_count"), _of(model, "expert_used_count")
    total = 0.0
    for tensor in model.tensors:
        if tensor.name == "token_embd.weight" and not tied:
            continue
        # The experts of a layer are one tensor each for gate, up and down (llama.cpp's naming).
        share = used / experts if "_exps." in tensor.name and experts and used else 1.0
        total += tensor.size * share
    return round(total) or None


def _of(model: ModelFile, key: str) -> Optional[int]:
    value = model.metadata.get(f"{model.architecture}.{key}")
    return value if isinstance(value, int) and value > 0 else None


def judge(measured: Optional[float], bandwidth: Optional[float], token_bytes: Optional[int]) -> Dict[str, Any]:
    """Return the bound, and the measured tokens per second as a share of it; None where one is not known.

    Keys: bandwidth_bytes_per_second, bytes_per_token, bound_tokens_per_second, share.
    """
    bound = bandwidth / token_bytes if bandwidth and token_bytes else None
    return {
        "bandwidth_bytes_per_second": round(bandwidth) if bandwidth else None,
        "bytes_per_token": token_bytes,
        "bound_tokens_per_second": round(bound, 1) if bound else None,
        "share": round(measured / bound, 3) if measured and bound else None,
    }


def measure_main_memory(threads: Optional[int] = None, seconds: float = _READ_SECONDS) -> float:
    """Return the bytes per second that this machine's processors read from main memory together.

    Each thread (of those that we may use, eight at most) searches 64 MiB for a
    byte that is not there: the C library does that with the widest reads that
    the processor has, and without Python's lock. It goes on for ``seconds``.
    Raises OSError or MemoryError where there is no such memory.
    """
    library = ctypes.CDLL(None)
    search = library.memchr
    search.restype, search.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    count = threads or min(_processors(), _MOST_THREADS)
    # Written, so that every page is there: untouched ones would all be the one page of zeros.
    buffers = [ctypes.create_string_buffer(b"\1" * _READ_BYTES, _READ_BYTES) for _ in range(count)]
    rounds = [0] * count
    gate = threading.Barrier(count + 1)

    def read(number: int) -> None:
        address = ctypes.addressof(buffers[number])
        gate.wait()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            search(address, 0, _READ_BYTES)
            rounds[number] += 1

    workers = [threading.Thread(target=read, args=(number,)) for number in range(count)]
    for worker in workers:
        worker.start()
    gate.wait()
    started = time.monotonic()
    for worker in workers:
        worker.join()
    return sum(rounds) * _READ_BYTES / (time.monotonic() - started)


def _processors() -> int:
    affinity: Optional[Callable[[int], Any]] = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
