"""Runs that end at any change of the file system: readers find the old or the new model, the next run converges."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from modelfleet.core.store import publish
from modelfleet.core.store.manifest import RACY_NS, read_manifest
from support.settled import soon_settled
from support.units import ENTRY, UNIT, Host, embedding, host, split

pytestmark = pytest.mark.usefixtures("soon_settled")
__all__ = ["host", "soon_settled"]


class Killed(BaseException):
    """The end of a run: nothing after it happens, as after SIGKILL."""


STEPS = ("rename", "replace", "unlink", "mkdir", "rmdir", "fsync", "fchmod", "utime")


@contextlib.contextmanager
def ended_at(number: int, patch: pytest.MonkeyPatch, error: bool) -> Iterator[list[str]]:
    """Do ``number`` changes of the file system and then none any more, or let only the next one fail."""
    done: list[str] = []

    def limit(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def then(*arguments: Any, **more: Any) -> Any:
            done.append(name)
            if error and len(done) == number + 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if not error and len(done) > number:
                raise Killed(name)
            return step(*arguments, **more)

        return then

    with patch.context() as context:
        for name in STEPS:
            context.setattr(os, name, limit(name, getattr(os, name)))
        context.setattr(publish, "exchange", limit("exchange", publish.exchange))
        try:
            yield done
        except Killed:
            pass
        except OSError as failure:
            assert failure.errno == errno.EIO
        else:
            done.append("end")


@pytest.mark.parametrize("error", [False, True], ids=["killed", "error"])
@pytest.mark.parametrize("kind", ["folder", "folder without exchange", "split"])
@pytest.mark.parametrize("update", [False, True], ids=["fresh", "update"])
def test_ended_at_any_step_the_old_or_the_new_is_there_and_the_next_run_converges(
    host: Host, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, kind: str, update: bool, error: bool
) -> None:
    """After each number of steps (each fifth without --long): never a mixture, no false record; one run repairs."""
    folder = "chat/7b" if kind == "split" else UNIT
    make: Callable[[int], dict[str, bytes]] = split if kind == "split" else lambda note: embedding(str(note))
    if kind == "folder without exchange":
        monkeypatch.setattr(publish, "exchange", lambda *_: False)
    for number in range(0, 200, 1 if request.config.getoption("--long") else 5):
        if update:
            host.publish(make(0), folder)
        with ended_at(number, monkeypatch, error) as done:
            host.publish(make(1), folder)
        found = host.content(folder)
        allowed = [make(1), *([make(0)] if update else [{}])]
        if kind == "folder without exchange":
            allowed.append({})
        if kind == "split":
            assert found in allowed or ENTRY not in found, "a reader that finds the first file finds all that belong"
        else:
            assert found in allowed
        for name, known in read_manifest(str(host.store)).items():
            path = host.store / name
            if path.exists() and known._replace(recorded_ns=known.ctime_ns + RACY_NS + 1).matches(path.lstat()):
                assert hashlib.sha256(path.read_bytes()).hexdigest() == known.sha256
        host.publish(make(1), folder)
        assert host.content(folder) == make(1) and host.is_kept(make(1), folder) and host.in_flight == []
        if len(done) <= number or (done[-1:] == ["end"] and not error):
            assert number > 20
            return
        host.publish(make(1), folder, action="remove")
        assert host.content(folder) == {}
    pytest.fail("it was always ended")
