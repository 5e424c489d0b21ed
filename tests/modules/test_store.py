"""modelfleet_store as Ansible calls it: whose store it is, what check mode tells, what is refused."""

from __future__ import annotations

import grp
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from modelfleet.core.privilege import Account, current_account
from modelfleet.core.store.layout import STORE_DIRECTORIES
from support.grounds import needs_no_root, needs_root

Call = Callable[..., dict[str, Any]]


@pytest.fixture
def call(runner: Callable[[str], Call]) -> Call:
    return runner("modelfleet_store")


@pytest.fixture
def module(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("modelfleet_store")


@pytest.fixture
def path(ground: Path) -> str:
    return str(ground / "models")


def test_check_mode_tells_what_a_run_changes(call: Call, path: str, owner: Account) -> None:
    arguments = {"path": path, "owner": owner.name, "link": ""}
    predicted = call(check=True, **arguments)
    assert not os.path.exists(path)
    made = call(**arguments)
    assert {name: made[name] for name in predicted if name != "state"} == {
        name: value for name, value in predicted.items() if name != "state"
    }
    group = grp.getgrgid(owner.gid).gr_name
    assert predicted["changed"] is True and predicted["owner"] == owner.name and predicted["group"] == group
    assert predicted["path"] == path and predicted["account_missing"] is False
    described = f"directory 0755 uid {owner.uid} gid {owner.gid}"
    names = [path, *(f"{path}/{name}" for name in STORE_DIRECTORIES)]
    assert predicted["diff"] == {"before": "", "after": "".join(f"{name}: {described}\n" for name in names)}
    for check in (True, False):
        again = call(check=check, **arguments)
        assert again["changed"] is False and again["diff"] == {"before": "", "after": ""}


def test_a_difference_is_told_before_and_after(call: Call, path: str, owner: Account) -> None:
    call(path=path, owner=owner.name, link="")
    result = call(path=path, owner=owner.name, link="", mode="0750", check=True)
    assert result["diff"]["before"].startswith(f"{path}: directory 0755 uid ")
    assert result["diff"]["after"].startswith(f"{path}: directory 0750 uid ")


@pytest.mark.parametrize("mode", ["0755", "755", "0700", "2775", "0o755"])
def test_modes(call: Call, path: str, owner: Account, mode: str) -> None:
    assert call(path=path, owner=owner.name, link="", mode=mode)["changed"]
    assert os.stat(path).st_mode & 0o7777 == int(mode, 8)


@pytest.mark.parametrize("mode", ["0655", "", "rwxr-xr-x", "493", "0x1ed", "u=rwx", "017777", "-755", "0555"])
def test_a_mode_that_is_none(call: Call, path: str, owner: Account, mode: str) -> None:
    result = call(path=path, owner=owner.name, link="", mode=mode)
    assert result["msg"] == (
        f"the mode {mode!r} is none that lets the owner in; set model_store_mode to an octal text such as '0755'"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"owner": "no-such-one"}, "there is no account named 'no-such-one' on this host; create it, or name another"),
        ({"group": "no-such-one"}, "there is no group named 'no-such-one' on this host; create it, or name another"),
        ({"link": "models"}, "the link 'models' is no absolute path; begin model_store_link with / or ~/"),
        ({"link": "~someone/x"}, "the link '~someone/x' is no absolute path; begin model_store_link with / or ~/"),
        ({"path": "/dev/null/models"}, "/dev/null/models: 'null' is not a directory; move it away, or choose another"),
    ],
)
def test_what_cannot_be_meant(call: Call, path: str, owner: Account, change: dict[str, str], message: str) -> None:
    for check in (True, False):
        result = call(check=check, **{"path": path, "owner": owner.name, "link": "", **change})
        assert result["failed"] and result["msg"].startswith(message)
    assert not os.path.exists(path)


@needs_root
def test_another_group(call: Call, path: str, owner: Account) -> None:
    assert call(path=path, owner=owner.name, group="adm", link="")["group"] == "adm"
    assert os.stat(f"{path}/chat/7b").st_gid == 4


def test_the_link_is_in_the_owners_home(module: ModuleType, owner: Account) -> None:
    params = {"group": "", "mode": "0755", "link": "~/models"}
    assert module.find_tree(params, "/srv/models", owner.name).link == f"{owner.home}/models"
    assert module.find_tree({**params, "link": ""}, "/srv/models", owner.name).link is None
    assert module.find_tree({**params, "link": "/srv//x/../y"}, "/srv/models", owner.name).link == "/srv/y"


