"""From a catalog to a store: a user's models are locked against a hub, planned, fetched from it and published whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from modelfleet.core.privilege import Account
from support.grounds import ground, owner
from support.hub import HubServer, serve
from support.models import gguf

__all__ = ["ground", "owner"]

PLAYBOOK = """
- name: Keep the models
  hosts: localhost
  gather_facts: false
  roles:
    - role: model_store
    - role: models
"""
CONFIG = b'{"model_type": "bert"}'
SAFETENSORS = (2).to_bytes(8, "little") + b"{}"
SINGLE, ENCODER = (
    gguf(b"one"),
    {"model.safetensors": SAFETENSORS, "config.json": CONFIG, "1_Pooling/config.json": b"{}"},
)
CATALOG = [
    {
        "id": "mine",
        "category": "chat/7b",
        "variants": {"q8_0": {"files": [{"name": "mine.q8_0.gguf", "source": "hf://owner/mine/mine-Q8_0.gguf"}]}},
    },
    {
        "id": "encoder",
        "category": "embeddings",
        "tasks": ["matching"],
        "variants": {
            "fp32": {"files": [{"name": f"encoder/{name}", "source": f"hf://owner/encoder/{name}"} for name in ENCODER]}
        },
    },
]
FILES = {"chat/7b/mine.q8_0.gguf": SINGLE, **{f"embeddings/encoder/{name}": text for name, text in ENCODER.items()}}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with serve() as server:
        server.add("owner/mine", {"mine-Q8_0.gguf": SINGLE})
        server.add("owner/encoder", ENCODER)
        yield server


class Desk:
    """A user's files, and the commands that are run on them."""

    def __init__(self, checkout: Path, ground: Path, owner: Account, hub: HubServer) -> None:
        self.checkout, self.ground, self.hub = checkout, ground, hub
        self.store = ground / "base" / "models"
        self.store.parent.mkdir()
        os.chown(self.store.parent, owner.uid, owner.gid)
        (ground / "play.yml").write_text(PLAYBOOK)
        self.catalog = ground / "catalog.yml"
        self.catalog.write_text(yaml.safe_dump({"models_catalog_extra": CATALOG}))
        self.lock_file = ground / "lock.json"
        self.lock_file.write_text('{"schema_version": 1, "models": {}}')
        self.variables = {
            "model_store_path": str(self.store),
            "model_store_owner": owner.name,
            "model_store_link": "",
            "models_lock_file": str(self.lock_file),
            "models_wanted": [{"model": "mine"}, {"task": "matching"}],
        }

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command with the hub as the endpoint."""
        environment = {
            **os.environ,
            "NO_COLOR": "1",
            "HF_ENDPOINT": self.hub.endpoint,
            "PYTHONPATH": str(self.checkout / "python"),
            "ANSIBLE_ROLES_PATH": str(self.checkout / "roles"),
        }
        return subprocess.run(
            command,
            cwd=self.checkout,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )

    def lock(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the verb."""
        files = ["--catalog", str(self.catalog), "--lock-file", str(self.lock_file)]
        return self.run(sys.executable, "-P", "-m", "modelfleet.cli", "lock", *files, *arguments)

    def play(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the roles on this machine."""
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        more = ["-e", json.dumps(self.variables), "-e", f"@{self.catalog}", *arguments]
        return self.run(program, "-i", "inventory/localhost.yml", str(self.ground / "play.yml"), *more)

    def published(self) -> dict[str, bytes]:
        """Return what lies in the store."""
        found = [path for name in ("chat", "embeddings") for path in self.store.glob(f"{name}/**/*") if path.is_file()]
        return {str(path.relative_to(self.store)): path.read_bytes() for path in found}


@pytest.fixture
def desk(checkout: Path, ground: Path, owner: Account, hub: HubServer) -> Desk:
    return Desk(checkout, ground, owner, hub)


def test_nothing_comes_that_is_not_locked_and_all_that_is(desk: Desk) -> None:
    refused = desk.play()
    assert refused.returncode == 2 and "run modelfleet lock mine:q8_0" in refused.stdout + refused.stderr
    assert desk.published() == {}

    locked = desk.lock("mine", "encoder")
    assert locked.returncode == 0, locked.stdout + locked.stderr
    done = desk.play()
    assert done.returncode == 0, done.stdout + done.stderr
    assert desk.published() == FILES
    again = desk.play()
    assert again.returncode == 0 and "changed=0" in again.stdout, again.stdout

    # What moves upstream is told, and reaches no host before it is locked.
    desk.hub.repositories["owner/encoder"].commit({**ENCODER, "config.json": b'{"model_type": "roberta"}'})
    assert desk.lock("--check", "encoder").returncode == 2
    assert "changed=0" in desk.play().stdout
    assert desk.lock("encoder").returncode == 0
    moved = desk.play()
    assert moved.returncode == 0 and "changed=0" not in moved.stdout, moved.stdout + moved.stderr
    assert desk.published()["embeddings/encoder/config.json"] == b'{"model_type": "roberta"}'
