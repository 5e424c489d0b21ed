"""A hardware profile in words, for ``modelfleet probe --detail``. What is unknown is left out, or a question mark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from ..core.units import format_bytes
from .text import clean, count, joined

LABEL_WIDTH = 11
RUNTIMES = {"nvidia": "CUDA ", "amd": "ROCm "}


def summary(profile: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a person asks of a host first: GPUs, driver, processor, memory, storage, system."""
    for number, one in enumerate(_list(profile.get("accelerators"))):
        for position, text in enumerate(filter(None, accelerator_lines(one))):
            yield _line(f"GPU {number}" if position == 0 else "", text)
    if not _list(profile.get("accelerators")):
        reason = part(profile, "unknown").get("accelerators")
        yield _line("GPU", "none" if reason is None else f"not known: {clean(reason)}")
    for label, text in (
        ("driver", driver_state(part(profile, "accelerator_driver"))),
        ("processor", processor(part(profile, "cpu"))),
        ("memory", main_memory(part(profile, "memory"))),
        ("storage", storage(part(profile, "storage"))),
        ("system", system(part(profile, "os"))),
    ):
        if text:
            yield _line(label, text)


def accelerator_lines(one: Mapping[str, Any]) -> Iterator[str]:
    """Yield a GPU's lines; empty ones are to be left out."""
    memory, mig = part(one, "memory"), part(one, "mig")
    capability = one.get("compute_capability")
    yield joined(
        (
            known(one.get("name") or one.get("vendor")),
            known(one.get("architecture"), ""),
            f"compute capability {clean(capability)}" if capability else "",
            known(one.get("gfx_target"), ""),
            known(part(one, "pci").get("address"), ""),
        )
    )
    total, free, budget = (memory.get(f"{name}_bytes") for name in ("total", "free", "budget"))
    yield joined(
        (
            size(total) if total else ("unified with main memory" if memory.get("unified") is True else "memory ?"),
            f"{size(free)} free" if free is not None else "",
            f"one process at most {size(budget)}" if budget is not None and budget != total else "",
        )
    )
    for index, cut in enumerate(_list(mig.get("slices"))):
        profile = known(cut.get("profile"), "")
        yield joined((f"MIG {index}", profile, size(cut.get("memory_total_bytes")), known(cut.get("uuid"), "")))
    watts = one.get("power_limit_watts")
    yield joined(
        (
            driver_of(one),
            link(part(one, "pcie")),
            f"{watts:g} W at most" if isinstance(watts, (int, float)) else "",
        )
    )


def readiness_lines(readiness: Mapping[str, Any]) -> Iterator[str]:
    """Yield the verdict, and a line for each check that does not pass; what is unknown is only counted."""
    checks = [check for check in _list(readiness.get("checks")) if check.get("status") != "pass"]
    told = [check for check in checks if not str(check.get("measured")).startswith("unknown: ")]
    counted = f"{count(len(checks) - len(told), 'check')} unknown" if len(checks) > len(told) else ""
    yield _line("readiness", joined((clean(readiness.get("status")), counted)))
    for check in told:
        colour = "red" if check.get("status") == "fail" else "yellow"
        mark = click.style(clean(check.get("status")), fg=colour)
        wanted = f" (wanted: {clean(check.get('required'))})" if check.get("required") else ""
        found = f"{clean(check.get('title'))}: {clean(check.get('measured'))}{wanted}; {clean(check.get('cure'))}"
        yield _line("", f"{mark} {clean(check.get('id'))} {found}")


def driver_of(one: Mapping[str, Any]) -> str:
    """Return a GPU's driver and what it carries: ``535.54.03, CUDA 12.2``."""
    runtime = one.get("runtime_version")
    kind = RUNTIMES.get(str(one.get("vendor")), "")
    return joined((known(one.get("driver_version"), ""), f"{kind}{clean(runtime)}" if runtime else ""))


