"""Proof of a GGUF model through llama-cpp-python: greedy completion as the plan places it, timed by llama.cpp itself.

What was really used is read from llama.cpp's log and ggml's registry, never from what was asked for: a build without
the plan's backend loads everything on the CPU without a word.
"""

import ctypes
import re
import time
from typing import Any, Dict, List, NamedTuple, Optional

from ..errors import ConfigurationError, InferenceError, ModelfleetError
from ..formats.judge import describe
from ..memory.dry_run_child import CACHE_TYPES
from ..memory.estimate import DeviceShare, EstimateOptions, estimate, uses_flash_attention
from ..memory.shape import shape_of
from ..units import MIB
from . import ggml
from .request import CPU, Placement, Request, resident_peak_bytes, texts

CONTEXT_TOKENS = 512
MAXIMUM_TOKENS = 16
# The batches of llama.cpp's own programs, and so of the plan's reckoning (EstimateOptions).
_BATCH, _MICRO_BATCH = 2048, 512
# What llama.cpp says of every buffer: "load_tensors:   CPU_Mapped model buffer size =    92.10 MiB".
_BUFFER = re.compile(r": +(\S+) +(?:model|KV|RS|output|compute) buffer size = +([0-9.]+) MiB")
_OFFLOADED = re.compile(r"offloaded (\d+)/\d+ layers to GPU")
_CALLBACKS: List[Any] = []
# Buffers of these names are an accelerator's own; all others (CPU_Mapped, CPU_REPACK, CUDA_Host) lie in main memory.
_ACCELERATOR = re.compile(r"(?:CUDA|ROCm|Vulkan|SYCL|MTL|Metal)\d*\Z")


class Loading(NamedTuple):
    """How a model is loaded: the options that memory is reckoned for, and those of the class Llama that mean the same.

    The class has flash attention on or off; the plan's ``auto`` is on wherever the model allows it.
    """

    options: EstimateOptions
    arguments: Dict[str, Any]


def prove(request: Request) -> Dict[str, Any]:
    """Load the model, continue the check's ``prompt`` greedily, and compare with what is ``expected`` to come first.

    Memory: bytes by device, those that llama.cpp allocated beside those predicted from the header; of accelerators
    ``risen_bytes`` too, by which the device's free memory fell, with what the driver and the kernels take.
    Raises InferenceError where the model cannot be loaded, ConfigurationError for a check or placement without sense.
    """
    import llama_cpp

    prompt, expected = texts(request, "prompt", "expected")
    log = _keep_log(llama_cpp)
    before = {device.name: device for device in ggml.devices()}
    accelerators = _accelerators(list(before.values()))
    picked = request.placement.pick(accelerators) or request.placement.devices
    placement = request.placement._replace(devices=tuple(picked))
    loading = loading_of(request.path, placement, accelerators)
    started = time.monotonic()
    try:
        model = llama_cpp.Llama(model_path=request.path, seed=0, verbose=False, **loading.arguments)
    except ValueError as error:
        reason = _failure("".join(log)) or str(error)
        raise InferenceError(
            f"{request.path} cannot be loaded: {reason}", "run audit to see whether the file is whole"
        ) from None
    load_seconds = time.monotonic() - started
    context = model.ctx
    llama_cpp.llama_perf_context_reset(context)
    answer = model.create_completion(prompt, max_tokens=MAXIMUM_TOKENS, temperature=0.0)
    timings = llama_cpp.llama_perf_context(context)
    output = answer["choices"][0]["text"]
    said = "".join(log)
    offloaded = _OFFLOADED.search(said)
    memory = memory_by_device(said, predicted_bytes(request.path, placement, loading.options))
    used = [device["name"] for device in memory if device["measured_bytes"] and device["name"] in accelerators]
    after = {device.name: device.memory_free for device in ggml.devices()}
    for device in memory:
        name = device["name"]
        known = name in accelerators and name in after
        device["risen_bytes"] = max(0, before[name].memory_free - after[name]) if known else None
    return request.answer(
        backend=before[used[0]].backend if used else "cpu",
        device="+".join(used) or CPU,
        output=output,
        expected=expected,
        passed=output.startswith(expected),
        load_seconds=load_seconds,
        offloaded_layers=int(offloaded.group(1)) if offloaded else 0,
        prompt_tokens_per_second=_rate(timings.n_p_eval, timings.t_p_eval_ms),
        generation_tokens_per_second=_rate(timings.n_eval, timings.t_eval_ms),
        memory={"devices": memory, "resident_bytes": resident_peak_bytes()},
        versions={"llama_cpp_python": llama_cpp.__version__},
        details={
            "built_backends": ggml.built_backends(),
            "context": loading.options.context,
            "kv_type": loading.options.kv_type_k,
            "flash_attention": loading.options.flash_attention,
            "prompt_tokens": timings.n_p_eval,
            "generated_tokens": answer["usage"]["completion_tokens"],
            "weight_bytes": int(llama_cpp.llama_model_size(model.model)),
        },
    )


