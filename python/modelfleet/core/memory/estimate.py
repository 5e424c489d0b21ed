"""What a GGUF model needs, by device and part, from its shape alone (tier ``header``): pure, exact where it can be.

Weights and KV cache follow llama.cpp's own rules to the byte; the compute buffer is modelled from its graph
(``compute``). Which tensor lies where: llama-model.cpp (``load_tensors``) puts the first layers on the CPU and the
last on the accelerators, the token embeddings always on the CPU.
"""

from dataclasses import dataclass
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from ..errors import ConfigurationError
from ..units import MIB
from .architectures import WITHOUT_FLASH_ATTENTION
from .compute import Graph, input_bytes, layer_bytes, logits_bytes
from .kv_cache import CACHE_TYPES, cache_bytes, cells
from .shape import ModelShape

SCHEMA_VERSION = 1
MAX_PARALLEL = 256
MAX_CONTEXT = 2**28
# What a process holds on a device before the first tensor: the driver's context and the kernels' code. Ollama's
# reserve for CUDA and ROCm, 457 MiB, and for Metal 512 MiB; on the CPU the libraries and a vocabulary, measured.
OVERHEAD_BYTES: Dict[str, int] = {
    "cuda": 457 * MIB,
    "rocm": 457 * MIB,
    "metal": 512 * MIB,
    "vulkan": 457 * MIB,
    "cpu": 64 * MIB,
}
# With one of these in the process llama.cpp keeps the CPU's weights in a form that the device can read.
_HOST_BUFFERS = frozenset(("cuda", "rocm", "vulkan"))


@dataclass(frozen=True)
class EstimateOptions:
    """How a model is loaded: tokens of context (all sequences together), and llama.cpp's own words for the rest.

    ``flash_attention`` is ``on``, ``off`` or ``auto``. ``unified``: the sequences share one cache.
    """

    context: int = 8192
    batch: int = 2048
    micro_batch: int = 512
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    flash_attention: str = "auto"
    parallel: int = 1
    unified: bool = False
    repack: bool = True


@dataclass(frozen=True)
class DeviceShare:
    """What a device holds: so many repeating layers, and the output or not. ``backend``: see ``OVERHEAD_BYTES``."""

    name: str
    backend: str
    layers: int = 0
    output: bool = False


class DeviceMemory(NamedTuple):
    """The bytes that a device needs, by part."""

    name: str
    weights: int
    repack: int
    kv_cache: int
    compute: int
    output: int
    overhead: int

    @property
    def total(self) -> int:
        """All parts together."""
        return self.weights + self.repack + self.kv_cache + self.compute + self.output + self.overhead


class Estimate(NamedTuple):
    """The answer: its tier (``measured``, ``header`` or ``catalog``), the devices, and what is less sure than that."""

    tier: str
    devices: Tuple[DeviceMemory, ...]
    warnings: Tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """The bytes on all devices together."""
        return sum(device.total for device in self.devices)

    def to_dict(self) -> Dict[str, Any]:
        """Return the JSON of the answer; all sizes are bytes."""
        return {
            "schema_version": SCHEMA_VERSION,
            "tier": self.tier,
            "devices": [{**device._asdict(), "total": device.total} for device in self.devices],
            "total": self.total,
            "warnings": list(self.warnings),
        }


def estimate(shape: ModelShape, options: EstimateOptions, shares: Sequence[DeviceShare]) -> Estimate:
    """Return what ``shape`` needs on each of ``shares``; the last is the CPU's, which holds what nobody else does.

    The accelerators hold the model's last layers in the order in which they are given, as llama.cpp places them.
    Raises ConfigurationError for options that llama.cpp would refuse.
    """
    check(shape, options, shares)
    flash = uses_flash_attention(shape, options)
    tokens, held, cache = _sizes(shape, options, flash)
    graph = Graph(tokens, held, flash)
    accelerators = shares[:-1]
    first = shape.layers - sum(share.layers for share in accelerators)
    output_on_cpu = not any(share.output for share in accelerators)
    repack = options.repack and not any(share.backend in _HOST_BUFFERS for share in accelerators)
    devices: List[DeviceMemory] = []
    start = first
    inputs = input_bytes(shape, graph)
    for share in accelerators:
        end = start + share.layers
        weights = sum(shape.layer_bytes[start:end]) + sum(shape.layer_padding[start:end])
        compute = 0
        if share.layers:
            weights += shape.shared_bytes
            compute = inputs + layer_bytes(shape, graph)
        if share.output:
            weights += shape.output_bytes + shape.output_padding
            compute = max(compute, inputs + logits_bytes(shape, graph))
        devices.append(
            DeviceMemory(
                share.name,
                weights,
                0,
                sum(cache[start:end]),
                compute,
                0,
                OVERHEAD_BYTES[share.backend] if weights else 0,
            )
        )
        start = end
    weights = shape.input_bytes + sum(shape.layer_bytes[:first])
    again = sum(shape.layer_repack_bytes[:first]) if repack else 0
    compute = inputs
    if first:
        weights += shape.shared_bytes
        compute += layer_bytes(shape, graph)
    if output_on_cpu:
        weights += shape.output_bytes - shape.tied_bytes
        again += shape.output_repack_bytes if repack else 0
        compute = max(compute, inputs + logits_bytes(shape, graph))
    logits = 4 * shape.vocabulary_size * options.parallel
    cpu = shares[-1]
    devices.append(DeviceMemory(cpu.name, weights, again, sum(cache[:first]), compute, logits, OVERHEAD_BYTES["cpu"]))
    return Estimate("header", tuple(devices))


