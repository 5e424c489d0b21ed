"""The table of readiness checks in docs/readiness.md, made from the rules.

``python tests/support/readiness_table.py`` rewrites it; a contract test fails while it is not up to date.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
DOCUMENT = CHECKOUT / "docs" / "readiness.md"
_SECTION = re.compile(r"(?ms)^## The checks\n.*?(?=^## |\Z)")


def section() -> str:
    """Return the section that the document must hold."""
    from modelfleet.core.hardware.readiness import RULES

    rows = []
    for rule in RULES:
        text = " ".join((inspect.getdoc(rule.judge) or "").split()).replace("|", "\\|")
        rows.append(f"| `{rule.id}` | {rule.title} | {text} |")
    return "\n".join(
        ["## The checks", "", "| id | what | when it passes, and the source |", "|---|---|---|", *rows, "", ""]
    )


def with_section(text: str) -> str:
    """Return ``text`` with its section of checks replaced."""
    return _SECTION.sub(lambda _: section(), text).rstrip("\n") + "\n"


if __name__ == "__main__":
    sys.path.append(str(CHECKOUT / "python"))
    DOCUMENT.write_text(with_section(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
