"""``modelfleet wheelhouse``: what the controller keeps for hosts to install from, and making it for those cut off."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from ..core.runtime.resolver.releases import PROFILES
from ..core.units import format_bytes
from ..wheelhouse import Entry, Wheelhouse
from .apply import recap_lines
from .options import Options, pass_through
from .session import document, run_verb
from .text import clean, count, say, say_json, table

STANDARD = "~/.cache/modelfleet/wheelhouse"
EXIT_DAMAGED = 2


@click.command()
@click.option("--for", "profiles", type=click.Choice(PROFILES), multiple=True, help="Make what it needs; repeatable.")
@click.option("--output", metavar="DIR", default=STANDARD, help=f"The wheelhouse. Default: {STANDARD}.")
@pass_through
def command(options: Options, profiles: tuple[str, ...], output: str) -> int:
    """List what is kept for hosts to install from, every file hashed.

    With --for the runtime is installed first, on the hosts that -l names, or this machine, and all that it took is
    kept: what a host of the same kind needs to install without any package index. Copy the folder to the controller of
    hosts that are cut off, and name it there with inference_runtime_wheelhouse. Exit code 2 where a file is damaged.
    """
    folder = Path(output).expanduser()
    status, answer = 0, {}
    if profiles:
        given = {
            "inference_runtime_profiles": list(profiles),
            "inference_runtime_wheelhouse": str(folder.absolute()),
            "inference_runtime_collect": True,
        }
        extra = (*options.extra_vars, json.dumps(given))
        result = run_verb(dataclasses.replace(options, extra_vars=extra), "runtime.yml")
        status, answer = result.exit_code, document("wheelhouse", result)
        if not options.as_json:
            for line in recap_lines(result):
                say(line)
    kept = Wheelhouse(folder).contents()
    if options.as_json:
        say_json({"schema_version": 1, "verb": "wheelhouse", **answer, **described(folder, kept)})
    else:
        for line in lines(folder, kept):
            say(line)
    return status or (EXIT_DAMAGED if any(entry.damaged for entry in kept) else 0)


def described(folder: Path, kept: Sequence[Entry]) -> dict[str, object]:
    """Return what is kept, as ``--json`` prints it."""
    return {
        "wheelhouse": str(folder),
        "bytes": sum(entry.bytes for entry in kept),
        "kept": [{**entry._asdict(), "damaged": list(entry.damaged)} for entry in kept],
    }


def lines(folder: Path, kept: Sequence[Entry]) -> Iterator[str]:
    """Yield what is kept, a line a key, and what is damaged of it."""
    size = format_bytes(sum(entry.bytes for entry in kept))
    yield f"{click.style(clean(folder), bold=True)}: " + (f"{size} for {count(len(kept), 'kind')}" if kept else "empty")
    rows = []
    for entry in kept:
        mark = click.style("damaged", fg="red") if entry.damaged else click.style("whole", fg="green")
        by = f"by {clean(entry.made_by)}, {clean(entry.made_at or '')}" if entry.made_by else ""
        rows.append([mark, clean(entry.key), count(entry.files, "file"), format_bytes(entry.bytes), by])
    yield from table(rows, indent="  ")
    for entry in kept:
        for name in entry.damaged:
            yield f"  {clean(entry.key)}/{clean(name)} is not what was kept; it is made anew when a host needs it"
