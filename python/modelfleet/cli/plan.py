"""``modelfleet plan``: what apply would do, host by host, task by task. Changes nothing."""

from __future__ import annotations

from typing import Any

import click

from ..core.units import format_bytes
from ..runner import RunResult
from .options import Options, pass_through
from .session import changes, document, fact, host_names, run_verb, task_name
from .text import clean, count, diff_lines, say, say_json


@click.command()
@pass_through
def command(options: Options) -> int:
    """Show what apply would change, and how many bytes it would fetch.

    This is ansible-playbook --check --diff, told for people: it reads the hosts and changes nothing on them.
    """
    result = run_verb(options, "site.yml", forced=("--check", "--diff"))
    if options.as_json:
        say_json(plan_document(result))
        return result.exit_code
    for host in host_names(result):
        _say_host(result, host)
    total = sum(bytes_to_fetch(result, host) for host in host_names(result))
    if len(result.recap) > 1:
        say(f"{count(len(result.recap), 'host')}: {format_bytes(total)} to fetch")
    return result.exit_code


def _say_host(result: RunResult, host: str) -> None:
    wanted = changes(result, host)
    name = click.style(clean(host), bold=True)
    recap = result.recap.get(host)
    if recap is not None and (recap.failed or recap.unreachable):
        say(f"{name}: the plan is incomplete, because a task failed")
    elif not wanted:
        say(f"{name}: nothing to change")
    else:
        fetched = bytes_to_fetch(result, host)
        fetch = f", {format_bytes(fetched)} to fetch" if fetched else ""
        say(f"{name}: {count(len(wanted), 'task')} would change it{fetch}")
    for task in wanted:
        say(f"  {clean(task_name(task))}")
        for line in diff_lines(task.result.get("diff")):
            say(f"    {line}")
    for model in host_models(result, host):
        if model.get("action") == "refuse":
            reason = f"{clean(model.get('model'))} is refused: {clean(model.get('reason'))}"
            say("  " + click.style(reason, fg="red"))


def plan_document(result: RunResult) -> dict[str, Any]:
    """Return the plan as one JSON document."""
    hosts: dict[str, dict[str, Any]] = {}
    for host in host_names(result):
        hosts[host] = {
            "changes": [
                {"task": task.task, "role": task.role, "action": task.action, "diff": task.result.get("diff")}
                for task in changes(result, host)
            ],
            "plan": fact(result, host, "modelfleet_plan"),
            "bytes_to_fetch": bytes_to_fetch(result, host),
        }
    answer = document("plan", result, hosts)
    answer["bytes_to_fetch"] = sum(host["bytes_to_fetch"] for host in hosts.values())
    return answer


def bytes_to_fetch(result: RunResult, host: str) -> int:
    """Return how many bytes of models the host would fetch."""
    plan = fact(result, host, "modelfleet_plan")
    value = plan.get("bytes_to_fetch") if isinstance(plan, dict) else None
    return value if isinstance(value, int) else 0


def host_models(result: RunResult, host: str) -> list[dict[str, Any]]:
    """Return what the plan says of each model."""
    plan = fact(result, host, "modelfleet_plan")
    models = plan.get("models") if isinstance(plan, dict) else None
    return [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []
