"""What the action plugins do on the controller: follow work on a host, show it, keep compiled wheels."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure, AnsibleFileNotFound
from modelfleet import actions
from modelfleet.actions import BackgroundAction, RuntimeAction, Wheelhouse, _Teller
from modelfleet.packaging import build_wheel
from support.index import sha256

KEY = "llama_cpp_python-0.3.36-cpu-linux_x86_64-glibc2.36-abcdef01"
WHEEL = "llama_cpp_python-0.3.36-py3-none-any.whl"


class Display:
    """Keeps what is shown."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []

    def display(self, line: str) -> None:
        self.lines.append(line)

    def warning(self, line: str) -> None:
        self.warnings.append(line)


class Connection:
    """A host whose files are this machine's."""

    def __init__(self, folder: Path) -> None:
        self._shell = SimpleNamespace(tmpdir=str(folder), join_path=os.path.join)
        self.lost = False

    def fetch_file(self, remote: str, local: str) -> None:
        if self.lost:
            raise AnsibleFileNotFound(file_name=remote)
        Path(local).write_bytes(Path(remote).read_bytes())


class OnThisMachine:
    """What Ansible does for an action plugin, with a real shell on this machine and a module that is a function."""

    def __init__(self, folder: Path, check_mode: bool = False) -> None:
        self._task = SimpleNamespace(check_mode=check_mode, args={}, get_name=lambda: "the task")
        self._connection = Connection(folder)
        self._display = Display()
        self.calls: list[dict[str, Any]] = []
        self.commands: list[str] = []
        self.answers: list[dict[str, Any]] = []

    def _execute_module(self, module_args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        self.calls.append(module_args)
        return self.answers.pop(0)

    def _low_level_execute_command(self, command: str, sudoable: bool) -> dict[str, Any]:
        assert sudoable
        self.commands.append(command)
        done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True)
        return {"stdout": done.stdout, "stderr": done.stderr, "rc": done.returncode}

    def _transfer_data(self, path: str, content: bytes) -> None:
        Path(path).write_bytes(content)

    def _fixup_perms2(self, paths: tuple[str, ...]) -> None:
        assert all(os.path.exists(path) for path in paths)


class Background(OnThisMachine, BackgroundAction):
    """The action plugin on this machine."""


