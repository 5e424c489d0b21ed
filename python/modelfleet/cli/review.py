"""A plan that is kept in a file, looked at by somebody, and then done exactly so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import ConfigurationError
from ..runner import RunResult
from .session import changes, host_names, task_name
from .text import clean

_CURE = "review a new one: ./modelfleet plan --out FILE"


def keep(document: Mapping[str, Any], path: str) -> None:
    """Write a plan. Raises ConfigurationError where the file cannot be written."""
    try:
        Path(path).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}", "name another file with --out") from error


def reviewed_hosts(path: str) -> dict[str, Any]:
    """Return what a kept plan says of each host. Raises ConfigurationError where it is none, or was incomplete."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}", _CURE) from error
    except ValueError:
        raise ConfigurationError(f"{path} is not JSON", _CURE) from None
    hosts = document.get("hosts") if isinstance(document, dict) and document.get("verb") == "plan" else None
    if not isinstance(hosts, dict) or not hosts:
        raise ConfigurationError(f"{path} is no plan of modelfleet", _CURE)
    for host, said in hosts.items():
        whole = isinstance(said, dict) and isinstance(said.get("plan"), dict) and isinstance(said.get("changes"), list)
        if not whole or said.get("failures"):
            raise ConfigurationError(f"{path}: the plan of {clean(host)} is incomplete, because a task failed", _CURE)
    return hosts


def first_difference(hosts: Mapping[str, Any], result: RunResult, limited: bool) -> str | None:
    """Return in one line what a run would do that was not reviewed, None where it is what was reviewed or less.

    What was done meanwhile is no difference. ``limited``: the user has named a part of the hosts.
    """
    for host in host_names(result):
        if host not in hosts:
            return f"{clean(host)} was not reviewed"
        known = hosts[host]["changes"]
        for task in changes(result, host):
            same = [one for one in known if isinstance(one, dict) and (one.get("role"), one.get("task")) == _key(task)]
            if not same:
                return f"{clean(host)}: {clean(task_name(task))} was not reviewed"
            if all(one.get("diff") != task.result.get("diff") for one in same):
                return f"{clean(host)}: {clean(task_name(task))} would make another change than the reviewed one"
    missing = [host for host in hosts if host not in host_names(result)]
    return f"{clean(missing[0])} was reviewed and is not in this run" if missing and not limited else None


def _key(task: Any) -> tuple[str, str]:
    return task.role, task.task
