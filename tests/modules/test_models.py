"""modelfleet_models as Ansible calls it: the plan as a fact, publishing at once or in the background."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.privilege import Account
from support.grounds import needs_root
from support.models import gguf
from support.work import result_of

Call = Callable[..., dict[str, Any]]

CONTENT = gguf(b"x" * 1000)
NAME = "chat/7b/small.gguf"
WANTED = [{"model": "small"}]


@pytest.fixture
def call(runner: Callable[[str], Call], store: Path, ground: Path) -> Call:
    """Return a function that runs the module for a small model that lies on this host."""
    (ground / "source.gguf").write_bytes(CONTENT)
    source = (ground / "source.gguf").as_uri()
    digest = hashlib.sha256(CONTENT).hexdigest()
    variants = {"q4_0": {"files": [{"name": "small.gguf", "source": source}]}}
    pin = {"name": "small.gguf", "source": source, "size": len(CONTENT), "sha256": digest}
    arguments = {
        "store_path": str(store),
        "wanted": WANTED,
        "catalog": [{"id": "small", "category": "chat/7b", "variants": variants}],
        "lock": {"schema_version": 1, "models": {"small": {"q4_0": {"files": [pin]}}}},
    }
    run = runner("modelfleet_models")
    return lambda **changes: run(**{**arguments, **changes})


def test_check_mode_tells_what_a_run_publishes(call: Call, store: Path, owner: Account) -> None:
    predicted = call(check=True)
    assert not (store / NAME).exists()
    assert call() == predicted
    plan = predicted["ansible_facts"]["modelfleet_plan"]
    assert predicted["changed"] is True and predicted["published"] == [NAME]
    assert predicted["diff"]["after"] == f"{NAME}: {len(CONTENT)} bytes, sha256 {hashlib.sha256(CONTENT).hexdigest()}\n"
    assert plan["store_path"] == str(store) and plan["schema_version"] == 1 and plan["bytes_to_fetch"] == len(CONTENT)
    assert [(model["model"], model["action"]) for model in plan["models"]] == [("small", "fetch")]
    assert (store / NAME).read_bytes() == CONTENT and (store / NAME).stat().st_uid == owner.uid
    for check in (True, False):
        again = call(check=check)
        assert again["changed"] is False and again["published"] == [] and again["diff"]["after"] == ""
        assert again["ansible_facts"]["modelfleet_plan"]["models"][0]["action"] == "keep"


def test_in_the_background(call: Call, store: Path, module_jobs: Path) -> None:
    started = call(background=True)
    assert set(started) >= {"changed", "job"} and started["changed"] is False
    assert os.path.dirname(started["job"]["folder"]) == str(module_jobs)
    result = result_of(started["job"])
    assert result["changed"] is True and result["published"] == [NAME]
    assert (store / NAME).read_bytes() == CONTENT
    assert "job" not in call(background=True), "there is nothing to do any more"


def test_check_mode_starts_nothing_in_the_background(call: Call, store: Path, module_jobs: Path) -> None:
    assert "job" not in call(background=True, check=True)
    assert list(module_jobs.iterdir()) == [] and not (store / NAME).exists()


def test_a_failure_in_the_background_is_one_line(call: Call, ground: Path, module_jobs: Path) -> None:
    (ground / "source.gguf").write_bytes(CONTENT[::-1])
    result = result_of(call(background=True)["job"])
    assert result["failed"] and result["msg"].startswith(f"{NAME}: expected sha256 ") and "\n" not in result["msg"]


def test_no_wishes(call: Call) -> None:
    result = call(wanted=[])
    assert result["changed"] is False and result["ansible_facts"]["modelfleet_plan"]["models"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"wanted": [{"model": "smal"}]},
            "models_wanted entry 1: the catalog has no model 'smal' (did you mean",
        ),
        ({"catalog": [{"id": "small"}]}, "catalog entry small: 'category' is missing; write 'category: …'"),
        ({"lock": {}}, "the lock has schema_version None, this release reads 1"),
        ({"lock": {"schema_version": 1}}, "the lock's models are no mapping; they must be one of ids"),
    ],
)
def test_what_cannot_be_meant_is_told_in_check_mode_too(call: Call, change: dict[str, Any], message: str) -> None:
    for check in (True, False):
        result = call(check=check, **change)
        assert result["failed"] and result["msg"].startswith(message)


def test_without_a_store_check_mode_plans_and_a_run_refuses(call: Call, ground: Path, module_jobs: Path) -> None:
    missing = str(ground / "none")
    assert call(store_path=missing, check=True)["published"] == [NAME]
    for background in (True, False):
        result = call(store_path=missing, background=background)
        assert result["msg"] == f"{missing}: there is no model store; run the role model_store first"
    assert list(module_jobs.iterdir()) == []


def test_a_failure_of_the_source(call: Call, ground: Path, store: Path) -> None:
    (ground / "source.gguf").unlink()
    result = call()
    assert result["msg"].startswith(f"file://{ground}/source.gguf cannot be read on the host: No such file")
    assert os.listdir(store / "cache/temp") == []


@needs_root
def test_a_store_behind_a_symlink_of_the_owners(call: Call, ground: Path, store: Path, owner: Account) -> None:
    (ground / "link").symlink_to(store)
    os.lchown(ground / "link", owner.uid, owner.gid)
    result = call(store_path=str(ground / "link"))
    assert "is a symlink that another account" in result["msg"] and not (store / NAME).exists()
