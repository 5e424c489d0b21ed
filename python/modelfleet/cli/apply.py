"""``modelfleet apply``: everything, from the bare machine to the proof."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from ..runner import RunResult
from .options import Options, pass_through
from .proofs import proof_lines
from .session import answer_of, document, host_names, proofs, run_verb
from .text import clean, say, say_json, table

# Where core.store.layout puts the store of an account that is not root.
UNPRIVILEGED = "/.local/share/ashley-ai/"


@click.command()
@pass_through
def command(options: Options) -> int:
    """Bring the hosts to proven inference.

    Probes the hardware, makes the model store, installs the runtime, fetches the models, writes the environment file
    and proves each model by running it. What is already so is left alone.
    """
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
