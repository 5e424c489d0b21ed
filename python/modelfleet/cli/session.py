"""One run of a playbook for a verb: the command, the password, the view, and what the answer is made of."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import click

from ..runner import EXIT_INTERRUPTED, EXIT_OK, RunResult, TaskResult, playbook_program, run_playbook
from .live import make_view, wants_colour
from .options import Options, ansible_environment, checkout, command_line, playbook_arguments
from .text import complain

SCHEMA_VERSION = 1
INTERRUPTED = (
    "interrupted; a fetch or a build that was under way on a host goes on there, "
    "and the same command takes it up where it is"
)


def run_verb(options: Options, playbook: str, forced: Sequence[str] = ()) -> RunResult:
    """Run ``playbook`` (a file of playbooks/) and show what goes on. With --show-command prints the line and leaves.

    A run that reached no host has said so when this returns. Raises
    ConfigurationError where there is no checkout or no Ansible.
    """
    root = checkout()
    added = ansible_environment(root, os.environ)
    arguments = playbook_arguments(root, playbook, options, os.environ, forced)
    if options.show_command:
        click.echo(command_line(playbook_program(), arguments, added))
        raise click.exceptions.Exit(EXIT_OK)
    password = None
    if options.ask_become_pass:
        password = click.prompt("Password for becoming root", hide_input=True, err=True)
    if not wants_colour():
        added["ANSIBLE_NOCOLOR"] = "1"
    view = make_view(verbose=options.verbose > 0)
    try:
        result = run_playbook(arguments, added, view.handle, password)
    finally:
        view.close()
    if result.error is not None:
        about_hosts = "inventory" in result.error.lower()
        complain(f"modelfleet: {result.error}" + ("; name hosts with -i and -l" if about_hosts else ""))
    if result.exit_code == EXIT_INTERRUPTED:
        complain(f"modelfleet: {INTERRUPTED}")
    return result


def document(verb: str, result: RunResult, hosts: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return the answer as ``--json`` prints it; ``hosts`` adds to what is said of each host."""
    said: dict[str, dict[str, Any]] = {}
    for host in host_names(result):
        recap = result.recap.get(host)
        said[host] = {
            "recap": asdict(recap) if recap is not None else None,
            "failures": [
                {"task": failed.task, "role": failed.role, "status": failed.status, "message": failed.message}
                for failed in of_host(result, host)
                if failed.status in ("failed", "unreachable") and not failed.ignored
            ],
            **(hosts or {}).get(host, {}),
        }
    return {
        "schema_version": SCHEMA_VERSION,
        "verb": verb,
        "hosts": said,
        "proofs": proofs(result),
        "changed": {host: [task_name(task) for task in changes(result, host)] for host in host_names(result)},
        "error": result.error,
        "exit_code": result.exit_code,
    }


def host_names(result: RunResult) -> list[str]:
    """Return the hosts of a run, in the order in which they were met."""
    return list(dict.fromkeys([*(task.host for task in result.results), *result.recap]))


def of_host(result: RunResult, host: str) -> Iterable[TaskResult]:
    """Return what a host's tasks came to."""
    return (task for task in result.results if task.host == host)


def changes(result: RunResult, host: str) -> list[TaskResult]:
    """Return the tasks that changed, or in check mode would change, a host."""
    return [task for task in of_host(result, host) if task.changed and task.status == "ok"]


def task_name(task: TaskResult) -> str:
    """Return ``role: task``, or the task alone where it is in no role."""
    return f"{task.role}: {task.task}" if task.role else task.task


def answer_of(result: RunResult, host: str, module: str) -> dict[str, Any] | None:
    """Return what ``module`` answered last on ``host``, or None where it did not succeed there."""
    found: dict[str, Any] | None = None
    for task in of_host(result, host):
        if task.action.rpartition(".")[2] == module and task.status == "ok":
            found = dict(task.result)
    return found


def fact(result: RunResult, host: str, name: str) -> Any:
    """Return the last value of the fact ``name`` that a task of ``host`` set, or None."""
    value = None
    for task in of_host(result, host):
        facts = task.result.get("ansible_facts")
        if isinstance(facts, dict) and name in facts:
            value = facts[name]
    return value


def proofs(result: RunResult) -> list[dict[str, Any]]:
    """Return the proofs of all hosts, each with its host."""
    found: list[dict[str, Any]] = []
    for task in result.results:
        said = task.result.get("proofs")
        for proof in said if isinstance(said, list) else []:
            if isinstance(proof, dict):
                found.append({"host": task.host, **proof})
    return found
