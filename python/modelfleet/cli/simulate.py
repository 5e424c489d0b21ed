"""Machines that are not there: from ``2x RTX 3090, 64 GB RAM`` to a hardware profile.

::

    [NAME=]PART[, PART ...]
    PART:  [N x] GPU [SIZE GB] [MIG [N x] PROFILE]      RTX 3060 12 GB, 2x RTX 3090, A100 MIG 1g.10gb
           M1 16 GB, M2 Max 64 GB                       an Apple chip and its memory
           CPU SIZE GB [N cores]                        no accelerator
           SIZE GB RAM,  N cores                        of any of these
"""

from __future__ import annotations

import re
from typing import Any

from ..core.errors import ConfigurationError
from ..core.hardware.profile import Accelerator, AcceleratorMemory, HardwareProfile, Mig, MigSlice, profile_to_dict
from ..core.units import GIB, MIB
from .known_gpus import find_gpu, find_slice

DEFAULT_MEMORY_GIB = 32
"""Main memory where none is said: what the tutorial recommends."""
_SIZE = r"(\d+(?:\.\d+)?)\s*(?:GB|GiB|G)\b"
_MEMORY = re.compile(rf"{_SIZE}\s*(?:of\s+)?(?:RAM|memory|main memory)\Z", re.IGNORECASE)
_CORES = re.compile(r"(\d+)\s*cores?\Z", re.IGNORECASE)
_PROCESSOR = re.compile(rf"CPU(?:\s+only)?(?:\s+{_SIZE})?(?:\s+(\d+)\s*cores?)?\Z", re.IGNORECASE)
_APPLE = re.compile(rf"(?:Apple\s+)?(M[1-9](?:\s+(?:Pro|Max|Ultra))?)\s+{_SIZE}\Z", re.IGNORECASE)
_GPU = re.compile(rf"(?:(\d+)\s*[xX]\s*)?(.+?)(?:\s+{_SIZE})?(?:\s+MIG\s+(?:(\d+)\s*[xX]\s*)?(\S+))?\Z", re.IGNORECASE)
_MOST_GPUS = 64


def simulated(text: str) -> tuple[str, dict[str, Any]]:
    """Return a machine's name and its profile. Raises ConfigurationError in one line, with the nearest names."""
    name, separator, parts = text.partition("=")
    if not separator:
        name, parts = text, text
    profile = HardwareProfile(probed_at="")
    memory: float | None = None
    for part in (one.strip() for one in re.split(r"[,+]", parts)):
        memory = _part(part, text, profile, memory)
    if memory is None:
        unified = sum(gpu.gigabytes for gpu in _unified(profile))
        memory = unified or DEFAULT_MEMORY_GIB
    profile.memory.total_bytes = int(memory * GIB)
    profile.storage.path = None
    return name.strip(), profile_to_dict(profile)


def _part(part: str, text: str, profile: HardwareProfile, memory: float | None) -> float | None:
    """Add a part to the profile; returns the main memory that is known so far (GiB)."""
    cores, ram = _CORES.match(part), _MEMORY.match(part)
    if cores:
        profile.cpu.physical_cores = int(cores[1])
        return memory
    if ram:
        return float(ram[1])
    processor, apple = _PROCESSOR.match(part), _APPLE.match(part)
    if processor:
        profile.cpu.physical_cores = int(processor[2]) if processor[2] else profile.cpu.physical_cores
        return float(processor[1]) if processor[1] else memory
    if apple:
        chip = " ".join(word.capitalize() for word in apple[1].split())
        gpu = Accelerator("apple", name=f"Apple {chip}", memory=AcceleratorMemory(unified=True))
        profile.accelerators.append(gpu)
        return float(apple[2])
    cards = _GPU.match(part)
    if not cards:
        raise ConfigurationError(f"{text!r} tells no machine", 'write it like "2x RTX 3090, 64 GB RAM" or "CPU 32 GB"')
    count, name, size, slices, mig = cards.groups()
    number = int(count or 1)
    if not 1 <= number <= _MOST_GPUS:
        raise ConfigurationError(f"{text!r} has {number} GPUs", f"use 1 to {_MOST_GPUS}")
    for _ in range(number):
        profile.accelerators.append(_card(name, float(size) if size else None, mig, int(slices or 1)))
    return memory


def _card(name: str, gigabytes: float | None, profile: str | None, slices: int) -> Accelerator:
    if profile is None:
        gpu = find_gpu(name, gigabytes)
        mig = None
    else:
        gpu, mebibytes = find_slice(name, gigabytes, profile)
        made = [
            MigSlice(index=number, profile=profile.lower(), memory_total_bytes=mebibytes * MIB, gpu_instance_id=number)
            for number in range(min(slices, 7))
        ]
        mig = Mig(enabled=True, slices=made)
    total = None if gpu.unified else gpu.mebibytes * MIB
    card = Accelerator(gpu.vendor, name=gpu.name, memory=AcceleratorMemory(total_bytes=total, unified=gpu.unified))
    card.mig = mig
    if gpu.vendor == "nvidia":
        card.compute_capability = gpu.target
    else:
        card.gfx_target = gpu.target
    return card


def _unified(profile: HardwareProfile) -> list[Any]:
    return [
        find_gpu(card.name or "") for card in profile.accelerators if card.vendor != "apple" and card.memory.unified
    ]
