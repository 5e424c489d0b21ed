"""Processors, from /proc/cpuinfo and /sys/devices/system/cpu.

/proc/cpuinfo: https://docs.kernel.org/filesystems/proc.html
Topology: https://docs.kernel.org/admin-guide/cputopology.html
Part numbers of Arm cores: arch/arm64/include/asm/cputype.h of the Linux kernel.
"""

import re
from typing import Dict, List, Optional, Set, Tuple

from .memory import limit_files, parse_cgroup
from .profile import Cache, CoreKind, Cpu
from .sources import Reader

CPU_DIRECTORY = "/sys/devices/system/cpu"
# The performance counters of hybrid processors, one for each kind of core.
COUNTERS = (("/sys/devices/cpu_core/cpus", "performance"), ("/sys/devices/cpu_atom/cpus", "efficiency"))
LOW_POWER_COUNTER = ("/sys/devices/cpu_lowpower/cpus", "low power")
# The kernel's own limit is 8192; a list beyond this one is damage.
MAX_PROCESSORS = 65536
ARM_IMPLEMENTER = 0x41
# On aarch64 /proc/cpuinfo has numbers in place of a model name.
ARM_CORES = {
    0xD03: "Cortex-A53",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78",
    0xD42: "Cortex-A78AE",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD48: "Cortex-X2",
    0xD49: "Neoverse-N2",
    0xD4D: "Cortex-A715",
    0xD4E: "Cortex-X3",
    0xD4F: "Neoverse-V2",
    0xD80: "Cortex-A520",
    0xD81: "Cortex-A720",
    0xD82: "Cortex-X4",
    0xD83: "Neoverse-V3AE",
    0xD84: "Neoverse-V3",
    0xD85: "Cortex-X925",
    0xD87: "Cortex-A725",
    0xD8E: "Neoverse-N3",
}


def parse_cpuinfo(text: str) -> List[Dict[str, str]]:
    """Return one dictionary of lower-case keys for each processor of /proc/cpuinfo."""
    processors: List[Dict[str, str]] = []
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if not colon:
            continue
        name = key.strip().lower()
        # Old 32-bit Arm kernels write "Processor : <model>" above the numbered ones.
        if name == "processor" and re.fullmatch(r"\d{1,6}", value.strip(), re.ASCII):
            processors.append({})
        if processors:
            processors[-1].setdefault(name, value.strip())
    return processors


def parse_cpu_list(text: str) -> List[int]:
    """Return the numbers of a kernel list such as ``0-3,8``; none where the text is no such list."""
    numbers: List[int] = []
    for part in text.strip().split(","):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part.strip(), re.ASCII)
        if match is None or len(numbers) > MAX_PROCESSORS:
            return []
        numbers.extend(range(int(match.group(1)), int(match.group(2) or match.group(1)) + 1))
    return numbers


def parse_cache_size(text: str) -> Optional[int]:
    """Return the bytes of a sysfs cache size such as ``48K``, None where the text is no size."""
    match = re.fullmatch(r"(\d{1,12})([KMG]?)", text.strip(), re.ASCII)
    if match is None:
        return None
    return int(match.group(1)) * {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}[match.group(2)]


def cpu_model(processors: List[Dict[str, str]]) -> Optional[str]:
    """Return the model's name; the kinds of core, joined by ``+``, where only part numbers are given."""
    for processor in processors:
        if processor.get("model name"):
            return " ".join(processor["model name"].split())
    names: List[str] = []
    for processor in processors:
        try:
            implementer, part = int(processor["cpu implementer"], 16), int(processor["cpu part"], 16)
        except (KeyError, ValueError):
            continue
        name = ARM_CORES.get(part) if implementer == ARM_IMPLEMENTER else None
        name = name or f"implementer {implementer:#04x} part {part:#05x}"
        if name not in names:
            names.append(name)
    return " + ".join(names) or None


def instruction_sets(processors: List[Dict[str, str]]) -> Optional[List[str]]:
    """Return the sorted names that every processor has: a program may be moved to any core."""
    common: Optional[Set[str]] = None
    for processor in processors:
        listed = processor.get("flags", processor.get("features"))
        if listed is None:
            return None
        common = set(listed.split()) if common is None else common & set(listed.split())
    return sorted(common) if common else None


