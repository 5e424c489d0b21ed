"""A host without any network installs the real runtime from a wheelhouse that another host of its kind filled.

Both are this machine; the second's processes see no network but the loopback.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.grounds import needs_root

KEPT = Path.home() / ".cache" / "modelfleet" / "wheelhouse"
NO_NETWORK = ("unshare", "--net", "sh", "-c", 'ip link set lo up 2>/dev/null; exec "$@"', "sh")
NO_INDEX = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_INDEX_URL": "", "PIP_FIND_LINKS": ""}

pytestmark = pytest.mark.long


@pytest.fixture
def root() -> Iterator[Path]:
    """Return a folder that any account may enter, and that programs may be started from."""
    folder = Path(tempfile.mkdtemp(prefix="modelfleet-e2e-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def variables(root: Path, name: str) -> str:
    """Return what puts a host of this name under ``root``."""
    home = root / name / "home"
    home.mkdir(parents=True)
    shutil.chown(home, "nobody")
    return json.dumps(
        {
            "model_store_path": str(root / name / "models"),
            "model_store_link": str(home / "models"),
            "model_store_owner": "nobody",
            "inference_runtime_path": str(root / name / "runtime"),
            "inference_runtime_wheelhouse": str(root / "wheelhouse"),
        }
    )


@needs_root
def test_a_filled_wheelhouse_installs_a_host_without_network(checkout: Path, root: Path) -> None:
    kind = f"*-cpu-linux_{platform.machine()}-{''.join(platform.libc_ver())}-*"
    wheels = list(KEPT.glob(f"llama_cpp_python{kind}"))
    if not wheels:
        pytest.skip(f"no wheel of this machine's kind is kept in {KEPT}: run ./modelfleet apply first")
    for wheel in wheels:
        shutil.copytree(wheel, root / "wheelhouse" / wheel.name)
    filled = [sys.executable, "-P", "-m", "modelfleet.cli", "wheelhouse", "--for", "gguf"]
    made, cut_off = variables(root, "made"), variables(root, "cut-off")

    def run(*command: str, given: str, environment: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            [*command, "-e", given],
            cwd=checkout,
            env={**os.environ, "NO_COLOR": "1", **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    program = str(Path(sys.executable).with_name("ansible-playbook"))
    playbook = (program, "-i", "inventory/localhost.yml")
    run(*playbook, "playbooks/prepare.yml", given=made)
    said = run(*filled, "--output", str(root / "wheelhouse"), given=made)
    assert "whole  stack-" in said and "damaged" not in said

    run(*playbook, "playbooks/prepare.yml", given=cut_off)
    run(*NO_NETWORK, *playbook, "playbooks/runtime.yml", given=cut_off, environment=NO_INDEX)
    python = str(root / "cut-off/runtime/current/bin/python")
    imported = subprocess.run([python, "-I", "-c", "import llama_cpp, numpy"], cwd="/", capture_output=True, text=True)
    assert imported.returncode == 0, imported.stderr
