"""``modelfleet rollback``: the runtime's environment that was in use before, in use again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from ..runner import RunResult
from .apply import recap_lines
from .options import Options, pass_through
from .session import answer_of, document, host_names, run_verb
from .text import clean, say, say_json

_NAMED = ("llama_cpp_python", "torch")
"""What tells environments apart, where they have it."""


@click.command()
@pass_through
def command(options: Options) -> int:
    """Go back to the runtime's environment that was in use before the present one.

    It is beside the present one, so nothing is built or fetched. Later runs stay with it until another environment is
    wanted than the one that was left; a second rollback goes forward again. With --check it tells where to.
    """
    result = run_verb(options, "runtime_rollback.yml")
    moves = {host: move_of(result, host) for host in host_names(result)}
    if options.as_json:
        say_json(document("rollback", result, {host: {"rollback": move} for host, move in moves.items()}))
        return result.exit_code
    for host, move in moves.items():
        for line in lines(host, move, options.check):
            say(line)
    for line in recap_lines(result):
        say(line)
    return result.exit_code


def move_of(result: RunResult, host: str) -> dict[str, Any] | None:
    """Return from which environment to which a host went, None where it did not; the packages it has then."""
    said = answer_of(result, host, "modelfleet_runtime")
    diff = said.get("diff") if said else None
    if said is None or not isinstance(diff, dict):
        return None
    before, after = (str(diff.get(name, "")).strip().rpartition("/")[2] for name in ("before", "after"))
    packages = said.get("packages")
    return {"from": before, "to": after, "packages": packages if isinstance(packages, dict) else {}}


def lines(host: str, move: Mapping[str, Any] | None, check: bool) -> Iterator[str]:
    """Yield what is said of a host."""
    name = click.style(clean(host), bold=True)
    if move is None:
        yield f"{name}: {click.style('stays as it is', fg='red')}"
        return
    named = {str(key).replace("-", "_"): value for key, value in move["packages"].items()}
    has = ", ".join(f"{key.replace('_', '-')} {clean(named[key])}" for key in _NAMED if key in named)
    verb = "would go back" if check else "went back"
    yield f"{name}: {verb} from {clean(move['from'])} to {clean(move['to'])}" + (f" ({has})" if has else "")
