"""``modelfleet apply``: everything, from the bare machine to the proof."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..core.errors import ConfigurationError
from ..runner import RunResult
from .options import Options, pass_through
from .proofs import proof_lines
from .session import answer_of, document, host_names, proofs, run_verb
from .text import clean, complain, say, say_json, table

# Where core.store.layout puts the store of an account that is not root.
UNPRIVILEGED = "/.local/share/ashley-ai/"


@click.command()
@click.argument("reviewed", required=False, metavar="[FILE]", type=click.Path(exists=True, dir_okay=False))
@pass_through
def command(options: Options, reviewed: str | None) -> int:
    """Bring the hosts to proven inference.

    Probes the hardware, makes the model store, installs the runtime, fetches the models, writes the environment file
    and proves each model by running it. What is already so is left alone.

    With a FILE of plan --out it does exactly what was reviewed: it looks at the hosts again first, and refuses, naming
    the first difference, where it would do anything else.
    """
    if reviewed is not None:
        options = bound_to(options, reviewed)
    result = run_verb(options, "site.yml")
    if options.as_json:
        say_json(document("apply", result, {host: {"store": store(result, host)} for host in host_names(result)}))
        return result.exit_code
    for line in recap_lines(result):
        say(line)
    for host in host_names(result):
        where = store(result, host)
        if where is not None:
            say(f"{clean(host)}: {store_sentence(where)}")
    said = proofs(result)
    if said:
        say()
    for line in proof_lines(said):
        say(line)
    return result.exit_code


def bound_to(options: Options, path: str) -> Options:
    """Return ``options`` for a run that does what the plan in ``path`` says, after a look at the hosts.

    Raises ConfigurationError where they would be changed in any other way, Exit where they could not be looked at.
    """
    from .review import first_difference, reviewed_hosts

    hosts = reviewed_hosts(path)
    plan_file = json.dumps({"models_plan_file": str(Path(path).resolve())})
    options = replace(options, extra_vars=(*options.extra_vars, plan_file))
    if options.show_command:
        return options
    look = run_verb(options, "site.yml", forced=("--check", "--diff"))
    if look.exit_code:
        complain(f"modelfleet: {path} was not applied, because the look at the hosts before it did not end well")
        raise click.exceptions.Exit(look.exit_code)
    difference = first_difference(hosts, look, limited=options.limit is not None)
    if difference is not None:
        raise ConfigurationError(
            f"{path} was not applied: {difference}", "review a new plan: ./modelfleet plan --out FILE"
        )
    return options


def store(result: RunResult, host: str) -> dict[str, Any] | None:
    """Return where the host's store is and whose it is, or None where that was not reached."""
    answer = answer_of(result, host, "modelfleet_store")
    if answer is None or not isinstance(answer.get("path"), str):
        return None
    return {
        "path": answer["path"],
        "owner": answer.get("owner"),
        "unprivileged": UNPRIVILEGED in answer["path"],
    }


def store_sentence(where: dict[str, Any]) -> str:
    """Return one line about a store."""
    owner = f", owned by {clean(where['owner'])}" if where.get("owner") else ""
    line = f"the model store is {clean(where['path'])}{owner}"
    if where["unprivileged"]:
        line += "; not root there, so it is in the account's home: become root (-b, -K) for /opt/ashley-ai/models"
    return line


def recap_lines(result: RunResult) -> Iterator[str]:
    """Yield a line for each host: how many tasks ended in which way."""
    rows = []
    for host, recap in result.recap.items():
        bad = recap.failed or recap.unreachable
        rows.append(
            [
                click.style(clean(host), fg="red" if bad else "yellow" if recap.changed else "green", bold=True),
                f"ok={recap.ok}",
                _counted("changed", recap.changed, "yellow"),
                _counted("failed", recap.failed, "red"),
                _counted("unreachable", recap.unreachable, "red"),
            ]
        )
    yield from table(rows)


def _counted(name: str, number: int, colour: str) -> str:
    return click.style(f"{name}={number}", fg=colour) if number else f"{name}=0"
