"""``modelfleet lock``: pin what the catalog's sources hold, or tell what has moved there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ..catalog_files import SHIPPED, inventory_entries, load_entries, read_located
from ..core.catalog import Catalog, Variant
from ..core.errors import ConfigurationError, ModelfleetError
from ..core.pins import locked_models
from ..core.reading import nearest
from ..core.units import format_bytes
from ..hub import UnreachableError
from ..lockfile import LOCK_FILE, Change, changes, empty, entry_of, read_lock, with_entry, write_lock
from ..upstream import Upstream
from .options import checkout
from .text import clean, complain, count, say, say_json

SCHEMA_VERSION = 1
EXIT_FAILED = 1
EXIT_MOVED = 2


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL[:QUANTIZATION]]...")
@click.option("--check", is_flag=True, help="Change nothing; tell what has moved upstream. Exit code 2 where it has.")
@click.option("-i", "--inventory", multiple=True, metavar="PATH", help="Take in this inventory's models_catalog_extra.")
@click.option(
    "--catalog",
    "catalogs",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take in the entries of this YAML file; repeatable.",
)
@click.option(
    "--lock-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"The lock to write. Default: {LOCK_FILE} beside the playbooks.",
)
@click.option("--json", "as_json", is_flag=True, help="Answer with one JSON document.")
def command(
    models: tuple[str, ...],
    check: bool,
    inventory: tuple[str, ...],
    catalogs: tuple[Path, ...],
    lock_file: Path | None,
    as_json: bool,
) -> int:
    """Pin commit, files, sizes and sha256 of models: nothing is published that is not pinned.

    Names models of the catalog, or all where none is named; what was not named keeps its entry. Asks the Hub
    (HF_ENDPOINT, HF_TOKEN), the package index (pip's settings) and other servers for what they hold, and reads the
    headers of GGUF files, so that plans need no network. With --check the models that are locked are compared.
    """
    root = checkout()
    path = lock_file or root / LOCK_FILE
    entries = load_entries(root / SHIPPED)
    for file in catalogs:
        entries = entries.extended(load_entries(file))
    if inventory:
        entries = entries.extended(inventory_entries(root, inventory))
    lock = read_lock(path)
    locked_models(lock)
    # Read without the lock: what counts is what the catalog alone states.
    catalog = read_located(entries, empty())
    variants = list(chosen(catalog, models))
    if check:
        variants = [one for one in variants if entry_of(lock, one.model, one.quantization) is not None]
    answer = Answer(path, check)
    with Upstream(os.environ, answer.warn, answer.progress) as upstream:
        for variant in variants:
            lock = answer.ask(upstream, variant, lock)
            if answer.stopped:
                break
    if not check:
        answer.written = write_lock(path, lock)
    if as_json:
        say_json(answer.document())
    else:
        for line in answer.lines():
            say(line)
    return answer.exit_code


def chosen(catalog: Catalog, models: tuple[str, ...]) -> Iterator[Variant]:
    """Yield the variants that are named, or all. Raises ConfigurationError where a name is not known."""
    for name in models:
        model, _, quantization = name.partition(":")
        if model not in catalog.entries:
            raise ConfigurationError(
                f"the catalog has no model {model!r}{nearest(model, catalog.entries)}",
                "correct the name, or name the file that has it with --catalog or -i",
            )
        offered = catalog.entries[model].variants
        if quantization and quantization not in offered:
            raise ConfigurationError(
                f"{model} has no quantization {quantization!r}{nearest(quantization, offered)}",
                f"use one of {', '.join(offered)}",
            )
        yield from [offered[quantization]] if quantization else offered.values()
    if not models:
        for entry in catalog.entries.values():
            yield from entry.variants.values()


class Answer:
    """What was found: for each variant what differs, or why it could not be asked."""

    def __init__(self, path: Path, check: bool) -> None:
        self.path = path
        self.check = check
        self.written = False
        self.stopped = False
        self.warnings: list[str] = []
        self.found: list[tuple[Variant, list[Change], int]] = []
        self.failed: list[tuple[Variant, str]] = []

    def warn(self, text: str) -> None:
        """Keep a warning, and show it."""
        if text not in self.warnings:
            self.warnings.append(text)
            complain(clean(f"warning: {text}"))

    def progress(self, what: str, size: int) -> None:
        """Show once that something large is read."""
        if size == 0 or size % (1024 * 1024 * 1024) == 0:
            complain(clean(f"reading {what}{f', {format_bytes(size)}' if size else ''}"))

    def ask(self, upstream: Upstream, variant: Variant, lock: dict[str, Any]) -> dict[str, Any]:
        """Ask for one variant; return the lock with what was found."""
        complain(clean(f"{'checking' if self.check else 'locking'} {variant.model} ({variant.quantization})"))
        before = entry_of(lock, variant.model, variant.quantization)
        try:
            entry = upstream.entry(variant)
            moved = list(changes(before, entry))
            if self.check:
                moved += _newer(upstream, entry)
            elif before is not None and before.get("shape") != entry.get("shape"):
                # The bytes may be the same: a newer release reads more from a header.
                moved.append(Change(entry["files"][0]["name"], "shape", "as read before", "as read now"))
        except (ModelfleetError, OSError) as error:
            self.failed.append((variant, str(error)))
            self.stopped = isinstance(error, UnreachableError)
            return lock
        self.found.append((variant, moved, len(entry["files"])))
        return lock if self.check else with_entry(lock, variant.model, variant.quantization, entry)

    @property
    def exit_code(self) -> int:
        """0, or 1 where something could not be asked, or 2 where something has moved."""
        if self.failed:
            return EXIT_FAILED
        return EXIT_MOVED if self.check and any(moved for _, moved, _ in self.found) else 0

    def document(self) -> dict[str, Any]:
        """Return the answer as JSON carries it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "verb": "lock",
            "lock_file": str(self.path),
            "check": self.check,
            "written": self.written,
            "models": [
                {
                    "model": variant.model,
                    "quantization": variant.quantization,
                    "files": files,
                    "changes": [change._asdict() for change in moved],
                }
                for variant, moved, files in self.found
            ],
            "failed": [
                {"model": variant.model, "quantization": variant.quantization, "error": reason}
                for variant, reason in self.failed
            ],
            "warnings": self.warnings,
            "exit_code": self.exit_code,
        }

    def lines(self) -> Iterator[str]:
        """Yield the answer for people."""
        for variant, moved, files in self.found:
            name = click.style(clean(f"{variant.model} ({variant.quantization})"), bold=True)
            if not moved:
                yield f"{name}: {count(files, 'file')}, as locked"
            elif {change.what for change in moved} == {"file"} and all(change.before is None for change in moved):
                yield f"{name}: {count(files, 'file')} {'not in the lock' if self.check else 'locked'}"
            else:
                yield f"{name}: {'moved upstream' if self.check else 'locked anew'}"
                for change in moved:
                    yield f"  {clean(change.file)}: {change.what} {_shown(change.before)} -> {_shown(change.after)}"
        for variant, reason in self.failed:
            yield click.style(clean(f"{variant.model} ({variant.quantization}): {reason}"), fg="red")
        if not self.check:
            yield f"{clean(self.path)}: {'written' if self.written else 'nothing to change'}"


def _newer(upstream: Upstream, entry: dict[str, Any]) -> Iterator[Change]:
    """Yield what the head of a repository has instead of a file that the catalog pins to a commit."""
    for pin in entry["files"]:
        head = upstream.newer(pin)
        if head is not None and head["sha256"] != pin["sha256"]:
            yield Change(pin["name"], "sha256 at main", pin["sha256"], head["sha256"])


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("filename")
    return "nothing" if value is None else clean(value)
