"""``modelfleet probe``: the hardware of the hosts, or of a recorded machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import ConfigurationError
from ..core.hardware.readiness import readiness_to_dict
from ..core.units import format_bytes
from .hardware import driver_of, inside, known, part, readiness_lines, size, summary
from .options import Options, pass_through
from .session import SCHEMA_VERSION, document, fact, host_names, of_host, run_verb
from .text import clean, complain, joined, say, say_json, table

if TYPE_CHECKING:
    from ..runner import RunResult

HEADER = ("HOST", "ACCELERATORS", "DRIVER", "PROCESSOR", "CORES", "MEMORY", "FREE FOR MODELS", "SYSTEM")
DEFAULT_MODEL_ROOT = "/opt/ashley-ai/models"
EXISTING = click.Path(exists=True)


@click.command()
@click.option("--detail", is_flag=True, help="All that is known, and what is unknown and why.")
@click.option("--capture", "capture_file", type=click.Path(dir_okay=False), metavar="FILE", help="Record one host.")
@click.option("--unmasked", is_flag=True, help="Leave serials, ids, names and addresses in the capture.")
@click.option(
    "--replay", multiple=True, type=EXISTING, metavar="PATH", help="Read a capture or pasted outputs instead."
)
@click.option(
    "--root", type=click.Path(exists=True, file_okay=False), metavar="DIR", help="Read a tree of /proc and /sys."
)
@pass_through
def command(
    options: Options,
    detail: bool,
    capture_file: str | None,
    unmasked: bool,
    replay: tuple[str, ...],
    root: str | None,
) -> int:
    """Show the hardware of the hosts, one line each; or that of recorded machines, without Ansible."""
    records = (*replay, *((root,) if root is not None else ()))
    if records and capture_file is not None:
        raise click.UsageError("--capture records a running machine: it goes neither with --replay nor with --root.")
    if unmasked and capture_file is None:
        raise click.UsageError("--unmasked is about the file that --capture writes.")
    if records:
        profiles = replayed(records)
        if options.as_json:
            hosts: dict[str, Any] = {
                name: {"recap": None, "failures": [], "profile": profile, "readiness": readiness_to_dict(profile)}
                for name, profile in profiles.items()
            }
            said = {"schema_version": SCHEMA_VERSION, "verb": "probe", "hosts": hosts}
            say_json({**said, "proofs": [], "changed": {}, "error": None, "exit_code": 0})
        else:
            show(profiles, detail)
        return 0
    if capture_file is not None:
        wanted = json.dumps({"modelfleet_probe_capture": True, "modelfleet_probe_unmasked": unmasked})
        options = replace(options, extra_vars=(*options.extra_vars, wanted))
    result = run_verb(options, "probe.yml")
    profiles = {}
    for host in host_names(result):
        profile = fact(result, host, "modelfleet_hardware")
        if isinstance(profile, dict):
            profiles[host] = profile
    if options.as_json:
        hosts = {
            host: {"profile": profile, "readiness": readiness_to_dict(profile)} for host, profile in profiles.items()
        }
        say_json(document("probe", result, hosts))
    else:
        show(profiles, detail)
    if capture_file is not None and profiles:
        write_capture(result, capture_file)
    return result.exit_code


def replayed(paths: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return the profiles of recorded machines by the names of their files. Raises HardwareOutputError."""
    from ..core.hardware.probe import probe_sources
    from ..core.hardware.profile import profile_to_dict
    from ..core.hardware.replay import open_record

    profiles: dict[str, dict[str, Any]] = {}
    for path in paths:
        sources = open_record(path)
        recorded = getattr(sources, "model_root", None)
        name = os.path.basename(os.path.abspath(path))
        profiles[path if name in profiles else name] = profile_to_dict(
            probe_sources(recorded or DEFAULT_MODEL_ROOT, sources)
        )
    return profiles


