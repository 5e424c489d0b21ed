"""Others who act while a run makes the store's directories: other runs, and an owner who cheats; and no leak."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from modelfleet.core.errors import ModelfleetError, UnsafePathError
from modelfleet.core.privilege import Account
from modelfleet.core.store import tree as tree_module
from modelfleet.core.store.tree import Tree, compare, converge, ensure_directory
from support.grounds import needs_root


@pytest.fixture
def tree(ground: Path, owner: Account) -> Tree:
    return Tree(str(ground / "base" / "models"), owner, owner.gid, 0o755, None)


class TestRaces:
    def test_two_runs_at_once_both_succeed(self, tree: Tree) -> None:
        children = []
        for _ in range(8):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    converge(tree)
                    status = 0
                finally:
                    os._exit(status)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
        assert compare(tree) == []

    def test_another_run_between_the_look_and_the_act(self, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at_the_next_mkdir(monkeypatch, lambda name, parent: os.mkdir(name, 0o700, dir_fd=parent))
        converge(tree)
        assert compare(tree) == []

    @pytest.mark.parametrize("what", ["file", "symlink"])
    def test_something_else_between_the_look_and_the_act(
        self, ground: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        (ground / "treasure").mkdir(mode=0o700)

        def plant(name: str, parent: int) -> None:
            if what == "file":
                os.close(os.open(name, os.O_CREAT, dir_fd=parent))
            else:
                os.symlink(ground / "treasure", name, dir_fd=parent)

        self.at_the_next_mkdir(monkeypatch, plant)
        with pytest.raises(UnsafePathError, match=rf"^{tree.path}: '\w+' is not a directory; move it away"):
            converge(tree)
        assert (ground / "treasure").stat().st_mode & 0o777 == 0o700

    @needs_root
    def test_a_strangers_directory_between_the_look_and_the_act(
        self, tree: Tree, stranger: Account, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def plant(name: str, parent: int) -> None:
            os.mkdir(name, 0o700, dir_fd=parent)
            os.chown(name, stranger.uid, stranger.gid, dir_fd=parent)

        self.at_the_next_mkdir(monkeypatch, plant)
        with pytest.raises(UnsafePathError, match=f"belongs to uid {stranger.uid}"):
            converge(tree)

    def at_the_next_mkdir(self, monkeypatch: pytest.MonkeyPatch, plant: Callable[[str, int], None]) -> None:
        """Let somebody be faster than the first mkdir of a run."""
        mkdir = os.mkdir

        def late(name: str, mode: int = 0o777, *, dir_fd: int) -> None:
            monkeypatch.undo()
            user = os.geteuid()
            os.seteuid(os.getuid())
            plant(name, dir_fd)
            os.seteuid(user)
            mkdir(name, mode, dir_fd=dir_fd)

        monkeypatch.setattr(tree_module.os, "mkdir", late)

    @needs_root
    def test_an_owner_who_swaps_directories_for_symlinks_all_the_time(self, ground: Path, tree: Tree) -> None:
        """The owner of the tree races root; root's treasure, which the symlinks lead to, stays as it is."""
        perl = shutil.which("perl")
        if perl is None:
            pytest.skip("the racer is written in Perl, and there is none here")
        converge(tree)
        treasure = ground / "treasure"
        treasure.mkdir(mode=0o700)
        (treasure / "7b").mkdir(mode=0o700)
        program = f"""
use strict; chdir "{tree.path}" or die;
while (1) {{
    rename "chat", "hidden"; symlink "{treasure}", "chat"; select undef, undef, undef, 0.0002;
    unlink "chat"; rename "hidden", "chat"; select undef, undef, undef, 0.0002;
    chdir ".."; rename "models", "hidden"; symlink "{treasure}", "models"; select undef, undef, undef, 0.0002;
    unlink "models"; rename "hidden", "models"; chdir "models"; select undef, undef, undef, 0.0002;
}}"""
        racer = subprocess.Popen([perl, "-e", program], user=tree.owner.uid, group=tree.gid)
        outcomes = {"done": 0, "refused": 0}
        try:
            begun = time.monotonic()
            # On a slow machine the two meet less often.
            while (passed := time.monotonic() - begun) < 2 or (passed < 120 and not all(outcomes.values())):
                try:
                    converge(tree._replace(mode=0o750 if outcomes["done"] % 2 else 0o755))
                    outcomes["done"] += 1
                except (ModelfleetError, FileNotFoundError):
                    outcomes["refused"] += 1
                except OSError as error:
                    assert error.errno in (errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY), error
            assert racer.poll() is None, "the racer did not race"
        finally:
            racer.send_signal(signal.SIGKILL)
            racer.wait()
        assert outcomes["done"] and outcomes["refused"], outcomes
        for path in (treasure, treasure / "7b"):
            status = path.stat()
            assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o700)
        assert os.listdir(treasure) == ["7b"]


def test_no_descriptor_is_left_open(ground: Path, tree: Tree, owner: Account) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("counts descriptors in /proc")
    converge(tree)
    (ground / "loop").symlink_to("loop")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        converge(tree)
        os.rmdir(f"{tree.path}/voice/tts")
        converge(tree)
        ensure_directory(str(ground / "base"), owner)
        for path in (str(ground / "loop"), "/dev/null/x"):
            with pytest.raises(UnsafePathError):
                converge(tree._replace(path=path))
    assert len(os.listdir("/proc/self/fd")) <= before
