"""``modelfleet audit``: every published file hashed again, and with ``--repair`` what is broken put right."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import click

from ..core.units import format_bytes
from ..runner import RunResult
from .options import Options, pass_through
from .session import answer_of, document, host_names, run_verb
from .text import clean, count, say, say_json, table

REPAIRED = "repaired"


@click.command()
@click.option("--repair", is_flag=True, help="Put right what is wrong; fetch only what is broken.")
@pass_through
def command(options: Options, repair: bool) -> int:
    """Hash every published file, and hold it against what was published and what the lock pins.

    Finds what is missing, changed (be it one bit, whatever the file's times say), no regular file, of another mode or
    owner, and what modelfleet did not put there. Exit code 2 where a host has findings that stay: --json names them.
    """
    if repair:
        options = dataclasses.replace(options, extra_vars=(*options.extra_vars, "models_audit_repair=true"))
    result = run_verb(options, "audit.yml")
    audits = {host: audit_of(result, host) for host in host_names(result)}
    if options.as_json:
        answer = document("audit", result, {host: {"audit": audit} for host, audit in audits.items()})
        damaged = [host for host, audit in audits.items() if audit is not None and not audit["clean"]]
        say_json({**answer, "damaged": damaged})
        return result.exit_code
    for host, audit in audits.items():
        for line in lines(host, audit):
            say(line)
    return result.exit_code


def audit_of(result: RunResult, host: str) -> dict[str, Any] | None:
    """Return what the audit of a host came to, None where it was not made; ``clean``: no finding stays."""
    said = answer_of(result, host, "modelfleet_audit")
    if said is None or not isinstance(said.get("findings"), list):
        return None
    fetched = answer_of(result, host, "modelfleet_models") is not None
    findings = [dict(one) for one in said["findings"] if isinstance(one, dict)]
    for one in findings:
        if one.get("state") == "to fetch" and fetched:
            one["state"] = REPAIRED
    names = ("store_path", "files", "hashed_bytes", "seconds", "touched")
    clean_now = all(one.get("state") == REPAIRED for one in findings)
    return {**{name: said.get(name) for name in names}, "findings": findings, "clean": clean_now}


def lines(host: str, audit: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what is said of a host."""
    name = click.style(clean(host), bold=True)
    if audit is None:
        yield f"{name}: {click.style('not audited', fg='red')}"
        return
    findings, files = audit["findings"], audit.get("files")
    told = count(files, "file") if isinstance(files, int) else "the files"
    size, seconds = audit.get("hashed_bytes"), audit.get("seconds")
    if isinstance(size, int) and isinstance(seconds, (int, float)):
        told += f", {format_bytes(size)} hashed in {seconds:.1f} s"
    colour = "green" if audit["clean"] else "red"
    verdict = click.style(count(len(findings), "finding") if findings else "as published", fg=colour)
    yield f"{name}: {verdict}; {told}"
    rows = []
    for one in findings:
        state = clean(one.get("state", ""))
        mark = click.style(state, fg="green" if state == REPAIRED else "red")
        rows.append([mark, clean(one.get("kind", "")), *(clean(one.get(key, "")) for key in ("path", "detail"))])
    yield from table(rows, indent="  ")
