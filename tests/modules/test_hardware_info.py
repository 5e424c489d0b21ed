"""modelfleet_hardware_info as Ansible calls it."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

Call = Callable[..., dict[str, Any]]


@pytest.fixture
def call(checkout: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return a function that runs the module and returns its result."""
    path = checkout / "library" / "modelfleet_hardware_info.py"
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)

    def run(**arguments: Any) -> dict[str, Any]:
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        return json.loads(capsys.readouterr().out)

    return run


def test_it_returns_a_profile_as_a_fact(call: Call, tmp_path: Path) -> None:
    result = call(model_root=str(tmp_path))
    profile = result["ansible_facts"]["modelfleet_hardware"]
    assert result["changed"] is False
    assert profile["schema_version"] == 1
    assert profile["storage"]["path"] == str(tmp_path)
    assert profile["account"]["uid"] == os.geteuid()


def test_check_mode_is_the_same(call: Call) -> None:
    result = call(_ansible_check_mode=True)
    assert result["changed"] is False and "skipped" not in result
    assert result["ansible_facts"]["modelfleet_hardware"]["cpu"]["logical_cores"] >= 1


def test_the_default_place_depends_on_the_account(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for uid, place in ((0, "/opt/ashley-ai/models"), (1000, f"{tmp_path}/.local/share/ashley-ai/models")):
        monkeypatch.setattr("os.geteuid", lambda uid=uid: uid)
        assert call()["ansible_facts"]["modelfleet_hardware"]["storage"]["path"] == place


def test_a_recorded_machine_is_replayed(call: Call, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 1024 kB\nMemAvailable: 512 kB\n")
    profile = call(root=str(tmp_path))["ansible_facts"]["modelfleet_hardware"]
    assert profile["memory"]["total_bytes"] == 1048576
    assert profile["account"]["name"] is None