class Runtime(OnThisMachine, RuntimeAction):
    """The action plugin of the runtime on this machine."""


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
        threading.Timer(seconds, action).start()


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
        job.later(lambda: job.finish({"changed": True, "published": ["x"]}))
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
        begun = time.monotonic()
        assert run(background) == LOST
        assert time.monotonic() - begun < 10

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
        teller = _Teller("host1", "task", display)
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

    def test_steps_are_counted(self, display: Display, now: list[float]) -> None:
        teller = _Teller("host1", "task", display)
        teller.tell({"step": "compiling", "done": 10, "total": 200, "unit": "steps"})
        now[0] += 10
        teller.tell({"step": "compiling", "done": 20, "total": 200, "unit": "steps"})
        assert display.lines[-1] == "  host1: compiling: 20 of 200 (10%), 3m00s left"

    def test_the_command_line_gets_events(
        self, display: Display, now: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(actions.PROGRESS_FILE, str(tmp_path / "events"))
        teller = _Teller("host1", "task", display)
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
        teller = _Teller("host1", "task", display)
        teller.tell({"step": "a\x1b[31m\r\nb\x07\x00\x9b31m\x7f", "item": "c\x08d\te"})
        assert display.lines == ["  host1: a[31mb31m: cde"]
        teller.tell({"step": "\x1b\x07"})
        assert len(display.lines) == 1


class TestWheelhouse:
    @pytest.fixture
    def wheelhouse(self, tmp_path: Path) -> Wheelhouse:
        return Wheelhouse(tmp_path / "house")

    @pytest.fixture
    def remote(self, tmp_path: Path) -> Path:
        remote = tmp_path / "host" / WHEEL
        remote.parent.mkdir()
        remote.write_bytes(b"a wheel")
        return remote

    def test_what_is_kept_is_found(self, tmp_path: Path, wheelhouse: Wheelhouse, remote: Path) -> None:
        assert wheelhouse.find(KEY) is None
        wheelhouse.keep(KEY, str(remote), sha256(remote), Connection(tmp_path))
        kept = wheelhouse.find(KEY)
        assert kept == tmp_path / "house" / KEY / WHEEL and kept.read_bytes() == b"a wheel"
        assert Wheelhouse.pin(kept) == sha256(remote)
        assert sorted(path.name for path in kept.parent.iterdir()) == [WHEEL, f"{WHEEL}.sha256"]

    def test_another_hash_is_not_kept(self, tmp_path: Path, wheelhouse: Wheelhouse, remote: Path) -> None:
        wheelhouse.keep(KEY, str(remote), "0" * 64, Connection(tmp_path))
        assert wheelhouse.find(KEY) is None and list((tmp_path / "house" / KEY).iterdir()) == []

    @pytest.mark.parametrize(
        "key",
        [
            *("../x", "/etc", "..", "", "llama_cpp_python-../../x", "llama_cpp_python-x/y", "llama_cpp_python-\0"),
            *("llama_cpp_python-x\n", "llama_cpp_python-é", "llama_cpp_python-" + "x" * 200, "other-1.0", "*"),
        ],
    )
    def test_a_key_that_is_no_plain_name(self, tmp_path: Path, wheelhouse: Wheelhouse, remote: Path, key: str) -> None:
        wheelhouse.keep(key, str(remote), sha256(remote), Connection(tmp_path))
        assert wheelhouse.find(key) is None
        assert sorted(path.name for path in tmp_path.iterdir()) == ["host"]

    @pytest.mark.parametrize(
        "remote",
        [
            *("../../x.whl", "/x/..", "/x/", "x.whl", "llama_cpp_python-1.tar.gz", "/x/llama_cpp_python-1.whl\n"),
            *("/x/llama_cpp_python-\x1b.whl", "/x/.llama_cpp_python-1.whl", "/x/llama_cpp_python-..\\..\\x.whl"),
        ],
    )
    def test_a_wheel_that_is_no_plain_name(self, tmp_path: Path, wheelhouse: Wheelhouse, remote: str) -> None:
        connection = Connection(tmp_path)
        connection.lost = True
        wheelhouse.keep(KEY, remote, "0" * 64, connection)
        assert list(tmp_path.iterdir()) == []

    def test_a_wheel_without_its_hash_does_not_count(self, tmp_path: Path, wheelhouse: Wheelhouse) -> None:
        folder = tmp_path / "house" / KEY
        folder.mkdir(parents=True)
        (folder / WHEEL).touch()
        assert wheelhouse.find(KEY) is None


class TestRuntime:
    @pytest.fixture
    def runtime(self, tmp_path: Path) -> Runtime:
        (tmp_path / "transfer").mkdir()
        return Runtime(tmp_path / "transfer")

    @pytest.fixture
    def house(self, tmp_path: Path) -> Path:
        return tmp_path / "house"

    def seen(self, update: bool = True, build: bool = True) -> dict[str, Any]:
        return {
            "changed": False,
            "update_required": update,
            "build_required": build,
            "build_key": KEY,
            "missing_build_tools": ["cmake"] if build else [],
        }

    def keep(self, house: Path) -> Path:
        folder = house / KEY
        folder.mkdir(parents=True)
        (folder / WHEEL).write_bytes(b"a wheel")
        (folder / f"{WHEEL}.sha256").write_text(sha256(folder / WHEEL))
        return folder / WHEEL

    def test_nothing_to_do_brings_nothing(self, runtime: Runtime, house: Path) -> None:
        runtime.answers = [self.seen(update=False, build=False), {"changed": False}]
        assert run(runtime, state="present", wheelhouse=str(house)) == {"changed": False}
        assert [call.get("state") for call in runtime.calls] == ["inspect", "present"]
        assert runtime.calls[0]["package_sha256"] == build_wheel().sha256
        assert os.listdir(runtime._connection._shell.tmpdir) == []
        assert all("wheelhouse" not in call for call in runtime.calls)

    def test_inspect_knows_the_wheelhouse(self, runtime: Runtime, house: Path) -> None:
        runtime.answers = [self.seen()]
        assert run(runtime, state="inspect", wheelhouse=str(house))["missing_build_tools"] == ["cmake"]
        self.keep(house)
        runtime.answers = [self.seen()]
        seen = run(runtime, state="inspect", wheelhouse=str(house))
        assert (seen["build_required"], seen["missing_build_tools"]) == (False, [])

    def test_a_failure_to_inspect_is_the_tasks(self, runtime: Runtime) -> None:
        runtime.answers = [{"failed": True, "msg": "no"}]
        assert run(runtime, state="present") == {"failed": True, "msg": "no"}

    def test_a_kept_wheel_is_brought(self, runtime: Runtime, house: Path) -> None:
        kept = self.keep(house)
        runtime.answers = [self.seen(), {"changed": True}]
        assert run(runtime, state="present", wheelhouse=str(house)) == {"changed": True}
        call = runtime.calls[-1]
        assert call["background"] is True and call["wheel_sha256"] == sha256(kept)
        assert Path(call["wheel_path"]).read_bytes() == b"a wheel"
        assert Path(call["package_path"]).read_bytes() == build_wheel().content

    def test_a_compiled_wheel_is_kept(self, tmp_path: Path, runtime: Runtime, house: Path) -> None:
        remote = tmp_path / WHEEL
        remote.write_bytes(b"compiled")
        compiled = {"compiled": True, "build_key": KEY, "wheel": str(remote), "wheel_sha256": sha256(remote)}
        runtime.answers = [self.seen(), compiled]
        assert run(runtime, state="present", wheelhouse=str(house)) == compiled
        kept = Wheelhouse(house).find(KEY)
        assert kept is not None and kept.read_bytes() == b"compiled"

    @pytest.mark.parametrize("trouble", ["cannot be fetched", "read-only wheelhouse"])
    def test_a_wheel_that_cannot_be_kept_does_not_undo_the_work(
        self, tmp_path: Path, runtime: Runtime, house: Path, trouble: str
    ) -> None:
        """A home that only its owner may enter, say: the environment is there all the same."""
        remote = tmp_path / WHEEL
        remote.write_bytes(b"compiled")
        compiled = {"compiled": True, "build_key": KEY, "wheel": str(remote), "wheel_sha256": sha256(remote)}
        runtime.answers = [self.seen(), compiled]
        if trouble == "cannot be fetched":
            runtime._connection.lost = True
        else:
            house.touch()
        assert run(runtime, state="present", wheelhouse=str(house)) == compiled
        (warning,) = runtime._display.warnings
        assert warning.startswith("the compiled wheel was not kept in ") and "\n" not in warning

    def test_a_lost_connection_is_lost(self, tmp_path: Path, runtime: Runtime, house: Path) -> None:
        def lose(remote: str, local: str) -> None:
            raise AnsibleConnectionFailure("gone")

        runtime._connection.fetch_file = lose  # type: ignore[method-assign]
        compiled = {"compiled": True, "build_key": KEY, "wheel": f"/x/{WHEEL}", "wheel_sha256": "0" * 64}
        runtime.answers = [self.seen(), compiled]
        with pytest.raises(AnsibleConnectionFailure):
            run(runtime, state="present", wheelhouse=str(house))

    def test_check_mode_brings_nothing(self, tmp_path: Path, house: Path) -> None:
        (tmp_path / "transfer").mkdir()
        checking = Runtime(tmp_path / "transfer", check_mode=True)
        checking.answers = [self.seen(), {"changed": True}]
        assert run(checking, state="present", wheelhouse=str(house)) == {"changed": True}
        assert os.listdir(tmp_path / "transfer") == [] and not house.exists()
