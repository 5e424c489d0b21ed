"""``modelfleet verify``: the proofs alone."""

from __future__ import annotations

from typing import Any

import click

from ..runner import RunResult
from .apply import recap_lines
from .options import Options, pass_through
from .proofs import installation_lines, memory_lines, proof_lines, unproved_lines
from .session import document, host_names, of_host, proofs, run_verb
from .text import say, say_json


@click.command()
@pass_through
def command(options: Options) -> int:
    """Prove that the stacks and the models of the hosts work, and show the proofs.

    A proof whose grounds (kernel, driver, packages, model, check, placement) are unchanged is shown from its record,
    not run again.
    """
    result = run_verb(options, "verify.yml")
    found = about_hosts(result)
    if options.as_json:
        say_json(document("verify", result, found))
        return result.exit_code
    said = proofs(result)
    for lines in (
        (line for host, told in found.items() for line in installation_lines(host, told["installation"])),
        proof_lines(said),
        (line for host, told in found.items() for line in unproved_lines(host, told["unproved"])),
        (line for host, told in found.items() for line in memory_lines(host, told["memory"])),
        recap_lines(result),
    ):
        shown = list(lines)
        for line in shown:
            say(line)
        if shown:
            say()
    return result.exit_code


def about_hosts(result: RunResult) -> dict[str, dict[str, Any]]:
    """Return what the proofs said of each host beside its models: installation, unproved models, memory."""
    found: dict[str, dict[str, Any]] = {}
    for host in host_names(result):
        for task in of_host(result, host):
            if "unproved" in task.result:
                found[host] = {name: task.result.get(name) for name in ("installation", "unproved", "memory")}
    return found
