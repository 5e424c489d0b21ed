"""Readiness: a profile against requirements, as a list of checks. Decides only; reads nothing, changes nothing.

Ids are stable: one is never given another meaning, a dropped one is not used again. A check that does not concern
the machine (no NVIDIA card, no NVMe drive) is left out. What is unknown warns, with the reason: it is never a pass.
Below the minimum fails, below the recommended warns (see requirements.py); driver rules are in driver_rules.py.
docs/readiness.md is made from RULES.
"""

from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ..units import format_bytes
from . import driver_rules
from .facts_view import Facts, line
from .nvidia_cards import flavour_of_machine
from .requirements import GB, Requirements, parse_requirements
from .verdict import FAIL, PASS, WARN, Rule, Verdict, graded, unknown

APPLY = "run ./modelfleet apply (role accelerator)"
# What keeps a process from using the GPU now; the other driver checks tell of the next boot, or of the next change.
STOPS_INFERENCE = frozenset(
    ["MF-GPU-003", "MF-GPU-004", *(f"MF-DRV-{number:03}" for number in (1, 3, 4, 5, 6, 7, 16, 18, 19))]
)


@dataclass(frozen=True)
class Check:
    """One line of the report. ``status`` is pass, warn or fail; ``cure`` is empty where nothing is to be done."""

    id: str
    title: str
    status: str
    measured: str
    required: str
    cure: str


Profiles = Mapping[str, Requirements]


def name_of(accelerator: Mapping[str, Any]) -> str:
    """Return a GPU's name; its vendor and device id where the driver that knows the name is not there yet."""
    pci = accelerator.get("pci")
    device = line(pci.get("device_id")) if isinstance(pci, Mapping) else None
    vendor = line(accelerator.get("vendor")) or "unknown"
    return line(accelerator.get("name")) or (f"{vendor} device {device}" if device else f"a GPU of {vendor}")