def uses_flash_attention(shape: ModelShape, options: EstimateOptions) -> bool:
    """Return whether llama.cpp will use flash attention. Raises ConfigurationError where the cache needs it."""
    off = options.flash_attention == "off" or shape.architecture in WITHOUT_FLASH_ATTENTION
    if off and CACHE_TYPES[options.kv_type_v][0] > 1 and shape.cached_layers:
        raise ConfigurationError(
            f"values of type {options.kv_type_v} need flash attention", "turn it on, or use f16 for the values"
        )
    return not off


def _sizes(shape: ModelShape, options: EstimateOptions, flash: bool) -> Tuple[int, Any, Tuple[int, ...]]:
    batch = min(options.batch, options.context)
    micro = min(batch, options.micro_batch)
    held = cells(options.context, micro, options.parallel, options.unified, shape.sliding_window)
    tokens = -(-min(held.full * held.streams, micro) // options.parallel) * options.parallel
    cache = cache_bytes(shape, held, options.kv_type_k, options.kv_type_v, flash, options.parallel)
    return tokens, held, cache


def check(shape: ModelShape, options: EstimateOptions, shares: Sequence[DeviceShare]) -> None:
    """Raise ConfigurationError unless ``options`` and ``shares`` can be meant."""
    if not 1 <= options.parallel <= MAX_PARALLEL:
        raise ConfigurationError(f"{options.parallel} parallel sequences", f"use 1 to {MAX_PARALLEL}")
    if not 1 <= options.context <= MAX_CONTEXT or options.context < options.parallel:
        raise ConfigurationError(
            f"a context of {options.context} tokens for {options.parallel} sequences", f"use up to {MAX_CONTEXT}"
        )
    if not 1 <= options.batch <= MAX_CONTEXT or not 1 <= options.micro_batch <= MAX_CONTEXT:
        raise ConfigurationError(
            f"batches of {options.batch} and {options.micro_batch} tokens", f"use 1 to {MAX_CONTEXT}"
        )
    for kind in (options.kv_type_k, options.kv_type_v):
        if kind not in CACHE_TYPES:
            raise ConfigurationError(f"a KV cache of type {kind!r}", f"use one of {', '.join(CACHE_TYPES)}")
    if options.flash_attention not in ("on", "off", "auto"):
        raise ConfigurationError(f"flash attention {options.flash_attention!r}", "use on, off or auto")
    if not shares or shares[-1].backend != "cpu":
        raise ConfigurationError("the last device is not the CPU", "end the list of devices with the CPU's share")
    if any(share.backend not in OVERHEAD_BYTES or share.backend == "cpu" for share in shares[:-1]):
        raise ConfigurationError("an accelerator of an unknown backend", f"use one of {', '.join(OVERHEAD_BYTES)}")
    held = sum(share.layers for share in shares[:-1])
    if any(share.layers < 0 for share in shares) or held > shape.layers:
        raise ConfigurationError(f"{held} layers on accelerators", f"the model has {shape.layers}")


def split_layers(layers: int, gpu_layers: int, parts: Sequence[float]) -> List[Tuple[int, bool]]:
    """Return how many repeating layers each accelerator gets, and whether the output, as llama.cpp splits them.

    ``gpu_layers`` counts the output as a layer, as llama.cpp's ``--gpu-layers`` does; ``parts`` are the devices'
    proportions (``--tensor-split``).
    """
    offloaded = min(gpu_layers, layers + 1)
    total = float(sum(parts))
    answer = [[0, False] for _ in parts]
    if offloaded <= 0 or total <= 0:
        return [(0, False) for _ in parts]
    edges, reached = [], 0.0
    for part in parts:
        reached += part
        edges.append(reached / total)
    for number in range(offloaded):
        device = next((index for index, edge in enumerate(edges) if edge > number / offloaded), len(parts) - 1)
        if number == offloaded - 1:
            answer[device][1] = True
        else:
            answer[device][0] += 1
    return [(int(count), bool(output)) for count, output in answer]
