"""The tier ``catalog``: from a number of parameters and published bits per weight, when nothing else is known.

And the source tutorial's own tables, kept as reference: they count weights only, in round numbers.
"""

from typing import Dict, Tuple

from ..errors import ConfigurationError
from ..units import MIB
from .estimate import OVERHEAD_BYTES, DeviceMemory, Estimate

# Bits per weight of Llama-3.1-8B (llama.cpp's quantize README; q4_0 reckoned from its tensors).
BITS_PER_WEIGHT: Dict[str, float] = {
    "fp16": 16.0005,
    "q8_0": 8.5008,
    "q6_k": 6.5633,
    "q5_k_m": 5.7036,
    "q4_k_m": 4.8944,
    "q4_0": 4.64,
    "q3_k_m": 3.9960,
}
# Rise of the perplexity against F16, Llama-3-8B (llama.cpp's quantize.cpp).
PERPLEXITY_RISE: Dict[str, float] = {
    "fp16": 0.0,
    "q8_0": 0.0026,
    "q6_k": 0.0217,
    "q5_k_m": 0.0569,
    "q4_k_m": 0.1754,
    "q4_0": 0.4685,
    "q3_k_m": 0.6569,
}
# The tutorial: estimates of quality in %, speed against fp16, memory in % of fp16.
TUTORIAL: Dict[str, Tuple[int, float, int]] = {
    "fp16": (100, 1.0, 100),
    "q8_0": (99, 1.5, 50),
    "q4_k_m": (95, 3.0, 25),
    "q4_0": (90, 4.0, 25),
    "q3_k_m": (85, 5.0, 20),
}
# The tutorial: gigabytes of VRAM by model size.
TUTORIAL_GIGABYTES: Dict[str, Dict[str, float]] = {
    "7B": {"fp16": 14.0, "q8_0": 7.5, "q4_k_m": 4.5, "q4_0": 4.0},
    "8B": {"fp16": 16.0, "q8_0": 8.5, "q4_k_m": 5.0, "q4_0": 4.5},
    "13B": {"fp16": 26.0, "q8_0": 14.0, "q4_k_m": 8.0, "q4_0": 7.0},
}
# The compute buffer of an 8B shape with a vocabulary of 128,256 on the CPU, batches of 512 (see docs/memory.md).
COMPUTE_BYTES = 267 * MIB
MAX_PARAMETERS = 10**13


def estimate_parameters(
    parameters: int, quantization: str, context: int = 8192, name: str = "CPU", backend: str = "cpu"
) -> Estimate:
    """Return what a chat model of so many parameters may need on one device. Raises ConfigurationError.

    The cache is reckoned without grouped heads, which most newer models have: an upper bound. A decoder of the usual
    proportions has 12 L d^2 parameters with d = 128 L, and keeps 4 L d bytes a token in F16.
    """
    if quantization not in BITS_PER_WEIGHT:
        raise ConfigurationError(f"quantization {quantization!r}", f"use one of {', '.join(BITS_PER_WEIGHT)}")
    if not 0 < parameters <= MAX_PARAMETERS or not 0 < context < 2**31:
        raise ConfigurationError(f"{parameters} parameters, {context} tokens", "use positive numbers that exist")
    if backend not in OVERHEAD_BYTES:
        raise ConfigurationError(f"backend {backend!r}", f"use one of {', '.join(OVERHEAD_BYTES)}")
    weights = round(parameters * BITS_PER_WEIGHT[quantization] / 8)
    width = (128 * parameters / 12) ** (1 / 3)
    cache = round(4 * width * width / 128 * context)
    device = DeviceMemory(name, weights, 0, cache, COMPUTE_BYTES, 0, OVERHEAD_BYTES[backend])
    return Estimate(
        "catalog",
        (device,),
        ("from the number of parameters alone: the cache is an upper bound, compute a usual value",),
    )
