"""The registry of ggml: the backends and devices that the installed llama-cpp-python was built for and can use now.

"Built for" is which libraries lie beside it, "usable" what they registered (ggml-backend.h): a backend without its
driver is built and not usable. The functions are taken from the library files themselves; the Python package wraps
none of them.
"""

import ctypes
import glob
import os
import re
from typing import Any, Callable, Dict, List, NamedTuple

# ggml-backend.h, enum ggml_backend_dev_type.
_TYPES = ("cpu", "gpu", "igpu", "accelerator", "meta")
_LIBRARY = re.compile(r"libggml-([a-z]+)[-.0-9a-z_]*\.(?:so|dylib)(?:\.[0-9.]+)?\Z")
# How this project calls what a registered backend calls itself.
_BACKENDS = {"CUDA": "cuda", "ROCm": "rocm", "HIP": "rocm", "MTL": "metal", "Metal": "metal", "Vulkan": "vulkan"}


class Device(NamedTuple):
    """A device that can be used now: its name in llama.cpp's log, its backend, its memory in bytes."""

    name: str
    backend: str
    type: str
    description: str
    memory_total: int
    memory_free: int


def built_backends() -> List[str]:
    """Return the backends that there are libraries of, e.g. ``['cpu', 'cuda']``."""
    found = set()
    for path in glob.glob(os.path.join(_library_folder(), "libggml-*")):
        match = _LIBRARY.match(os.path.basename(path))
        if match and match.group(1) != "base":
            found.add("rocm" if match.group(1) == "hip" else match.group(1))
    return sorted(found)


def devices() -> List[Device]:
    """Return the devices of all registered backends, in the order in which llama.cpp takes them.

    To ask a CUDA device for its memory makes this process's context on it.
    """
    count = _function("ggml_backend_dev_count", ctypes.c_size_t)
    get = _function("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    return [_device(get(number)) for number in range(count())]


def to_dict(device: Device) -> Dict[str, Any]:
    """Return the JSON of a device."""
    return dict(device._asdict())


def _device(handle: int) -> Device:
    name = _function("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
    description = _function("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
    kind = _function("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
    registry = _function("ggml_backend_dev_backend_reg", ctypes.c_void_p, ctypes.c_void_p)
    registry_name = _function("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)
    size = ctypes.POINTER(ctypes.c_size_t)
    memory = _function("ggml_backend_dev_memory", None, ctypes.c_void_p, size, size)
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    memory(handle, ctypes.byref(free), ctypes.byref(total))
    backend = registry_name(registry(handle)).decode()
    number = kind(handle)
    return Device(
        name(handle).decode(),
        _BACKENDS.get(backend, backend.lower()),
        _TYPES[number] if number < len(_TYPES) else str(number),
        description(handle).decode("utf-8", "replace"),
        total.value,
        free.value,
    )


def _function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """Return the function ``name`` of the library that llama_cpp has loaded. Raises OSError where it has none."""
    folder = _library_folder()
    for library in ("libggml", "libggml-base"):
        for path in sorted(glob.glob(os.path.join(folder, library + ".so*")) + glob.glob(f"{folder}/{library}.*dylib")):
            function = getattr(ctypes.CDLL(path), name, None)
            if function is not None:
                # Of the same name they would be the same object, and the types of one caller those of all.
                function.restype, function.argtypes = result, list(arguments)
                return function  # type: ignore[no-any-return]
    raise OSError(f"ggml has no function {name} in {folder}")


def _library_folder() -> str:
    import llama_cpp

    return os.path.join(os.path.dirname(os.path.abspath(llama_cpp.__file__)), "lib")