def gpu_present(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """A GPU is there. Without one inference runs on the processor: slower, and served."""
    found = [name_of(one) for one in facts.accelerators]
    if found:
        return Verdict(PASS, ", ".join(found), "a GPU")
    if facts.reason("accelerators") != "not told":
        return unknown(facts, "accelerators", "a GPU")
    return Verdict(WARN, "none", "a GPU", "add a GPU, or live with inference on the processor, several times slower")


def usable_memory(facts: Facts, accelerator: Mapping[str, Any]) -> Optional[float]:
    """Return the bytes that one process can have on a GPU; main memory where the GPU shares it."""
    own = Facts(accelerator)
    amount = own.number("memory.budget_bytes")
    if amount is None:
        amount = own.number("memory.total_bytes")
    if amount is None and (own.flag("memory.unified") or own.get("vendor") == "apple"):
        amount = facts.number("memory.total_bytes")
    return amount


def gpu_memory(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """The GPU with most memory has enough for a 7B model in q4_k_m (8 GB), better 16 GB (tutorial, items 3 and 4).

    A card cut by MIG counts by its largest slice, a unified one by main memory.
    """
    if not facts.accelerators:
        return None
    amounts = [amount for amount in (usable_memory(facts, one) for one in facts.accelerators) if amount is not None]
    least, better = (profiles[name].accelerator_memory_gb for name in ("minimum", "recommended"))
    required = f"{least:g} GB, recommended {better:g} GB"
    if not amounts:
        return unknown(facts, "accelerators.0.memory.total_bytes", required, "bring the driver to work first")
    return graded(
        max(amounts) >= least * GB,
        max(amounts) >= better * GB,
        format_bytes(max(amounts)),
        required,
        "wish smaller models or a stronger quantization, or use a GPU with more memory",
    )


# The kernel driver that inference needs. NVIDIA driver README; https://docs.kernel.org/gpu/ (amdgpu, i915, xe).
KERNEL_DRIVERS = {"nvidia": ("nvidia",), "amd": ("amdgpu",), "intel": ("i915", "xe")}


def gpu_driver_bound(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """The vendor's kernel driver is bound to every GPU; vfio-pci means that it is given to a virtual machine."""
    judged = {
        number: one
        for number, one in enumerate(facts.accelerators)
        if one.get("vendor") in KERNEL_DRIVERS and one.get("pci")
    }
    if not judged:
        return None
    required = " or ".join(sorted({name for one in judged.values() for name in KERNEL_DRIVERS[one["vendor"]]}))
    # A driver that has told its version serves the GPU, whether or not a bus tells which one it is.
    silent = {
        number: one
        for number, one in judged.items()
        if one["driver"] not in KERNEL_DRIVERS[one["vendor"]] and not (one["driver"] is None and one["driver_version"])
    }
    wrong = [one for number, one in silent.items() if facts.reason(f"accelerators.{number}.driver") == "not told"]
    if not wrong:
        if silent:
            return unknown(facts, f"accelerators.{next(iter(silent))}.driver", required)
        names = sorted({one["driver"] or f"{one['vendor']} {one['driver_version']}" for one in judged.values()})
        return Verdict(PASS, ", ".join(names), required)
    measured = ", ".join(f"{name_of(one)}: {line(one.get('driver')) or 'none'}" for one in wrong)
    if all(one["driver"] == "vfio-pci" for one in wrong):
        return Verdict(WARN, measured, required, "take it back from the virtual machine, or run inference there")
    return Verdict(FAIL, measured, required, f"{APPLY}; see the checks MF-DRV for what stands in its way")


def gpu_slices(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """A card in MIG mode has slices: without one no process can use it (NVIDIA MIG User Guide)."""
    cards = [Facts(one) for one in facts.accelerators]
    cut = [card for card in cards if card.flag("mig.enabled")]
    if not cut:
        return None
    listed = [card.get("mig.slices") for card in cut]
    counts = [len(slices) if isinstance(slices, (list, tuple)) else 0 for slices in listed]
    return graded(
        min(counts) > 0,
        True,
        f"{sum(counts)} slices on {len(cut)} cards in MIG mode",
        "a slice on each",
        "make a slice: nvidia-smi mig -cgi PROFILE -C, or leave MIG mode: nvidia-smi -mig 0",
    )


def cpu_cores(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """Physical cores: 8, better 12 (tutorial, items 3 and 4)."""
    least, better = (profiles[name].cpu_cores for name in ("minimum", "recommended"))
    required = f"{least}, recommended {better}"
    cores, kind = facts.number("cpu.physical_cores"), "physical"
    if cores is None:
        cores, kind = facts.number("cpu.logical_cores"), "logical"
    if cores is None:
        return unknown(facts, "cpu.physical_cores", required)
    return graded(cores >= least, cores >= better, f"{cores:g} {kind}", required, "use a machine with more cores")


def cpu_instructions(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """A 64-bit processor: on x86-64 with AVX2 (tutorial, item 3); on aarch64 nothing more is asked for."""
    architecture = facts.text("cpu.architecture")
    least, better = (profiles[name].cpu_instruction_sets for name in ("minimum", "recommended"))
    required = "x86_64 with {}, or aarch64".format(", ".join(sorted({*least, *better})) or "nothing more")
    if architecture is None:
        return unknown(facts, "cpu.architecture", required)
    if architecture in ("aarch64", "arm64"):
        return Verdict(PASS, architecture, required)
    if architecture != "x86_64":
        return Verdict(FAIL, architecture, required, "use a 64-bit machine")
    if facts.get("cpu.instruction_sets") is None:
        return unknown(facts, "cpu.instruction_sets", required)
    own = set(facts.words("cpu.instruction_sets"))
    missing = sorted({*least, *better} - own)
    measured = f"x86_64 without {', '.join(missing)}" if missing else "x86_64 with all of them"
    cure = "inference works, several times slower; in a virtual machine, pass the host's processor through"
    return graded(set(least) <= own, set(better) <= own, measured, required, cure)


def main_memory(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """Main memory: 16 GB, better 32 GB (tutorial, items 3 and 4); a control group's limit counts."""
    least, better = (profiles[name].memory_gb for name in ("minimum", "recommended"))
    required = f"{least:g} GB, recommended {better:g} GB"
    total, limit = facts.number("memory.total_bytes"), facts.number("memory.limit_bytes")
    if total is None:
        return unknown(facts, "memory.total_bytes", required)
    amount = total if limit is None else min(total, limit)
    # The firmware and an integrated GPU keep some: a machine sold with 16 GB shows 15.4 GiB, 16.5 * 10^9 bytes.
    measured = format_bytes(amount) + ("" if limit is None or limit >= total else ", limited by a control group")
    return graded(amount >= least * GB, amount >= better * GB, measured, required, "add memory, or wish smaller models")


def storage_free(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """Free space where the models are kept: 100 GB, better 500 GB (tutorial, items 3 and 4)."""
    least, better = (profiles[name].storage_free_gb for name in ("minimum", "recommended"))
    required = f"{least:g} GB, recommended {better:g} GB"
    free = facts.number("storage.free_bytes")
    if free is None:
        return unknown(facts, "storage.free_bytes", required)
    where = facts.text("storage.mount_point") or facts.text("storage.path") or "the model root"
    measured = f"{format_bytes(free)} on {where}"
    cure = "free some, or keep the models elsewhere (model_store_path)"
    return graded(free >= least * GB, free >= better * GB, measured, required, cure)


def storage_kind(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """What the models lie on: an SSD is recommended, NVMe preferred (tutorial, items 3 and 4)."""
    least, better = (profiles[name].storage_kinds for name in ("minimum", "recommended"))
    required = f"{' or '.join(least)}, recommended {' or '.join(better)}"
    kind = facts.text("storage.kind")
    if kind is None:
        return unknown(facts, "storage.kind", required)
    cure = "models load slowly from here: keep them on an NVMe drive (model_store_path)"
    return graded(kind in least, kind in better, kind, required, cure)


def storage_link(facts: Facts, profiles: Profiles) -> Optional[Verdict]:
    """The NVMe drive is on PCIe 4.0 or newer (tutorial, item 4)."""
    if facts.text("storage.kind") != "nvme":
        return None
    least, better = (profiles[name].storage_pcie_generation for name in ("minimum", "recommended"))
    required = f"PCIe {max(least, 1)}, recommended {better}"
    # What drive and slot are able to; a drive at rest may run its link slower.
    generation = facts.number("storage.pcie.generation_max")
    if generation is None:
        return unknown(facts, "storage.pcie.generation_max", required)
    cure = "move the drive to a faster slot, or use a faster drive"
    return graded(generation >= least, generation >= better, f"PCIe {generation:g}", required, cure)


RULES: Tuple[Rule, ...] = (
    Rule("MF-GPU-001", "GPU found", gpu_present),
    Rule("MF-GPU-002", "GPU memory", gpu_memory),
    Rule("MF-GPU-003", "kernel driver bound", gpu_driver_bound),
    Rule("MF-GPU-004", "MIG slices", gpu_slices),
    Rule("MF-CPU-001", "processor cores", cpu_cores),
    Rule("MF-CPU-002", "instruction sets", cpu_instructions),
    Rule("MF-MEM-001", "main memory", main_memory),
    Rule("MF-DISK-001", "free space for models", storage_free),
    Rule("MF-DISK-002", "kind of storage", storage_kind),
    Rule("MF-DISK-003", "PCIe link of the storage", storage_link),
    *driver_rules.RULES,
)


def check(profile: Mapping[str, Any], requirements: Optional[Mapping[str, Any]] = None) -> List[Check]:
    """Return the checks that concern a machine, in the order of RULES.

    Args:
        profile: a HardwareProfile as plain data.
        requirements: ``minimum`` and ``recommended``, see requirements.py; what is left out keeps its default.

    Raises:
        ConfigurationError: ``requirements`` are not such.
    """
    facts, profiles = Facts(profile), parse_requirements(requirements)
    checks: List[Check] = []
    for rule in RULES:
        verdict = rule.judge(facts, profiles)
        if verdict is not None:
            checks.append(Check(rule.id, rule.title, verdict.status, verdict.measured, verdict.required, verdict.cure))
    return checks


def worst(checks: List[Check]) -> str:
    """Return fail, warn or pass: the worst status of all."""
    found = {one.status for one in checks}
    return next((status for status in (FAIL, WARN) if status in found), PASS)


def accelerator_ready(profile: Mapping[str, Any], checks: List[Check]) -> bool:
    """Tell whether a process may be told to use the GPU: there is one, and no check that stops inference fails."""
    return bool(Facts(profile).accelerators) and not any(
        one.status == FAIL and one.id in STOPS_INFERENCE for one in checks
    )


def readiness_to_dict(profile: Mapping[str, Any], requirements: Optional[Mapping[str, Any]] = None) -> Dict[str, Any]:
    """Return the readiness of a machine as plain data: what the fact ``modelfleet_readiness`` holds.

    Raises:
        ConfigurationError: ``requirements`` are not such.
    """
    checks = check(profile, requirements)
    return {
        "schema_version": 1,
        "status": worst(checks),
        "accelerator_ready": accelerator_ready(profile, checks),
        "checks": [asdict(one) for one in checks],
        "nvidia_modules": flavour_of_machine(Facts(profile).accelerators),
    }