def architecture_of(processors: List[Dict[str, str]]) -> Optional[str]:
    """Return the architecture that only 64-bit x86 and Arm kernels list such features for, else None."""
    names = set(instruction_sets(processors) or ())
    if "lm" in names and processors and "flags" in processors[0]:
        return "x86_64"
    return "aarch64" if {"fp", "asimd"} <= names else None


def read_topology(
    reader: Reader, processors: List[Dict[str, str]], online: List[int]
) -> Tuple[Optional[int], Optional[int]]:
    """Return the number of sockets and of physical cores that have a processor online."""
    packages: Set[str] = set()
    cores: Set[str] = set()
    seen: Set[int] = set()
    for number in online:
        if number in seen:
            continue
        directory = f"{CPU_DIRECTORY}/cpu{number}/topology"
        siblings = reader.read_line(f"{directory}/thread_siblings_list")
        package = reader.read_line(f"{directory}/physical_package_id")
        if siblings is None or package is None:
            return topology_from_cpuinfo(processors)
        # Threads of one core share its package: their own files need not be read.
        seen.update(parse_cpu_list(siblings))
        cores.add(siblings)
        packages.add(package)
    if not cores:
        return topology_from_cpuinfo(processors)
    # -1 is the kernel's word for a package that the firmware does not tell.
    return (None if "-1" in packages else len(packages)), len(cores)


def topology_from_cpuinfo(processors: List[Dict[str, str]]) -> Tuple[Optional[int], Optional[int]]:
    """Return the number of sockets and of physical cores as /proc/cpuinfo tells them on x86."""
    pairs = [(entry.get("physical id"), entry.get("core id")) for entry in processors]
    if not pairs or any(package is None or core is None for package, core in pairs):
        return None, None
    return len({package for package, _ in pairs}), len(set(pairs))


def read_cache(reader: Reader, online: List[int]) -> Cache:
    """Return the bytes of each cache level, each instance counted once."""
    totals: Dict[str, int] = {}
    covered: Dict[str, Set[int]] = {}
    for number in online:
        directory = f"{CPU_DIRECTORY}/cpu{number}/cache"
        for index in reader.list(directory):
            # The same index is the same kind of cache on all processors that share it.
            if not index.startswith("index") or number in covered.setdefault(index, set()):
                continue
            level = reader.read_line(f"{directory}/{index}/level")
            kind = reader.read_line(f"{directory}/{index}/type")
            size = parse_cache_size(reader.read_line(f"{directory}/{index}/size") or "")
            shared = parse_cpu_list(reader.read_line(f"{directory}/{index}/shared_cpu_list") or "")
            covered[index].update(shared or [number])
            if size is None or level is None:
                continue
            name = f"l{level}" + ({"Data": "d", "Instruction": "i"}.get(kind or "", "") if level == "1" else "")
            totals[name] = totals.get(name, 0) + size
    return Cache(totals.get("l1d"), totals.get("l1i"), totals.get("l2"), totals.get("l3"))


def read_core_kinds(reader: Reader, processors: List[Dict[str, str]], online: List[int]) -> List[CoreKind]:
    """Return the kinds of cores, fastest first, of a processor that has several; else nothing."""
    groups: Dict[str, Set[int]] = {}
    for path, name in (*COUNTERS, LOW_POWER_COUNTER):
        numbers = set(parse_cpu_list(reader.read_line(path) or "")) & set(online)
        if numbers:
            groups[name] = numbers
    if not groups and processors and "cpu part" in processors[0]:
        for entry in processors:
            number = int(entry["processor"])
            if number in online:
                groups.setdefault(cpu_model([entry]) or "unknown", set()).add(number)
        # The big cores have the high numbers on some machines and the low ones on others.
        groups = dict(sorted(groups.items(), key=lambda group: -capacity(reader, min(group[1]))))
    elif not groups and processors and not reader.exists("/sys/devices/cpu"):
        by_performance: Dict[int, Set[int]] = {}
        for number in online:
            by_performance.setdefault(capacity(reader, number), set()).add(number)
        names = ("performance", "efficiency", "low power")
        if 2 <= len(by_performance) <= len(names) and 0 not in by_performance:
            groups = {name: by_performance[value] for name, value in zip(names, sorted(by_performance, reverse=True))}
    if len(groups) < 2:
        return []
    return [CoreKind(name, count_cores(reader, numbers), len(numbers)) for name, numbers in groups.items()]


