"""What is checked of an installation and of a proof: MF-RUN-020 to 049 and 050 to 069. Decides only.

Ids are stable: one is never given another meaning, a dropped one is not used again. MF-RUN-001 to 019 are those of
the environment's drift (core.runtime.checks); docs/verification.md has all of them in one table. A check that does
not concern the host is left out.
"""

import re
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from ..hardware.facts_view import Facts, line, version_numbers
from ..hardware.verdict import FAIL, PASS, WARN
from ..runtime.resolver.cuda import DRIVER_FLOORS, MAJORS, least_driver
from ..units import format_bytes

TITLES: Dict[str, str] = {
    "MF-RUN-020": "llama.cpp can be loaded",
    "MF-RUN-021": "llama.cpp is built for the host's accelerator",
    "MF-RUN-022": "llama.cpp can use the accelerator",
    "MF-RUN-023": "torch can be loaded",
    "MF-RUN-024": "torch is built for the host's accelerator",
    "MF-RUN-025": "torch has code for every card",
    "MF-RUN-026": "the driver is new enough for torch's CUDA",
    "MF-RUN-027": "torch can use the accelerator",
    "MF-RUN-028": "onnxruntime can be loaded",
    "MF-RUN-029": "onnxruntime has the accelerator's provider",
    "MF-RUN-030": "the versions are those of the lock",
    "MF-RUN-031": "every other package can be loaded",
    "MF-RUN-032": "the stack is one for the host's accelerator",
    "MF-RUN-050": "the model's files are the published ones",
    "MF-RUN-051": "the model answers as expected",
    "MF-RUN-052": "it computes on the planned backend",
    "MF-RUN-053": "as many layers are offloaded as planned",
    "MF-RUN-054": "it takes no more memory than predicted",
    "MF-RUN-055": "it generates as fast as the memory allows",
    "MF-RUN-056": "the proof runs to its end",
}
BUILD_ANEW = "run ./modelfleet apply: the stack for this host is built beside this one, then switched to"
PROFILE = "run ./modelfleet apply: it chooses what the host's models need"
DRIVER = "run ./modelfleet probe: its checks MF-GPU and MF-DRV say what the driver lacks"

# Of which profile a package is needed.
NEEDED_BY = {"llama_cpp": ("gguf",), "torch": ("torch", "diffusion", "embeddings"), "onnxruntime": ("onnx",)}
# onnxruntime's execution providers (its documentation, "Execution Providers"); Vulkan has none.
PROVIDERS = {
    "cuda": ("CUDAExecutionProvider", "TensorrtExecutionProvider"),
    "rocm": ("ROCMExecutionProvider", "MIGraphXExecutionProvider"),
    "metal": ("CoreMLExecutionProvider",),
}
MEMORY_TOLERANCE = 0.1
"""The share by which a model may exceed its prediction before that is told."""
LEAST_JUDGED_BYTES = 1_000_000_000
"""Bytes per token under which the overhead of each step, not the memory, sets the pace: the share is told only."""


class Check(NamedTuple):
    """One line of the report. ``status`` is pass, warn or fail; ``cure`` is empty where nothing is to be done."""

    id: str
    title: str
    status: str
    measured: str
    required: str
    cure: str


class Host(NamedTuple):
    """What an installation is held against.

    ``backend`` is the stack's that was installed ('' where nobody knows),
    ``best`` the one that the hardware calls for; ``packages`` the lock's
    versions by name.
    """

    hardware: Mapping[str, Any]
    backend: str
    best: str
    profiles: Tuple[str, ...]
    packages: Mapping[str, str]

    @property
    def wanted(self) -> str:
        """The backend that has to compute: the installed stack's, that of the hardware where it is not known."""
        return self.backend or self.best

    @property
    def cards(self) -> List[Dict[str, Any]]:
        """The GPUs of the vendor that the backend is for."""
        vendor = {"cuda": "nvidia", "rocm": "amd", "metal": "apple"}.get(self.wanted)
        return Facts(self.hardware).of_vendor(vendor) if vendor else Facts(self.hardware).accelerators


