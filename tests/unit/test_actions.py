"""What the action plugins do on the controller: follow work on a host, and show it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from modelfleet import actions
from modelfleet.actions import BackgroundAction, Teller
from support.action import Display, OnThisMachine


class Background(OnThisMachine, BackgroundAction):
    """The action plugin on this machine."""


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "FIRST_POLL_SECONDS", 0.01)
    monkeypatch.setattr(actions, "POLL_SECONDS", 0.02)
    monkeypatch.delenv(actions.PROGRESS_FILE, raising=False)


class Job:
    """The files of work on a host, written as the host does."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.paths = {
            "folder": str(folder),
            "progress": str(folder / "progress; echo $(id)"),
            "result": str(folder / "result.json"),
        }

    def say(self, **state: Any) -> None:
        with open(self.paths["progress"], "a") as progress:
            progress.write(json.dumps({"state": "running", "pid": os.getpid(), "elapsed_seconds": 1, **state}) + "\n")

    def finish(self, result: Any) -> None:
        Path(self.paths["result"]).write_text(result if isinstance(result, str) else json.dumps(result))
        self.say(state="finished")

    def later(self, action: Any, seconds: float = 0.2) -> None:
        """Act while the work is followed: before it was looked at for the first time or after, as it happens."""
        threading.Timer(seconds, action).start()

    def once(self, seen: Callable[[], object], action: Any) -> None:
        """Act when ``seen``."""

        def act() -> None:
            end = time.monotonic() + 60
            while not seen() and time.monotonic() < end:
                time.sleep(0.01)
            action()

        threading.Thread(target=act, daemon=True).start()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path / "it's a job")


@pytest.fixture
def background(tmp_path: Path, job: Job) -> Background:
    background = Background(tmp_path)
    background.answers = [{"changed": False, "job": job.paths}]
    return background


def run(action: Any, **arguments: Any) -> dict[str, Any]:
    result: dict[str, Any] = action.execute(arguments, {"inventory_hostname": "host1"})
    return result


LOST = {"failed": True, "msg": "the work on the host ended without a result; run again: it goes on where it was"}


