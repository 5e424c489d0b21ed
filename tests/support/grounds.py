"""A place that several accounts reach, the accounts that tests act as, and a store that is there already."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelfleet.core.privilege import Account, current_account, find_account
from modelfleet.core.store.tree import Tree, converge

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="acts as several accounts: run it as root")
needs_no_root = pytest.mark.skipif(os.geteuid() == 0, reason="what root may do anyway: run it as another account")


@pytest.fixture
def owner() -> Account:
    """Return the account that a store is made for: as root one without rights, else oneself."""
    return find_account("nobody") if os.geteuid() == 0 else current_account()


@pytest.fixture
def stranger() -> Account:
    """Return a third account; only root can do anything with it."""
    return find_account("daemon")


@pytest.fixture
def ground() -> Iterator[Path]:
    """Return a folder of ours that every account can enter, which those of pytest are not."""
    folder = Path(tempfile.mkdtemp(prefix="modelfleet-test-", dir=os.path.realpath("/tmp")))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def store(ground: Path, owner: Account) -> Path:
    """Return a store of ``owner``'s, with nothing in it."""
    path = ground / "base" / "models"
    converge(Tree(str(path), owner, owner.gid, 0o755, None))
    return path


def account_folder(path: Path, account: Account) -> Path:
    """Make the folder ``path`` for ``account``."""
    path.mkdir()
    os.chown(path, account.uid, account.gid)
    return path
