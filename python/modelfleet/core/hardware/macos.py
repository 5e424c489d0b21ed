"""macOS, from sysctl and sw_vers: it has neither /proc nor /sys.

sysctl names: https://developer.apple.com/documentation/kernel/1387446-sysctlbyname/determining_system_capabilities
"""

import os
from typing import Dict, List, Optional, Tuple

from .profile import Accelerator, Cache, Cpu, Memory, OperatingSystem, Storage
from .sources import Runner
from .storage import nearest_existing

SYSCTL = ("/usr/sbin/sysctl", "hw", "machdep.cpu", "kern.osrelease", "kern.bootsessionuuid", "kern.hv_vmm_present")
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


def read_hardware(
    runner: Runner, machine: Optional[str], unknown: Dict[str, str]
) -> Tuple[Cpu, Memory, OperatingSystem, List[Accelerator]]:
    """Return processors, memory, system and the GPU that Apple's own processors contain."""
    values = parse_pairs(runner(SYSCTL) or "")
    release = parse_pairs(runner(SW_VERS) or "")
    cpu = Cpu(
        model=values.get("machdep.cpu.brand_string"),
        architecture=machine,
        sockets=number(values, "hw.packages"),
        physical_cores=number(values, "hw.physicalcpu"),
        logical_cores=number(values, "hw.logicalcpu"),
        instruction_sets=instruction_sets(values),
        # Of one core: sysctl does not say how many instances there are.
        cache=Cache(),
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
            if value is None and name not in ("limit_bytes", "container", "hypervisor"):
                unknown[f"{section}.{name}"] = "sysctl and sw_vers do not tell"
    for name in vars(cpu.cache):
        unknown[f"cpu.cache.{name}"] = "sysctl tells the cache of one core only"
    if system.virtual_machine is not False:
        unknown["os.hypervisor"] = "sysctl does not name it"
    accelerators: List[Accelerator] = []
    if values.get("hw.optional.arm64") == "1":
        accelerators.append(Accelerator(vendor="apple", name=cpu.model))
        if cpu.model is None:
            unknown["accelerators.0.name"] = "sysctl does not tell"
        unknown["accelerators.0.driver"] = "part of macOS, not named"
        unknown["accelerators.0.memory_total_bytes"] = "unified with main memory"
    else:
        unknown["accelerators"] = "part of the driver query, which this release does not make"
    return cpu, memory, system, accelerators


def read_storage(model_root: str, unknown: Dict[str, str]) -> Storage:
    """Return the space on the file system of ``model_root``; what it lies on is not asked."""
    storage = Storage(path=model_root, existing_path=nearest_existing(model_root))
    try:
        usage = os.statvfs(storage.existing_path or "/")
    except OSError as error:
        for name in ("total_bytes", "free_bytes", "inodes_free"):
            unknown[f"storage.{name}"] = f"{storage.existing_path}: {error.strerror}"
    else:
        storage.total_bytes = usage.f_blocks * usage.f_frsize
        storage.free_bytes = usage.f_bavail * usage.f_frsize
        storage.inodes_free = usage.f_favail
    for name in ("mount_point", "file_system", "device", "kind"):
        unknown[f"storage.{name}"] = "not asked on macOS"
    return storage
