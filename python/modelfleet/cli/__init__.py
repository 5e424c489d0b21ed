"""The command line: one file a verb, each imported when it is called.

Answers go to standard output, what goes on and what went wrong to standard
error. Exit codes: Ansible's (0 ok, 1 no host matched, 2 a host failed, 4 a host
could not be reached, 99 interrupted), and 64 where the command itself is wrong.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from .. import __version__
from ..core.errors import ModelfleetError

EXIT_ERROR = 1
EXIT_USAGE = 64
EXIT_INTERRUPTED = 99

VERBS = {
    "apply": "Bring the hosts to proven inference.",
    "plan": "Show what apply would change and fetch.",
    "probe": "Show the hardware of the hosts.",
    "rollback": "Go back to the runtime that was in use before.",
    "verify": "Prove that the models run, and show the proofs.",
    "audit": "Hash every published file again, and repair what is broken.",
    "prune": "Show, and with --yes remove, what no wish keeps.",
    "wheelhouse": "List what hosts install from, or make it for those cut off.",
    "lock": "Pin what the catalog's sources hold, or tell what has moved.",
    "inspect": "Judge and describe a model file, or refuse it.",
    "estimate": "Tell the memory that a model needs, by device.",
    "doctor": "Go through the checklist; changes nothing.",
    "test": "Run modelfleet's own tests.",
}


class LazyGroup(click.Group):
    """A group whose verbs are imported when they run; its help needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order in which a user meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one verb."""
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f".{cmd_name}", __name__).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line and leave with the exit code that the verb returns."""
        extra["standalone_mode"] = False
        extra["prog_name"] = extra.get("prog_name") or "modelfleet"
        try:
            status = super().main(*args, **extra)
            sys.stdout.flush()
        except click.UsageError as error:
            error.show()
            status = EXIT_USAGE
        except click.ClickException as error:
            error.show()
            status = EXIT_ERROR
        except ModelfleetError as error:
            click.echo(f"modelfleet: {error}", err=True)
            status = EXIT_ERROR
        except (click.Abort, KeyboardInterrupt):
            click.echo("modelfleet: interrupted", err=True)
            status = EXIT_INTERRUPTED
        except BrokenPipeError:
            # Whoever read the answer has read enough; Python would complain when it closes standard output.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = EXIT_ERROR
        sys.exit(status if isinstance(status, int) else 0)


@click.group("modelfleet", cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="modelfleet")
def main() -> None:
    """Takes fleets of workstations from a bare operating system to proven local inference.

    With no inventory named it works on this machine. Every verb that touches hosts is a playbook: --show-command
    prints the ansible-playbook line that does the same.
    """
