"""Acting as another account, and leaving a child with another account's rights for good."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from modelfleet.core.errors import ConfigurationError
from modelfleet.core.privilege import (
    Account,
    account_of_path,
    acting_as,
    current_account,
    dropping_to,
    environment_for,
    find_account,
)
from support.grounds import account_folder, needs_no_root, needs_root

NUMBERLESS = Account("54321", 54321, 54322, "/")
"""An account that the system's list does not know, as in a container that was given a foreign folder."""


def identity() -> tuple[int, int, list[int]]:
    return os.geteuid(), os.getegid(), sorted(os.getgroups())


def status_of_child(prepare: Callable[[], None]) -> dict[str, str]:
    """Return /proc/self/status of a child that ``prepare`` prepared."""
    # Not Python: its own may lie where the account cannot read it.
    with subprocess.Popen(["/bin/cat", "/proc/self/status"], preexec_fn=prepare, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        text = child.stdout.read().decode()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def test_find_account_names_what_is_missing() -> None:
    with pytest.raises(ConfigurationError, match=r"^there is no account named 'no-such-one' on this host; create it"):
        find_account("no-such-one")


def test_the_owner_of_a_path_is_that_of_a_symlink_itself(ground: Path) -> None:
    (ground / "link").symlink_to("/proc/1")
    assert account_of_path(str(ground / "link")).uid == os.geteuid()
    with pytest.raises(FileNotFoundError):
        account_of_path(str(ground / "nothing"))


@needs_root
def test_an_owner_without_a_name_gets_its_number(ground: Path) -> None:
    os.chown(ground, NUMBERLESS.uid, NUMBERLESS.gid)
    assert account_of_path(str(ground)) == NUMBERLESS


def test_acting_as_oneself_changes_nothing() -> None:
    before = identity()
    with acting_as(current_account()):
        assert identity() == before
    assert identity() == before


@needs_no_root
def test_only_root_acts_for_others() -> None:
    with pytest.raises(PermissionError, match="only root can act for root"), acting_as(find_account("root")):
        pass


@needs_root
class TestActingAs:
    def test_files_belong_to_the_account_and_the_rights_come_back(self, ground: Path, owner: Account) -> None:
        account_folder(ground / "theirs", owner)
        before = identity()
        with acting_as(owner):
            (ground / "theirs" / "file").touch()
            assert identity() == (owner.uid, owner.gid, [owner.gid])
            with pytest.raises(PermissionError):
                (ground / "ours").touch()
        assert identity() == before
        status = (ground / "theirs" / "file").stat()
        assert (status.st_uid, status.st_gid) == (owner.uid, owner.gid)

    def test_supplementary_groups_are_dropped_and_come_back(self, owner: Account) -> None:
        groups = os.getgroups()
        os.setgroups([0, 4, 12345])
        try:
            with acting_as(owner):
                assert 12345 not in os.getgroups() and 0 not in os.getgroups()
            assert sorted(os.getgroups()) == [0, 4, 12345]
        finally:
            os.setgroups(groups)

    def test_rights_come_back_after_an_error(self, owner: Account) -> None:
        before = identity()
        with pytest.raises(RuntimeError), acting_as(owner):
            raise RuntimeError
        assert identity() == before

    def test_rights_come_back_where_they_were_taken_by_half(
        self, owner: Account, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = identity()

        def refuse(_: int) -> None:
            raise PermissionError

        with monkeypatch.context() as patch:
            patch.setattr(os, "seteuid", lambda uid: refuse(uid) if uid == owner.uid else None)
            with pytest.raises(PermissionError), acting_as(owner):
                pytest.fail("nothing may be done with half the rights")
        assert identity() == before

    def test_inside_one_another(self, owner: Account) -> None:
        with acting_as(owner):
            with acting_as(owner):
                assert os.geteuid() == owner.uid
            assert os.geteuid() == owner.uid
        assert os.geteuid() == 0

    def test_no_account_acts_for_a_third(self, owner: Account, stranger: Account) -> None:
        with acting_as(owner):
            with pytest.raises(PermissionError, match="only root can act for daemon"), acting_as(stranger):
                pass
            assert os.geteuid() == owner.uid

    def test_an_account_without_a_name(self) -> None:
        with acting_as(NUMBERLESS):
            assert identity() == (NUMBERLESS.uid, NUMBERLESS.gid, [NUMBERLESS.gid])
        assert os.geteuid() == 0


@needs_root
class TestDroppingTo:
    @pytest.mark.parametrize("acting", [False, True], ids=["from root", "while acting as the account"])
    def test_a_child_has_the_accounts_rights_alone(self, owner: Account, acting: bool) -> None:
        os_groups = os.getgroups()
        os.setgroups([0, 4, 12345])
        try:
            if acting:
                with acting_as(owner):
                    status = status_of_child(dropping_to(owner))
            else:
                status = status_of_child(dropping_to(owner))
        finally:
            os.setgroups(os_groups)
        # Real, effective, saved and file system's: none of them leads back.
        assert status["Uid"].split() == [str(owner.uid)] * 4
        assert status["Gid"].split() == [str(owner.gid)] * 4
        assert status["Groups"].split() == [str(owner.gid)]
        assert status["NoNewPrivs"] == "1"
        assert status["CapPrm"] == status["CapEff"] == "0" * 16
        assert status["Umask"] == "0022"
        assert os.geteuid() == 0

    def test_what_comes_before_is_done_as_root(self, owner: Account, ground: Path) -> None:
        place = ground / "before"
        with acting_as(owner):
            status_of_child(dropping_to(owner, lambda: place.mkdir()))
        assert place.stat().st_uid == 0

    def test_a_child_that_cannot_be_prepared_does_not_start(self, owner: Account) -> None:
        def fail() -> None:
            raise OSError("no")

        with pytest.raises(subprocess.SubprocessError):
            status_of_child(dropping_to(owner, fail))


def test_a_child_of_ones_own_gets_no_new_privileges() -> None:
    status = status_of_child(dropping_to(current_account()))
    assert status["Uid"].split() == [str(os.getuid())] * 4
    assert status["NoNewPrivs"] == "1"


def test_the_environment_of_a_program_has_no_secret(owner: Account) -> None:
    inherited = {
        "PATH": "/bin",
        "LANG": "C.UTF-8",
        "HTTPS_PROXY": "http://proxy:3128",
        "no_proxy": "localhost",
        "SSL_CERT_FILE": "/etc/ca.pem",
        "HOME": "/root",
        "HF_TOKEN": "canary",
        "PIP_INDEX_URL": "https://user:canary@host/",
        "AWS_SECRET_ACCESS_KEY": "canary",
        "LD_PRELOAD": "/canary.so",
        "PYTHONPATH": "/canary",
        "SSH_AUTH_SOCK": "/canary",
    }
    environment = environment_for(owner, inherited)
    assert "canary" not in json.dumps(environment)
    assert environment["HTTPS_PROXY"] == "http://proxy:3128" and environment["no_proxy"] == "localhost"
    assert environment["HOME"] == owner.home and environment["USER"] == environment["LOGNAME"] == owner.name
    assert environment_for(owner, {})["PATH"] == "/usr/local/bin:/usr/bin:/bin"


@needs_root
def test_codecs_are_loaded_before_pythons_own_files_get_out_of_reach(ground: Path, checkout: Path) -> None:
    """A host name and a zip archive's names are decoded while we act as an account that cannot read our Python."""
    program = """
import os, sys
sys.path.insert(0, sys.argv[1])
from modelfleet.core.privilege import acting_as, find_account
import modelfleet.core.fetch.transfer
def refuse(*_):
    raise ImportError("the files of Python are out of reach")
with acting_as(find_account("nobody")):
    sys.meta_path[:] = [type("Nothing", (), {"find_spec": staticmethod(refuse)})]
    "host.example".encode("idna"), b"x".decode("cp437"), b"x".decode("utf-8-sig"), "x".encode("latin-1")
"""
    subprocess.run([sys.executable, "-I", "-c", program, str(checkout / "python")], check=True)
