"""modelfleet_models as Ansible calls it: a plan carried out, at once or in the background."""

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
from support.settled import soon_settled
from support.work import result_of

__all__ = ["soon_settled"]
pytestmark = pytest.mark.usefixtures("soon_settled")

Call = Callable[..., dict[str, Any]]

CONTENT = gguf(b"x" * 1000)
NAME = "chat/7b/small.gguf"


@pytest.fixture
def call(runner: Callable[[str], Call], store: Path, ground: Path) -> Call:
    """Return a function that runs the module with the plan of a small model that lies on this host.

    ``action`` and ``model`` change what the plan says of it, ``path`` is where the store is.
    """
    (ground / "source.gguf").write_bytes(CONTENT)
    run = runner("modelfleet_models")

    def carry_out(action: str = "fetch", model: dict[str, Any] | None = None, path: str = "", **more: Any) -> Any:
        digest = hashlib.sha256(CONTENT).hexdigest()
        file = PinnedFile(NAME, (ground / "source.gguf").as_uri(), len(CONTENT), digest, None)
        planned = ModelPlan("small", "q4_0", "chat/7b", "gguf", None, (file,), (file,), action, "because")
        document = HostPlan(path or str(store), (planned,)).to_dict()
        document["models"][0].update(model or {})
        return run(plan=document, **more)

    return carry_out


def test_it_is_carried_out_as_check_mode_tells(call: Call, store: Path, owner: Account) -> None:
    predicted = call(check=True)
    assert predicted["changed"] is True and predicted["published"] == [NAME] and not (store / NAME).exists()
    assert predicted["diff"]["after"] == f"{NAME}: {len(CONTENT)} bytes, sha256 {hashlib.sha256(CONTENT).hexdigest()}\n"
    assert call() == predicted
    assert (store / NAME).read_bytes() == CONTENT and (store / NAME).stat().st_uid == owner.uid
    for check in (True, False):
        again = call(check=check)
        assert again["changed"] is False and again["published"] == [] and again["diff"]["after"] == ""
    removed = call("remove", check=True)
    assert removed["removed"] == [NAME] and (store / NAME).exists() and NAME in removed["diff"]["before"]
    assert call("remove") == removed and not (store / NAME).exists()
    assert call("remove")["changed"] is False


def test_what_is_kept_costs_nothing(call: Call, store: Path) -> None:
    assert call("keep")["changed"] is False and not (store / NAME).exists()


def test_a_warning_reaches_the_user(call: Call, ground: Path, store: Path) -> None:
    source = ground / "voice.pth"
    source.write_bytes(b"\x80\x04K\x01.")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    path = "voice/tts/voice.pth"
    file = {"path": path, "source": source.as_uri(), "size": 5, "sha256": digest, "wheel": None}
    model = {"files": [file], "missing": [path], "category": "voice/tts", "format": "pickle"}
    assert "runs code when it is loaded" in call(model=model)["msg"] and not (store / path).exists()
    warnings = call(model={**model, "allow_pickle": True})["warnings"]
    assert [str(one) for one in warnings if "weights_only=True" in str(one)] and (store / path).exists()


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


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"action": "refuse"}, "small is refused: because; change the wish, and plan again"),
        ({"action": "burn"}, "the plan, models entry 1: action is 'burn'; make the plan anew"),
        ({"files": [], "missing": ["x"]}, "the plan, models entry 1: missing is 'x'"),
    ],
)
def test_a_plan_that_cannot_be_meant(call: Call, model: dict[str, Any], message: str) -> None:
    for check in (True, False):
        result = call(model=model, check=check)
        assert result["failed"] and result["msg"].startswith(message)


@pytest.mark.parametrize(
    "path", ["cache/temp/x", ".modelfleet/manifest.json", "chat/7b/.hidden", "elsewhere/x", "chat/7b/a:b", "chat/7b"]
)
def test_nothing_is_written_outside_the_categories(call: Call, store: Path, path: str) -> None:
    before = sorted(store.rglob("*"))
    file = {"path": path, "source": "file:///x", "size": 1, "sha256": "0" * 64, "wheel": None}
    result = call(model={"files": [file], "missing": [path]})
    assert result["failed"] and sorted(store.rglob("*")) == before


def test_without_a_store_check_mode_foresees_and_a_run_refuses(call: Call, ground: Path, module_jobs: Path) -> None:
    missing = str(ground / "none")
    assert call(path=missing, check=True)["published"] == [NAME]
    for background in (True, False):
        result = call(path=missing, background=background)
        assert result["msg"] == f"{missing}: there is no model store; run the role model_store first"
    assert list(module_jobs.iterdir()) == []


def test_a_failure_of_the_source(call: Call, ground: Path, store: Path) -> None:
    (ground / "source.gguf").unlink()
    result = call()
    assert result["msg"].startswith(f"file://{ground}/source.gguf cannot be read on the host: No such file")
    assert os.listdir(store / "cache/temp") == []


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"hub_endpoints": ["ftp://hub"]}, "ftp://hub"),
        ({"hub_token_file": "/no/such/token"}, "the token file /no/such/token cannot be read"),
    ],
)
def test_how_to_fetch_is_judged_first(call: Call, store: Path, option: dict[str, Any], message: str) -> None:
    result = call(**option)
    assert result["failed"] and message in result["msg"] and not (store / NAME).exists()


@needs_root
def test_a_store_behind_a_symlink_of_the_owners(call: Call, ground: Path, store: Path, owner: Account) -> None:
    (ground / "link").symlink_to(store)
    os.lchown(ground / "link", owner.uid, owner.gid)
    result = call(path=str(ground / "link"))
    assert "is a symlink that another account" in result["msg"] and not (store / NAME).exists()
