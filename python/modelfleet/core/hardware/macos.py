"""macOS, from sysctl, sw_vers and system_profiler: it has neither /proc nor /sys.

sysctl names: https://developer.apple.com/documentation/kernel/1387446-sysctlbyname/determining_system_capabilities
"""

from typing import Dict, List, Optional, Tuple

from ..errors import HardwareOutputError
from . import apple
from .facts import Facts, apply
from .profile import Accelerator, Cache, CoreKind, Cpu, Memory, OperatingSystem, PcieLink, Storage
from .sources import OK, SLOW, Sources

# A name that a version of macOS does not have is left out, and the rest is printed all the same.
SYSCTL = ("/usr/sbin/sysctl", "hw", "machdep.cpu", "kern.osrelease", "kern.bootsessionuuid", "kern.hv_vmm_present")
WIRED_LIMIT = ("/usr/sbin/sysctl", *apple.WIRED_LIMIT)
SW_VERS = ("/usr/bin/sw_vers",)


def parse_pairs(text: str) -> Dict[str, str]:
    """Return the ``name: value`` lines of sysctl and sw_vers."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon and value.strip()}


def number(values: Dict[str, str], name: str) -> Optional[int]:
    """Return a value as a whole number, None where it is none."""
    text = values.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def instruction_sets(values: Dict[str, str]) -> Optional[List[str]]:
    """Return what the processor can do, in lower case: Intel's lists of features, Apple's ``hw.optional.arm``."""
    words = " ".join(values.get(f"machdep.cpu.{name}", "") for name in ("features", "leaf7_features", "extfeatures"))
    # Linux's names: "AVX1.0" is avx, "SSE4.2" sse4_2.
    names = {word.lower().replace("avx1.0", "avx").replace(".", "_") for word in words.split()}
    for name, value in values.items():
        if name.startswith("hw.optional.arm.FEAT_") and value == "1":
            names.add(name[len("hw.optional.arm.FEAT_") :].lower())
    return sorted(names) or None


def core_kinds(values: Dict[str, str]) -> List[CoreKind]:
    """Return Apple's kinds of cores, ``hw.perflevel0`` the fastest; nothing where all are alike."""
    count = number(values, "hw.nperflevels") or 0
    found = [
        CoreKind(
            values.get(f"hw.perflevel{level}.name", f"level {level}").lower(),
            number(values, f"hw.perflevel{level}.physicalcpu"),
            number(values, f"hw.perflevel{level}.logicalcpu"),
        )
        for level in range(min(count, 8))
    ]
    return found if len(found) > 1 else []


def is_recorded(sources: Sources) -> bool:
    """True where a record holds the answer of a program that only macOS has."""
    commands = (apple.SYSTEM_PROFILER, SYSCTL, SW_VERS)
    return not sources.live and any(sources.run(command).status == OK for command in commands)


def read_hardware(
    sources: Sources, machine: Optional[str], unknown: Dict[str, str], origin: Dict[str, str]
) -> Tuple[Cpu, Memory, OperatingSystem, List[Accelerator]]:
    """Return processors, memory, system and GPUs."""
    values = parse_pairs(sources.run(SYSCTL).output)
    release = parse_pairs(sources.run(SW_VERS).output)
    arm = values.get("hw.optional.arm64")
    cpu = Cpu(
        model=values.get("machdep.cpu.brand_string"),
        # hw.machine would be x86_64 for a process that is translated.
        architecture=machine or {"1": "arm64", "0": "x86_64"}.get(arm or ""),
        sockets=number(values, "hw.packages"),
        physical_cores=number(values, "hw.physicalcpu"),
        logical_cores=number(values, "hw.logicalcpu"),
        instruction_sets=instruction_sets(values),
        # Of one core: sysctl does not say how many instances there are.
        cache=Cache(),
        core_kinds=core_kinds(values),
    )
    memory = Memory(total_bytes=number(values, "hw.memsize"))
    system = OperatingSystem(
        family="darwin",
        distribution="macos",
        version=release.get("ProductVersion"),
        kernel=values.get("kern.osrelease"),
        boot_id=values.get("kern.bootsessionuuid"),
        init="launchd",
        virtual_machine={"1": True, "0": False}.get(values.get("kern.hv_vmm_present", "")),
    )
    for section, item in (("cpu", cpu), ("memory", memory), ("os", system)):
        for name, value in vars(item).items():
            if value is None and name not in ("limit_bytes", "limit_cores", "container", "hypervisor", "secure_boot"):
                unknown[f"{section}.{name}"] = "sysctl and sw_vers do not tell"
    for name in vars(cpu.cache):
        unknown[f"cpu.cache.{name}"] = "sysctl tells the cache of one core only"
    unknown["os.secure_boot"] = "not asked on macOS"
    if system.virtual_machine is not False:
        unknown["os.hypervisor"] = "sysctl does not name it"
    origin.update({"cpu": "sysctl", "memory": "sysctl", "os": "sysctl, sw_vers"})
    return cpu, memory, system, read_accelerators(sources, values, unknown, origin)