def capacity(reader: Reader, number: int) -> int:
    """Return how fast the firmware says that a processor is, compared with its like; 0 where it does not say."""
    for name in ("cpu_capacity", "acpi_cppc/nominal_perf"):
        text = reader.read_line(f"{CPU_DIRECTORY}/cpu{number}/{name}") or ""
        if re.fullmatch(r"\d{1,9}", text, re.ASCII):
            return int(text)
    return 0


def count_cores(reader: Reader, numbers: Set[int]) -> Optional[int]:
    """Return the number of physical cores that ``numbers`` are processors of, None where the topology is not told."""
    siblings = [
        reader.read_line(f"{CPU_DIRECTORY}/cpu{number}/topology/thread_siblings_list") for number in sorted(numbers)
    ]
    return None if None in siblings else len(set(siblings))


def read_limit(reader: Reader) -> Optional[float]:
    """Return how many processors the control groups of this process let it use at once, None: no limit.

    The lowest of the quota of time and the set of processors, over all groups above.
    """
    limits: List[float] = []
    groups = parse_cgroup(reader.read("/proc/self/cgroup") or "")
    for path in limit_files(groups, "cpu.max", "cpu", "cpu.cfs_quota_us"):
        words = (reader.read_line(path) or "").split()
        if path.endswith("quota_us") and words:
            words.append(reader.read_line(path.replace("quota_us", "period_us")) or "")
        if len(words) == 2 and all(re.fullmatch(r"\d{1,12}", word, re.ASCII) for word in words) and int(words[1]):
            limits.append(round(int(words[0]) / int(words[1]), 2))
    for path in limit_files(groups, "cpuset.cpus.effective", "cpuset", "cpuset.effective_cpus"):
        numbers = parse_cpu_list(reader.read_line(path) or "")
        if numbers:
            limits.append(float(len(numbers)))
    return min(limits) if limits else None


def read_cpu(reader: Reader, machine: Optional[str], unknown: Dict[str, str]) -> Cpu:
    """Return the processors; ``machine`` is the live system's architecture, None where a record is replayed."""
    text = reader.read("/proc/cpuinfo")
    processors = parse_cpuinfo(text or "")
    reason = "/proc/cpuinfo cannot be read" if text is None else "/proc/cpuinfo does not tell"
    online = parse_cpu_list(reader.read_line(f"{CPU_DIRECTORY}/online") or "")
    if not online:
        online = [int(entry["processor"]) for entry in processors]
    sockets, cores = read_topology(reader, processors, online)
    cpu = Cpu(
        model=cpu_model(processors),
        architecture=machine or reader.read_line("/proc/sys/kernel/arch") or architecture_of(processors),
        sockets=sockets,
        physical_cores=cores,
        logical_cores=len(online) or None,
        instruction_sets=instruction_sets(processors),
        cache=read_cache(reader, online),
        core_kinds=read_core_kinds(reader, processors, online),
    )
    limit = read_limit(reader)
    if limit is not None and (cpu.logical_cores is None or limit < cpu.logical_cores):
        cpu.limit_cores = limit
    for name in ("model", "architecture", "sockets", "physical_cores", "logical_cores", "instruction_sets"):
        if getattr(cpu, name) is None:
            unknown[f"cpu.{name}"] = reason
    for name in ("l1d_bytes", "l1i_bytes", "l2_bytes", "l3_bytes"):
        if getattr(cpu.cache, name) is None:
            unknown[f"cpu.cache.{name}"] = f"{CPU_DIRECTORY}/cpu*/cache does not tell"
    return cpu
