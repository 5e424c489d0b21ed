"""Text for a terminal: what hosts said made harmless, tables, amounts. Imports nothing heavy."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import click

from ..core.units import format_bytes, format_duration

DIFF_LINE_LIMIT = 400


def clean(text: object) -> str:
    """Return ``text`` in one line that a terminal cannot be steered by.

    Control, formatting and private-use characters (escape sequences, bells,
    line breaks, changes of direction) come out as escapes; only spaces and
    printable characters stay.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in str(text)
    )


def use_colour(stream: IO[Any]) -> bool:
    """Tell whether ``stream`` is a terminal whose user has not asked for plain text (NO_COLOR)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def say(text: str = "") -> None:
    """Print a line of the answer on standard output."""
    click.echo(text, color=use_colour(sys.stdout))


def complain(text: str) -> None:
    """Print a line on standard error: a problem, or what goes on."""
    click.echo(text, err=True, color=use_colour(sys.stderr))


def say_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document on standard output; ASCII only, so that nothing in it can steer a terminal."""
    click.echo(json.dumps(document, indent=2, sort_keys=False))


def table(rows: Sequence[Sequence[str]], indent: str = "") -> Iterator[str]:
    """Yield ``rows`` as lines with aligned columns. Cells may be styled; their widths are counted without."""
    widths: list[int] = []
    for row in rows:
        for column, cell in enumerate(row):
            width = len(click.unstyle(cell))
            if column == len(widths):
                widths.append(width)
            widths[column] = max(widths[column], width)
    for row in rows:
        cells = [cell + " " * (widths[column] - len(click.unstyle(cell))) for column, cell in enumerate(row)]
        yield (indent + "  ".join(cells)).rstrip()


def count(number: int, noun: str) -> str:
    """Return ``1 host``, ``3 hosts``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def amount(done: float | None, total: float | None, unit: str | None) -> str:
    """Return how far something is: ``12.0 MiB of 93.8 MiB``, ``142 of 381 steps``, or nothing where it is unknown."""
    if done is None:
        return ""
    if unit == "bytes":
        return format_bytes(done) + (f" of {format_bytes(total)}" if total else "")
    return f"{done:g}" + (f" of {total:g}" if total else "") + (f" {unit}" if unit else "")


def speed(rate: float | None, unit: str | None) -> str:
    """Return a rate per second, or nothing where it is unknown."""
    if rate is None:
        return ""
    return f"{format_bytes(rate)}/s" if unit == "bytes" else f"{rate:.1f} {unit or ''}".rstrip() + "/s"


def time_left(seconds: float | None) -> str:
    """Return ``20s left``, or nothing where it is unknown."""
    return "" if seconds is None else f"{format_duration(seconds)} left"


def diff_lines(diff: object) -> Iterator[str]:
    """Yield a module's diff (what Ansible shows under ``--diff``) as styled lines, at most DIFF_LINE_LIMIT of them."""
    shown = 0
    for entry in diff if isinstance(diff, list) else [diff]:
        if not isinstance(entry, dict):
            continue
        for line in _entry_lines(entry):
            if shown == DIFF_LINE_LIMIT:
                yield "(more; --show-command gives the command that prints all of it)"
                return
            shown += 1
            yield line


def _entry_lines(entry: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(entry.get("prepared"), str):
        for line in entry["prepared"].splitlines():
            yield _styled(clean(line))
        return
    before, after = _as_lines(entry.get("before")), _as_lines(entry.get("after"))
    header = entry.get("after_header") or entry.get("before_header")
    changes = list(difflib.unified_diff(before, after, n=1, lineterm=""))[2:]
    if header and changes:
        yield clean(header)
    for line in changes:
        if not line.startswith("@@"):
            yield _styled(clean(line))


def _as_lines(value: object) -> list[str]:
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return value.splitlines()
    return list(_flat(value))


def _flat(value: object, indent: str = "") -> Iterator[str]:
    """Yield a structure as the lines of a YAML-like outline: easier to compare than JSON's brackets."""
    if isinstance(value, dict):
        for key in value:
            yield from _named(f"{indent}{key}:", value[key], indent)
    elif isinstance(value, list):
        for item in value:
            yield from _named(f"{indent}-", item, indent)
    else:
        yield f"{indent}{value}"


def _named(name: str, value: object, indent: str) -> Iterator[str]:
    if isinstance(value, (dict, list)) and value:
        yield name
        yield from _flat(value, indent + "  ")
    else:
        yield f"{name} {value}"


def _styled(line: str) -> str:
    if line.startswith("+"):
        return click.style(line, fg="green")
    if line.startswith("-"):
        return click.style(line, fg="red")
    return line


def joined(parts: Iterable[str]) -> str:
    """Return the parts that are not empty, with commas between."""
    return ", ".join(part for part in parts if part)
