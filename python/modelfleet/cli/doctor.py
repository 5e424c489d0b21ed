"""``modelfleet doctor``: the tutorial's checklist, for this controller and for the hosts. Changes nothing.

A host's rows come from site.yml in check mode: a row passes when nothing of the
roles behind it would change.
"""

from __future__ import annotations

import importlib.metadata
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from ..catalog_files import SHIPPED, load_entries, read_located
from ..core.errors import ModelfleetError
from ..lockfile import LOCK_FILE, read_lock
from ..runner import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, RunResult
from .options import Options, checkout, pass_through
from .probe import accelerators
from .session import document, fact, host_names, of_host, proofs, run_verb
from .text import clean, count, joined, say, say_json, table

CONTROLLER = "controller"
COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True)
class Check:
    """A row: ``status`` is pass, warn or fail; ``cure`` says in one line what to do, empty where it passes."""

    id: str
    host: str
    title: str
    status: str
    measured: str
    cure: str = ""


@dataclass(frozen=True)
class _Item:
    id: str
    title: str
    roles: tuple[str, ...]
    fulfilled: str


ITEMS = (
    _Item("MF-HOST-002", "dependencies installed", ("accelerator", "inference_runtime"), "the runtime is complete"),
    _Item("MF-HOST-003", "directory tree made", ("model_store",), "the model store is as it should be"),
    _Item("MF-HOST-004", "models published", ("models",), "every wished model is in the store"),
    _Item("MF-HOST-005", "environment configured", ("env_file",), "the environment file is up to date"),
    _Item("MF-HOST-006", "installation verified", ("verification",), "every model has been proved"),
)


@click.command()
@pass_through
def command(options: Options) -> int:
    """Go through the checklist for this machine and the hosts of the inventory.

    Hardware verified, dependencies installed, directory tree made, environment configured, installation verified. Reads
    only. Exit code 0 where nothing fails, else 2.
    """
    result = run_verb(options, "site.yml", forced=("--check",))
    checks = [*controller_checks()]
    for host in host_names(result):
        checks += host_checks(result, host, apply_line(options))
    status = exit_code(result, checks)
    if options.as_json:
        answer = document("doctor", result)
        say_json({**answer, "checks": [asdict(check) for check in checks], "exit_code": status})
        return status
    rows = [[click.style(name, bold=True) for name in ("", "HOST", "CHECK", "FOUND", "WHAT TO DO")]]
    for check in checks:
        mark = click.style(check.status, fg=COLOURS[check.status])
        rows.append([mark, *(clean(cell) for cell in (check.host, check.title, check.measured, check.cure))])
    for line in table(rows):
        say(line)
    return status


def exit_code(result: RunResult, checks: Iterable[Check]) -> int:
    """Return 0 where nothing fails, else 2; a run that reached no host or was stopped keeps its code."""
    if result.error is not None or result.exit_code == EXIT_INTERRUPTED:
        return result.exit_code
    return EXIT_FAILED if any(check.status == "fail" for check in checks) else EXIT_OK


def apply_line(options: Options) -> str:
    """Return the command that cures, with the hosts that the user named."""
    words = ["./modelfleet", "apply"]
    for inventory in options.inventory:
        words += ["-i", inventory]
    if options.limit is not None:
        words += ["-l", options.limit]
    return shlex.join(words)


def controller_checks() -> Iterator[Check]:
    """Yield what this machine has of what a controller needs."""
    yield Check("MF-CTL-001", CONTROLLER, "Python 3.11 or newer", "pass", ".".join(map(str, sys.version_info[:3])))
    yield Check("MF-CTL-002", CONTROLLER, "ansible-core", "pass", importlib.metadata.version("ansible-core"))
    for number, program, need, cure in (
        (3, "ssh", "to reach other hosts", "install the package openssh-client"),
        (4, "git", "to update this checkout", "install the package git"),
        (5, "podman", "for the tests in containers only", "install the package podman, or let ./modelfleet test do it"),
    ):
        path, title = shutil.which(program), f"{program}, {need}"
        if path:
            yield Check(f"MF-CTL-{number:03}", CONTROLLER, title, "pass", path)
        else:
            yield Check(f"MF-CTL-{number:03}", CONTROLLER, title, "warn", "not found", cure)
    yield catalog_check(checkout())


