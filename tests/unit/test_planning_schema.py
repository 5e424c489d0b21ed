"""The published JSON schema of a plan: it is one, plans obey it, and it has what the classes have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from modelfleet.core.catalog import PinnedFile, WheelPin
from modelfleet.core.model_checks import KEYS
from modelfleet.core.planning import document
from modelfleet.core.planning.host import plan_host
from modelfleet.core.planning.settings import PlanSettings
from modelfleet.core.wishes import read_wishes
from support.planning import card, catalog, profile, store


@pytest.fixture(scope="module")
def schema(checkout: Path) -> dict[str, Any]:
    """Return the published schema."""
    text = (checkout / "docs" / "schemas" / "host-plan.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def test_plans_of_all_kinds_obey_it(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    known = catalog()
    wishes = read_wishes([{"model": "small", "use_case": "production"}, {"model": "large"}, {"model": "dark"}], known)
    there = store(*known.entries["small"].variants["q4_0"].files, *known.entries["large"].variants["fp16"].files)
    actions = set()
    for host in (profile(card(24), card(24)), profile(card(8, free=1)), profile(memory=4), {}):
        plan = plan_host(wishes, known, host, there, PlanSettings(remove_unwished=True))
        actions |= {model.action for model in plan.models}
        jsonschema.validate(json.loads(json.dumps(plan.to_dict())), schema)
    assert actions == {"keep", "fetch", "refuse", "remove"}


def test_it_has_the_fields_of_the_classes_and_no_others(schema: dict[str, Any]) -> None:
    kinds = (document.Budget, document.Placement, document.Candidate, document.ModelPlan)
    fields = {kind.__name__: kind._fields for kind in kinds}
    fields.update(File=PinnedFile._fields, Wheel=WheelPin._fields, Check=KEYS)
    assert {name: tuple(described["properties"]) for name, described in schema["$defs"].items()} == {
        name: fields[name] for name in schema["$defs"]
    }
    assert set(fields) == set(schema["$defs"])