class TestFollow:
    def test_the_works_result_becomes_the_tasks(self, background: Background, job: Job) -> None:
        job.say(step="fetching", item="a.whl", done=512, total=1024, unit="bytes")
        job.once(lambda: background._display.lines, lambda: job.finish({"changed": True, "published": ["x"]}))
        assert run(background, wanted=[]) == {"changed": True, "published": ["x"]}
        assert background.calls == [{"wanted": [], "background": True}]
        assert background._display.lines == ["  host1: fetching: a.whl: 512 B of 1.0 KiB (50%)"]

    def test_the_result_stays_for_others_who_follow(self, tmp_path: Path, background: Background, job: Job) -> None:
        job.finish({"changed": True})
        second = Background(tmp_path)
        second.answers = [{"changed": False, "job": job.paths}]
        assert run(background) == run(second) == {"changed": True}

    def test_there_was_nothing_to_do(self, background: Background) -> None:
        background.answers = [{"changed": False}]
        assert run(background) == {"changed": False} and background.commands == []

    def test_a_failure_of_the_module_is_the_tasks(self, background: Background) -> None:
        background.answers = [{"failed": True, "msg": "no"}]
        assert run(background) == {"failed": True, "msg": "no"}

    def test_check_mode_starts_nothing(self, tmp_path: Path) -> None:
        checking = Background(tmp_path, check_mode=True)
        checking.answers = [{"changed": True}]
        assert run(checking) == {"changed": True}
        assert checking.calls == [{}] and checking.commands == []

    def test_work_that_was_killed(self, background: Background, job: Job) -> None:
        worker = subprocess.Popen(["sleep", "60"])
        job.say(step="compiling", pid=worker.pid)
        job.later(lambda: (worker.send_signal(signal.SIGKILL), worker.wait()))
        assert run(background) == LOST

    def test_work_that_was_killed_and_that_nobody_reaps(self, background: Background, job: Job) -> None:
        """A container's first process often is no init."""
        worker = subprocess.Popen(["sleep", "60"])
        job.say(step="compiling", pid=worker.pid)
        job.later(lambda: worker.send_signal(signal.SIGKILL))
        assert run(background) == LOST
        worker.wait()

    def test_work_that_ends_between_two_looks(self, background: Background, job: Job) -> None:
        worker = subprocess.Popen(["sleep", "60"])
        job.say(step="compiling", pid=worker.pid)

        def end() -> None:
            job.finish({"changed": True})
            worker.kill()
            worker.wait()

        job.later(end)
        assert run(background) == {"changed": True}

    def test_the_same_work_started_again_by_another_run(self, background: Background, job: Job) -> None:
        worker = subprocess.Popen(["sleep", "60"])
        job.say(step="compiling", pid=worker.pid)

        # Replaced before the death is seen, as by a start that took the lock at once.
        worker.kill()
        worker.wait()
        Path(job.paths["progress"]).unlink()
        job.say(step="compiling again")
        job.later(lambda: job.finish({"changed": True}))
        assert run(background) == {"changed": True}

    def test_work_that_never_says_anything(self, background: Background, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(actions, "SILENT_SECONDS", 0.3)
        assert run(background) == LOST

    def test_ansible_that_was_killed_is_not_told_any_more(
        self, background: Background, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its worker would wait for ever to be read."""
        job.say(step="fetching")
        job.once(lambda: background._display.lines, lambda: monkeypatch.setattr(os, "getppid", lambda: 1))
        assert "ansible-playbook was killed" in run(background)["msg"]

    @pytest.mark.parametrize("result", ["", "{", "[]", "null"])
    def test_a_result_that_is_none(self, background: Background, job: Job, result: str) -> None:
        job.finish(result)
        assert run(background) == LOST

    @pytest.mark.parametrize(
        "state",
        [
            {"step": 5, "item": ["x"], "done": "x", "total": None},
            {"step": "x", "done": float("inf"), "total": float("inf"), "unit": "bytes"},
            {"step": "x", "done": float("nan"), "total": float("nan"), "unit": "bytes"},
            {"step": "x", "done": 10**400, "total": 10**400, "unit": "bytes"},
            {"step": "x", "done": -5, "total": -10, "unit": "bytes"},
            {"step": "x", "done": 5, "total": 0, "unit": "bytes"},
            {"step": "x", "done": True, "total": True, "unit": {}},
            {"step": "x", "elapsed_seconds": 10**400, "pid": "$(touch /tmp/x)"},
            {"step": "x" * 10_000, "item": "y" * 10_000},
        ],
    )
    def test_a_host_that_says_nonsense(self, background: Background, job: Job, state: dict[str, Any]) -> None:
        job.say(**state)
        job.later(lambda: job.finish({"changed": True}))
        assert run(background) == {"changed": True}
        assert all(len(line) < 500 for line in background._display.lines)
        assert not any("touch" in command for command in background.commands)

    def test_paths_of_the_host_are_quoted(self, background: Background, job: Job) -> None:
        job.finish({"changed": True})
        run(background)
        assert not any("uid=" in line for line in background._display.lines)


class TestTeller:
    @pytest.fixture
    def display(self) -> Display:
        return Display()

    @pytest.fixture
    def now(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        now = [100.0]
        monkeypatch.setattr(actions, "time", SimpleNamespace(monotonic=lambda: now[0]))
        return now

    def test_each_step_once_and_progress_now_and_then(self, display: Display, now: list[float]) -> None:
        teller = Teller("host1", "task", display)
        for second in range(12):
            teller.tell({"step": "fetching", "done": second * 1024**2, "total": 20 * 1024**2, "unit": "bytes"})
            now[0] += 1
        teller.tell({"step": "publishing"})
        assert display.lines == [
            "  host1: fetching: 0 B of 20.0 MiB (0%)",
            "  host1: fetching: 5.0 MiB of 20.0 MiB (25%), 1.0 MiB/s, 15s left",
            "  host1: fetching: 10.0 MiB of 20.0 MiB (50%), 1.0 MiB/s, 10s left",
            "  host1: publishing",
        ]

    def test_what_takes_long_is_shown_less_often(self, display: Display, now: list[float]) -> None:
        teller = Teller("host1", "task", display)
        for second in range(3600):
            teller.tell({"step": "fetching", "done": second * 1024**2, "total": 3600 * 1024**2, "unit": "bytes"})
            now[0] += 1
        assert 100 < len(display.lines) < 400

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_ctrl_c_waits_until_a_line_is_displayed(self, now: list[float], number: signal.Signals) -> None:
        """A worker that ended between would leave the lock of Ansible's queue taken for ever."""
        said: list[str] = []

        class Slow(Display):
            def display(self, line: str, stderr: bool = False) -> None:
                signal.raise_signal(number)
                said.append("displayed")

        before = signal.signal(number, lambda *_: said.append("ended"))
        try:
            Teller("host1", "task", Slow()).tell({"step": "fetching"})
        finally:
            signal.signal(number, before)
        assert said == ["displayed", "ended"]

    def test_a_callback_that_writes_json_has_the_output_for_itself(
        self, display: Display, now: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(actions, "constants", SimpleNamespace(DEFAULT_STDOUT_CALLBACK="ansible.posix.jsonl"))
        Teller("host1", "task", display).tell({"step": "fetching"})
        assert display.lines == [] and display.errors == ["  host1: fetching"]

    def test_steps_are_counted(self, display: Display, now: list[float]) -> None:
        teller = Teller("host1", "task", display)
        teller.tell({"step": "compiling", "done": 10, "total": 200, "unit": "steps"})
        now[0] += 10
        teller.tell({"step": "compiling", "done": 20, "total": 200, "unit": "steps"})
        assert display.lines[-1] == "  host1: compiling: 20 of 200 (10%), 3m00s left"

    def test_the_command_line_gets_events(
        self, display: Display, now: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(actions.PROGRESS_FILE, str(tmp_path / "events"))
        teller = Teller("host1", "task", display)
        teller.tell({"step": "fetching", "item": "a", "done": 10, "total": 30, "unit": "bytes", "elapsed_seconds": 2.5})
        now[0] += 2
        teller.tell({"step": "fetching", "item": "a", "done": 20, "total": 30, "unit": "bytes", "elapsed_seconds": 4.5})
        first, second = (json.loads(line) for line in (tmp_path / "events").read_text().splitlines())
        assert first == {
            "host": "host1",
            "task": "task",
            "step": "fetching",
            "item": "a",
            "done": 10,
            "total": 30,
            "unit": "bytes",
            "rate": None,
            "eta_seconds": None,
            "elapsed_seconds": 2.5,
        }
        assert (second["rate"], second["eta_seconds"]) == (5.0, 2.0)
        assert display.lines == []

    def test_no_control_character_reaches_the_terminal(self, display: Display, now: list[float]) -> None:
        teller = Teller("host1", "task", display)
        teller.tell({"step": "a\x1b[31m\r\nb\x07\x00\x9b31m\x7f", "item": "c\x08d\te"})
        assert display.lines == ["  host1: a[31mb31m: cde"]
        teller.tell({"step": "\x1b\x07"})
        assert len(display.lines) == 1
