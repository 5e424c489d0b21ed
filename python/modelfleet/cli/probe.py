"""``modelfleet probe``: the hardware of the hosts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from ..core.units import format_bytes
from .options import Options, pass_through
from .session import document, fact, host_names, run_verb
from .text import clean, joined, say, say_json, table

HEADER = ("HOST", "ACCELERATORS", "PROCESSOR", "CORES", "MEMORY", "FREE FOR MODELS", "SYSTEM")


@click.command()
@click.option("--detail", is_flag=True, help="All that is known, and what is unknown and why.")
@pass_through
def command(options: Options, detail: bool) -> int:
    """Show the hardware of the hosts, one line each."""
    result = run_verb(options, "probe.yml")
    profiles: dict[str, dict[str, Any]] = {}
    for host in host_names(result):
        profile = fact(result, host, "modelfleet_hardware")
        if isinstance(profile, dict):
            profiles[host] = profile
    if options.as_json:
        say_json(document("probe", result, {host: {"profile": profile} for host, profile in profiles.items()}))
    elif detail:
        for host, profile in profiles.items():
            say(click.style(clean(host), bold=True))
            for line in outline(profile, "  "):
                say(line)
    elif profiles:
        rows = [[click.style(name, bold=True) for name in HEADER]]
        rows += [row(host, profile) for host, profile in profiles.items()]
        for line in table(rows):
            say(line)
    return result.exit_code


def row(host: str, profile: Mapping[str, Any]) -> list[str]:
    """Return a host's line of the table; what is unknown is a question mark."""
    cpu, system, storage = _part(profile, "cpu"), _part(profile, "os"), _part(profile, "storage")
    cores, threads = cpu.get("physical_cores"), cpu.get("logical_cores")
    free = joined((_bytes(storage.get("free_bytes")), _known(storage.get("kind"), "")))
    name = f"{_known(system.get('distribution'))} {_known(system.get('version'), '')}".strip()
    return [
        clean(host),
        accelerators(profile),
        _known(cpu.get("model") or cpu.get("architecture")),
        _known(cores) + (f" ({clean(threads)} threads)" if threads and threads != cores else ""),
        _bytes(_part(profile, "memory").get("total_bytes")),
        free,
        joined((name, _inside(system))),
    ]


def accelerators(profile: Mapping[str, Any]) -> str:
    """Return the accelerators in short: ``2 x NVIDIA GeForce RTX 4090 24.0 GiB``."""
    found = profile.get("accelerators")
    names: dict[str, int] = {}
    for one in found if isinstance(found, list) else []:
        if isinstance(one, dict):
            memory = _part(one, "memory").get("total_bytes")
            name = _known(one.get("name") or one.get("vendor")) + (f" {_bytes(memory)}" if memory else "")
            names[name] = names.get(name, 0) + 1
    return ", ".join(f"{number} x {name}" if number > 1 else name for name, number in names.items()) or "none"


def outline(value: object, indent: str) -> Iterator[str]:
    """Yield a profile as an indented outline; byte counts come with the amount that people read."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _outline_part(f"{indent}{clean(key)}:", key, part, indent)
    elif isinstance(value, list):
        for part in value:
            yield from _outline_part(f"{indent}-", "", part, indent)


def _outline_part(name: str, key: object, part: object, indent: str) -> Iterator[str]:
    if isinstance(part, list) and part and all(isinstance(one, str) for one in part):
        yield f"{name} {clean(' '.join(part))}"
    elif isinstance(part, (dict, list)) and part:
        yield name
        yield from outline(part, indent + "  ")
    elif str(key).endswith("_bytes") and isinstance(part, int):
        yield f"{name} {part} ({format_bytes(part)})"
    else:
        yield f"{name} {'-' if part is None else 'none' if part in ({}, []) else clean(part)}"


def _inside(system: Mapping[str, Any]) -> str:
    if system.get("container"):
        return f"in {clean(system['container'])}"
    return "in a virtual machine" if system.get("virtual_machine") else ""


def _part(profile: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = profile.get(name)
    return part if isinstance(part, dict) else {}


def _known(value: object, otherwise: str = "?") -> str:
    return otherwise if value is None or value == "" else clean(value)


def _bytes(value: object) -> str:
    return format_bytes(value) if isinstance(value, int) else "?"
