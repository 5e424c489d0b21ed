"""The tier ``measured``: llama.cpp itself tells its buffers, from the header alone and without memory for a model.

A model made with ``no_alloc`` and load mode NONE, and a context on it, log the exact compute buffer of every device
(llama-context.cpp, ``sched_reserve``). The model's file is only its header, sparse behind it. It runs in a child
process, since llama.cpp ends its process where it disagrees, with limits on time and memory.
"""

import json
import os
import re
import resource
import signal
import subprocess
import tempfile
from dataclasses import asdict
from typing import Dict, List, Optional, Sequence, Tuple

from ..errors import ConfigurationError, InferenceError
from ..formats.gguf import read_gguf
from ..formats.model import ModelFile
from ..formats.source import FileSource
from ..units import GIB, MIB
from .dry_run_child import DONE
from .estimate import DeviceMemory, DeviceShare, Estimate, EstimateOptions, estimate
from .shape import shape_of

TIMEOUT_SECONDS = 60.0
MEMORY_LIMIT_BYTES = 8 * GIB
MAX_LOG_BYTES = 32 * MIB
_CHILD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "dry_run_child.py")
_ASSIGNED = re.compile(r"load_tensors: layer +(\d+) assigned to device (\S+?),")
_COMPUTE = re.compile(r": +(\S+) compute buffer size = +([\d.]+) MiB")
_CACHE = re.compile(r"(?:kv_cache|memory_recurrent)\S*: size = +([\d.]+) MiB")
_BACKENDS = (("CUDA", "cuda"), ("ROCm", "rocm"), ("Vulkan", "vulkan"), ("MTL", "metal"), ("Metal", "metal"))


def measure(
    path: str,
    model: ModelFile,
    options: EstimateOptions,
    python: str,
    gpu_layers: int = 0,
    parts: Sequence[float] = (),
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Estimate:
    """Return what the GGUF file at ``path``, described by ``model``, needs where ``python`` has llama-cpp-python.

    ``parts``: the accelerators' proportions; empty lets llama.cpp decide. Raises InferenceError where the dry run
    fails, ConfigurationError for options that cannot be meant, OSError where the file cannot be read.
    """
    shape = shape_of(model)
    # The header tier judges the options before a process is started for them, and gives what llama.cpp does not log.
    estimate(shape, options, (DeviceShare("CPU", "cpu"),))
    with tempfile.TemporaryDirectory(prefix="modelfleet-dry-run-") as folder:
        first = _copy_headers(path, model, folder)
        log = _run(first, options, python, gpu_layers, parts, timeout_seconds)
    return _read(log, model, options)


def _copy_headers(path: str, model: ModelFile, folder: str) -> str:
    """Write the headers of the model's files, sparse behind, into ``folder``, and return the first's path."""
    names = model.files or [os.path.basename(path)]
    for name in names:
        source = os.path.join(os.path.dirname(path), name)
        with FileSource(source) as judged:
            header = read_gguf(judged).data_offset or 0
            size = judged.size
        with open(source, "rb") as reading, open(os.path.join(folder, name), "wb") as writing:
            left = min(header, size)
            while left:
                part = reading.read(min(left, MIB))
                if not part:
                    raise InferenceError(f"{path} became shorter while it was read", "try again")
                writing.write(part)
                left -= len(part)
            writing.truncate(size)
    return os.path.join(folder, names[0])


def _run(
    path: str, options: EstimateOptions, python: str, gpu_layers: int, parts: Sequence[float], timeout: float
) -> str:
    """Run the child and return its log."""

    def limits() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if not gpu_layers:
            # A GPU's driver reserves addresses far beyond the machine's memory.
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))

    settings = {**asdict(options), "gpu_layers": gpu_layers, "parts": list(parts)}
    try:
        child = subprocess.Popen(
            [python, "-I", _CHILD, path, json.dumps(settings)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=limits,
        )
    except OSError as error:
        raise InferenceError(
            f"{python} cannot be started: {error.strerror}", "install the runtime, or use --tier header"
        ) from None
    try:
        raw, _ = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise InferenceError(f"the dry run took longer than {timeout:.0f} seconds", "use --tier header") from None
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
    log = raw[:MAX_LOG_BYTES].decode("utf-8", "replace")
    if child.returncode or DONE not in log:
        raise InferenceError(f"the dry run failed: {_reason(log, child.returncode)}", "use --tier header")
    return log


def _reason(log: str, code: Optional[int]) -> str:
    """Return the line of the log that tells best why there is no answer."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for mark in ("modelfleet: ", "GGML_ASSERT", "error loading model", "failed", "does not", "requires"):
        for line in lines:
            if mark in line:
                return line[:200]
    return f"no reason given, exit code {code}"


def _read(log: str, model: ModelFile, options: EstimateOptions) -> Estimate:
    """Return the answer that the log holds: compute as logged, the rest by the header's exact rules."""
    shape = shape_of(model)
    shares, cpu = _placement(log, shape.layers)
    used = options if "CPU_REPACK" in log else EstimateOptions(**{**asdict(options), "repack": False})
    known = estimate(shape, used, (*shares, DeviceShare(cpu, "cpu")))
    names = {share.name for share in shares}
    compute: Dict[str, int] = {}
    for name, size in _COMPUTE.findall(log):
        # What is not an accelerator's own buffer lies in main memory: CPU, CUDA_Host and their like.
        device = name if name in names else cpu
        compute[device] = compute.get(device, 0) + round(float(size) * MIB)
    devices: Tuple[DeviceMemory, ...] = tuple(
        device._replace(compute=compute.get(device.name, 0)) for device in known.devices
    )
    warnings: List[str] = [one for one in known.warnings if "compute buffer" not in one]
    logged = sum(float(size) for size in _CACHE.findall(log))
    reckoned = sum(device.kv_cache for device in devices) / MIB
    if abs(logged - reckoned) > 0.05:
        warnings.append(
            f"llama.cpp makes a KV cache of {logged:.2f} MiB, not of {reckoned:.2f}: it is counted as logged"
        )
        extra = round((logged - reckoned) * MIB)
        devices = (*devices[:-1], devices[-1]._replace(kv_cache=devices[-1].kv_cache + extra))
    return Estimate("measured", devices, tuple(warnings))


def _placement(log: str, layers: int) -> Tuple[List[DeviceShare], str]:
    """Return what llama.cpp put on each accelerator, and what it calls the CPU."""
    held: Dict[str, List[int]] = {}
    for layer, name in _ASSIGNED.findall(log):
        held.setdefault(name, []).append(int(layer))
    shares = []
    for name, numbers in held.items():
        backend = next((backend for prefix, backend in _BACKENDS if name.startswith(prefix)), None)
        if backend is None and name != "CPU":
            raise ConfigurationError(f"llama.cpp uses a device {name[:32]!r}", "use --tier header")
        if backend is not None:
            shares.append(DeviceShare(name, backend, sum(one < layers for one in numbers), layers in numbers))
    return shares, "CPU"
