"""A role's defaults, its argument specification and its README say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.role_readme import variables_section, with_section

CHECKOUT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.parent for path in CHECKOUT.glob("roles/*/tasks"))
# The shipped catalog is a file of its own; a second copy of it would tell a reader nothing.
TOO_LONG_TO_REPEAT = {"models_catalog"}

pytestmark = pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)


def defaults_of(role: Path) -> dict[str, Any]:
    """Return a role's defaults, from defaults/main.yml or from all files of defaults/main/."""
    found: dict[str, Any] = {}
    for path in sorted([*role.glob("defaults/main.yml"), *role.glob("defaults/main/*.yml")]):
        values = yaml.safe_load(path.read_text()) or {}
        assert not set(values) & set(found), f"{path}: defined twice"
        found.update(values)
    return found


def options_of(role: Path) -> dict[str, dict[str, Any]]:
    """Return the options of a role's main entry point."""
    specification = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())
    return specification["argument_specs"]["main"].get("options", {})


def test_defaults_and_options_name_the_same_variables(role: Path) -> None:
    optional = {name for name, option in options_of(role).items() if not option.get("required")}
    assert set(defaults_of(role)) == optional


def test_defaults_are_the_same_in_both(role: Path) -> None:
    options = options_of(role)
    defaults = {name: value for name, value in defaults_of(role).items() if name not in TOO_LONG_TO_REPEAT}
    assert {name: options[name].get("default") for name in defaults if name in options} == {
        name: value for name, value in defaults.items() if name in options
    }


def test_every_option_is_described(role: Path) -> None:
    assert [
        name for name, option in options_of(role).items() if not (option.get("description") and option.get("type"))
    ] == []


def test_variables_carry_the_roles_name(role: Path) -> None:
    assert [name for name in defaults_of(role) if not name.startswith(f"{role.name}_")] == []


def test_every_default_has_a_sentence_above_it(role: Path) -> None:
    bare = []
    for path in sorted([*role.glob("defaults/main.yml"), *role.glob("defaults/main/*.yml")]):
        above = ""
        for line in path.read_text().splitlines():
            if line and not line.startswith((" ", "#", "-", "]", "}")) and not above.startswith("#"):
                bare.append(line)
            above = line
    assert bare == []


def test_the_readme_names_every_variable(role: Path) -> None:
    text = (role / "README.md").read_text()
    assert [name for name in options_of(role) if f"`{name}`" not in text] == []


def test_the_readmes_table_is_made_from_the_specification(role: Path) -> None:
    text = (role / "README.md").read_text()
    assert with_section(text, variables_section(role)) == text, "run tests/support/role_readme.py"
