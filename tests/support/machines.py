"""Profiles of machines that are made up: what a probe would say, shortened to what the resolver reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelfleet.core.runtime.resolver import Build
from modelfleet.core.runtime.resolver.build import processor_arguments

GIB = 1024**3
MODERN = ["sse4_2", "avx", "avx2", "fma", "f16c", "bmi2"]


def processor_build(version: str, system: str, architecture: str, libc: str, instruction_sets: Sequence[str]) -> Build:
    """Return the build for a processor that has ``instruction_sets``, as a stack for it is to name it."""
    arguments = processor_arguments(architecture, instruction_sets)
    return Build(version, "cpu", arguments, f"{system.lower()}_{architecture.lower()}", libc)


def nvidia(capability: str | None, name: str = "", gib: int = 24, **more: Any) -> dict[str, Any]:
    """Return an NVIDIA card; ``device_id`` among ``more`` gives it a place on the bus."""
    device = more.pop("device_id", None)
    return {
        "vendor": "nvidia",
        "name": name or f"card {capability}",
        "driver": more.pop("driver", "nvidia"),
        "compute_capability": capability,
        "memory": {"total_bytes": gib * GIB, "unified": False},
        "pci": {"vendor_id": "10de", "device_id": device} if device else None,
        **more,
    }


def amd(target: str | None, gib: int = 16, unified: bool = False, **more: Any) -> dict[str, Any]:
    """Return an AMD GPU."""
    memory = {"total_bytes": None if unified else gib * GIB, "unified": unified}
    card = {"vendor": "amd", "name": f"card {target}", "driver": "amdgpu", "gfx_target": target, "memory": memory}
    return {**card, **more}


def machine(*accelerators: dict[str, Any], driver: str | None = "595.71.05", **more: Any) -> dict[str, Any]:
    """Return a workstation with Ubuntu 24.04, or as ``distribution`` (``debian-12``), ``python`` and so on say."""
    distribution, _, version = str(more.get("distribution", "ubuntu-24.04")).partition("-")
    families = {"ubuntu": "debian", "rocky": "redhat", "rhel": "redhat", "almalinux": "redhat", "macos": "darwin"}
    there = driver and any(one["vendor"] == "nvidia" for one in accelerators)
    state = {"vendor": "nvidia", "loaded_version": driver, "flavour": more.get("flavour")} if there else None
    return {
        "accelerators": list(accelerators),
        "accelerator_driver": state,
        "cpu": {
            "architecture": more.get("architecture", "x86_64"),
            "instruction_sets": more.get("instruction_sets", MODERN),
        },
        "os": {
            "family": families.get(distribution, distribution),
            "distribution": distribution,
            "version": version or None,
        },
        "python": {"version": more.get("python", "3.12.3")},
        "unknown": more.get("unknown", {}),
    }


def mac(name: str = "Apple M1", **more: Any) -> dict[str, Any]:
    """Return a Mac with Apple's own processor."""
    gpu = {"vendor": "apple", "name": name, "memory": {"unified": True, "total_bytes": None}}
    return machine(
        gpu,
        driver=None,
        **{"distribution": "macos-15.5", "architecture": "arm64", "instruction_sets": ["bf16", "dotprod"], **more},
    )
