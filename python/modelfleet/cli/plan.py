"""``modelfleet plan``: what apply would do, host by host, task by task, and what models go where. Changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..core.errors import ConfigurationError
from ..core.units import format_bytes
from .fleet_view import explained, fetched, matrix, models_of, problems, totals
from .options import Options, pass_through
from .session import SCHEMA_VERSION, changes, document, fact, host_names, run_verb, task_name
from .text import clean, complain, count, diff_lines, say, say_json

if TYPE_CHECKING:
    from ..runner import RunResult

EXIT_DIFFERENT = 3
FILE = click.Path(dir_okay=False)


@click.command()
@click.option("--out", type=FILE, metavar="FILE", help="Keep the plan; apply FILE does exactly that, or refuses.")
@click.option("--exit-code", "tell_change", is_flag=True, help="Exit 3 where something would change.")
@click.option("--explain", metavar="HOST", help="Show every candidate for a host's models, and why not.")
@click.option("--simulate", multiple=True, metavar="[NAME=]MACHINE", help='Plan for "2x RTX 3090"; repeatable.')
@click.option(
    "--replay", multiple=True, type=click.Path(exists=True), metavar="FILE", help="Plan for a recorded machine."
)
@click.option(
    "--want", multiple=True, metavar="MODEL[:QUANTIZATION]", help="Wish this instead, or all-chat; repeatable."
)
@pass_through
def command(
    options: Options,
    out: str | None,
    tell_change: bool,
    explain: str | None,
    simulate: tuple[str, ...],
    replay: tuple[str, ...],
    want: tuple[str, ...],
) -> int:
    """Show what apply would change, which models go where, and how many bytes it would fetch.

    This is ansible-playbook --check --diff, told for people: it reads the hosts and changes nothing on them. With
    --simulate or --replay it plans for machines that aren't there, and touches no host.
    """
    if simulate or replay:
        if out is not None:
            raise click.UsageError(
                "--out keeps a plan that apply can do: it goes neither with --simulate nor --replay."
            )
        from .simulated_plan import plans_of_machines

        return _show_simulated(plans_of_machines(options, simulate, replay, want), options, explain, tell_change)
    if want:
        raise click.UsageError("--want goes with --simulate or --replay; for hosts set models_wanted.")
    result = run_verb(options, "site.yml", forced=("--check", "--diff"))
    plans = {host: fact(result, host, "modelfleet_plan") for host in host_names(result)}
    if out is not None and result.recap:
        from .review import keep

        keep(plan_document(result), out)
    if options.as_json:
        say_json(plan_document(result))
    elif explain is not None:
        _explain(plans, explain)
    else:
        for host in host_names(result):
            _say_host(result, host)
        _say_fleet(plans)
    if out is not None and result.recap:
        complain(f"{out}: the plan; look through it, then ./modelfleet apply {out}")
    differs = any(changes(result, host) for host in host_names(result))
    return EXIT_DIFFERENT if tell_change and differs and result.exit_code == 0 else result.exit_code


def _say_host(result: RunResult, host: str) -> None:
    wanted = changes(result, host)
    name = click.style(clean(host), bold=True)
    recap = result.recap.get(host)
    if recap is not None and (recap.failed or recap.unreachable):
        say(f"{name}: the plan is incomplete, because a task failed")
    elif not wanted:
        say(f"{name}: nothing to change")
    else:
        size = bytes_to_fetch(result, host)
        fetch = f", {format_bytes(size)} to fetch" if size else ""
        say(f"{name}: {count(len(wanted), 'task')} would change it{fetch}")
    for task in wanted:
        say(f"  {clean(task_name(task))}")
        for line in diff_lines(task.result.get("diff")):
            say(f"    {line}")


def _say_fleet(plans: dict[str, Any]) -> None:
    if not any(models_of(plan) for plan in plans.values()):
        return
    say()
    for line in (*matrix(plans), "", *problems(plans), totals(plans)):
        say(line)


def _show_simulated(plans: dict[str, Any], options: Options, explain: str | None, tell_change: bool) -> int:
    if options.as_json:
        hosts = {
            name: {"recap": None, "failures": [], "changes": [], "plan": plan, "bytes_to_fetch": fetched(plan)}
            for name, plan in plans.items()
        }
        answer = {"schema_version": SCHEMA_VERSION, "verb": "plan", "simulated": True, "hosts": hosts}
        total = sum(fetched(plan) for plan in plans.values())
        say_json({**answer, "proofs": [], "changed": {}, "error": None, "exit_code": 0, "bytes_to_fetch": total})
    elif explain is not None:
        _explain(plans, explain)
    else:
        for line in (*matrix(plans), "", *problems(plans), totals(plans)):
            say(line)
    return EXIT_DIFFERENT if tell_change and any(fetched(plan) for plan in plans.values()) else 0


def _explain(plans: dict[str, Any], host: str) -> None:
    if host not in plans:
        known = ", ".join(clean(name) for name in list(plans)[:5]) or "none"
        raise ConfigurationError(f"--explain: no plan was made for {clean(host)}", f"planned were: {known}")
    for line in explained(host, plans[host]):
        say(line)


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
    return fetched(fact(result, host, "modelfleet_plan"))
