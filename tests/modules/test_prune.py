"""modelfleet_prune as Ansible calls it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.fetch.transfer import part_key
from modelfleet.core.pins import PinnedFile
from modelfleet.core.planning.document import HostPlan, ModelPlan
from modelfleet.core.publishing import units_of
from support.models import gguf
from support.settled import soon_settled

__all__ = ["soon_settled"]
pytestmark = pytest.mark.usefixtures("soon_settled")

Call = Callable[..., dict[str, Any]]

CONTENT = gguf(b"x" * 50_000)
NAMES = {"one": "chat/7b/one.gguf", "two": "chat/13b/two.gguf"}


def planned(store: Path, ground: Path, *names: str, action: str = "keep", path: str = "") -> HostPlan:
    """Return a plan of some of the models."""
    models = []
    for name in names:
        digest = hashlib.sha256(CONTENT).hexdigest()
        file = PinnedFile(path or NAMES[name], (ground / "source.gguf").as_uri(), len(CONTENT), digest, None)
        folder = os.path.dirname(file.path)
        models.append(ModelPlan(name, "q4_0", folder, "gguf", None, (file,), (file,), action, "because"))
    return HostPlan(str(store), tuple(models))


@pytest.fixture
def call(runner: Callable[[str], Call], store: Path, ground: Path) -> Call:
    """Return a function that runs the module on a store that holds both models."""
    (ground / "source.gguf").write_bytes(CONTENT)
    assert runner("modelfleet_models")(plan=planned(store, ground, *NAMES, action="fetch").to_dict())["changed"]
    run = runner("modelfleet_prune")

    def prune(plan: HostPlan, **more: Any) -> dict[str, Any]:
        return run(plan=plan.to_dict(), **more)

    return prune


def test_it_removes_as_check_mode_tells(call: Call, store: Path, ground: Path) -> None:
    plan = planned(store, ground, "one")
    size = (store / NAMES["two"]).stat().st_blocks * 512
    predicted = call(plan, check=True)
    assert predicted["changed"] and predicted["diff"] == {"before": f"{NAMES['two']} (two)\n", "after": ""}
    assert predicted["files"] == [
        {"path": NAMES["two"], "model": "two", "state": "removed", "freed_bytes": size},
    ]
    assert predicted["freed_bytes"] == size and (store / NAMES["two"]).exists()
    assert call(plan) == predicted
    assert not (store / NAMES["two"]).exists() and (store / NAMES["one"]).read_bytes() == CONTENT
    for check in (True, False):
        again = call(plan, check=check)
        assert (again["changed"], again["files"], again["freed_bytes"]) == (False, [], 0)


@pytest.mark.parametrize("action", ["keep", "fetch", "replace"])
def test_a_file_in_the_plan_stays(call: Call, store: Path, ground: Path, action: str) -> None:
    assert call(planned(store, ground, *NAMES, action=action))["changed"] is False
    assert all((store / name).exists() for name in NAMES.values())


def test_what_the_plan_removes_goes(call: Call, store: Path, ground: Path) -> None:
    assert [one["path"] for one in call(planned(store, ground, *NAMES, action="remove"))["files"]] == sorted(
        NAMES.values()
    )


@pytest.mark.parametrize("action", ["refuse", "fetch", "replace", "keep"])
def test_nothing_of_a_model_goes_before_its_planned_variant_is_there(
    call: Call, store: Path, ground: Path, action: str
) -> None:
    plan = planned(store, ground, "two", action=action, path="chat/13b/two.q8_0.gguf")
    for unsure in (plan, plan._replace(provisional=True)):
        found = [one["path"] for one in call(unsure, check=True)["files"]]
        assert found == sorted(NAMES.values() if action == "keep" and not unsure.provisional else [NAMES["one"]])


def test_downloads_that_are_wanted_stay(call: Call, store: Path, ground: Path) -> None:
    plan = planned(store, ground, *NAMES, action="fetch")
    temporary = store / "cache/temp"
    key = part_key(plan.models[0].files[0])
    wanted = [f"{key}.part", f"{key}.part.journal", f"modelfleet-{key}", *(unit.staging for unit in units_of(plan))]
    stale = ["0" * 64 + ".part", "modelfleet-unit-" + "0" * 32]
    for name in (*wanted, *stale):
        (temporary / name).mkdir() if "unit" in name else (temporary / name).write_bytes(b"part")
        os.chown(temporary / name, store.stat().st_uid, -1)
    result = call(plan)
    assert result["changed"] and result["in_flight"] == stale and result["files"] == []
    assert sorted(os.listdir(temporary)) == sorted(wanted)


def test_what_the_user_changed_is_left_with_a_warning(call: Call, store: Path, ground: Path) -> None:
    (store / NAMES["two"]).write_bytes(b"edited")
    result = call(planned(store, ground, "one"))
    assert [one["state"] for one in result["files"]] == ["left"] and result["diff"]["before"] == ""
    assert [str(one) for one in result["warnings"] if "was changed since it was published: it is left" in str(one)]
    assert (store / NAMES["two"]).read_bytes() == b"edited"


def test_without_a_store(call: Call, ground: Path) -> None:
    result = call(planned(ground / "none", ground, "one"))
    assert result["msg"] == f"{ground}/none: there is no model store; run the role model_store first"


def test_a_plan_that_is_none(call: Call, runner: Callable[[str], Call]) -> None:
    assert runner("modelfleet_prune")(plan={"schema_version": 7})["msg"].startswith("the plan has schema_version 7")
