"""``modelfleet test``: everything that checks this repository, set up from nothing.

Only in a checkout. What the stages need is installed first: the ``test`` extra into the running environment, and, as
root on Debian or Ubuntu, the programs for containers; elsewhere the tests in containers are skipped and say so.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from ..core.units import format_duration

CHECKOUT = Path(__file__).resolve().parents[3]
CONTAINERS = "tests/support/containers.py"


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: ``passed``, ``failed`` or ``skipped``, one line about it, and a line a failed test."""

    verdict: str
    note: str = ""
    failures: Sequence[str] = ()


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    long: bool
    pytest_arguments: Sequence[str]


def environment() -> dict[str, str]:
    """Return the environment of every stage: this Python's programs first, this checkout's wiring of Ansible."""
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": programs, "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg")}


def run(*command: str, folder: Path = CHECKOUT) -> Outcome:
    """Run a program with its output shown as it comes."""
    status = subprocess.call(command, cwd=folder, env=environment(), stdin=subprocess.DEVNULL)
    return Outcome("passed") if status == 0 else Outcome("failed", f"exit status {status}")


def run_pytest(options: Options) -> Outcome:
    """Run pytest, show its output and keep what failed and its closing line, which are far up by the end."""
    command = [sys.executable, "-m", "pytest", *(["--long"] if options.long else []), *options.pytest_arguments]
    if sys.stdout.isatty():
        command.append("--color=yes")
    closing = ""
    failures: list[str] = []
    with subprocess.Popen(
        command, cwd=CHECKOUT, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            click.echo(line, nl=False)
            closing = line.strip() or closing
            if (plain := click.unstyle(line)).startswith(("FAILED ", "ERROR ")):
                failures.append(plain.strip())
    verdict = "passed" if process.returncode == 0 else "failed"
    return Outcome(verdict, click.unstyle(closing).strip("= "), failures)


def prepare_containers(options: Options) -> Outcome:
    """Install what containers need and build their images, where that can be."""
    command = [sys.executable, CONTAINERS, "prepare"]
    done = subprocess.run(command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    reason = done.stdout.strip()
    if done.returncode:
        return Outcome("failed", f"exit status {done.returncode}")
    return Outcome("skipped", reason) if reason else Outcome("passed")


def run_molecule(options: Options) -> Outcome:
    """Run every scenario of molecule, where there can be containers."""
    command = [sys.executable, CONTAINERS, "reason"]
    reason = subprocess.run(command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True).stdout
    if reason.strip():
        return Outcome("skipped", reason.strip())
    outcome = run("molecule", "test", "--all")
    if options.long and outcome.verdict == "passed":
        # Scenarios that take over ten minutes lie where molecule does not look by itself.
        return run("env", "MOLECULE_GLOB=molecule/long/*/molecule.yml", "molecule", "test", "--all")
    return outcome


STAGES: dict[str, Callable[[Options], Outcome]] = {
    "ruff": lambda options: run("ruff", "check"),
    "format": lambda options: run("ruff", "format", "--check"),
    "mypy": lambda options: run("mypy"),
    "ansible-lint": lambda options: run("ansible-lint", "--offline"),
    "sanity": lambda options: run(sys.executable, "-m", "support.sanity", folder=CHECKOUT / "tests"),
    "containers": prepare_containers,
    "pytest": run_pytest,
    "molecule": run_molecule,
}


def install_test_extra() -> None:
    """Install the ``test`` extra into the running environment unless that was done for this pyproject.toml."""
    wanted = (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")
    stamp = Path(sys.prefix) / "modelfleet-test.stamp"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    if sys.prefix == sys.base_prefix:
        raise click.ClickException("this Python is no virtual environment; start the tests with ./modelfleet test")
    heading("install the packages for the tests")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run(
        [*pip, "-e", ".[controller,test]"],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        click.echo(done.stdout, err=True)
        raise click.ClickException("pip could not install the packages for the tests; its words are above")
    stamp.write_text(wanted, encoding="utf-8")


def heading(text: str) -> None:
    """Show on standard error what comes."""
    click.secho(f"== {text}", err=True, bold=True)


@click.command()
@click.option("--long", "long_tests", is_flag=True, help="Run the tests that take minutes, too.")
@click.option("--only", type=click.Choice(list(STAGES)), multiple=True, help="Run this stage only; repeatable.")
@click.argument("pytest_arguments", nargs=-1, type=click.UNPROCESSED)
def command(long_tests: bool, only: tuple[str, ...], pytest_arguments: tuple[str, ...]) -> int:
    """Check this checkout with every tool and test there is.

    Sets up all it needs. Arguments after -- go to pytest. Exits with 1 when a stage failed; the others run even so.
    """
    if not (CHECKOUT / "pyproject.toml").exists():
        raise click.UsageError("the tests are in the repository: clone it and run ./modelfleet test there")
    started = time.monotonic()
    install_test_extra()
    results: list[tuple[str, Outcome, float]] = []
    for name, stage in STAGES.items():
        if only and name not in only:
            continue
        heading(name)
        begun = time.monotonic()
        outcome = stage(Options(long_tests, pytest_arguments))
        results.append((name, outcome, time.monotonic() - begun))
        click.echo(f"{name} {outcome.verdict} in {format_duration(results[-1][2])}", err=True)
    heading(f"all in {format_duration(time.monotonic() - started)}")
    for name, outcome, seconds in results:
        colour = {"passed": "green", "failed": "red", "skipped": "yellow"}[outcome.verdict]
        verdict = click.style(f"{outcome.verdict:8}", fg=colour)
        click.echo(f"{name:14}{verdict}{format_duration(seconds):>8}  {outcome.note}".rstrip(), err=True)
        for line in outcome.failures:
            click.echo(f"  {line}", err=True)
    return 1 if any(outcome.verdict == "failed" for _, outcome, _ in results) else 0
