"""docs/readiness.md names every check as the code does, and the role's defaults are the code's."""

from __future__ import annotations

from pathlib import Path

import yaml
from modelfleet.core.hardware.requirements import parse_requirements
from support.readiness_table import DOCUMENT, section, with_section


def test_the_table_is_that_of_the_rules() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert section().strip() in text, "run python tests/support/readiness_table.py"
    assert text == with_section(text), "run python tests/support/readiness_table.py"


def test_the_roles_requirements_are_the_codes(checkout: Path) -> None:
    defaults = yaml.safe_load((checkout / "roles/accelerator/defaults/main.yml").read_text(encoding="utf-8"))
    assert parse_requirements(defaults["accelerator_requirements"]) == parse_requirements()
