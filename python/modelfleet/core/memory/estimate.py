"""What a GGUF model needs, by device and part, from its shape alone (tier ``header``): pure, exact where it can be.

Weights and KV cache follow llama.cpp's own rules to the byte; the compute buffer is modelled from its graph
(``compute``). Which tensor lies where: llama-model.cpp (``load_tensors``) puts the first layers on the CPU and the
last on the accelerators, the token embeddings always on the CPU.
"""

from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

from ..errors import ConfigurationError
from ..units import MIB
from .architectures import COMPARED, WITHOUT_FLASH_ATTENTION
from .compute import Run, compute_bytes
from .kv_cache import CACHE_TYPES, cache_bytes, cells, padded_to
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
# Several of these that hold a whole model work on so many batches at once (ggml-backend.cpp, GGML_SCHED_MAX_COPIES).
_PIPELINED = frozenset(("cuda", "rocm"))
_PIPELINE_COPIES = 4


@dataclass(frozen=True)
class EstimateOptions:
    """How a model is loaded: tokens of context (all sequences together), and llama.cpp's own words for the rest.

    ``flash_attention`` is ``on``, ``off`` or ``auto``. ``unified``: the sequences share one cache.
    ``full_window``: layers with a sliding window keep the whole context, as the class ``Llama`` of llama-cpp-python has
    it unless it is told ``swa_full=False``.
    """

    context: int = 8192
    batch: int = 2048
    micro_batch: int = 512
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    flash_attention: str = "auto"
    parallel: int = 1
    unified: bool = False
    full_window: bool = False
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
    run, cache = _run(shape, options, flash)
    accelerators = shares[:-1]
    first = shape.layers - sum(share.layers for share in accelerators)
    output_on_cpu = not any(share.output for share in accelerators)
    repack = options.repack and not any(share.backend in _HOST_BUFFERS for share in accelerators)
    working = [share for share in accelerators if share.layers or share.output]
    pipelined = len(working) > 1 and not first and all(share.backend in _PIPELINED for share in working)
    copies = _PIPELINE_COPIES if pipelined and not output_on_cpu else 1
    devices: List[DeviceMemory] = []
    start = first
    for share in accelerators:
        end = start + share.layers
        weights = sum(shape.layer_bytes[start:end]) + sum(shape.layer_padding[start:end])
        if share.layers:
            weights += shape.shared_bytes
        if share.output:
            weights += shape.output_bytes + shape.output_padding
        compute = compute_bytes(shape, run, start, end, share.output, True, copies) if weights else 0
        if first and weights and share is working[0] and share.backend in _HOST_BUFFERS:
            # It also computes large batches of the CPU's layers, one matrix after the other copied to it.
            compute += shape.widest_tensor_bytes
        overhead = OVERHEAD_BYTES[share.backend] if weights else 0
        devices.append(DeviceMemory(share.name, weights, 0, sum(cache[start:end]), compute, 0, overhead))
        start = end
    weights = shape.input_bytes + sum(shape.layer_bytes[:first])
    again = sum(shape.layer_repack_bytes[:first])
    if first:
        weights += shape.shared_bytes
    if output_on_cpu:
        weights += shape.output_bytes - shape.tied_bytes
        again += shape.output_repack_bytes
    compute = compute_bytes(shape, run, 0, first, output_on_cpu, False, copies)
    logits = 4 * shape.vocabulary_size * options.parallel
    devices.append(
        DeviceMemory(
            shares[-1].name,
            weights,
            again if repack else 0,
            sum(cache[:first]),
            compute,
            logits,
            OVERHEAD_BYTES["cpu"],
        )
    )
    return Estimate("header", tuple(devices), tuple(_warnings(shape, options)))


def _warnings(shape: ModelShape, options: EstimateOptions) -> Iterator[str]:
    if shape.architecture not in COMPARED:
        yield f"the architecture {shape.architecture[:64]} is reckoned like a Llama: its compute buffer may be far off"
    if shape.context_length and options.context > shape.context_length * options.parallel:
        yield f"{options.context} tokens of context, and the model was made for {shape.context_length}"


def uses_flash_attention(shape: ModelShape, options: EstimateOptions) -> bool:
    """Return whether llama.cpp will use flash attention. Raises ConfigurationError where the cache needs it."""
    off = options.flash_attention == "off" or shape.architecture in WITHOUT_FLASH_ATTENTION
    if off and CACHE_TYPES[options.kv_type_v][0] > 1 and shape.cached_layers:
        raise ConfigurationError(
            f"values of type {options.kv_type_v} need flash attention", "turn it on, or use f16 for the values"
        )
    return not off


def _run(shape: ModelShape, options: EstimateOptions, flash: bool) -> Tuple[Run, Tuple[int, ...]]:
    """Return what decides the graph, and the bytes that each layer keeps."""
    micro = min(options.context, options.batch, options.micro_batch)
    held = cells(options.context, micro, options.parallel, options.unified, shape.sliding_window, options.full_window)
    # A batch is divided evenly among the sequences.
    tokens = padded_to(micro, options.parallel)
    cache = cache_bytes(shape, held, options.kv_type_k, options.kv_type_v, flash, options.parallel)
    return Run(tokens, micro, held, flash, options.kv_type_k, options.kv_type_v, options.parallel), cache


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


def shares_for(
    layers: int, gpu_layers: int, devices: Sequence[Tuple[str, str, float]], cpu: str = "CPU"
) -> Tuple[DeviceShare, ...]:
    """Return who holds what with ``gpu_layers`` (see ``split_layers``): each of ``devices`` is name, backend, part."""
    split = split_layers(layers, gpu_layers, [part for _, _, part in devices]) if devices else []
    shares = [DeviceShare(name, backend, count, output) for (name, backend, _), (count, output) in zip(devices, split)]
    return (*shares, DeviceShare(cpu, "cpu"))
