"""What computes on a host: the backend, the GPUs that it serves, and why. One environment serves one vendor's GPUs.

Rules in their order, each with its reason in the stack: what the user chose; on a Mac Metal; the vendor, of NVIDIA
through CUDA and AMD through ROCm, whose served card is one of its own (no graphics in a processor) and has most
memory, NVIDIA where equal; Vulkan for other cards of AMD and Intel that have memory of their own; the processor.
"""

import re
from typing import List, NamedTuple, Sequence, Tuple

from ...errors import StackError
from ...hardware.facts_view import Facts, version_numbers
from . import cuda
from .cards import (
    GIVEN_AWAY,
    Card,
    Served,
    driver_of,
    largest,
    planned_branch,
    read_cards,
    serve_amd,
    serve_nvidia,
    usable,
)
from .releases import CPU, CUDA_12, METAL, ROCM
from .settings import StackSettings

_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


class Choice(NamedTuple):
    """What computes, before versions are chosen: ``kinds`` of torch builds that serve it, the best first."""

    backend: str
    reason: str
    kinds: Tuple[str, ...]
    served: Served = Served((), ())
    lines: Tuple[cuda.Line, ...] = ()
    driver: str = ""
    pending: bool = False
    warnings: Tuple[str, ...] = ()

    @property
    def capabilities(self) -> Tuple[cuda.Capability, ...]:
        """Return the compute capabilities of the cards that are served, each once, in order."""
        return tuple(sorted({one.capability for one in self.served.cards if one.capability is not None}))

    @property
    def branch(self) -> int:
        """Return the branch of NVIDIA's driver that was counted with, 0 where there is none."""
        numbers = version_numbers(self.driver)
        return numbers[0] if numbers else 0


class Host(NamedTuple):
    """What of a profile decides: ``machine`` is x86_64, aarch64 or another's own name, ``darwin`` a Mac, else Linux."""

    facts: Facts
    cards: List[Card]
    darwin: bool
    machine: str
    instruction_sets: Tuple[str, ...]

    @property
    def platform(self) -> str:
        """Return system and machine as ``platform`` names them: Apple says arm64 where Linux says aarch64."""
        return f"darwin_{self.machine.replace('aarch64', 'arm64')}" if self.darwin else f"linux_{self.machine}"


def read_host(facts: Facts, settings: StackSettings) -> Host:
    """Return what of a profile decides.

    Raises:
        StackError: neither the profile nor the settings tell the processor's architecture.
    """
    cards = read_cards(facts)
    # Only Macs with Apple's own processor have Apple's GPU.
    apple = any(one.vendor == "apple" for one in cards)
    darwin = apple or facts.text("os.family") == "darwin" or facts.text("os.distribution") == "macos"
    told = facts.text("cpu.architecture") or ("arm64" if apple else settings.machine)
    if not re.fullmatch(r"[A-Za-z0-9_]{1,20}", told, re.ASCII):
        known = repr(told[:40]) if told else "not known"
        raise StackError(f"the processor's architecture is {known}", "probe the host itself, or say its machine")
    machine = _MACHINES.get(told.lower(), told.lower())
    return Host(facts, cards, darwin, machine, tuple(facts.words("cpu.instruction_sets")))


def choose(host: Host, settings: StackSettings) -> Choice:
    """Return what computes on a host; see the module's text for the rules.

    Raises:
        StackError: what the user chose cannot be, or a GPU is there that cannot be judged, or its driver is too old.
    """
    wished = settings.backend
    if wished == "cpu":
        kinds = (METAL,) if host.darwin else (CPU,)
        return Choice("cpu", "chosen by the user", kinds, Served((), _idle(host.cards, "the user chose the processor")))
    if host.darwin:
        return _mac(host, wished)
    if wished == "metal":
        raise StackError("Metal is on macOS only", "choose another backend, or none")
    if wished == "vulkan":
        return _vulkan(host, "chosen by the user", host.cards)
    nvidia = serve_nvidia(host.cards, host.facts.text("accelerator_driver.flavour"))
    amd = serve_amd(host.cards, host.machine)
    if wished in ("", "cuda") and nvidia.cards and (wished or largest(nvidia) >= largest(amd)):
        return _cuda(host, settings, nvidia, amd)
    if wished in ("", "rocm") and amd.cards:
        return _rocm(amd, nvidia, wished)
    reasons = (*nvidia.left_out, *amd.left_out)
    if wished:
        why = f": {'; '.join(reasons)}" if reasons else ""
        raise StackError(f"no GPU of this host can be used with {wished}{why}", "choose another backend, or none")
    unknown = [one for one in usable(host.cards, "nvidia")[0] if one.capability is None and not one.older]
    if unknown:
        raise StackError(
            f"{unknown[0].name}: neither its driver nor its device id tells its compute capability",
            "install NVIDIA's driver and probe again, or choose the backend cpu",
        )
    rest = [one for one in host.cards if _has_vulkan_alone(one)]
    if rest:
        return _vulkan(host, "neither CUDA nor ROCm serves this GPU, Vulkan does", rest)
    return _processor(host, reasons)


def _has_vulkan_alone(card: Card) -> bool:
    """Tell whether Vulkan is worth it: a card of its own, not one of the old driver radeon, which has no Vulkan.

    Where its memory is not told, AMD's gfx target shows that the chip, and so that it is a card, is known.
    """
    if card.vendor not in ("amd", "intel") or card.integrated or card.driver in (GIVEN_AWAY, "radeon"):
        return False
    return card.memory > 0 or (card.vendor == "amd" and card.target is not None)


