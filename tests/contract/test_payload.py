"""What ships to a host inside a module is what may: the package's root and its core, standard library only, old Python.

Ansible ships what a module imports statically, and what that imports in turn. An import of anything else works on the
controller and fails on the host, so the closure is computed here from the sources, for every module.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PYTHON = CHECKOUT / "python"
MODULES = sorted((CHECKOUT / "library").glob("*.py"))
CORE = sorted((PYTHON / "modelfleet" / "core").rglob("*.py"))
OLDEST_PYTHON = (3, 8)
NEWER_THAN_THAT = {"graphlib", "tomllib", "zoneinfo"}
STANDARD_LIBRARY = set(sys.stdlib_module_names) - NEWER_THAN_THAT


def parse(path: Path) -> ast.Module:
    """Parse a file as the oldest Python of a host does."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=OLDEST_PYTHON)


def package_of(path: Path) -> list[str]:
    """Return the dotted name, in parts, of the package that a shipped file is in."""
    parts = list(path.relative_to(PYTHON).with_suffix("").parts)
    return parts[:-1]


def imported_names(path: Path, tree: ast.AST) -> Iterator[str]:
    """Yield what a file imports, as absolute dotted names; ``from a import b`` yields both ``a`` and ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = package_of(path)
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            yield base
            for alias in node.names:
                yield f"{base}.{alias.name}"


def files_of(name: str) -> Iterator[Path]:
    """Yield the files below python/ that importing a dotted name brings in: the module and every ancestor."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        place = PYTHON.joinpath(*parts[:depth])
        for path in (place / "__init__.py", place.with_suffix(".py")):
            if path.is_file():
                yield path


def shipped_with(module: Path) -> set[Path]:
    """Return all files of this project that travel with a module."""
    prefix = "ansible.module_utils."
    waiting = [name.removeprefix(prefix) for name in imported_names(module, parse(module)) if name.startswith(prefix)]
    shipped: set[Path] = set()
    while waiting:
        for path in files_of(waiting.pop()):
            if path not in shipped:
                shipped.add(path)
                waiting += [name for name in imported_names(path, parse(path)) if name.startswith("modelfleet")]
    return shipped


def imports_at_start(tree: ast.AST) -> Iterator[ast.stmt]:
    """Yield the import statements that run when a file is imported: all but those inside functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from imports_at_start(node)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_ships_only_the_core(module: Path) -> None:
    shipped = {path.relative_to(PYTHON / "modelfleet") for path in shipped_with(module)}
    assert {str(path) for path in shipped if path.parts[0] != "core"} <= {"__init__.py"}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_names_only_ansible_and_the_standard_library(module: Path) -> None:
    roots = {name.split(".")[0] for name in imported_names(module, parse(module))}
    assert roots - STANDARD_LIBRARY <= {"ansible"}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_is_documented(module: Path) -> None:
    assigned = {
        target.id
        for node in parse(module).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert {"DOCUMENTATION", "EXAMPLES", "RETURN"} <= assigned


def test_the_packages_root_imports_nothing() -> None:
    path = PYTHON / "modelfleet" / "__init__.py"
    assert list(imported_names(path, parse(path))) == []


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(PYTHON)))
def test_core_is_importable_on_any_host(path: Path) -> None:
    tree = parse(path)
    absolute = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    absolute_from = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    named = {alias.name for node in absolute for alias in node.names} | {node.module or "" for node in absolute_from}
    assert not [name for name in named if name.split(".")[0] in ("modelfleet", "ansible")], "use relative imports"
    at_start = {
        name.split(".")[0]
        for node in imports_at_start(tree)
        if not (isinstance(node, ast.ImportFrom) and node.level)
        for name in imported_names(path, ast.Module([node], []))
    }
    assert at_start <= STANDARD_LIBRARY, "what is not in every host's Python is imported where it is used"


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(PYTHON)))
def test_core_imports_nothing_by_computed_name(path: Path) -> None:
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Attribute, ast.Name))
    }
    assert not called & {"import_module", "__import__"}, "such an import is invisible to Ansible and does not ship"


@pytest.mark.parametrize("version", ["3.8", "3.9"])
def test_core_is_imported_by_an_old_python(version: str) -> None:
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [shutil.which(f"python{version}"), *sorted(home.glob(f"versions/{version}.*/bin/python{version}"))]
    # A pyenv shim is found and does not run.
    runs = [
        path for path in candidates if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0
    ]
    if not runs:
        pytest.skip(f"no Python {version} on this machine")
    names = [".".join(path.relative_to(PYTHON).with_suffix("").parts).removesuffix(".__init__") for path in CORE]
    # __main__ is run, not imported.
    program = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    arguments = [name for name in names if not name.endswith("__main__")]
    done = subprocess.run(
        [runs[0], "-c", program, *arguments],
        env={"PYTHONPATH": str(PYTHON), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
