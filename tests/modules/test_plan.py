"""modelfleet_plan as Ansible calls it: the plan as a fact, what it refuses, and what was reviewed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.units import GIB
from support.models import gguf
from support.planning import SHAPE_8B, card, profile

Call = Callable[..., dict[str, Any]]

CONTENT = gguf(b"x" * 1000)
NAME = "chat/7b/small.q4_0.gguf"


@pytest.fixture
def call(runner: Callable[[str], Call], store: Path, ground: Path) -> Call:
    """Return a function that plans a small model that lies on this host; the lock pins its q4_0 and q3_k_m."""
    (ground / "source.gguf").write_bytes(CONTENT)
    source, digest = (ground / "source.gguf").as_uri(), hashlib.sha256(CONTENT).hexdigest()
    variants, locked = {}, {}
    for quantization in ("q8_0", "q4_0", "q3_k_m"):
        name = f"small.{quantization}.gguf"
        variants[quantization] = {"files": [{"name": name, "source": source}]}
        if quantization != "q8_0":
            locked[quantization] = {"files": [{"name": name, "source": source, "size": len(CONTENT), "sha256": digest}]}
    entry = {"id": "small", "category": "chat/7b", "tasks": ["general"], "context_length": 131072}
    arguments = {
        "store_path": str(store),
        "wanted": [{"model": "small"}],
        "catalog": [{**entry, "shape": SHAPE_8B, "default_quantization": "q4_0", "variants": variants}],
        "lock": {"schema_version": 1, "models": {"small": locked}},
        "hardware": profile(card(12)),
        "made_for": "a test",
    }
    run = runner("modelfleet_plan")
    return lambda **changes: run(**{**arguments, **changes})


def test_it_plans_and_changes_nothing(call: Call, store: Path) -> None:
    before = sorted(store.rglob("*"))
    for check in (True, False):
        result = call(check=check)
        assert result["changed"] is False and result["pending"] is True and result["refused"] == []
        assert result["made_for"] == "a test"
        plan = result["ansible_facts"]["modelfleet_plan"]
        assert plan["schema_version"] == 2 and plan["store_path"] == str(store)
        (model,) = plan["models"]
        assert (model["quantization"], model["action"], model["missing"]) == ("q4_0", "fetch", [NAME])
        assert model["placement"] == {"device": "GPU0", "backend": "cuda", "gpu_layers": 33, "layers": 32, "split": []}
        assert model["memory"]["devices"][0]["kv_cache"] == GIB, "8192 tokens of an 8B model in f16"
    assert sorted(store.rglob("*")) == before


def test_what_was_published_is_kept(call: Call, runner: Callable[[str], Call], store: Path) -> None:
    plan = call()["ansible_facts"]["modelfleet_plan"]
    assert runner("modelfleet_models")(plan=plan)["published"] == [NAME]
    again = call()
    (model,) = again["ansible_facts"]["modelfleet_plan"]["models"]
    assert again["pending"] is False and model["action"] == "keep"
    assert model["placement"] == plan["models"][0]["placement"] and model["memory"] == plan["models"][0]["memory"]
    # A card that would take a better one changes nothing, a smaller need neither.
    kept = call(wanted=[{"model": "small", "best": True}], hardware=profile(card(80)))
    assert kept["ansible_facts"]["modelfleet_plan"]["models"][0]["quantization"] == "q4_0"
    moved = call(wanted=[{"model": "small", "best": True}], hardware=profile(card(80)), replan=True)
    assert moved["refused"] and "q8_0 needs lock" in moved["refused"][0]


def test_a_refusal_is_an_answer(call: Call) -> None:
    result = call(hardware=profile(card(4), memory=4), allow_cpu=False)
    assert "failed" not in result
    (reason,) = result["refused"]
    assert reason.startswith("small: q4_0 is the default; even q3_k_m needs ") and "\n" not in reason


def test_warnings_come_where_something_is_done(
    call: Call, runner: Callable[[str], Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ansible keeps the warnings of a process, and these tests are one.
    told: list[str] = []
    monkeypatch.setattr("ansible.module_utils.basic.AnsibleModule.warn", lambda module, text: told.append(text))
    call(hardware=profile(card(12, free=1)))
    (warning,) = told
    assert "of GPU0, where 1.0 GiB are free just now" in warning
    runner("modelfleet_models")(plan=call()["ansible_facts"]["modelfleet_plan"])
    told.clear()
    kept = call(hardware=profile(card(12, free=2)))
    assert told == []
    assert "where 2.0 GiB are free" in kept["ansible_facts"]["modelfleet_plan"]["warnings"][0]


def test_only_what_was_reviewed(call: Call) -> None:
    reviewed = json.loads(json.dumps(call()["ansible_facts"]["modelfleet_plan"]))
    assert call(reviewed=reviewed)["pending"] is True
    result = call(reviewed=reviewed, wanted=[{"model": "small", "quantization": "q3_k_m"}])
    assert result["failed"]
    assert result["msg"].startswith(
        "the plan is not the reviewed one: small: quantization is q3_k_m, reviewed was q4_0; review a new one"
    )
    assert call(reviewed={})["msg"].startswith("no plan of this host was reviewed")
    assert "schema_version 1" in call(reviewed={**reviewed, "schema_version": 1})["msg"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wanted": [{"model": "smal"}]}, "models_wanted entry 1: the catalog has no model 'smal' (did you mean small"),
        ({"wanted": [{"task": "generel"}]}, "no model of the catalog is for the task 'generel' (did you mean general"),
        ({"wanted": [{"model": "small", "use_case": "prod"}]}, "there is no use case 'prod' (did you mean production"),
        ({"wanted": [{"model": "small", "quantization": "q4_1"}]}, "small has no quantization 'q4_1' (did you mean"),
        ({"wanted": [{"model": "small", "task": "general"}]}, "names both a model and a task"),
        ({"wanted": [{"model": "small", "best": True, "quantization": "q4_0"}]}, "has both"),
        ({"wanted": [{"model": "small", "context": 131073}]}, "is beyond the 131072 that small was made for"),
        ({"catalog": [{"id": "small"}]}, "catalog entry small: 'category' is missing"),
        ({"lock": {}}, "the lock has schema_version None"),
        ({"parallel_sequences": 0}, "models_parallel_sequences is 0"),
        ({"headroom_mebibytes": -1}, "models_headroom_mebibytes is -1"),
        ({"kv_type": "q4_0", "flash_attention": "off"}, "values of type q4_0 need flash attention"),
    ],
)
def test_what_cannot_be_meant_is_one_line(call: Call, change: dict[str, Any], message: str) -> None:
    result = call(**change)
    assert result["failed"] and message in result["msg"]
