"""The published schemas of catalog and lock: what is shipped obeys them, and they say what the readers say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from modelfleet.core import catalog as reader
from modelfleet.core.store.layout import CATEGORIES


def load(checkout: Path, name: str) -> Any:
    """Return a published schema, which is one."""
    schema = json.loads((checkout / "docs" / "schemas" / name).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return schema


@pytest.fixture(scope="module")
def catalog_schema(checkout: Path) -> Any:
    return load(checkout, "catalog.schema.json")


@pytest.fixture(scope="module")
def lock_schema(checkout: Path) -> Any:
    return load(checkout, "lock.schema.json")


@pytest.fixture
def entry() -> dict[str, Any]:
    files = [{"name": "x.gguf", "source": "file:///x"}]
    return {"id": "x", "category": "chat/7b", "variants": {"q4_0": {"files": files}}}


def test_what_is_shipped_obeys(checkout: Path, catalog_schema: Any, lock_schema: Any) -> None:
    path = checkout / "roles/models/defaults/main/catalog.yml"
    jsonschema.validate(yaml.safe_load(path.read_text())["models_catalog"], catalog_schema)
    jsonschema.validate(json.loads((checkout / "models.lock.json").read_text()), lock_schema)


def test_it_names_what_the_reader_reads(catalog_schema: Any) -> None:
    parts = catalog_schema["$defs"]
    assert set(parts["Entry"]["properties"]) == set(reader._ENTRY_KEYS)
    assert tuple(parts["Entry"]["properties"]["category"]["enum"]) == CATEGORIES
    assert set(parts["Shape"]["properties"]) == set(reader._SHAPE_KEYS)
    assert set(parts["Shape"]["required"]) == set(reader._REQUIRED_SHAPE)
    assert set(parts["Variant"]["properties"]["format"]["enum"]) == set(reader.FORMATS.values())


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ((), "id", "a b"),
        ((), "category", "chat/8b"),
        ((), "surprise", 1),
        ((), "parameters", "7B"),
        ((), "allow_pickle", "no"),
        ((), "variants", {}),
        ((), "check", {"prompt": "x"}),
        ((), "shape", {"layers": 3}),
        (("variants", "q4_0"), "files", []),
        (("variants", "q4_0"), "format", "zip"),
        (("variants", "q4_0", "files", 0), "name", "../x.gguf"),
        (("variants", "q4_0", "files", 0), "source", "ftp://x"),
        (("variants", "q4_0", "files", 0), "size", 0),
        (("variants", "q4_0", "files", 0), "sha256", "x"),
    ],
)
def test_both_refuse_the_same(
    catalog_schema: Any, entry: dict[str, Any], place: tuple[Any, ...], key: str, value: Any
) -> None:
    lock = {"schema_version": 1, "models": {}}
    jsonschema.validate([entry], catalog_schema)
    assert reader.read_catalog([entry], lock)
    target: Any = entry
    for step in place:
        target = target[step]
    target[key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([entry], catalog_schema)
    with pytest.raises(reader.CatalogError):
        reader.read_catalog([entry], lock)