def judge_installation(said: Mapping[str, Any], host: Host) -> List[Check]:
    """Return the checks of what the child's ``installation`` said, in the order of their ids."""
    found = [
        *_stack(host),
        *_llama(said.get("llama_cpp"), host),
        *_torch(said.get("torch"), said, host),
        *_onnxruntime(said.get("onnxruntime"), host),
        *_packages(said, host),
    ]
    return sorted(found, key=lambda check: check.id)


def judge_proof(record: Mapping[str, Any], planned: Optional[Mapping[str, Any]], least_share: float) -> List[Check]:
    """Return the checks of a proof that ran; ``planned`` is the placement, ``least_share`` that of the throughput."""
    answered = _check(
        "MF-RUN-051",
        PASS if record.get("passed") else FAIL,
        repr(record.get("output")),
        repr(record.get("expected")),
        "the files are the pinned ones, so look at the runtime: its build flags and this host's processor",
    )
    return [answered, *_offload(record, planned), *_memory(record), *_throughput(record, least_share)]


def _check(name: str, status: str, measured: str, required: str, cure: str) -> Check:
    return Check(name, TITLES[name], status, measured, required, "" if status == PASS else cure)


def _good(yes: Any) -> str:
    return PASS if yes else FAIL


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _stack(host: Host) -> Iterator[Check]:
    """A stack for the processor on a host with a GPU that one could serve: chosen, so it is told, not refused."""
    if host.best and host.best != "cpu" and host.backend:
        yield _check(
            "MF-RUN-032",
            WARN if host.backend == "cpu" else PASS,
            host.backend,
            host.best,
            "leave inference_runtime_backend empty, or live with inference on the processor",
        )


def _loads(name: str, package: str, said: Any, host: Host) -> Iterator[Check]:
    needed = [profile for profile in NEEDED_BY[package] if profile in host.profiles]
    if said is None:
        if needed:
            yield _check(name, FAIL, "not installed", f"for the profile {needed[0]}", PROFILE)
        return
    error = _mapping(said).get("error")
    yield _check(name, _good(not error), line(str(error or _mapping(said).get("version"))) or "", "loads", BUILD_ANEW)


def _llama(said: Any, host: Host) -> Iterator[Check]:
    yield from _loads("MF-RUN-020", "llama_cpp", said, host)
    llama = _mapping(said)
    if not llama or llama.get("error") or host.wanted in ("", "cpu"):
        return
    built = [str(name) for name in llama.get("built") or []]
    wanted = host.wanted
    has = wanted in built
    yield _check("MF-RUN-021", _good(has), ", ".join(built) or "none", wanted, f"it computes on the CPU; {BUILD_ANEW}")
    if has:
        usable = [device for device in map(_mapping, llama.get("usable") or []) if device.get("backend") == wanted]
        names = ", ".join(str(device.get("description") or device.get("name")) for device in usable)
        yield _check(
            "MF-RUN-022",
            _good(usable),
            names or "no device",
            f"a device of {wanted}",
            f"it computes on the CPU; {DRIVER}",
        )


def _torch(said: Any, everything: Mapping[str, Any], host: Host) -> Iterator[Check]:
    yield from _loads("MF-RUN-023", "torch", said, host)
    torch = _mapping(said)
    # Torch's wheels know no Vulkan: there it computes on the processor, as the stack says.
    if not torch or torch.get("error") or host.wanted not in ("cuda", "rocm", "metal"):
        return
    built = {"cuda": torch.get("cuda"), "rocm": torch.get("hip"), "metal": torch.get("mps_built")}[host.wanted]
    version = str(torch.get("version"))
    yield _check(
        "MF-RUN-024", _good(built), version, f"a build for {host.wanted}", f"it computes on the CPU; {BUILD_ANEW}"
    )
    if not built:
        return
    if host.wanted in ("cuda", "rocm"):
        yield from _torch_code(torch, host)
    if host.wanted == "cuda":
        yield from _torch_driver(str(torch["cuda"]), everything, host)
    usable = torch.get("mps_available") if host.wanted == "metal" else torch.get("cuda_available")
    devices = ", ".join(str(_mapping(device).get("name")) for device in torch.get("devices") or [])
    yield _check(
        "MF-RUN-027",
        _good(usable),
        (devices or host.wanted) if usable else "no device",
        f"a device of {host.wanted}",
        f"it computes on the CPU; {DRIVER}",
    )


