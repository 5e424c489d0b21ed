"""The catalog as files on the controller: where an entry's keys stand, so that an error can name the line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from .core.catalog import Catalog, read_catalog
from .core.errors import CatalogError, ConfigurationError

SHIPPED = "roles/models/defaults/main/catalog.yml"
VARIABLES = ("models_catalog", "models_catalog_extra")
Step = str | int


class Place(NamedTuple):
    """Where something stands in a file; lines count from 1."""

    path: Path
    line: int


class Entries(NamedTuple):
    """Catalog entries, and for each the node of the file that it was read from, where there is one."""

    entries: list[Mapping[str, Any]]
    nodes: list[tuple[Path, yaml.Node] | None]

    def extended(self, other: Entries) -> Entries:
        """Return these entries and others after them."""
        return Entries(self.entries + other.entries, self.nodes + other.nodes)

    def place(self, path: Sequence[Step]) -> Place | None:
        """Return where the value at ``path`` stands, or what is nearest above it; None where no file is known."""
        if not path or not isinstance(path[0], int) or path[0] >= len(self.nodes):
            return None
        found = self.nodes[path[0]]
        if found is None:
            return None
        file, node = found
        line = node.start_mark.line + 1
        for step in path[1:]:
            child = _child(node, step)
            if child is None:
                break
            key, node = child
            line = key.start_mark.line + 1
        return Place(file, line)


def _child(node: yaml.Node, step: Step) -> tuple[yaml.Node, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(step):
                return key, value
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    return None


def load_entries(path: Path) -> Entries:
    """Read the entries of a YAML file: a list, or what ``models_catalog`` and ``models_catalog_extra`` hold.

    Raises ConfigurationError naming file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, yaml.SafeLoader)
        document = yaml.safe_load(text)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}", "name a file with catalog entries") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is no UTF-8 text", "name a file with catalog entries") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigurationError(f"{path}{line}: {problem}", "correct the YAML") from None
    if isinstance(document, list) and root is not None:
        return _entries(path, document, root)
    result = Entries([], [])
    if isinstance(document, dict) and root is not None:
        for name in VARIABLES:
            if isinstance(document.get(name), list):
                child = _child(root, name)
                assert child is not None
                result = result.extended(_entries(path, document[name], child[1]))
    if not result.entries:
        raise ConfigurationError(
            f"{path} holds no catalog entries", f"write a list of them, or {' or '.join(VARIABLES)}: a list"
        )
    return result


def _entries(path: Path, values: list[Any], node: yaml.Node) -> Entries:
    return Entries(values, [(path, one) for one in node.value])


def inventory_entries(root: Path, inventories: Sequence[str]) -> Entries:
    """Return the entries that an inventory adds, of all hosts together; templates are left as they are.

    Raises ConfigurationError where Ansible cannot read the inventory.
    """
    command = [sys.executable, "-m", "ansible", "inventory", "--list"]
    for inventory in inventories:
        command += ["-i", inventory]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(root / "ansible.cfg")}
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)
    try:
        if done.returncode != 0:
            raise ValueError
        hosts = json.loads(done.stdout)["_meta"]["hostvars"]
    except (ValueError, LookupError, TypeError):
        lines = done.stderr.strip().splitlines() or ["ansible-inventory gave no answer"]
        raise ConfigurationError(f"the inventory cannot be read: {lines[-1]}", "correct it, or leave out -i") from None
    found: dict[str, Mapping[str, Any]] = {}
    for variables in hosts.values():
        values = variables.get("models_catalog_extra")
        for entry in values if isinstance(values, list) else []:
            found.setdefault(json.dumps(entry, sort_keys=True, default=str), entry)
    return _located(list(found.values()), inventories)


def _located(entries: list[Mapping[str, Any]], inventories: Iterable[str]) -> Entries:
    """Find the lines of an inventory's entries in its plain YAML files."""
    known: list[tuple[Any, tuple[Path, yaml.Node]]] = []
    for inventory in inventories:
        path = Path(inventory)
        folder = path if path.is_dir() else path.parent
        files = [path] if path.is_file() else []
        for name in ("group_vars", "host_vars"):
            files += sorted(folder.glob(f"{name}/**/*.y*ml"))
        for file in files:
            try:
                loaded = load_entries(file)
            except ConfigurationError:
                continue
            known += [(entry, node) for entry, node in zip(*loaded, strict=True) if node is not None]
    nodes = [next((node for other, node in known if other == entry), None) for entry in entries]
    return Entries(entries, nodes)


def read_located(entries: Entries, lock: Mapping[str, Any]) -> Catalog:
    """Read a catalog; what is wrong in an entry is told with file and line. Raises ConfigurationError."""
    try:
        return read_catalog(entries.entries, lock)
    except CatalogError as error:
        place = entries.place(error.path) if error.variable == "catalog" else None
        if place is None:
            raise
        raise ConfigurationError(f"{place.path}, line {place.line}: {error.message}", error.cure) from None
