"""What is installed in the managed environment, and what of it works: the tutorial's item 10, as data.

``{"python", "platform", "kernel", "driver", PACKAGE: null | {"error"} | {"version", …}}``. Each package is imported in
a process of its own, since one that was built for another processor does not raise, it ends the process.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
from typing import Any, Callable, Dict, List, Tuple

from . import ggml
from .request import Request

Description = Dict[str, Any]


def prove(request: Request) -> Dict[str, Any]:
    """Return the installation: a missing package is None, a broken one ``{"error": one line}``."""
    described: List[Tuple[str, str, Callable[[], Description]]] = [
        ("torch", "torch", _torch),
        ("llama_cpp", "llama-cpp-python", _llama),
        ("onnxruntime", "onnxruntime", _onnxruntime),
        ("transformers", "transformers", _transformers),
        ("accelerate", "accelerate", _accelerate),
        ("diffusers", "diffusers", _diffusers),
        ("sentence_transformers", "sentence-transformers", _sentence_transformers),
        ("bitsandbytes", "bitsandbytes", _bitsandbytes),
        ("torchvision", "torchvision", _torchvision),
        ("torchaudio", "torchaudio", _torchaudio),
        ("safetensors", "safetensors", _safetensors),
        ("tokenizers", "tokenizers", _tokenizers),
    ]
    started = [(module, _installed(module, distribution), describe) for module, distribution, describe in described]
    running = [(module, _start(describe) if there else None) for module, there, describe in started]
    found = {module: None if reading is None else _finish(*reading) for module, reading in running}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "kernel": platform.release(),
        "driver": _driver(),
        **found,
    }


def _torch() -> Description:
    import torch

    mps = getattr(torch.backends, "mps", None)
    cuda = torch.cuda
    usable = cuda.is_available()
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": getattr(torch.version, "hip", None),
        "cuda_available": usable,
        "mps_built": bool(mps and mps.is_built()),
        "mps_available": bool(mps and mps.is_available()),
        # What the wheel has code for: sm_90, or gfx1100. A card that is not among them computes nothing.
        "architectures": cuda.get_arch_list(),
        "devices": [_torch_device(number) for number in range(cuda.device_count())] if usable else [],
        "threads": torch.get_num_threads(),
    }


def _torch_device(number: int) -> Description:
    import torch

    properties = torch.cuda.get_device_properties(number)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "architecture": getattr(properties, "gcnArchName", None),
        "memory_total": properties.total_memory,
    }


def _llama() -> Description:
    import llama_cpp

    return {
        "version": llama_cpp.__version__,
        "built": ggml.built_backends(),
        "usable": [ggml.to_dict(device) for device in ggml.devices()],
        "offload": bool(llama_cpp.llama_supports_gpu_offload()),
        "features": llama_cpp.llama_print_system_info().decode("utf-8", "replace").strip(),
    }


def _onnxruntime() -> Description:
    import onnxruntime

    return {"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}


# Of the others the version, and that they can be imported, is all there is to know.
def _transformers() -> Description:
    import transformers

    return {"version": str(transformers.__version__)}


def _accelerate() -> Description:
    import accelerate

    return {"version": str(accelerate.__version__)}


def _diffusers() -> Description:
    import diffusers

    return {"version": str(diffusers.__version__)}


def _sentence_transformers() -> Description:
    import sentence_transformers

    return {"version": str(sentence_transformers.__version__)}


def _bitsandbytes() -> Description:
    import bitsandbytes

    return {"version": str(bitsandbytes.__version__)}


def _torchvision() -> Description:
    import torchvision

    return {"version": str(torchvision.__version__)}


def _torchaudio() -> Description:
    import torchaudio

    return {"version": str(torchaudio.__version__)}


def _safetensors() -> Description:
    import safetensors

    return {"version": str(safetensors.__version__)}


def _tokenizers() -> Description:
    import tokenizers

    return {"version": str(tokenizers.__version__)}


def _installed(module: str, distribution: str) -> bool:
    """Tell whether there is such a package, whole or not: what only lost its files is broken, not missing."""
    try:
        importlib.metadata.distribution(distribution)
        return True
    except importlib.metadata.PackageNotFoundError:
        return importlib.util.find_spec(module) is not None


def _start(describe: Callable[[], Description]) -> Tuple[int, int]:
    """Run ``describe`` in a child of this process; return its number and where it writes."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        os.close(reading)
        try:
            answer = describe()
        except Exception as error:
            # Whatever a broken package raises is what is told of it.
            lines = str(error).strip().splitlines() or ["no message"]
            answer = {"error": f"{type(error).__name__}: {lines[0][:300]}"}
        with os.fdopen(writing, "w") as answering:
            json.dump(answer, answering)
    finally:
        os._exit(0)


def _finish(child: int, reading: int) -> Description:
    with os.fdopen(reading) as source:
        text = source.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return {"error": f"it ended with {signal.Signals(os.WTERMSIG(status)).name} when it was imported"}
    try:
        answer: Description = json.loads(text)
    except ValueError:
        return {"error": "it ended without an answer when it was imported"}
    return answer


def _driver() -> "str | None":
    """Return the version of the NVIDIA kernel module that is loaded."""
    try:
        with open("/sys/module/nvidia/version", encoding="utf-8") as source:
            return source.read().strip()
    except OSError:
        return None