def link(pcie: Mapping[str, Any]) -> str:
    """Return a link: ``PCIe 3 x16 now, 4 x16 at most``."""

    def end(when: str) -> str:
        generation, width = pcie.get(f"generation_{when}"), pcie.get(f"width_{when}")
        return " ".join(filter(None, (known(generation, ""), f"x{clean(width)}" if width else "")))

    now, most = end("now"), end("max")
    if not now or now == most:
        return f"PCIe {most}" if most else ""
    return f"PCIe {now} now" + (f" of {most}" if most else "")


def driver_state(state: Mapping[str, Any]) -> str:
    """Return the state of the driver as far as it is more than the GPUs' own lines."""
    loaded, installed = state.get("loaded_version"), state.get("installed_version")
    return joined(
        (
            f"loaded {clean(loaded)}" if loaded else "",
            f"installed {clean(installed)}" if installed else "",
            known(state.get("flavour"), ""),
            "module and libraries differ" if state.get("mismatch") is True else "",
            "nouveau is loaded" if state.get("nouveau_loaded") is True else "",
            "its tool gave no answer in time" if state.get("slow") is True else "",
            "a reboot is pending" if state.get("reboot_pending") is True else "",
        )
    )


def processor(cpu: Mapping[str, Any]) -> str:
    """Return the processors: ``Cortex-A725 + Cortex-X925, aarch64, 20 cores (10 Cortex-X925, 10 Cortex-A725)``."""
    cores, threads, limit = cpu.get("physical_cores"), cpu.get("logical_cores"), cpu.get("limit_cores")
    kinds = [f"{known(kind.get('physical_cores'))} {clean(kind.get('name'))}" for kind in _list(cpu.get("core_kinds"))]
    counted = f"{clean(cores)} cores" if cores else ""
    if not cpu.get("model") and not counted and not threads:
        return ""
    return joined(
        (
            known(cpu.get("model")),
            known(cpu.get("architecture"), ""),
            counted + (f" ({joined(kinds)})" if kinds else ""),
            f"{clean(threads)} threads" if threads and threads != cores else "",
            f"limited to {limit:g}" if isinstance(limit, (int, float)) else "",
        )
    )


def main_memory(memory: Mapping[str, Any]) -> str:
    """Return main memory: total, available, limit."""
    total, available, limit = (memory.get(f"{name}_bytes") for name in ("total", "available", "limit"))
    return joined(
        (
            size(total) if total else "",
            f"{size(available)} available" if available is not None else "",
            f"limited to {size(limit)}" if limit is not None else "",
        )
    )


def storage(place: Mapping[str, Any]) -> str:
    """Return where the models lie or will lie."""
    free = place.get("free_bytes")
    device = place.get("device")
    if free is None and not device:
        return ""
    return joined(
        (
            f"{size(free)} free for {known(place.get('path'))}" if free is not None else "",
            f"{known(place.get('file_system'))} on {clean(device)}" if device else "",
            known(place.get("kind"), ""),
            link(part(place, "pcie")),
        )
    )


def system(found: Mapping[str, Any]) -> str:
    """Return the operating system and what it runs in."""
    name = " ".join(filter(None, (known(found.get("distribution"), ""), known(found.get("version"), ""))))
    kernel = found.get("kernel")
    return joined(
        (
            name,
            f"kernel {clean(kernel)}" if kernel else "",
            inside(found),
            "Secure Boot" if found.get("secure_boot") is True else "",
        )
    )


def inside(found: Mapping[str, Any]) -> str:
    """Return the container or virtual machine that a system runs in."""
    if found.get("container"):
        return f"in {clean(found['container'])}"
    return "in a virtual machine" if found.get("virtual_machine") else ""


def part(profile: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a part of a profile, empty where it is none."""
    found = profile.get(name)
    return found if isinstance(found, dict) else {}


def known(value: object, otherwise: str = "?") -> str:
    """Return a value as text that a terminal cannot be steered by."""
    return otherwise if value is None or value == "" else clean(value)


def size(value: object) -> str:
    """Return bytes as people read them."""
    return format_bytes(value) if isinstance(value, int) else "?"


def _list(value: object) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _line(label: str, text: str) -> str:
    return f"  {label:{LABEL_WIDTH}}{text}"
