"""modelfleet_models as Ansible calls it: the plan as a fact, publishing at once or in the background."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.catalog import PinnedFile
from modelfleet.core.planning.document import HostPlan, ModelPlan
from modelfleet.core.privilege import Account
from modelfleet.core.store import manifest
from support.grounds import needs_root
from support.models import gguf
from support.work import result_of

Call = Callable[..., dict[str, Any]]

CONTENT = gguf(b"x" * 1000)
NAME = "chat/7b/small.gguf"
WANTED = [{"model": "small"}]


@pytest.fixture(autouse=True)
def soon_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system of today stamps finely enough: wait less for a stat to prove something."""
    # The module has the shared code under a name of its own.
    for module in (manifest, importlib.import_module("ansible.module_utils.modelfleet.core.store.manifest")):
        monkeypatch.setattr(module, "RACY_NS", 30_000_000)


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


class TestPlan:
    """The module with a plan that was made before."""

    @pytest.fixture
    def planned(self, runner: Callable[[str], Call], store: Path, ground: Path) -> Call:
        """Return a function that runs the module with a plan of one model and the given action."""
        (ground / "source.gguf").write_bytes(CONTENT)
        run = runner("modelfleet_models")

        def carry_out(action: str = "fetch", check: bool = False, **changes: Any) -> dict[str, Any]:
            digest = hashlib.sha256(CONTENT).hexdigest()
            file = PinnedFile(NAME, (ground / "source.gguf").as_uri(), len(CONTENT), digest, None)
            model = ModelPlan("small", "q4_0", "chat/7b", "gguf", None, (file,), (file,), action, "because")
            document = HostPlan(str(store), (model,)).to_dict()
            document["models"][0].update(changes)
            return run(check=check, plan=document)

        return carry_out

    def test_it_is_carried_out_as_foreseen(self, planned: Call, store: Path) -> None:
        predicted = planned(check=True)
        assert predicted["changed"] and predicted["published"] == [NAME] and not (store / NAME).exists()
        assert planned() == predicted
        assert (store / NAME).read_bytes() == CONTENT
        again = planned()
        assert again["changed"] is False and again["published"] == [], "what is there is not published again"
        removed = planned("remove", check=True)
        assert removed["removed"] == [NAME] and (store / NAME).exists() and NAME in removed["diff"]["before"]
        assert planned("remove") == removed and not (store / NAME).exists()
        assert planned("remove")["changed"] is False

    def test_what_is_kept_costs_nothing(self, planned: Call, store: Path) -> None:
        assert planned("keep")["changed"] is False and not (store / NAME).exists()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"action": "refuse"}, "small is refused: because; change the wish, and plan again"),
            ({"action": "burn"}, "the plan, models entry 1: action is 'burn'; make the plan anew"),
            ({"files": [], "missing": ["x"]}, "the plan, models entry 1: missing is 'x'"),
        ],
    )
    def test_a_plan_that_cannot_be_meant(self, planned: Call, changes: dict[str, Any], message: str) -> None:
        for check in (True, False):
            result = planned(check=check, **changes)
            assert result["failed"] and result["msg"].startswith(message)

    @pytest.mark.parametrize(
        "path",
        ["cache/temp/x", ".modelfleet/manifest.json", "chat/7b/.hidden", "elsewhere/x", "chat/7b/a:b", "chat/7b"],
    )
    def test_nothing_is_written_outside_the_categories(self, planned: Call, store: Path, path: str) -> None:
        before = sorted(store.rglob("*"))
        file = {"path": path, "source": "file:///x", "size": 1, "sha256": "0" * 64, "wheel": None}
        result = planned(files=[file], missing=[path])
        assert result["failed"] and sorted(store.rglob("*")) == before