def show(profiles: Mapping[str, dict[str, Any]], detail: bool) -> None:
    """Print a line for each host, or with ``detail`` all that is known of it."""
    if detail:
        for host, profile in profiles.items():
            say(click.style(clean(host), bold=True))
            for line in (*summary(profile), *readiness_lines(readiness_to_dict(profile))):
                say(line)
            say("  everything")
            # No accelerator was found, and none is there, are two things.
            told = {**profile, "accelerators": None} if accelerators(profile) == "?" else profile
            for line in outline(told, "    "):
                say(line)
    elif profiles:
        rows = [[click.style(name, bold=True) for name in HEADER]]
        rows += [row(host, profile) for host, profile in profiles.items()]
        for line in table(rows):
            say(line)


def write_capture(result: RunResult, path: str) -> None:
    """Write the capture of the one host of a run. Raises ConfigurationError where there was not one."""
    found = [
        task.result["capture"]
        for host in host_names(result)
        for task in of_host(result, host)
        if isinstance(task.result.get("capture"), dict)
    ]
    if len(found) != 1:
        raise ConfigurationError(f"--capture writes one host, this run had {len(found)}", "name it with -l HOST")
    try:
        Path(path).write_text(json.dumps(found[0], indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}", "name another file with --capture") from error
    masked = "masked" if found[0].get("masked") is True else "NOT masked"
    complain(f"{path}: a capture, {masked}; look through it before you share it")


def row(host: str, profile: Mapping[str, Any]) -> list[str]:
    """Return a host's line of the table; what is unknown is a question mark."""
    cpu, system, storage = part(profile, "cpu"), part(profile, "os"), part(profile, "storage")
    cores, threads = cpu.get("physical_cores"), cpu.get("logical_cores")
    free = joined((size(storage.get("free_bytes")), known(storage.get("kind"), "")))
    name = f"{known(system.get('distribution'))} {known(system.get('version'), '')}".strip()
    limit = cpu.get("limit_cores")
    memory = part(profile, "memory")
    memory_limit = memory.get("limit_bytes")
    return [
        clean(host),
        accelerators(profile),
        driver(profile),
        known(cpu.get("model") or cpu.get("architecture")),
        known(cores or threads)
        + (f" ({clean(threads)} threads)" if cores and threads and threads != cores else "")
        + (f", limit {limit:g}" if isinstance(limit, (int, float)) else ""),
        size(memory.get("total_bytes")) + (f", limit {size(memory_limit)}" if memory_limit else ""),
        free,
        joined((name, inside(system))),
    ]


def accelerators(profile: Mapping[str, Any]) -> str:
    """Return the accelerators in short: ``2 x NVIDIA GeForce RTX 4090 24.0 GiB``; a question mark: not known."""
    found = profile.get("accelerators")
    names: dict[str, int] = {}
    for one in found if isinstance(found, list) else []:
        if isinstance(one, dict):
            name = " ".join(filter(None, (known(one.get("name") or one.get("vendor")), _memory(one))))
            names[name] = names.get(name, 0) + 1
    if not names and "accelerators" in part(profile, "unknown"):
        return "?"
    return ", ".join(f"{number} x {name}" if number > 1 else name for name, number in names.items()) or "none"


def driver(profile: Mapping[str, Any]) -> str:
    """Return the drivers of the accelerators and what they carry: ``535.54.03, CUDA 12.2``."""
    state = part(profile, "accelerator_driver")
    said: list[str] = []
    found = profile.get("accelerators")
    for one in found if isinstance(found, list) else []:
        if not isinstance(one, dict):
            continue
        text = driver_of(one)
        if text and text not in said:
            said.append(text)
    if state.get("mismatch") is True:
        said.append("module and libraries differ")
    if state.get("slow") is True:
        said.append("slow")
    return "; ".join(said) or ("-" if accelerators(profile) == "none" else "?")


def _memory(one: Mapping[str, Any]) -> str:
    memory, mig = part(one, "memory"), part(one, "mig")
    total = memory.get("total_bytes")
    text = size(total) if total else ("unified" if memory.get("unified") is True else "")
    if mig.get("enabled") is True:
        slices: dict[str, int] = {}
        for one_slice in mig.get("slices") or []:
            each = size(part({"one": one_slice}, "one").get("memory_total_bytes"))
            slices[each] = slices.get(each, 0) + 1
        cut = ", ".join(f"{number} x {each}" for each, number in slices.items()) or "no device"
        text = f"{text} (MIG: {cut})".strip()
    return text


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