def loading_of(path: str, placement: Placement, accelerators: List[str]) -> Loading:
    """Return how the model at ``path`` is loaded for ``placement``, where llama.cpp has ``accelerators`` in this order.

    Without a planned context it is a small one, for the proof alone. An accelerator that is not there is not asked
    for: the model is then loaded on the CPU, and the answer says so.
    """
    if placement.kv_type not in CACHE_TYPES:
        raise ConfigurationError(
            f"llama.cpp has no KV cache of type {placement.kv_type!r}", f"choose of {', '.join(CACHE_TYPES)}"
        )
    planned = placement.context is not None
    context = placement.context or CONTEXT_TOKENS
    flash = planned and _has_flash_attention(path)
    options = EstimateOptions(
        context=context,
        batch=min(context, _BATCH),
        micro_batch=min(context, _MICRO_BATCH),
        kv_type_k=placement.kv_type,
        kv_type_v=placement.kv_type,
        flash_attention="on" if flash else "off",
        full_window=not planned,
    )
    arguments: Dict[str, Any] = {
        "n_ctx": options.context,
        "n_batch": options.batch,
        "n_ubatch": options.micro_batch,
        "type_k": CACHE_TYPES[options.kv_type_k],
        "type_v": CACHE_TYPES[options.kv_type_v],
        "flash_attn": flash,
        "swa_full": options.full_window,
        "n_gpu_layers": 0,
    }
    wanted = placement.pick(accelerators)
    if placement.gpu_layers and wanted:
        arguments["n_gpu_layers"] = placement.gpu_layers
        if len(wanted) == 1:
            # LLAMA_SPLIT_MODE_NONE: all of it on the main device.
            arguments.update(split_mode=0, main_gpu=accelerators.index(wanted[0]))
        else:
            parts = dict(zip(wanted, placement.split))
            arguments["tensor_split"] = [float(parts.get(name, 0)) for name in accelerators]
    return Loading(options, arguments)


def memory_by_device(log: str, predicted: Dict[str, int]) -> List[Dict[str, Any]]:
    """Return for each device the bytes of all buffers that ``log`` tells of, beside the predicted ones."""
    measured: Dict[str, float] = {}
    for name, size in _BUFFER.findall(log):
        device = name if _ACCELERATOR.match(name) else CPU
        measured[device] = measured.get(device, 0.0) + float(size) * MIB
    return [
        {"name": name, "predicted_bytes": predicted.get(name), "measured_bytes": round(measured.get(name, 0.0))}
        for name in sorted({*measured, *predicted})
    ]


def predicted_bytes(
    path: str, placement: Optional[Placement] = None, options: Optional[EstimateOptions] = None
) -> Dict[str, int]:
    """Return what the header says that the model at ``path`` needs where it is planned; empty where it does not.

    Without the overhead of process and driver: llama.cpp's buffers, with which it is compared, are without it too.
    """
    placement = placement or Placement()
    try:
        options = options or loading_of(path, placement, []).options
        devices = estimate(shape_of(describe(path)), options, shares_of(placement)).devices
    except (ModelfleetError, OSError):
        return {}
    return {device.name: device.total - device.overhead for device in devices}


def shares_of(placement: Placement) -> List[DeviceShare]:
    """Return what the plan puts on each device; as llama.cpp counts, the output is the last one's last layer."""
    names = placement.devices
    counts = list(placement.split) if len(names) > 1 else [placement.gpu_layers][: len(names)]
    if len(counts) != len(names):
        raise ConfigurationError(f"{'+'.join(names)}: the placement does not say how many layers each of them has")
    last = len(names) - 1
    shares = [
        DeviceShare(name, placement.backend, max(0, count - (place == last)), place == last and count > 0)
        for place, (name, count) in enumerate(zip(names, counts))
    ]
    return [*shares, DeviceShare(CPU, "cpu")]


def _has_flash_attention(path: str) -> bool:
    try:
        return uses_flash_attention(shape_of(describe(path)), EstimateOptions())
    except (ModelfleetError, OSError):
        return True


def _accelerators(devices: List[ggml.Device]) -> List[str]:
    """Return the devices that llama.cpp puts layers on, in its order: integrated ones only where there is no other."""
    for kind in ("gpu", "igpu"):
        found = [device.name for device in devices if device.type == kind]
        if found:
            return found
    return []


def _keep_log(llama_cpp: Any) -> List[str]:
    log: List[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def keep(level: int, text: bytes, data: ctypes.c_void_p) -> None:
        log.append(text.decode("utf-8", "replace"))

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    # llama.cpp calls it until the process ends, and knows nothing of references.
    _CALLBACKS.append(keep)
    return log


def _failure(log: str) -> Optional[str]:
    """Return the line of the log that tells why a model cannot be loaded, or None."""
    lines = [line.strip() for line in log.splitlines()]
    for mark in ("error loading model", "out of memory", "failed to allocate", "failed to"):
        for line in lines:
            if mark in line:
                return line[:300]
    return None


def _rate(tokens: int, milliseconds: float) -> Optional[float]:
    return round(tokens * 1000 / milliseconds, 1) if tokens and milliseconds > 0 else None