def _torch_code(torch: Mapping[str, Any], host: Host) -> Iterator[Check]:
    code = [str(name) for name in torch.get("architectures") or []]
    lacking = [card for card in host.cards if _has_code(card, code) is False]
    # Without a usable device torch does not say what it has code for.
    if code and host.cards:
        yield _check(
            "MF-RUN-025",
            _good(not lacking),
            ", ".join(code),
            ", ".join(sorted({_target(card) for card in host.cards})),
            f"no kernel runs on {', '.join(map(_name, lacking))}; {BUILD_ANEW}",
        )


def _target(card: Mapping[str, Any]) -> str:
    return str(card.get("compute_capability") or card.get("gfx_target") or _name(card))


def _name(card: Mapping[str, Any]) -> str:
    return line(card.get("name")) or f"a GPU of {card.get('vendor')}"


def _has_code(card: Mapping[str, Any], code: List[str]) -> Optional[bool]:
    """Tell whether one of ``code`` runs on a card; None where the card does not say what it is.

    CUDA C++ Programming Guide: compiled code runs on cards of its major version with the same or a higher minor one;
    PTX on all later ones; code of an ``a`` on exactly that card. AMD's runs on the very target.
    """
    capability = version_numbers(line(card.get("compute_capability")))
    if len(capability) == 2:
        return any(_runs_on(name, capability) for name in code)
    target = line(card.get("gfx_target"))
    return target.split(":")[0] in {name.split(":")[0] for name in code} if target else None


def _runs_on(name: str, capability: Tuple[int, ...]) -> bool:
    match = re.match(r"(sm|compute)_(\d+)(\d)([af]?)\Z", name)
    if not match:
        return False
    own = (int(match.group(2)), int(match.group(3)))
    if match.group(4) == "a":
        return own == capability
    if match.group(1) == "compute":
        return own <= capability
    return own[0] == capability[0] and own <= capability


def _torch_driver(toolkit: str, everything: Mapping[str, Any], host: Host) -> Iterator[Check]:
    told = line(everything.get("driver")) or next(
        (card["driver_version"] for card in host.cards if card["driver_version"]), None
    )
    branch, major = version_numbers(told), version_numbers(toolkit)
    floor = next((DRIVER_FLOORS[kind] for kind, number in MAJORS.items() if major and number == major[0]), None)
    if not branch or floor is None:
        return
    capabilities = [version_numbers(line(card.get("compute_capability"))) for card in host.cards]
    pairs = [(one[0], one[1]) for one in capabilities if len(one) == 2]
    floor = max(floor, least_driver(pairs))
    yield _check(
        "MF-RUN-026",
        _good(branch[0] >= floor),
        f"driver {told}",
        f"{floor} or newer for CUDA {toolkit}",
        "run ./modelfleet prepare: it installs a driver that serves the stack; or build the stack for this driver",
    )


def _onnxruntime(said: Any, host: Host) -> Iterator[Check]:
    yield from _loads("MF-RUN-028", "onnxruntime", said, host)
    onnx = _mapping(said)
    wanted = PROVIDERS.get(host.wanted)
    if not onnx or onnx.get("error") or not wanted:
        return
    providers = [str(name) for name in onnx.get("providers") or []]
    # The stack takes onnxruntime's plain package where no other is made for the platform (core.runtime.resolver).
    plain = not any(name.startswith("onnxruntime-") for name in host.packages) and "onnxruntime" in host.packages
    has = any(name in providers for name in wanted)
    yield _check(
        "MF-RUN-029",
        PASS if has else WARN if plain else FAIL,
        ", ".join(providers) or "none",
        " or ".join(wanted),
        "no package of onnxruntime for this platform has it: it computes on the CPU"
        if plain
        else f"it computes on the CPU; {BUILD_ANEW}",
    )


