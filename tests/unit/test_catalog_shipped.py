"""The catalog and the lock that this release ships: what the tutorial names is there, and both say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from modelfleet.core.catalog import Catalog, read_catalog, refuse_collisions
from modelfleet.core.memory.shape import shape_from_dict
from modelfleet.core.memory.synthesis import shape_from_catalog
from modelfleet.core.planning.host import plan_host
from modelfleet.core.planning.settings import PlanSettings
from modelfleet.core.wishes import USE_CASES, candidates, read_wishes
from support import models_table
from support.planning import profile, store

CHAT = {
    "chat/7b": ("llama-3.1-8b-instruct", "qwen2.5-7b-instruct", "mixtral-8x7b-instruct"),
    "chat/13b": ("llama-2-13b-chat", "vicuna-13b-v1.5"),
    "chat/specialized": ("codellama-13b-instruct", "medalpaca-13b", "wizard-vicuna-13b-uncensored"),
}
OTHERS = {
    "image/stable-diffusion": ("sd-v1.5", "sd-xl-base", "sd-xl-refiner"),
    "image/controlnet": ("controlnet",),
    "voice/tts": ("xtts-v2", "bark"),
    "voice/stt": ("whisper",),
    "embeddings": ("all-MiniLM-L6-v2", "bge-large-en-v1.5"),
}
# What a GGUF has before its tensors: keys, the vocabulary, the table of tensors.
HEADER_BYTES = 16 * 1024 * 1024


@pytest.fixture(scope="module")
def shipped(checkout: Path) -> list[dict[str, Any]]:
    path = checkout / "roles/models/defaults/main/catalog.yml"
    return yaml.safe_load(path.read_text())["models_catalog"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def lock(checkout: Path) -> dict[str, Any]:
    return json.loads((checkout / "models.lock.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def catalog(shipped: list[dict[str, Any]], lock: dict[str, Any]) -> Catalog:
    return read_catalog(shipped, lock)


def test_every_id_is_there_once(shipped: list[dict[str, Any]], catalog: Catalog) -> None:
    assert [entry["id"] for entry in shipped] == list(catalog.entries)


def test_every_model_of_the_tutorial_lies_where_it_says(catalog: Catalog) -> None:
    for category, names in {**CHAT, **OTHERS}.items():
        for name in names:
            assert catalog.entries[name].category == category, name
    for name in OTHERS["image/stable-diffusion"]:
        (variant,) = catalog.entries[name].variants.values()
        assert [file.path for file in variant.files] == [f"image/stable-diffusion/{name}.safetensors"]
    for category, names in (("voice/tts", ("xtts-v2", "bark")), ("embeddings", OTHERS["embeddings"])):
        for name in names:
            assert {variant.unit for variant in catalog.entries[name].variants.values()} == {f"{category}/{name}"}


@pytest.mark.parametrize("name", [name for names in CHAT.values() for name in names])
def test_a_chat_model_offers_what_a_plan_chooses_from(catalog: Catalog, name: str) -> None:
    entry = catalog.entries[name]
    for quantization, variant in entry.variants.items():
        assert [file.path for file in variant.files] == [f"{entry.category}/{name}.{quantization}.gguf"]
        assert variant.format == "gguf" and variant.licence
    assert entry.default_quantization == "q4_k_m" and len(entry.variants) >= 5
    order = ["fp16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m"]
    assert list(entry.variants) == [one for one in order if one in entry.variants]


@pytest.mark.parametrize("name", [name for names in CHAT.values() for name in names])
def test_a_chat_model_can_be_planned_without_a_network(catalog: Catalog, name: str) -> None:
    """Its shape gives exactly the parameters that are published, and the file's size where that is known."""
    entry = catalog.entries[name]
    assert entry.shape is not None and entry.context_length == entry.shape["context_length"]
    for quantization, variant in entry.variants.items():
        shape = shape_from_catalog(entry.shape, quantization)
        assert shape.parameters == entry.parameters
        size = variant.files[0].size
        tensors = sum(shape.layer_bytes) + shape.input_bytes + shape.shared_bytes + shape.output_bytes
        assert size is None or 0 < size - tensors < HEADER_BYTES


def test_the_embedded_default_is_locked_with_its_shape(catalog: Catalog) -> None:
    variant = catalog.entries["smollm2-135m-instruct"].variants["q4_1"]
    assert variant.locked and variant.shape is not None and variant.check is not None
    shape = shape_from_dict(variant.shape)
    assert shape.parameters == catalog.entries["smollm2-135m-instruct"].parameters == 134515008