def _processor(host: Host, reasons: Sequence[str]) -> Choice:
    if not host.cards:
        unread = host.facts.reason("accelerators")
        known = unread == "not told"
        warnings = () if known else (f"whether there is a GPU is not known: {unread}",)
        return Choice("cpu", "there is no GPU" if known else "no GPU is known", (CPU,), warnings=warnings)
    others = [one for one in host.cards if one.vendor not in ("nvidia", "amd")]
    left_out = (*reasons, *_idle(others, "no backend is chosen for it unasked"))
    return Choice("cpu", "no GPU that CUDA, ROCm or, unasked, Vulkan serves", (CPU,), Served((), left_out))


def _idle(cards: Sequence[Card], reason: str) -> Tuple[str, ...]:
    return tuple(f"{one.name}: {reason}" for one in cards)


def _mac(host: Host, wished: str) -> Choice:
    """Choose for a Mac.

    Apple's processors compute with Metal. A Python for Intel's, translated by Rosetta, would build for that one,
    ten times slower (llama-cpp-python's README). On Intel's Macs Metal is left off: unproven there.
    """
    apple = tuple(one for one in host.cards if one.vendor == "apple")
    if apple and host.machine == "x86_64":
        raise StackError(
            "this Python is one for Intel's processors, translated by Rosetta, on a Mac with Apple's",
            "install a Python for arm64 (Homebrew in /opt/homebrew has one), then probe and build with that",
        )
    if wished and not (wished == "metal" and apple):
        raise StackError(f"no GPU of this Mac can be used with {wished}", "choose the backend cpu, or none")
    others = _idle([one for one in host.cards if one.vendor != "apple"], "Metal is used on Apple's own GPUs only")
    if not apple:
        return Choice("cpu", "a Mac of which no GPU of Apple's own is known", (METAL,), Served((), others))
    return Choice("metal", "Apple's own GPU", (METAL,), Served(apple, others))


def _cuda(host: Host, settings: StackSettings, nvidia: Served, amd: Served) -> Choice:
    capabilities = [one.capability for one in nvidia.cards if one.capability is not None]
    driver = driver_of(host.facts, nvidia.cards)
    pending = driver is None
    branch = version_numbers(driver)[0] if driver else planned_branch(host.facts, nvidia.cards, settings.driver_branch)
    found = cuda.lines(capabilities, branch)
    names = ", ".join(sorted({one.name for one in nvidia.cards}))
    if not found:
        wanted, least = cuda.wanted_branch(capabilities), cuda.least_driver(capabilities)
        told = f"NVIDIA's driver {driver}" if driver else f"branch {branch}, which this host is to get,"
        cure = f"install branch {wanted} (accelerator_nvidia_branch: '{wanted}'"
        raise StackError(
            f"{told} is too old for any CUDA that serves {names}: it takes {least} or newer",
            f"{cure}; where the distribution has none, accelerator_nvidia_source: nvidia)",
        )
    warnings = []
    if pending:
        warnings.append(f"there is no driver yet: this is the stack for branch {branch}, after the role accelerator")
    cut = [one for one in host.facts.of_vendor("nvidia") if Facts(one).flag("mig.enabled")]
    if any(not Facts(one).get("mig.slices") for one in cut):
        warnings.append("a card in MIG mode has no slice: no process can use it until one is made")
    elif cut:
        warnings.append("cards are cut by MIG: one process sees one slice")
    left_out = (*nvidia.left_out, *_idle(amd.cards, "one environment serves one vendor, here NVIDIA"), *amd.left_out)
    if host.machine == "aarch64" and found[0].kind == CUDA_12:
        warnings.append("that PyTorch's index of CUDA 12.6 has wheels for aarch64 is not verified")
    reason = f"{names}, driver {driver or f'branch {branch}, to be installed'}"
    return Choice(
        "cuda",
        f"chosen by the user: {reason}" if settings.backend else reason,
        tuple(one.kind for one in found if one.torch_serves),
        Served(nvidia.cards, left_out),
        found,
        driver or str(branch),
        pending,
        tuple(warnings),
    )


def _rocm(amd: Served, nvidia: Served, wished: str) -> Choice:
    bound = [one for one in amd.cards if one.driver == "amdgpu" or one.driver_version]
    left_out = (*amd.left_out, *_idle(nvidia.cards, "one environment serves one vendor, here AMD"), *nvidia.left_out)
    warnings = [f"{name}={value} must be set for every process" for name, value in amd.environment]
    if not bound:
        warnings.append("amdgpu drives no card yet: this is the stack for when it does")
    if "gfx906" in amd.targets:
        warnings.append("gfx906 (MI50, Radeon VII): ROCm 7 does not name it any more; unproven")
    reason = f"{', '.join(sorted({one.name for one in amd.cards}))}: {', '.join(amd.targets)}"
    served = Served(amd.cards, left_out, amd.targets, amd.environment)
    reason = f"chosen by the user: {reason}" if wished else reason
    return Choice("rocm", reason, (ROCM,), served, pending=not bound, warnings=tuple(warnings))


def _vulkan(host: Host, reason: str, cards: Sequence[Card]) -> Choice:
    own = [one for one in cards if one.vendor in ("nvidia", "amd", "intel") and one.driver != GIVEN_AWAY]
    if not own:
        raise StackError("no GPU of this host can be used with Vulkan", "choose another backend, or none")
    warning = (
        "GGUF models run on the GPU through Vulkan; torch and onnxruntime have nothing for it, and use the processor"
    )
    left_out = _idle([one for one in host.cards if one not in own], "not served by Vulkan here")
    return Choice("vulkan", reason, (CPU,), Served(tuple(own), left_out), warnings=(warning,))
