"""The published JSON schema of the profile: it is one, profiles obey it, and it has what the classes have."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from modelfleet.core.hardware import driver_state, profile
from modelfleet.core.hardware.probe import probe
from modelfleet.core.hardware.profile import profile_to_dict


@pytest.fixture(scope="module")
def schema(checkout: Path) -> dict[str, Any]:
    """Return the published schema."""
    text = (checkout / "docs" / "schemas" / "hardware-profile.schema.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


def test_it_is_a_schema(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)


def test_this_machine_obeys_it(schema: dict[str, Any]) -> None:
    jsonschema.validate(json.loads(json.dumps(profile_to_dict(probe("/opt/models")))), schema)


def test_a_field_more_or_less_is_refused(schema: dict[str, Any]) -> None:
    document = json.loads(json.dumps(profile_to_dict(probe("/opt/models"))))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, "gpus": []}, schema)
    del document["accelerators"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema)


def test_it_has_the_fields_of_the_classes_and_no_others(schema: dict[str, Any]) -> None:
    objects = {"HardwareProfile": schema, **schema["$defs"]}
    for name, described in objects.items():
        kind = getattr(driver_state, name) if name in vars(driver_state) else getattr(profile, name)
        fields = [field.name for field in dataclasses.fields(kind)]
        assert list(described["properties"]) == fields and described["required"] == fields, name