def _packages(said: Mapping[str, Any], host: Host) -> Iterator[Check]:
    names = {"llama_cpp": ("llama-cpp-python",), "onnxruntime": ("onnxruntime", "onnxruntime-gpu")}
    other: List[str] = []
    broken: List[str] = []
    compared = 0
    locked = {_plain_name(name): version for name, version in host.packages.items()}
    for module, told in said.items():
        if not isinstance(told, Mapping):
            continue
        if told.get("error"):
            broken.append(f"{module}: {line(str(told['error']))}")
            continue
        for name in names.get(module, (module,)):
            wanted = locked.get(_plain_name(name))
            if wanted is not None:
                compared += 1
                if not _same_version(str(told.get("version")), wanted):
                    other.append(f"{name} {told.get('version')} instead of {wanted}")
    if compared:
        measured = "; ".join(other) or f"{compared} packages as locked"
        yield _check("MF-RUN-030", _good(not other), measured, "the lock's versions", BUILD_ANEW)
    judged = {"torch", "llama_cpp", "onnxruntime"}
    rest = [text for text in broken if text.split(":")[0] not in judged]
    if any(isinstance(told, Mapping) for module, told in said.items() if module not in judged):
        yield _check("MF-RUN-031", _good(not rest), "; ".join(rest) or "all load", "all load", BUILD_ANEW)


def _same_version(found: str, wanted: str) -> bool:
    """A build's local version is part of it where the lock names one; torch says ``2.15.0+cpu`` of a plain one too."""
    return found == wanted or ("+" not in wanted and found.split("+")[0] == wanted and not found.endswith("+cpu"))


def _plain_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _offload(record: Mapping[str, Any], planned: Optional[Mapping[str, Any]]) -> Iterator[Check]:
    wanted = str(_mapping(planned).get("backend") or "cpu")
    if wanted == "cpu":
        return
    backend = str(record.get("backend"))
    measured = f"{backend} ({record.get('device')})"
    yield _check("MF-RUN-052", _good(backend == wanted), measured, wanted, BUILD_ANEW)
    layers, offloaded = _mapping(planned).get("gpu_layers"), record.get("offloaded_layers")
    if layers and offloaded is not None:
        yield _check("MF-RUN-053", _good(offloaded == layers), f"{offloaded} layers", f"{layers} layers", BUILD_ANEW)


def _memory(record: Mapping[str, Any]) -> Iterator[Check]:
    devices = [_mapping(device) for device in _mapping(record.get("memory")).get("devices") or []]
    known = [device for device in devices if device.get("predicted_bytes") and device.get("measured_bytes")]
    if not known:
        return
    over = [device for device in known if device["measured_bytes"] > device["predicted_bytes"] * (1 + MEMORY_TOLERANCE)]
    yield _check(
        "MF-RUN-054",
        WARN if over else PASS,
        ", ".join(f"{device.get('name')} {format_bytes(device['measured_bytes'])}" for device in over or known),
        ", ".join(f"{device.get('name')} {format_bytes(device['predicted_bytes'])}" for device in over or known),
        "raise models_headroom_mebibytes by the difference",
    )


def _throughput(record: Mapping[str, Any], least: float) -> Iterator[Check]:
    throughput = _mapping(record.get("throughput"))
    share, token_bytes = throughput.get("share"), throughput.get("bytes_per_token")
    if share is None or not token_bytes:
        return
    slow = share < least and token_bytes >= LEAST_JUDGED_BYTES
    yield _check(
        "MF-RUN-055",
        WARN if slow else PASS,
        f"{share:.0%} of {throughput.get('bound_tokens_per_second')} tokens/s",
        f"{least:.0%}" if token_bytes >= LEAST_JUDGED_BYTES else "no share of a model this small",
        "look for other work on the device, its power limit and its clocks; set verification_throughput_share to taste",
    )
