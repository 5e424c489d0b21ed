"""What a child process of a proof is asked, and the form of what it answers.

Request (JSON on standard input)::

    {"kind": one of KINDS, "path": file or folder, "check": {…}, "output_folder": path or null,
     "placement": {"device", "backend", "gpu_layers", "split", "context", "kv_type"} or null,
     "allow_pickle": bool, "memory_limit_bytes": number or null}

Answer (JSON, the last line of standard output): ``installation`` has a form of its own (see ``installation``), every
other kind that of ``Request.answer``; what cannot be run is ``{"error": one line}``, with ``"unproven": true`` and
``"command"`` where nothing is wrong, and this proof alone cannot show it.
"""

import importlib.metadata
import os
import resource
import sys
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..errors import ConfigurationError, InferenceError

KINDS = ("gguf", "embedding", "transformers", "diffusion", "onnx", "speech", "installation")
CPU = "CPU"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class UnprovenError(InferenceError):
    """Raised when a model may well work, and this proof cannot show it here: the ``reason``, what ``command`` does.

    ``passing``: it is for now, for what is free just then decides.
    """

    def __init__(self, message: str, command: str, passing: bool = False) -> None:
        self.reason = message
        self.command = command
        self.passing = passing
        super().__init__(f"unproven here: {message}", f"prove it with: {command}")


class Placement(NamedTuple):
    """Where the plan puts the model: the accelerators' names, the backend, layers (with the output) on each."""

    devices: Tuple[str, ...] = ()
    backend: str = "cpu"
    gpu_layers: int = 0
    split: Tuple[int, ...] = ()
    context: Optional[int] = None
    kv_type: str = "f16"

    def pick(self, there: Sequence[str]) -> Optional[List[str]]:
        """Return which of the devices ``there``, named as a library numbers them, are the planned ones.

        A plan numbers all cards of a machine (``GPU1``), a library those that it serves (``CUDA0``): where the numbers
        cannot be the same, the planned ones are the first. A slice (``GPU0/MIG1``) is the one device that a process
        then sees. None where there are fewer than were planned.
        """
        if len(self.devices) > len(there):
            return None
        names = [name.split("/")[0] for name in self.devices]
        if all(name in there for name in names):
            return names
        numbers = [int(name.lstrip(_LETTERS) or 0) for name in names]
        if len(set(numbers)) == len(numbers) and max(numbers, default=0) < len(there):
            return [there[number] for number in numbers]
        return list(there[: len(names)])


class Request(NamedTuple):
    """A proof that is asked for: what of, how it is judged, where it is to run, where it may leave a result."""

    kind: str
    path: str
    check: Mapping[str, Any]
    placement: Placement
    output_folder: Optional[str]
    allow_pickle: bool
    memory_limit_bytes: Optional[int]

    def answer(
        self,
        backend: str,
        device: str,
        output: str,
        expected: str,
        passed: bool,
        load_seconds: float,
        memory: Dict[str, Any],
        versions: Dict[str, str],
        details: Optional[Dict[str, Any]] = None,
        offloaded_layers: Optional[int] = None,
        prompt_tokens_per_second: Optional[float] = None,
        generation_tokens_per_second: Optional[float] = None,
    ) -> Dict[str, Any]:
        """Return the answer: backend and device are those really used, sizes are bytes, rates tokens a second."""
        return {
            "backend": backend,
            "device": device,
            "output": output,
            "expected": expected,
            "passed": passed,
            "load_seconds": round(load_seconds, 3),
            "prompt_tokens_per_second": prompt_tokens_per_second,
            "generation_tokens_per_second": generation_tokens_per_second,
            "offloaded_layers": offloaded_layers,
            "memory": memory,
            "versions": versions,
            "details": {**(details or {}), "planned_device": "+".join(self.placement.devices) or CPU},
        }


def read_request(document: Any) -> Request:
    """Return the request that ``document`` holds. Raises ConfigurationError where it holds none."""
    if not isinstance(document, dict) or document.get("kind") not in KINDS:
        raise ConfigurationError(f"a proof is a mapping with kind, one of {', '.join(KINDS)}")
    path = document.get("path") or ""
    if document["kind"] != "installation" and not os.path.isabs(path):
        raise ConfigurationError(f"path of a proof of kind {document['kind']}: found {path!r}, wanted an absolute path")
    placement = document.get("placement") or {}
    devices = [name for name in str(placement.get("device") or CPU).split("+") if name != CPU]
    return Request(
        document["kind"],
        path,
        document.get("check") or {},
        Placement(
            tuple(devices),
            str(placement.get("backend") or "cpu") if devices else "cpu",
            int(placement.get("gpu_layers") or 0) if devices else 0,
            tuple(int(count) for count in placement.get("split") or ()),
            placement.get("context"),
            str(placement.get("kv_type") or "f16"),
        ),
        document.get("output_folder"),
        document.get("allow_pickle") is True,
        document.get("memory_limit_bytes"),
    )


def texts(request: Request, *names: str) -> List[str]:
    """Return the texts of the check that have these names. Raises ConfigurationError where one is missing."""
    found = [request.check.get(name) for name in names]
    if not all(isinstance(text, str) and text for text in found):
        raise ConfigurationError(f"the check of {request.path} needs the texts {', '.join(names)}", "add them to it")
    return [str(text) for text in found]


def versions(*packages: str) -> Dict[str, str]:
    """Return the versions of those packages that are installed, by the name that they are imported by."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def refuse_pickle(request: Request, names: Sequence[str]) -> None:
    """Raise InferenceError where ``names``, files that would be unpickled, are not allowed to be."""
    if names and not request.allow_pickle:
        raise InferenceError(
            f"{request.path}: {names[0]} is a pickle, which can run code when it is loaded",
            "use the model's safetensors, or set allow_pickle for it",
        )


def resident_peak_bytes() -> int:
    """Return the most memory that this process ever had resident, mapped files included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
