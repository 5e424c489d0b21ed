"""The options that every verb passes on to ansible-playbook, and the command line that they make."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..core.errors import ConfigurationError

DEFAULT_INVENTORY = "inventory/localhost.yml"


@dataclass(frozen=True)
class Options:
    """What the user said, in ansible-playbook's terms, and how the answer is wanted."""

    inventory: tuple[str, ...] = ()
    limit: str | None = None
    tags: tuple[str, ...] = ()
    check: bool = False
    diff: bool = False
    extra_vars: tuple[str, ...] = ()
    ask_become_pass: bool = False
    become: bool = False
    forks: int | None = None
    verbose: int = 0
    show_command: bool = False
    as_json: bool = False


def pass_through(function: Callable[..., int]) -> Callable[..., Any]:
    """Give a verb the common options; it is called with them as one Options object."""

    @functools.wraps(function)
    def call(**values: Any) -> int:
        names = Options.__dataclass_fields__
        options = Options(**{name: values.pop(name) for name in list(values) if name in names})
        return function(options, **values)

    decorated: Callable[..., Any] = call
    for option in reversed(
        (
            click.option(
                "-i",
                "--inventory",
                multiple=True,
                metavar="PATH|HOSTS",
                help="Inventory file, or host names with a comma at the end; repeatable. Default: this machine.",
            ),
            click.option("-l", "--limit", metavar="PATTERN", help="Only these hosts of the inventory."),
            click.option("-t", "--tags", multiple=True, metavar="TAGS", help="Only tasks with these tags; repeatable."),
            click.option("-C", "--check", is_flag=True, help="Change nothing; say what would change."),
            click.option("-D", "--diff", is_flag=True, help="Show differences."),
            click.option(
                "-e", "--extra-vars", multiple=True, metavar="VARS", help="key=value, JSON or @file; repeatable."
            ),
            click.option("-b", "--become", is_flag=True, help="Become root on the hosts."),
            click.option("-K", "--ask-become-pass", is_flag=True, help="Ask once for the password of becoming root."),
            click.option("-f", "--forks", type=click.IntRange(min=1), metavar="N", help="Hosts at the same time."),
            click.option("-v", "--verbose", count=True, help="Show Ansible's own output; -vvv shows more of it."),
            click.option("--show-command", is_flag=True, help="Print the ansible-playbook line and leave."),
            click.option("--json", "as_json", is_flag=True, help="Answer with one JSON document."),
        )
    ):
        decorated = option(decorated)
    return decorated


def checkout() -> Path:
    """Return the folder that holds ansible.cfg and playbooks/. Raises ConfigurationError where there is none."""
    root = Path(__file__).resolve().parents[3]
    if not (root / "ansible.cfg").is_file() or not (root / "playbooks").is_dir():
        raise ConfigurationError(
            "the playbooks are not beside this package",
            'run ./modelfleet in a checkout, or pip install -e ".[controller]"',
        )
    return root


def ansible_environment(root: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return what has to be added to ``environment``: the checkout's settings, unless the user has named others."""
    return {} if environment.get("ANSIBLE_CONFIG") else {"ANSIBLE_CONFIG": str(root / "ansible.cfg")}


def inventory_arguments(root: Path, options: Options, environment: Mapping[str, str]) -> list[str]:
    """Return the arguments that name the inventory: the user's, else this machine, unless the settings name one."""
    inventories = options.inventory
    if not inventories and not environment.get("ANSIBLE_CONFIG") and not environment.get("ANSIBLE_INVENTORY"):
        inventories = (str(root / DEFAULT_INVENTORY),)
    return [word for inventory in inventories for word in ("-i", inventory)]


def playbook_arguments(
    root: Path, playbook: str, options: Options, environment: Mapping[str, str], forced: Sequence[str] = ()
) -> list[str]:
    """Return the arguments of ansible-playbook: the user's options, those that the verb forces, the playbook."""
    arguments = inventory_arguments(root, options, environment)
    if options.limit is not None:
        arguments += ["--limit", options.limit]
    for tags in options.tags:
        arguments += ["--tags", tags]
    if options.check or "--check" in forced:
        arguments.append("--check")
    if options.diff or "--diff" in forced:
        arguments.append("--diff")
    for variables in options.extra_vars:
        arguments += ["--extra-vars", variables]
    if options.become:
        arguments.append("--become")
    if options.ask_become_pass:
        arguments.append("--ask-become-pass")
    if options.forks is not None:
        arguments += ["--forks", str(options.forks)]
    if options.verbose:
        arguments.append("-" + "v" * options.verbose)
    return [*arguments, str(root / "playbooks" / playbook)]


def command_line(program: Sequence[str], arguments: Sequence[str], added: Mapping[str, str]) -> str:
    """Return the line that a shell takes, from any directory, to do the same."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in added.items()]
    return " ".join([*variables, shlex.join([*program, *arguments])])
