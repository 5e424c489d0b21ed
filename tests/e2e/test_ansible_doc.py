"""Ansible's own documentation tool shows every module and every role."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = str(Path(sys.executable).with_name("ansible-doc"))


def ansible_doc(checkout: Path, *arguments: str) -> dict[str, Any]:
    """Return what ansible-doc says, as JSON."""
    done = subprocess.run(
        [PROGRAM, "--json", *arguments],
        cwd=checkout,
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_every_module_is_shown(checkout: Path) -> None:
    names = sorted(path.stem for path in (checkout / "library").glob("modelfleet_*.py"))
    assert names
    said = ansible_doc(checkout, "-M", "library", "-t", "module", *names)
    assert sorted(said) == names
    assert [name for name in names if not (said[name]["examples"] and said[name]["return"])] == []


def test_every_role_is_shown(checkout: Path) -> None:
    names = sorted(path.parent.name for path in checkout.glob("roles/*/tasks"))
    assert names
    said = ansible_doc(checkout, "-t", "role", "-r", "roles", *names)
    assert sorted(said) == names
