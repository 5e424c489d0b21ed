"""What the proofs through PyTorch share: the device that is really had, the weights' files, and memory, as measured."""

import os
from typing import Any, Dict, List, NamedTuple, Optional

from ..errors import InferenceError
from ..memory.plain import estimate_weights
from ..units import format_bytes
from .request import CPU, Request, UnprovenError, refuse_pickle, resident_peak_bytes

# Files that torch.load would unpickle.
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Device(NamedTuple):
    """A device: its name as the plan would have it, the backend, and PyTorch's own name of it."""

    name: str
    backend: str
    torch: str


def choose(request: Request) -> Device:
    """Return the plan's first device, or the CPU where PyTorch cannot use that: the answer then says so."""
    import torch

    placement = request.placement._replace(devices=request.placement.devices[:1])
    if placement.backend in ("cuda", "rocm") and torch.cuda.is_available():
        backend, prefix = ("rocm", "ROCm") if torch.version.hip else ("cuda", "CUDA")
        names = [f"{prefix}{number}" for number in range(torch.cuda.device_count())]
        picked = placement.pick(names)
        if picked:
            return Device(picked[0], backend, f"cuda:{names.index(picked[0])}")
    if placement.backend == "metal" and torch.backends.mps.is_available():
        return Device("MTL0", "metal", "mps")
    return Device(CPU, "cpu", "cpu")


def weight_files(request: Request) -> List[str]:
    """Return the files that hold the model's weights: safetensors, or, where that is allowed, pickles.

    Raises InferenceError where there are none, or only pickles and they are not allowed.
    """
    if os.path.isfile(request.path):
        found = [request.path]
    else:
        found = sorted(os.path.join(folder, name) for folder, _, names in os.walk(request.path) for name in names)
    safe = [name for name in found if name.endswith(".safetensors")]
    if safe:
        return safe
    pickles = [name for name in found if name.endswith(_PICKLES)]
    if not pickles:
        raise InferenceError(f"{request.path} has no weights", "run apply, or the role models, first")
    refuse_pickle(request, [os.path.basename(name) for name in pickles])
    return pickles


def options(files: List[str]) -> Dict[str, Any]:
    """Return how every ``from_pretrained`` is called here: without network, code of the model's, or needless pickle."""
    safe = files[0].endswith(".safetensors")
    return {"local_files_only": True, "trust_remote_code": False, "use_safetensors": safe}


class Meter:
    """The memory that a model takes on a device: predicted from its files, measured from now on.

    On an accelerator ``measured_bytes`` are the most that PyTorch had allocated, ``risen_bytes`` by how much the
    device's free memory fell; on the CPU the rise of the process's peak of resident memory, libraries not counted that
    were imported before. Raises UnprovenError where the device has not the room that is predicted.
    """

    def __init__(self, request: Request, device: Device, kind: str, files: List[str], command: str) -> None:
        total = sum(os.path.getsize(name) for name in files)
        (need,) = estimate_weights(total, kind, device.name, device.backend).devices
        self.predicted = need.total - need.overhead
        self._device = device
        room = _free(device)
        self._before = room or 0
        if room is not None and need.weights > room:
            raise UnprovenError(
                f"{request.path} has {format_bytes(need.weights)} of weights, {device.name} {format_bytes(room)} free",
                command,
                passing=True,
            )
        self._resident = resident_peak_bytes()
        if device.torch.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats(device.torch)

    def read(self) -> Dict[str, Any]:
        """Return the answer's ``memory``; all sizes are bytes."""
        measured = resident_peak_bytes() - self._resident
        risen = None
        if self._device.torch != "cpu":
            import torch

            risen = max(0, self._before - (_free(self._device) or 0))
            cuda = self._device.torch.startswith("cuda")
            measured = (
                torch.cuda.max_memory_allocated(self._device.torch) if cuda else torch.mps.current_allocated_memory()
            )
        return {
            "devices": [
                {
                    "name": self._device.name,
                    "predicted_bytes": self.predicted,
                    "measured_bytes": max(0, int(measured)),
                    "risen_bytes": risen,
                }
            ],
            "resident_bytes": resident_peak_bytes(),
        }


def _free(device: Device) -> Optional[int]:
    """Return the bytes of memory that are free on ``device``, None where that is not known."""
    if device.torch.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device.torch)[0])
    if device.torch == "mps":
        import torch

        return int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory())
    try:
        with open("/proc/meminfo", encoding="ascii") as source:
            sizes = dict(line.split(":", 1) for line in source)
        return int(sizes["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, LookupError):
        return None
