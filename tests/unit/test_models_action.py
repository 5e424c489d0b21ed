"""The token of the Hub on its way from a variable to a host: in memory, readable by one account, gone once opened."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail, AnsibleError
from modelfleet import models_action
from modelfleet.core.errors import ConfigurationError
from modelfleet.core.fetch.settings import take_token
from modelfleet.models_action import ModelsAction, without
from support.action import OnThisMachine

# One of its own for each process of the tests: the folder in memory belongs to all of them, and to every run here.
TOKEN = f"hf_Token+/={secrets.token_hex(8)}"
MEMORY = Path("/dev/shm")
needs_memory = pytest.mark.skipif(not MEMORY.is_dir(), reason="needs a folder in memory: /dev/shm")


class Models(OnThisMachine, ModelsAction):
    """The action plugin on this machine; its module looks at what was handed over."""

    def __init__(self, folder: Path, check_mode: bool = False) -> None:
        super().__init__(folder, check_mode)
        self._templar = SimpleNamespace(template=lambda value: value)
        self.handed: list[tuple[int, str]] = []
        self.takes = True
        self.answers = [{"changed": False}]

    def _execute_module(self, module_args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        path = module_args.get("hub_token_handover")
        if path:
            mode = os.stat(path).st_mode & 0o777
            self.handed.append((mode, take_token(path) if self.takes else ""))
            assert os.path.exists(path) is not self.takes
        return super()._execute_module(module_args, task_vars)

    def _low_level_execute_command(self, command: str, sudoable: bool, in_data: bytes | None = None) -> dict[str, Any]:
        assert sudoable and TOKEN not in command
        if in_data is None:
            return super()._low_level_execute_command(command, sudoable)
        done = subprocess.run(["/bin/sh", "-c", command], input=in_data, capture_output=True)
        return {"stdout": done.stdout.decode(), "stderr": done.stderr.decode(), "rc": done.returncode}


@pytest.fixture
def action(tmp_path: Path) -> Models:
    return Models(tmp_path)


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    yield
    found = []
    for path in MEMORY.glob("modelfleet-token-*"):
        with contextlib.suppress(OSError):
            found += [path] if TOKEN in path.read_text(errors="replace") else []
    assert found == []


def run(action: Models, token: Any = TOKEN, **arguments: Any) -> dict[str, Any]:
    task_vars = {"inventory_hostname": "host1", "secret": token}
    return action.execute({"plan": {}, "hub_token_variable": "secret", **arguments}, task_vars)


@needs_memory
def test_it_is_handed_over_once(action: Models) -> None:
    assert run(action, f" {TOKEN}\n") == {"changed": False}
    assert action.handed == [(0o600, TOKEN)]
    (arguments,) = action.calls
    assert set(arguments) == {"plan", "background", "hub_token_handover"} and TOKEN not in str(arguments)


@needs_memory
def test_what_the_module_did_not_open_is_removed(action: Models) -> None:
    action.takes = False
    run(action)
    assert len(action.handed) == 1


@needs_memory
def test_what_a_killed_run_left_is_swept(action: Models) -> None:
    left, fresh = (MEMORY / f"modelfleet-token-{secrets.token_hex(8)}" for _ in range(2))
    try:
        for path in (left, fresh):
            path.write_text(TOKEN)
        os.utime(left, (1, 1))
        run(action)
        assert not left.exists() and fresh.exists()
    finally:
        fresh.unlink()


@pytest.mark.parametrize("token", ["", None, "  "])
def test_an_empty_variable_is_no_token(action: Models, token: Any) -> None:
    assert run(action, token) == {"changed": False} and action.commands == []


def test_check_mode_needs_none(tmp_path: Path) -> None:
    action = Models(tmp_path, check_mode=True)
    assert run(action) == {"changed": False} and action.commands == [] and action.handed == []


@pytest.mark.parametrize("token", ["hf_two words", "hf_zeilen\nhf_x", "hf_ü", ["hf_x"], 5, "x" * 5000])
def test_what_is_no_token_is_refused_and_not_shown(action: Models, token: Any) -> None:
    with pytest.raises(AnsibleActionFail) as caught:
        run(action, token)
    assert str(caught.value) == "the variable secret holds no token of the Hub; write it as one plain line"


def test_a_variable_that_is_not_there(action: Models) -> None:
    with pytest.raises(AnsibleActionFail, match="the variable other is to hold the Hub's token and is not set"):
        run(action, hub_token_variable="other")


def test_a_connection_without_a_way(action: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AnsibleError("no pipelining")

    monkeypatch.setattr(action, "_low_level_execute_command", refuse)
    with pytest.raises(AnsibleActionFail, match="set models_hub_token_file"):
        run(action)


def test_a_host_without_a_folder_in_memory(action: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_action, "_WRITE", models_action._WRITE.replace("tmpfs", "nosuchfs"))
    with pytest.raises(AnsibleActionFail, match=r"no folder in memory .*set models_hub_token_file"):
        run(action)


@pytest.mark.parametrize("said", ["/etc/passwd", "/dev/shm/modelfleet-token-../../etc/x", "", "/dev/shm/x\n/etc/y"])
def test_a_host_that_says_nonsense(action: Models, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setattr(action, "_low_level_execute_command", lambda *_, **__: {"rc": 0, "stdout": said})
    with pytest.raises(AnsibleActionFail, match="the host did not take the Hub's token"):
        run(action)


def test_stars_in_every_place_of_a_result() -> None:
    inside = {"msg": f"a {TOKEN} b", TOKEN: [1, (f"{TOKEN}{TOKEN}", None)], "fine": True}
    assert without(TOKEN, inside) == {"msg": "a ******** b", "********": [1, ("*" * 16, None)], "fine": True}


class TestTake:
    """What the host does with the file."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        file = tmp_path / "token"
        file.touch(mode=0o600)
        file.write_text(TOKEN)
        return file

    def test_it_is_gone(self, file: Path) -> None:
        assert take_token(str(file)) == TOKEN and not file.exists()
        with pytest.raises(ConfigurationError, match="cannot be read: No such file or directory; run again"):
            take_token(str(file))

    def test_one_that_others_can_read_is_not_taken(self, file: Path) -> None:
        file.chmod(0o640)
        with pytest.raises(ConfigurationError, match="not ours alone"):
            take_token(str(file))
        assert not file.exists()

    def test_a_link_is_not_followed(self, tmp_path: Path, file: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(file)
        with pytest.raises(ConfigurationError, match="cannot be read"):
            take_token(str(link))
        assert file.exists()
