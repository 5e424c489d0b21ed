"""What a stat proves: all but the time of reading; and less waiting for it, for all tests but those of that rule."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

TICK_NS = 12_000_000
"""A file system of today stamps once a tick of the kernel's clock, which is 10 ms at most."""


@pytest.fixture
def soon_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a stat prove something as soon as the file system stamps otherwise."""
    # Modules have the shared code under a name of their own.
    for name in ("modelfleet.core.store.manifest", "ansible.module_utils.modelfleet.core.store.manifest"):
        manifest = importlib.import_module(name)
        monkeypatch.setattr(manifest, "RACY_NS", TICK_NS)
        monkeypatch.setattr(manifest, "_COARSE_NS", TICK_NS)


def stamp(path: Path) -> tuple[int, ...]:
    """Return what only a change of a file changes: its stat without the time at which somebody read it."""
    status = path.lstat()
    who = (status.st_dev, status.st_ino, status.st_mode, status.st_uid, status.st_gid)
    return (*who, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
