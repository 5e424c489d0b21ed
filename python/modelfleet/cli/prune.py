"""``modelfleet prune``: what modelfleet published and no wish keeps, shown first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import click

from ..core.units import format_bytes
from ..runner import RunResult
from .options import Options, pass_through
from .session import answer_of, document, host_names, run_verb
from .text import clean, complain, count, say, say_json, table

EXIT_DIFFERENT = 3
_SHOWN = {
    "removed": ("removed", "would remove"),
    "left": ("left", "would leave"),
    "gone": ("forgotten", "would forget"),
}


@click.command()
@click.option("--yes", "confirmed", is_flag=True, help="Remove it; without this it is shown.")
@click.option("--exit-code", "tell_change", is_flag=True, help="Exit 3 where something would be removed.")
@pass_through
def command(options: Options, confirmed: bool, tell_change: bool) -> int:
    """Show the files that modelfleet published and no wish keeps, and with --yes remove them.

    What the plan names stays, and so does every file that modelfleet did not publish or that was changed since.
    """
    if confirmed:
        options = dataclasses.replace(options, extra_vars=(*options.extra_vars, "models_prune_confirmed=true"))
    result = run_verb(options, "prune.yml")
    done = confirmed and not options.check
    prunes = {host: prune_of(result, host) for host in host_names(result)}
    differs = any(prune is not None and (prune["files"] or prune["in_flight"]) for prune in prunes.values())
    status = EXIT_DIFFERENT if tell_change and differs and not done and result.exit_code == 0 else result.exit_code
    if options.as_json:
        answer = document("prune", result, {host: {"prune": prune} for host, prune in prunes.items()})
        say_json({**answer, "removed": done, "exit_code": status})
        return status
    for host, prune in prunes.items():
        for line in lines(host, prune, done):
            say(line)
    if differs and not done:
        complain("nothing was removed; with --yes it is")
    return status


def prune_of(result: RunResult, host: str) -> dict[str, Any] | None:
    """Return what a prune of a host removes, None where that was not reached."""
    said = answer_of(result, host, "modelfleet_prune")
    if said is None or not isinstance(said.get("files"), list):
        return None
    names = ("store_path", "in_flight", "freed_bytes")
    return {
        **{name: said.get(name) for name in names},
        "files": [one for one in said["files"] if isinstance(one, dict)],
    }


def lines(host: str, prune: Mapping[str, Any] | None, done: bool) -> Iterator[str]:
    """Yield what is said of a host."""
    name = click.style(clean(host), bold=True)
    if prune is None:
        yield f"{name}: {click.style('not looked at', fg='red')}"
        return
    files, in_flight, size = prune["files"], prune["in_flight"] or [], prune.get("freed_bytes")
    if not files and not in_flight:
        yield f"{name}: every published file is kept by a wish"
        return
    verb = "freed" if done else "to be freed"
    told = [count(len(files), "file")] * bool(files) + [f"{count(len(in_flight), 'leftover')} in flight"] * bool(
        in_flight
    )
    yield f"{name}: {' and '.join(told)}, {format_bytes(size if isinstance(size, int) else 0)} {verb}"
    rows = []
    for one in files:
        state = _SHOWN.get(str(one.get("state")), ("", ""))[0 if done else 1]
        freed = one.get("freed_bytes")
        amount = format_bytes(freed) if isinstance(freed, int) and freed else ""
        rows.append([state, clean(one.get("path", "")), clean(one.get("model", "")), amount])
    rows += [[_SHOWN["removed"][0 if done else 1], f"cache/temp/{clean(part)}", "", ""] for part in in_flight]
    yield from table(rows, indent="  ")
