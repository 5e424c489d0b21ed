"""``modelfleet verify``: the proofs alone."""

from __future__ import annotations

import click

from .apply import recap_lines
from .options import Options, pass_through
from .proofs import proof_lines
from .session import document, proofs, run_verb
from .text import say, say_json


@click.command()
@pass_through
def command(options: Options) -> int:
    """Prove that the models of the hosts run, and show the proofs.

    A proof whose grounds (kernel, driver, packages, model, prompt) are unchanged is shown from its record, not run
    again.
    """
    result = run_verb(options, "verify.yml")
    if options.as_json:
        say_json(document("verify", result))
        return result.exit_code
    said = proofs(result)
    for line in proof_lines(said):
        say(line)
    if said:
        say()
    for line in recap_lines(result):
        say(line)
    return result.exit_code
