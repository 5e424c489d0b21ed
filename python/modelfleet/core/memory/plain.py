"""Models that are not GGUF: their weights as they lie in the file, and a stated model of what computing takes.

Activations depend on the library; each kind's rule says where it comes from. None of it was measured here, so every
answer carries a warning with its rule.
"""

from typing import NamedTuple, Tuple

from ..errors import ConfigurationError
from ..units import MIB
from .estimate import OVERHEAD_BYTES, DeviceMemory, Estimate

# Disk and memory of whisper.cpp's models, MiB and MB (whisper.cpp's README, "Memory usage").
WHISPER: Tuple[Tuple[float, float], ...] = (
    (75 * MIB, 273e6),
    (142 * MIB, 388e6),
    (466 * MIB, 852e6),
    (1536 * MIB, 2.1e9),
    (2970 * MIB, 3.9e9),
)
# The decoder of Stable Diffusion's autoencoder ends with 256 channels at the picture's full size (block_out_channels
# 128, 256, 512, 512 in the models' vae/config.json); a residual block holds about four such tensors, of 2 bytes.
DECODER_CHANNELS = 256
DECODER_TENSORS = 4
# Larger files are SDXL's, made for pictures of 1024 pixels; smaller ones version 1.5's, of 512.
SDXL_BYTES = 5_000_000_000
KINDS = ("diffusion", "controlnet", "embedding", "speech", "stt", "tts", "other")


class Activation(NamedTuple):
    """How many bytes computing takes, and the rule that says so."""

    bytes: int
    rule: str


def estimate_weights(
    total_bytes: int,
    kind: str,
    name: str = "CPU",
    backend: str = "cpu",
    hidden: int = 1024,
    heads: int = 16,
    tokens: int = 512,
    batch: int = 1,
) -> Estimate:
    """Return what a model with ``total_bytes`` of weights needs on one device.

    ``hidden``, ``heads``, ``tokens`` and ``batch`` matter for embedding models only. Raises ConfigurationError.
    """
    if backend not in OVERHEAD_BYTES:
        raise ConfigurationError(f"backend {backend!r}", f"use one of {', '.join(OVERHEAD_BYTES)}")
    if total_bytes < 0 or min(hidden, heads, tokens, batch) < 1:
        raise ConfigurationError(f"{total_bytes} bytes of weights", "sizes are positive")
    activation = _activation(total_bytes, kind, hidden, heads, tokens, batch)
    device = DeviceMemory(name, total_bytes, 0, 0, activation.bytes, 0, OVERHEAD_BYTES[backend])
    return Estimate("catalog", (device,), (f"activations are not measured: {activation.rule}",))


def _activation(total_bytes: int, kind: str, hidden: int, heads: int, tokens: int, batch: int) -> Activation:
    if kind in ("diffusion", "controlnet"):
        side = 1024 if total_bytes > SDXL_BYTES else 512
        size = DECODER_TENSORS * DECODER_CHANNELS * side * side * 2 * batch
        return Activation(size, f"four tensors of the autoencoder's last block, for a picture of {side} pixels")
    if kind == "embedding":
        # Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models": a layer takes
        # s b h (34 + 5 a s / h) bytes in 16 bits; one layer at a time in inference, twice that in 32 bits.
        size = 2 * tokens * batch * (34 * hidden + 5 * heads * tokens)
        return Activation(
            size, f"one transformer layer in 32 bits, {batch} x {tokens} tokens (Korthikanti et al. 2022)"
        )
    if kind in ("speech", "stt"):
        return Activation(_whisper(total_bytes), "between the models of whisper.cpp's published table")
    if kind in ("tts", "other"):
        size = max(total_bytes // 4, 512 * MIB)
        return Activation(size, "a quarter of the weights, at least 512 MiB; nothing better is published")
    raise ConfigurationError(f"kind {kind!r}", f"use one of {', '.join(KINDS)}")


def _whisper(total_bytes: int) -> int:
    """Return what whisper.cpp's table adds to the file, interpolated by the file's size."""
    points = [(disk, memory - disk) for disk, memory in WHISPER]
    if total_bytes <= points[0][0]:
        return round(points[0][1])
    for (disk, more), (next_disk, next_more) in zip(points, points[1:]):
        if total_bytes <= next_disk:
            return round(more + (next_more - more) * (total_bytes - disk) / (next_disk - disk))
    disk, more = points[-1]
    return round(more * total_bytes / disk)