def test_one_model_of_the_tutorial_comes_from_the_package_index(catalog: Catalog) -> None:
    variant = catalog.entries["all-MiniLM-L6-v2"].variants["fp32"]
    assert variant.locked and all(file.source.startswith("wheel://") and file.wheel for file in variant.files)
    assert all(file.alternatives[0].startswith("hf://sentence-transformers/") for file in variant.files)


@pytest.mark.parametrize("name", ["xtts-v2", "bark"])
def test_what_exists_only_as_pickle_is_marked_and_refused(catalog: Catalog, name: str) -> None:
    (variant,) = catalog.entries[name].variants.values()
    assert variant.format == "pickle" and not variant.allow_pickle
    (model,) = plan_host(read_wishes([{"model": name}], catalog), catalog, profile(), store(), PlanSettings()).models
    assert model.action == "refuse" and "fp32 is a pickle, which can run code when it is loaded" in model.reason


def test_no_two_models_claim_one_path(catalog: Catalog) -> None:
    refuse_collisions(entry.variants[entry.default_quantization] for entry in catalog.entries.values())


def test_every_use_case_and_task_leads_somewhere(catalog: Catalog) -> None:
    for name in [name for names in CHAT.values() for name in names]:
        for use_case, quantization in USE_CASES.items():
            (wish,) = read_wishes([{"model": name, "use_case": use_case}], catalog)
            variants = candidates(wish, catalog)[1]
            wanted = catalog.entries[name].variants
            assert variants[0].quantization == (quantization if quantization in wanted else variants[0].quantization)
    expected = {
        "general": "llama-3.1-8b-instruct",
        "coding": "codellama-13b-instruct",
        "medical": "medalpaca-13b",
        "multilingual": "qwen2.5-7b-instruct",
        "embedding": "all-MiniLM-L6-v2",
        "image": "sd-xl-base",
        "speech": "xtts-v2",
        "transcription": "whisper",
    }
    for task, model in expected.items():
        (wish,) = read_wishes([{"task": task}], catalog)
        entry, _, reason = candidates(wish, catalog)
        assert entry.id == model and task in reason


def test_what_is_locked_is_what_the_catalog_states(shipped: list[dict[str, Any]], lock: dict[str, Any]) -> None:
    """A size and a hash in the catalog are independent records; the lock has them, and nothing else that it lacks."""
    stated = {
        (entry["id"], quantization, file["name"]): (file["size"], file["sha256"])
        for entry in shipped
        for quantization, variant in entry["variants"].items()
        for file in variant["files"]
        if "size" in file and "sha256" in file
    }
    pinned = {
        (model, quantization, file["name"]): (file["size"], file["sha256"])
        for model, variants in lock["models"].items()
        for quantization, variant in variants.items()
        for file in variant["files"]
    }
    assert stated == {key: value for key, value in pinned.items() if key in stated} and stated
    known = {(entry["id"], quantization) for entry in shipped for quantization in entry["variants"]}
    assert {key[:2] for key in pinned} <= known


def test_the_documents_table_is_made_from_both() -> None:
    text = models_table.DOCUMENT.read_text(encoding="utf-8")
    assert text == models_table.with_section(text), "run python tests/support/models_table.py"
    assert models_table.section().strip() in text


def test_it_is_what_is_publicly_recorded(checkout: Path, catalog: Catalog) -> None:
    """Every hash of the collected facts that belongs to a file of the catalog is the one that the catalog has."""
    path = checkout.parent / "shared" / "facts" / "models.json"
    if not path.is_file():
        pytest.skip(f"the collected facts are not at {path}")
    recorded: dict[tuple[str, str], tuple[int | None, str | None]] = {}
    for model in json.loads(path.read_text())["models"]:
        for one in model.get("files") or [model]:
            if isinstance(one, dict) and "repo" in model and one.get("file"):
                recorded[model["repo"], one["file"]] = (one.get("size"), one.get("sha256"))
    compared = 0
    for entry in catalog.entries.values():
        for variant in entry.variants.values():
            for file in variant.files:
                for source in (file.source, *file.alternatives):
                    repository, _, name = source.removeprefix("hf://").partition("@")
                    if not name:
                        repository = "/".join(source.removeprefix("hf://").split("/")[:2])
                        name = source.removeprefix(f"hf://{repository}")
                    size, sha256 = recorded.get((repository, name.split("/", 1)[-1]), (None, None))
                    if sha256 is not None:
                        compared += 1
                        assert file.sha256 == sha256 and size in (None, file.size), source
    assert compared >= 15
