"""What the tests of modules share: calling one as Ansible does, and places that several accounts reach."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from support.grounds import ground, owner, store, stranger

__all__ = ["ground", "load", "module_jobs", "owner", "runner", "store", "stranger"]

Call = Callable[..., dict[str, Any]]


def load_module(checkout: Path, name: str) -> ModuleType:
    """Import a module of library/."""
    path = checkout / "library" / f"{name}.py"
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def load(checkout: Path) -> Callable[[str], ModuleType]:
    """Return a function that imports a module of library/."""
    return lambda name: load_module(checkout, name)


@pytest.fixture
def runner(checkout: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str], Call]:
    """Return a function that returns a function that runs a module, ``check`` in check mode, and returns its result."""

    def of(name: str) -> Call:
        module = load_module(checkout, name)

        def run(check: bool = False, **arguments: Any) -> dict[str, Any]:
            arguments = {**arguments, "_ansible_check_mode": check, "_ansible_diff": True}
            with patch_module_args(arguments), pytest.raises(SystemExit):
                module.main()
            result: dict[str, Any] = json.loads(capsys.readouterr().out)
            if result.get("failed"):
                assert "\n" not in result["msg"], result["msg"]
            return result

        return run

    return of


@pytest.fixture
def module_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the jobs of tests out of those of this machine."""
    folder = tmp_path / "jobs"
    folder.mkdir(mode=0o700)
    monkeypatch.setattr("ansible.module_utils.modelfleet.core.jobs._jobs_folder", lambda: str(folder))
    return folder