class TestWhoseStore:
    """Given, else as root whoever called sudo, else the service account; not as root oneself."""

    @pytest.fixture(autouse=True)
    def plain(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SUDO_USER", raising=False)

    @pytest.mark.parametrize(
        ("euid", "sudo_user", "given", "expected"),
        [
            (0, None, "", "service"),
            (0, "", "", "service"),
            (0, "root", "", "service"),
            (0, "ashley", "", "ashley"),
            (0, "ashley", "given", "given"),
            (1000, "ashley", "given", "given"),
        ],
    )
    def test_the_rule(
        self,
        module: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
        euid: int,
        sudo_user: str | None,
        given: str,
        expected: str,
    ) -> None:
        if sudo_user is not None:
            monkeypatch.setenv("SUDO_USER", sudo_user)
        monkeypatch.setattr(os, "geteuid", lambda: euid)
        assert module.choose_owner(given, "service") == expected

    def test_not_as_root_it_is_ones_own(self, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SUDO_USER", "ashley")
        monkeypatch.setattr(module.os, "geteuid", lambda: 54321)
        assert module.choose_owner("", "service") == "54321"

    @needs_no_root
    def test_only_root_makes_one_for_others(self, call: Call, path: str) -> None:
        result = call(path=path, owner="root")
        assert result["msg"] == "only root can make a store for root; run with become, or leave model_store_owner empty"
        assert call(path=path, link="")["owner"] == current_account().name

    @needs_root
    def test_the_service_account_may_be_missing_and_nothing_is_made_then(self, call: Call, path: str) -> None:
        arguments = {"path": path, "service_account": "no-such-service", "link": ""}
        predicted = call(check=True, **arguments)
        assert (predicted["changed"], predicted["account_missing"]) == (True, True)
        assert predicted["owner"] == "no-such-service"
        now = call(**arguments)
        assert (now["changed"], now["account_missing"]) == (False, True)
        assert not os.path.exists(path)
        told = [line.split(":")[0] for line in predicted["diff"]["after"].splitlines()]
        assert told == [path, *(f"{path}/{name}" for name in STORE_DIRECTORIES)]

    @needs_root
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"mode": "x"}, "the mode 'x' is none that lets the owner in"),
            ({"group": "no-such-group"}, "there is no group named 'no-such-group'"),
            ({"path": "/etc/passwd/models"}, "/etc/passwd/models: 'passwd' is not a directory"),
            ({"path": "/etc"}, "/etc: is a directory of the system"),
        ],
    )
    def test_what_is_wrong_is_said_before_the_account_is_made(
        self, call: Call, path: str, change: dict[str, str], message: str
    ) -> None:
        for check in (True, False):
            result = call(check=check, **{"path": path, "service_account": "no-such-service", **change})
            assert result["failed"] and result["msg"].startswith(message)

    @needs_root
    @pytest.mark.parametrize("owner_name", ["no-such-service", "no-such-other"])
    def test_any_other_that_is_missing_may_be_a_slip(self, call: Call, path: str, owner_name: str) -> None:
        result = call(path=path, owner=owner_name, service_account="no-such-service")
        assert result["msg"].startswith(f"there is no account named {owner_name!r}")

    @needs_root
    def test_a_wrong_group_of_a_missing_service_account_is_no_missing_account(self, call: Call, path: str) -> None:
        result = call(path=path, service_account="nobody", group="no-such-group", link="")
        assert result["failed"] and result["msg"].startswith("there is no group named 'no-such-group'")

    @needs_root
    @pytest.mark.parametrize("wrong", [{"mode": "x"}, {"link": "x"}])
    def test_a_wrong_value_is_not_taken_for_a_missing_account(
        self, call: Call, path: str, wrong: dict[str, str]
    ) -> None:
        result = call(path=path, service_account="nobody", **wrong)
        assert result["failed"] and "no account" not in result["msg"]


@needs_root
def test_a_symlink_of_the_owners_is_refused(call: Call, ground: Path, owner: Account) -> None:
    (ground / "etc").mkdir()
    (ground / "given").mkdir()
    os.chown(ground / "given", owner.uid, owner.gid)
    (ground / "given" / "models").symlink_to(ground / "etc")
    os.lchown(ground / "given" / "models", owner.uid, owner.gid)
    result = call(path=str(ground / "given" / "models"), owner=owner.name, link="")
    assert "'models' on the way is a symlink that another account" in result["msg"]
    assert (ground / "etc").stat().st_uid == 0
