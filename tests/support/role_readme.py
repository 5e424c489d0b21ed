"""The table of variables in a role's README, made from its argument specification.

``python tests/support/role_readme.py`` rewrites the tables of all roles; a
contract test fails while one is not up to date.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parents[2] / "roles"
_SECTION = re.compile(r"(?ms)^## Variables\n.*?(?=^## |\Z)")
_MARKUP = re.compile(r"\b[CVO]\(([^()]*)\)")  # Ansible's marks for code, values and options
_LONGEST_DEFAULT = 100


def variables_section(role: Path) -> str:
    """Return the section that the README of ``role`` must hold."""
    specification = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
    options: dict[str, dict[str, Any]] = specification["argument_specs"]["main"]["options"]
    rows = [
        f"| `{name}` | {option['type']} | {_default(option)} | {_meaning(option)} |" for name, option in options.items()
    ]
    return "\n".join(
        ["## Variables", "", "| variable | type | default | meaning |", "|---|---|---|---|", *rows, "", ""]
    )


def with_section(text: str, section: str) -> str:
    """Return ``text`` with its section of variables replaced, or with one at its end."""
    if _SECTION.search(text):
        return _SECTION.sub(lambda _: section, text).rstrip("\n") + "\n"
    return f"{text.rstrip()}\n\n{section}".rstrip("\n") + "\n"


def _default(option: dict[str, Any]) -> str:
    if option.get("required"):
        return "required"
    shown = json.dumps(option.get("default"), ensure_ascii=False)
    return "see defaults" if len(shown) > _LONGEST_DEFAULT else f"`{_cell(shown)}`"


def _meaning(option: dict[str, Any]) -> str:
    description = option["description"]
    text = " ".join(description) if isinstance(description, list) else description
    return _cell(_MARKUP.sub(r"`\1`", text))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Rewrite the README of every role."""
    for role in sorted(path.parent for path in ROLES.glob("*/meta")):
        readme = role / "README.md"
        readme.write_text(with_section(readme.read_text(encoding="utf-8"), variables_section(role)), encoding="utf-8")


if __name__ == "__main__":
    main()
