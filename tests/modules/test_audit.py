"""modelfleet_audit as Ansible calls it, and modelfleet_models with the plan that it returns."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.pins import PinnedFile
from modelfleet.core.planning.document import HostPlan, ModelPlan
from modelfleet.core.privilege import Account
from support.grounds import needs_root
from support.models import gguf
from support.settled import soon_settled, stamp
from support.work import result_of

__all__ = ["soon_settled"]
pytestmark = pytest.mark.usefixtures("soon_settled")

Call = Callable[..., dict[str, Any]]

CONTENT = gguf(b"x" * 50_000)
NAMES = ("chat/7b/one.gguf", "chat/13b/two.gguf")


@pytest.fixture
def plan(runner: Callable[[str], Call], store: Path, ground: Path) -> dict[str, Any]:
    """Return a plan of two models that lie on this host; it is carried out."""
    (ground / "source.gguf").write_bytes(CONTENT)
    models = []
    for name in NAMES:
        digest = hashlib.sha256(CONTENT).hexdigest()
        file = PinnedFile(name, (ground / "source.gguf").as_uri(), len(CONTENT), digest, None)
        folder, base = os.path.split(name)
        models.append(ModelPlan(base, "q4_0", folder, "gguf", None, (file,), (file,), "fetch", "because"))
    document = HostPlan(str(store), tuple(models)).to_dict()
    assert runner("modelfleet_models")(plan=document)["changed"]
    return document


@pytest.fixture
def call(runner: Callable[[str], Call]) -> Call:
    """Return a function that runs the module."""
    return runner("modelfleet_audit")


def test_a_sound_store(call: Call, plan: dict[str, Any], store: Path) -> None:
    for arguments in ({"plan": plan}, {"store_path": str(store)}, {"plan": plan, "repair": True}):
        result = call(**arguments)
        result.pop("invocation", None)
        assert result.pop("seconds") >= 0
        assert result == {
            "changed": False,
            "findings": [],
            "summary": "",
            "store_path": str(store),
            "files": 2,
            "hashed_bytes": 2 * len(CONTENT),
            "touched": [],
            "repair_plan": {},
            "diff": {"before": "", "after": ""},
        }


def test_damage_is_told_and_nothing_is_changed(call: Call, plan: dict[str, Any], store: Path) -> None:
    (store / NAMES[0]).write_bytes(CONTENT[::-1])
    (store / NAMES[1]).unlink()
    before = sorted((str(path), path.lstat().st_ctime_ns) for path in store.rglob("*.gguf"))
    for arguments in ({"plan": plan}, {"store_path": str(store)}, {"plan": plan, "repair": True, "check": True}):
        result = call(**arguments)
        assert [(one["kind"], one["path"], one["state"]) for one in result["findings"]] == [
            ("missing", NAMES[1], "found"),
            ("changed", NAMES[0], "found"),
        ]
        assert result["changed"] is False and result["repair_plan"] == {} and result["diff"]["before"] == ""
        assert result["summary"].startswith(f"2 findings: {NAMES[1]} is not there; {NAMES[0]} has sha256 ")
        assert sorted((str(path), path.lstat().st_ctime_ns) for path in store.rglob("*.gguf")) == before


def test_a_summary_stays_one_line(call: Call, plan: dict[str, Any], store: Path) -> None:
    for number in range(7):
        (store / "chat/7b" / f"x{number}\nevil").write_text("")
    result = call(plan=plan)
    assert result["summary"].startswith("7 findings: chat/7b/x0 evil lies") and "\n" not in result["summary"]
    assert result["summary"].endswith("; and 4 more")


def test_a_repair_brings_what_is_broken_and_nothing_else(
    call: Call, runner: Callable[[str], Call], plan: dict[str, Any], store: Path
) -> None:
    sound = stamp(store / NAMES[1])
    (store / NAMES[0]).write_bytes(CONTENT[::-1])
    result = call(plan=plan, repair=True)
    assert result["changed"] and result["summary"] == ""
    assert [(one["kind"], one["state"]) for one in result["findings"]] == [("changed", "to fetch")]
    assert NAMES[0] in result["diff"]["before"]
    fetching = result["repair_plan"]
    assert [(one["model"], one["action"], one["missing"]) for one in fetching["models"]] == [
        ("one.gguf", "replace", [NAMES[0]])
    ]
    assert fetching["bytes_to_fetch"] == len(CONTENT)
    assert runner("modelfleet_models")(plan=fetching)["published"] == [NAMES[0]]
    assert (store / NAMES[0]).read_bytes() == CONTENT and stamp(store / NAMES[1]) == sound
    assert call(plan=plan, repair=True)["findings"] == []


def test_a_repair_that_needs_no_download(call: Call, plan: dict[str, Any], store: Path) -> None:
    (store / NAMES[0]).chmod(0o666)
    result = call(plan=plan, repair=True)
    assert result["changed"] and result["repair_plan"] == {} and result["summary"] == ""
    assert call(plan=plan)["findings"] == [] and (store / NAMES[0]).stat().st_mode & 0o777 == 0o644


def test_a_refused_model_is_not_missed(call: Call, plan: dict[str, Any], store: Path) -> None:
    for name in NAMES:
        (store / name).unlink()
    plan["models"][0]["action"] = "refuse"
    plan["models"][1]["action"] = "remove"
    result = call(plan=plan, repair=True)
    # The manifest tells of them all the same; nothing of them is fetched.
    assert [one["state"] for one in result["findings"]] == ["found", "found"] and result["repair_plan"] == {}


def test_in_the_background(call: Call, plan: dict[str, Any], store: Path, module_jobs: Path) -> None:
    (store / NAMES[0]).write_bytes(CONTENT[::-1])
    started = call(plan=plan, background=True, repair=True)
    assert started["changed"] is False and os.path.dirname(started["job"]["folder"]) == str(module_jobs)
    result = result_of(started["job"])
    assert result["changed"] and result["repair_plan"]["models"][0]["missing"] == [NAMES[0]]
    assert '"step": "hashing 2 files"' in Path(started["job"]["progress"]).read_text()


def test_without_a_store(call: Call, ground: Path, module_jobs: Path) -> None:
    result = call(store_path=str(ground / "none"), background=True)
    assert result["msg"] == f"{ground}/none: there is no model store; run the role model_store first"
    assert list(module_jobs.iterdir()) == []


def test_a_plan_that_is_none(call: Call) -> None:
    assert call(plan={"schema_version": 7})["msg"].startswith("the plan has schema_version 7")


@needs_root
def test_a_store_behind_a_symlink_of_the_owners(call: Call, ground: Path, store: Path, owner: Account) -> None:
    (ground / "link").symlink_to(store)
    os.lchown(ground / "link", owner.uid, owner.gid)
    assert "is a symlink that another account" in call(store_path=str(ground / "link"))["msg"]