def catalog_check(root: Path) -> Check:
    """Judge the shipped catalog and lock, as they lie in this checkout."""
    title = "catalog and lock"
    try:
        catalog = read_located(load_entries(root / SHIPPED), read_lock(root / LOCK_FILE))
    except ModelfleetError as error:
        return Check("MF-CTL-006", CONTROLLER, title, "fail", error.message, error.cure or "")
    variants = [variant for entry in catalog.entries.values() for variant in entry.variants.values()]
    pinned = sum(variant.locked for variant in variants)
    return Check(
        "MF-CTL-006",
        CONTROLLER,
        title,
        "pass",
        f"{count(len(catalog.entries), 'model')}, {pinned} of {len(variants)} variants pinned",
    )


def host_checks(result: RunResult, host: str, apply: str) -> Iterator[Check]:
    """Yield the checklist of one host."""
    profile = fact(result, host, "modelfleet_hardware")
    title = "hardware verified"
    if isinstance(profile, dict):
        yield Check("MF-HOST-001", host, title, "pass", hardware(profile))
    else:
        yield Check(
            "MF-HOST-001", host, title, "fail", _why_not(result, host), "put that right, then ./modelfleet doctor"
        )
    yield from readiness_checks(fact(result, host, "modelfleet_readiness"), host)
    for item in ITEMS:
        tasks = [task for task in of_host(result, host) if task.role in item.roles]
        failed = [task for task in tasks if task.status in ("failed", "unreachable") and not task.ignored]
        due = [task.task for task in tasks if task.changed and task.status == "ok"]
        status, measured, cure = "fail", "", f"put that right, then {apply}"
        if failed:
            measured = failed[0].message
        elif due:
            measured, cure = f"to do: {', '.join(due)}", apply
        elif not tasks:
            measured = f"not reached: {_why_not(result, host)}"
        else:
            status, measured, cure = "pass", item.fulfilled, ""
        if status == "pass" and "verification" in item.roles:
            measured = count(sum(1 for proof in proofs(result) if proof["host"] == host), "proof") + " on record"
        yield Check(item.id, host, item.title, status, measured, cure)


def readiness_checks(readiness: Any, host: str) -> Iterator[Check]:
    """Yield what of the host's readiness does not pass.

    A fault of a driver fails. Hardware below the profiles of requirements warns: inference on it is slow or small, not
    impossible, and ``accelerator_required_profile`` is there for those who want it refused.
    """
    found = readiness.get("checks") if isinstance(readiness, dict) else None
    for check in found if isinstance(found, list) else []:
        if not isinstance(check, dict) or check.get("status") not in ("warn", "fail"):
            continue
        texts = {name: str(check.get(name) or "") for name in ("id", "title", "measured", "required", "cure")}
        status = "fail" if check["status"] == "fail" and texts["id"].startswith("MF-DRV-") else "warn"
        measured = f"{texts['measured']} (wanted: {texts['required']})" if texts["required"] else texts["measured"]
        yield Check(texts["id"], host, f"{texts['id']} {texts['title']}", status, measured, texts["cure"])


def hardware(profile: dict[str, Any]) -> str:
    """Return a host's hardware in a few words."""
    cpu = profile.get("cpu") or {}
    cores = cpu.get("physical_cores") or cpu.get("logical_cores")
    found = accelerators(profile)
    return joined((count(cores, "core") if cores else "", "no accelerator" if found == "none" else found))


def _why_not(result: RunResult, host: str) -> str:
    for task in of_host(result, host):
        if task.status in ("failed", "unreachable") and not task.ignored:
            return task.message
    return "its role was left out (-t)"
