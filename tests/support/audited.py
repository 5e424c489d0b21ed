"""A store with published models, and audits of it: what the tests of audit and repair share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.fetch.package_index import PackageIndexSettings
from modelfleet.core.jobs import Progress
from modelfleet.core.pins import PinnedFile
from modelfleet.core.planning.document import HostPlan, ModelPlan
from modelfleet.core.privilege import Account, acting_as
from modelfleet.core.publishing import carry_out
from modelfleet.core.store.audit import Audit, audit
from modelfleet.core.store.manifest import MANIFEST, read_manifest, write_manifest
from modelfleet.core.store.repair import put_right

from .models import gguf

NAME = "chat/7b/model.gguf"
OTHER = "chat/13b/other.gguf"
UNIT = ("embeddings/folder/config.json", "embeddings/folder/weights/model.gguf")
CONTENTS = {
    NAME: gguf(b"x" * 100_000),
    OTHER: gguf(b"y" * 3_000_000),
    UNIT[0]: b"{}",
    UNIT[1]: gguf(b"z" * 1000),
}


@pytest.fixture
def plan(store: Path, ground: Path) -> HostPlan:
    """Return a plan of three models whose sources lie on this host; it is carried out."""
    (ground / "sources").mkdir(mode=0o755)

    def pinned(path: str) -> PinnedFile:
        source = ground / "sources" / path.replace("/", "_")
        source.write_bytes(CONTENTS[path])
        source.chmod(0o644)
        digest = hashlib.sha256(CONTENTS[path]).hexdigest()
        return PinnedFile(path, source.as_uri(), len(CONTENTS[path]), digest, None)

    def model(name: str, *paths: str) -> ModelPlan:
        files = tuple(pinned(path) for path in paths)
        unit = "embeddings/folder" if len(files) > 1 else None
        category = os.path.dirname(unit or paths[0])
        return ModelPlan(name, "q4_0", category, "gguf", unit, files, files, "fetch", "because")

    plan = HostPlan(str(store), (model("one", NAME), model("other", OTHER), model("folder", *UNIT)))
    carry_out(plan, PackageIndexSettings(("http://127.0.0.1:9/simple",)), Progress())
    return plan


def wished(plan: HostPlan) -> dict[str, PinnedFile]:
    """Return what a plan wishes, by path."""
    return {file.path: file for model in plan.models for file in model.files}


@pytest.fixture
def look(store: Path, owner: Account, plan: HostPlan) -> Callable[..., Audit]:
    """Return a function that audits the store, and looks whether it changed anything that it must not."""

    def run(repair: bool = False, wishes: Any = None) -> Audit:
        before = None if repair else (store / MANIFEST).read_bytes()
        done = audit(
            str(store), owner, wished(plan) if wishes is None else wishes, Progress(), put_right if repair else None
        )
        assert repair or (before == (store / MANIFEST).read_bytes() and not done.changed)
        assert os.geteuid() == os.getuid(), "it is itself again"
        return done

    return run


def told(done: Audit) -> list[tuple[str, str]]:
    """Return kind and path of each finding."""
    return [(one.kind, one.path) for one in done.findings]


def flip(path: Path, offset: int = 5000) -> None:
    """Flip one bit, and put back of the stat what can be put back."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def conceal(store: Path, owner: Account, name: str) -> None:
    """Make the manifest believe that the file's stat is the recorded one, as rot below the file system would."""
    manifest = read_manifest(str(store))
    status = (store / name).lstat()
    assert manifest[name].inode == status.st_ino
    manifest[name] = manifest[name]._replace(ctime_ns=status.st_ctime_ns, recorded_ns=status.st_ctime_ns + 10**10)
    assert manifest[name].matches(status), "a stat proves it"
    with acting_as(owner):
        write_manifest(str(store), manifest)
