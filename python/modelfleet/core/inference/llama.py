"""Proof of a GGUF model through llama-cpp-python: greedy completion, timed by llama.cpp itself.

Runs in the child process that core.inference.proof starts, in the managed environment.
"""

import ctypes
import re
import resource
import sys
import time
from typing import Any, Dict, List

from ..errors import InferenceError, ModelfleetError
from ..formats.judge import describe
from ..memory.estimate import DeviceShare, EstimateOptions, estimate
from ..memory.shape import shape_of
from ..units import MIB

CONTEXT_TOKENS = 512
MAXIMUM_TOKENS = 16
# What llama.cpp says of every buffer: "load_tensors:   CPU_Mapped model buffer size =    92.10 MiB".
_BUFFER = re.compile(r": +(\S+) +(?:model|KV|RS|output|compute) buffer size = +([0-9.]+) MiB")
_OFFLOADED = re.compile(r"offloaded (\d+)/\d+ layers to GPU")
_CALLBACKS: List[Any] = []
# Buffers of these names are an accelerator's own; all others (CPU_Mapped, CPU_REPACK, CUDA_Host) lie in main memory.
_ACCELERATOR = re.compile(r"(?:CUDA|ROCm|Vulkan|SYCL|MTL|Metal)\d*\Z")


def prove(path: str, prompt: str, expected: str) -> Dict[str, Any]:
    """Load the model at ``path``, continue ``prompt`` greedily, and return what happened.

    The result's keys are those of a verification record: output, passed,
    load_seconds, prompt_tokens_per_second, generation_tokens_per_second,
    offloaded_layers, memory (bytes: by device those that llama.cpp allocated and
    those predicted from the header; the process's peak of resident memory).
    Raises InferenceError where the model cannot be loaded.
    """
    import llama_cpp

    log: List[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def keep(level: int, text: bytes, data: ctypes.c_void_p) -> None:
        log.append(text.decode("utf-8", "replace"))

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    # llama.cpp calls it until the process ends, and knows nothing of references.
    _CALLBACKS.append(keep)
    started = time.monotonic()
    try:
        model = llama_cpp.Llama(model_path=path, n_ctx=CONTEXT_TOKENS, n_gpu_layers=0, seed=0, verbose=False)
    except ValueError as error:
        raise InferenceError(
            f"{path} cannot be loaded: {error}", "run audit to see whether the file is whole"
        ) from None
    load_seconds = time.monotonic() - started
    context = model.ctx
    llama_cpp.llama_perf_context_reset(context)
    answer = model.create_completion(prompt, max_tokens=MAXIMUM_TOKENS, temperature=0.0)
    timings = llama_cpp.llama_perf_context(context)
    output = answer["choices"][0]["text"]
    said = "".join(log)
    offloaded = _OFFLOADED.search(said)
    return {
        "backend": "cpu",
        "device": "CPU",
        "output": output,
        "passed": output.startswith(expected),
        "load_seconds": round(load_seconds, 3),
        "prompt_tokens_per_second": _rate(timings.n_p_eval, timings.t_p_eval_ms),
        "generation_tokens_per_second": _rate(timings.n_eval, timings.t_eval_ms),
        "offloaded_layers": int(offloaded.group(1)) if offloaded else 0,
        "memory": {"devices": memory_by_device(said, predicted_bytes(path)), "resident_bytes": _peak_bytes()},
        "versions": {"llama_cpp_python": llama_cpp.__version__},
    }


def memory_by_device(log: str, predicted: Dict[str, int]) -> List[Dict[str, Any]]:
    """Return for each device the bytes of all buffers that ``log`` tells of, beside the predicted ones."""
    measured: Dict[str, float] = {}
    for name, size in _BUFFER.findall(log):
        device = name if _ACCELERATOR.match(name) else "CPU"
        measured[device] = measured.get(device, 0.0) + float(size) * MIB
    return [
        {"name": name, "predicted_bytes": predicted.get(name), "measured_bytes": round(measured.get(name, 0.0))}
        for name in sorted({*measured, *predicted})
    ]


def predicted_bytes(path: str) -> Dict[str, int]:
    """Return what the header says that the model at ``path`` needs as it is loaded here; empty where it does not.

    Without the overhead of process and driver: llama.cpp's buffers, with which it is compared, are without it too.
    """
    options = EstimateOptions(
        context=CONTEXT_TOKENS,
        batch=CONTEXT_TOKENS,
        micro_batch=CONTEXT_TOKENS,
        flash_attention="off",
        full_window=True,
    )
    try:
        [device] = estimate(shape_of(describe(path)), options, [DeviceShare("CPU", "cpu")]).devices
    except ModelfleetError:
        return {}
    return {device.name: device.total - device.overhead}


def _rate(tokens: int, milliseconds: float) -> "float | None":
    return round(tokens * 1000 / milliseconds, 1) if tokens and milliseconds > 0 else None


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
