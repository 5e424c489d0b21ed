"""What hardware is asked for: two named profiles, ``minimum`` and ``recommended``.

The defaults are those of the tutorial "Local Models Overview and Setup". Gigabytes are 10^9 bytes: a card sold with
8 GB reports 8,188 MiB or more, a machine with 16 GB some 15.4 GiB.
"""

from dataclasses import dataclass, fields
from typing import Any, Dict, Mapping, Optional, Tuple

from ..errors import ConfigurationError

PROFILES = ("minimum", "recommended")
STORAGE_KINDS = ("nvme", "ssd", "hdd", "network")
GB = 1000**3

DEFAULTS: Dict[str, Dict[str, Any]] = {
    # GPU with 8 GB, 8 cores with AVX2, 16 GB of memory, 100 GB free; an SSD is only recommended.
    "minimum": {
        "accelerator_memory_gb": 8,
        "cpu_cores": 8,
        "cpu_instruction_sets": ["avx2"],
        "memory_gb": 16,
        "storage_free_gb": 100,
        "storage_kinds": ["nvme", "ssd", "hdd", "network"],
        "storage_pcie_generation": 0,
        "cuda_major": 12,
    },
    # 16 to 24 GB, 12 cores, 32 GB of memory, 500 GB for models on NVMe with PCIe 4.0.
    "recommended": {
        "accelerator_memory_gb": 16,
        "cpu_cores": 12,
        "cpu_instruction_sets": ["avx2"],
        "memory_gb": 32,
        "storage_free_gb": 500,
        "storage_kinds": ["nvme"],
        "storage_pcie_generation": 4,
        "cuda_major": 13,
    },
}


@dataclass(frozen=True)
class Requirements:
    """One profile. ``*_gb`` are gigabytes of 10^9 bytes, ``cuda_major`` the CUDA of the wheels that shall run."""

    accelerator_memory_gb: float
    cpu_cores: int
    cpu_instruction_sets: Tuple[str, ...]
    memory_gb: float
    storage_free_gb: float
    storage_kinds: Tuple[str, ...]
    storage_pcie_generation: int
    cuda_major: int


def _number(where: str, value: Any) -> float:
    # A variable given on Ansible's command line arrives as text.
    try:
        number = float(value) if not isinstance(value, bool) else -1.0
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < 1e9:
        raise ConfigurationError(f"{where}: {value!r} is no number of 0 or more")
    return number


def _words(where: str, value: Any, allowed: Optional[Tuple[str, ...]] = None) -> Tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) for word in value):
        raise ConfigurationError(f"{where}: expected a list of words, found {value!r}")
    for word in value:
        if allowed is not None and word not in allowed:
            raise ConfigurationError(f"{where}: there is no {word!r}", f"use {', '.join(allowed)}")
    return tuple(value)


def parse_requirements(given: Optional[Mapping[str, Any]] = None) -> Dict[str, Requirements]:
    """Return both profiles; what ``given`` leaves out keeps its default.

    Args:
        given: ``{"minimum": {...}, "recommended": {...}}`` with the keys of Requirements.

    Raises:
        ConfigurationError: an unknown profile or key, or a value of another kind.
    """
    if given is not None and not isinstance(given, Mapping):
        raise ConfigurationError(f"requirements: expected minimum and recommended, found {given!r}")
    for name in given or {}:
        if name not in PROFILES:
            raise ConfigurationError(f"requirements: there is no profile {name!r}", f"use {' or '.join(PROFILES)}")
    profiles: Dict[str, Requirements] = {}
    for name in PROFILES:
        own = (given or {}).get(name) or {}
        if not isinstance(own, Mapping):
            raise ConfigurationError(f"requirements.{name}: expected names and values, found {own!r}")
        known = [entry.name for entry in fields(Requirements)]
        for key in own:
            if key not in known:
                raise ConfigurationError(f"requirements.{name}: there is no {key!r}", f"use {', '.join(known)}")
        values = {**DEFAULTS[name], **own}
        where = f"requirements.{name}."
        profiles[name] = Requirements(
            accelerator_memory_gb=_number(f"{where}accelerator_memory_gb", values["accelerator_memory_gb"]),
            cpu_cores=int(_number(f"{where}cpu_cores", values["cpu_cores"])),
            cpu_instruction_sets=_words(f"{where}cpu_instruction_sets", values["cpu_instruction_sets"]),
            memory_gb=_number(f"{where}memory_gb", values["memory_gb"]),
            storage_free_gb=_number(f"{where}storage_free_gb", values["storage_free_gb"]),
            storage_kinds=_words(f"{where}storage_kinds", values["storage_kinds"], STORAGE_KINDS),
            storage_pcie_generation=int(_number(f"{where}storage_pcie_generation", values["storage_pcie_generation"])),
            cuda_major=int(_number(f"{where}cuda_major", values["cuda_major"])),
        )
    return profiles