def read_accelerators(
    sources: Sources, values: Dict[str, str], unknown: Dict[str, str], origin: Dict[str, str]
) -> List[Accelerator]:
    """Return the GPUs by system_profiler; Apple's own also by sysctl alone."""
    result = sources.run(apple.SYSTEM_PROFILER, apple.TIMEOUT_SECONDS)
    reason = f"system_profiler is slow: {result.error}" if result.status == SLOW else "system_profiler does not tell"
    displays: List[Facts] = []
    try:
        displays = apple.parse_displays(result.output) if result.output else []
    except HardwareOutputError as error:
        reason = str(error)
    source = "system_profiler SPDisplaysDataType"
    if not displays and values.get("hw.optional.arm64") == "1":
        displays = [
            {"vendor": "apple", "name": values.get("machdep.cpu.brand_string"), "memory.unified": True},
        ]
        source = "sysctl"
    if not displays and (result.status != OK or reason.startswith("the output")):
        unknown["accelerators"] = reason
    limit = apple.wired_limit(parse_pairs(sources.run(WIRED_LIMIT).output)) if displays else None
    found: List[Accelerator] = []
    for facts in displays:
        item, prefix = Accelerator(vendor=facts.pop("vendor")), f"accelerators.{len(found)}"
        apply(item, facts, source, prefix, origin)
        if item.memory.unified:
            apply(item, {"memory.budget_bytes": limit}, "sysctl iogpu.wired_limit_mb", prefix, origin)
        elif item.memory.total_bytes is not None:
            item.memory.budget_bytes = item.memory.total_bytes
        add_reasons(item, prefix, reason, unknown)
        found.append(item)
    return found


def add_reasons(item: Accelerator, prefix: str, reason: str, unknown: Dict[str, str]) -> None:
    """Say of each field of a Mac's GPU that is None why it is."""
    if item.vendor != "apple":
        item.pcie = item.pcie or PcieLink()
    reasons = {
        "name": reason,
        "uuid": "macOS names none",
        "driver": "part of macOS, not named",
        "driver_version": "part of macOS, not named",
        "runtime_version": reason,
        "power_limit_watts": "macOS does not tell",
        "gfx_target": "not used on macOS" if item.vendor == "amd" else "",
        "architecture": "not used on macOS" if item.vendor == "nvidia" else "",
        "compute_capability": "not used on macOS" if item.vendor == "nvidia" else "",
        "mig": "not used on macOS" if item.vendor == "nvidia" else "",
    }
    for name, why in reasons.items():
        if why and getattr(item, name) is None:
            unknown[f"{prefix}.{name}"] = why
    for part in ("memory", "pci", "pcie"):
        owner = getattr(item, part)
        for name, value in vars(owner).items() if owner is not None else ():
            if value is None and (name != "gtt_bytes" or item.vendor == "amd"):
                unknown[f"{prefix}.{part}.{name}"] = part_reason(item, part, name)


def part_reason(item: Accelerator, part: str, name: str) -> str:
    """Return why a number of a Mac's GPU is not known."""
    if part != "memory":
        return "system_profiler does not tell"
    if item.memory.unified and name == "budget_bytes":
        return "macOS decides; only Metal tells how much (commonly 67 to 84 % of main memory)"
    return "unified with main memory" if item.memory.unified else "system_profiler does not tell"


def read_storage(sources: Sources, model_root: str, unknown: Dict[str, str]) -> Storage:
    """Return the space on the file system of ``model_root``; what it lies on is not asked."""
    volume = sources.volume(model_root)
    storage = Storage(path=model_root)
    for name in ("existing_path", "total_bytes", "free_bytes", "inodes_free"):
        setattr(storage, name, getattr(volume, name))
        if getattr(volume, name) is None:
            unknown[f"storage.{name}"] = volume.problem
    for name in ("mount_point", "file_system", "device", "kind"):
        unknown[f"storage.{name}"] = "not asked on macOS"
    return storage
