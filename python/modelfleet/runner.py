"""Runs ``ansible-playbook`` through ansible-runner and tells, as it happens, what each host is doing.

ansible-runner keeps a folder of artifacts for each run: the command with its
whole environment, every event, the output. Here that folder is private (mode
0700), lives in the system's temporary folder for as long as the run does, and
the environment, which may hold tokens, is never written.

Two streams become one, in the order in which they arrive:

- Ansible's callback events, as ansible-runner reads them from the child;
- the JSON lines that the action plugins append to MODELFLEET_PROGRESS_FILE
  while a long step goes on (fetching, building), followed by a thread.

Every string in an event may come from a host and is untrusted.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Union

from .core.errors import ConfigurationError

EXIT_OK = 0
EXIT_NO_HOSTS = 1
EXIT_FAILED = 2
EXIT_UNREACHABLE = 4
EXIT_INTERRUPTED = 99

PROGRESS_VARIABLE = "MODELFLEET_PROGRESS_FILE"
FOLLOW_SECONDS = 0.2
STOP_SECONDS = 20.0
"""How long Ansible may take to stop; it does in under three, or has a lock that died with a worker and never will."""
BECOME_PROMPT = r"BECOME password.*:\s*$"

_RESULT_EVENTS = {
    "runner_on_ok": "ok",
    "runner_on_failed": "failed",
    "runner_on_unreachable": "unreachable",
    "runner_on_skipped": "skipped",
}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class TaskStarted:
    """A host begins a task."""

    host: str
    task: str
    role: str


@dataclass(frozen=True)
class TaskResult:
    """A host has done a task. ``status`` is ok, failed, unreachable or skipped; ``result`` is the module's answer."""

    host: str
    task: str
    role: str
    action: str
    status: str
    changed: bool
    ignored: bool
    result: Mapping[str, Any]

    @property
    def message(self) -> str:
        """Return the reason for a failure in one line."""
        return failure_message(self.result)


@dataclass(frozen=True)
class Progress:
    """How far a long step on a host is. ``rate`` is in ``unit`` (bytes or steps) per second; unknown is None."""

    host: str
    task: str
    step: str
    item: str | None
    done: float | None
    total: float | None
    unit: str | None
    rate: float | None
    eta_seconds: float | None
    elapsed_seconds: float


@dataclass(frozen=True)
class Output:
    """Lines that Ansible itself printed, with its colours."""

    text: str


Event = Union[TaskStarted, TaskResult, Progress, Output]


@dataclass
class Recap:
    """How many tasks of a host ended in which way, as Ansible counts them."""

    ok: int = 0
    changed: int = 0
    failed: int = 0
    unreachable: int = 0
    skipped: int = 0


@dataclass
class RunResult:
    """What a run came to. ``error`` is the one line that tells why it did not run on any host, else None."""

    exit_code: int = EXIT_OK
    error: str | None = None
    recap: dict[str, Recap] = field(default_factory=dict)
    results: list[TaskResult] = field(default_factory=list)


def playbook_program() -> list[str]:
    """Return how to start ansible-playbook: the one of the environment that runs this. Raises ConfigurationError."""
    beside = os.path.join(os.path.dirname(sys.executable), "ansible-playbook")
    if os.access(beside, os.X_OK):
        return [beside]
    on_path = shutil.which("ansible-playbook")
    if on_path:
        return [on_path]
    raise ConfigurationError(
        "ansible-playbook is not installed beside this Python", 'pip install -e ".[controller]" brings it'
    )


def run_playbook(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    on_event: Callable[[Event], None],
    become_password: str | None = None,
) -> RunResult:
    """Run ``ansible-playbook`` with ``arguments`` from the current directory and report each event as it comes.

    ``environment`` is added to this process's. ``on_event`` is called by one
    thread at a time. The first Ctrl-C asks Ansible to stop, and once more if it
    has not after STOP_SECONDS; a second one leaves at once; all end in exit
    code 99. Nothing of the run stays on disk.
    """
    private = tempfile.mkdtemp(prefix="modelfleet-")
    try:
        return _Run(private, on_event).execute(arguments, environment, become_password)
    finally:
        shutil.rmtree(private, ignore_errors=True)


class _Run:
    """The state of one run: what its events have told so far, and the child that may have to be stopped."""

    def __init__(self, private: str, on_event: Callable[[Event], None]) -> None:
        self.private = private
        self.on_event = on_event
        self.result = RunResult()
        self.child: int | None = None
        self.interrupted = False
        self.again: threading.Timer | None = None
        self.talk: list[str] = []
        self.lock = threading.Lock()
        self.progress_file = os.path.join(private, "progress")
        self.follower = _Follower(self.progress_file, self._emit)

    def execute(
        self, arguments: Sequence[str], environment: Mapping[str, str], become_password: str | None
    ) -> RunResult:
        # Imported here: a command line that only prints its help must not pay for it.
        from ansible_runner import Runner, RunnerConfig

        program = playbook_program()
        with open(self.progress_file, "w"):
            pass
        config = RunnerConfig(
            private_data_dir=self.private,
            # The working directory of the run: a relative -i or -e @file means what it means without ansible-runner.
            project_dir=os.getcwd(),
            binary=program[0],
            cmdline=shlex.join([*program[1:], *arguments]),
            envvars={**environment, PROGRESS_VARIABLE: self.progress_file},
            passwords={BECOME_PROMPT: become_password} if become_password is not None else None,
            quiet=True,
            suppress_env_files=True,
            # A fact cache of the user's own stays in force; ansible-runner would replace it by one in its artifacts.
            fact_cache_type="",
        )
        config.prepare()
        config.suppress_output_file = True
        if "ANSIBLE_HOST_KEY_CHECKING" not in os.environ:
            # ansible-runner switches the check of host keys off; ansible.cfg decides that.
            config.env.pop("ANSIBLE_HOST_KEY_CHECKING", None)
        config.env = _Unwritten(config.env)
        runner = Runner(config, event_handler=self._on_runner_event, status_handler=self._on_status)
        try:
            with self._signals():
                runner.run()
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            if self.again is not None:
                self.again.cancel()
            self.follower.stop()
        self._conclude(runner.rc)
        return self.result

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn Ctrl-C, and a terminal or supervisor that goes away, into Ansible's own orderly stop."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            if self.interrupted and self.child is not None:
                with contextlib.suppress(OSError):
                    os.killpg(self.child, signal.SIGKILL)
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            self._stop_child()

        watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, stop) for number in watched}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop_child(self) -> None:
        # The child has a terminal of its own, so the keyboard's signal does not reach it. Before its first event it
        # is not known, and has touched no host: it is stopped when that event comes.
        if self.child is None:
            return
        with contextlib.suppress(OSError):
            os.kill(self.child, signal.SIGINT)
        if self.again is None:
            # It takes the first signal in hand and leaves a second one to the system, which ends it.
            self.again = threading.Timer(STOP_SECONDS, self._stop_child)
            self.again.daemon = True
            self.again.start()

    def _on_status(self, status: Mapping[str, Any], runner_config: Any) -> None:
        if status.get("status") == "running":
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(runner_config.artifact_dir, "command"))

    def _on_runner_event(self, event: Mapping[str, Any]) -> bool:
        """Translate one of ansible-runner's events; False: it is not written to disk."""
        self.follower.start()
        name = event.get("event")
        data = event.get("event_data") or {}
        if self.child is None and isinstance(event.get("pid"), int):
            self.child = event["pid"]
            if self.interrupted:
                self._stop_child()
        text = event.get("stdout")
        if text:
            if name not in _RESULT_EVENTS:
                self.talk += _COLOUR.sub("", text).splitlines()
            self._emit(Output(text))
        if name == "runner_on_start":
            self._emit(TaskStarted(_text(data, "host"), _text(data, "task"), _text(data, "role")))
        elif name in _RESULT_EVENTS:
            answer = data.get("res")
            answer = answer if isinstance(answer, dict) else {}
            result = TaskResult(
                host=_text(data, "host"),
                task=_text(data, "task"),
                role=_text(data, "role"),
                action=_text(data, "resolved_action") or _text(data, "task_action"),
                status=_RESULT_EVENTS[name],
                changed=bool(answer.get("changed")),
                ignored=bool(data.get("ignore_errors")),
                result=answer,
            )
            self.result.results.append(result)
            self._emit(result)
        elif name == "playbook_on_stats":
            self.result.recap = _recap(data)
        return False

    def _emit(self, event: Event) -> None:
        with self.lock:
            self.on_event(event)

    def _conclude(self, ansible_code: int | None) -> None:
        result = self.result
        if self.interrupted or ansible_code == EXIT_INTERRUPTED:
            result.exit_code = EXIT_INTERRUPTED
        elif ansible_code is None:
            result.exit_code = EXIT_FAILED
            result.error = "ansible-playbook was ended from outside; run the same command again"
        elif result.recap:
            result.exit_code = ansible_code
        else:
            # Ansible says 0 where an inventory is empty, 4 where a playbook cannot be parsed: no host was touched.
            result.exit_code = EXIT_NO_HOSTS
            result.error = _first_error(self.talk) if ansible_code else None
            result.error = result.error or "no host matched: the inventory, or what is left of it, is empty"


class _Unwritten(dict[str, str]):
    """An environment that ansible-runner passes on (by ``items``) and that is empty where it is written as JSON."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__()
        self._environment = environment

    def items(self) -> Any:
        """Return what the child gets."""
        return self._environment.items()


class _Follower:
    """Reports the JSON lines that are appended to a file, until it is stopped, and those that are left then."""

    def __init__(self, path: str, emit: Callable[[Progress], None]) -> None:
        self._path = path
        self._emit = emit
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, once. Not before Ansible's process was forked: a fork and threads do not go together."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Report what is left, and end."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def _follow(self) -> None:
        with open(self._path, encoding="utf-8", errors="replace") as file:
            pending = ""
            while True:
                last = self._done.wait(FOLLOW_SECONDS)
                pending += file.read()
                *lines, pending = pending.split("\n")
                for line in lines:
                    progress = parse_progress(line)
                    if progress is not None:
                        self._emit(progress)
                if last:
                    return


def parse_progress(line: str) -> Progress | None:
    """Return the progress event in ``line``, or None where it is none: a half-written line must not end a run."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("host"), str):
        return None
    item, unit = event.get("item"), event.get("unit")
    return Progress(
        host=event["host"],
        task=_text(event, "task"),
        step=_text(event, "step"),
        item=item if isinstance(item, str) else None,
        done=_number(event, "done"),
        total=_number(event, "total"),
        unit=unit if unit in ("bytes", "steps") else None,
        rate=_number(event, "rate"),
        eta_seconds=_number(event, "eta_seconds"),
        elapsed_seconds=_number(event, "elapsed_seconds") or 0.0,
    )


def failure_message(result: Mapping[str, Any]) -> str:
    """Return one line that tells why a task failed: the module's message, not the whole answer."""
    items = result.get("results")
    if isinstance(items, list):
        failed = [item for item in items if isinstance(item, dict) and (item.get("failed") or item.get("unreachable"))]
        if failed:
            return "; ".join(dict.fromkeys(failure_message(item) for item in failed))
    message = str(result.get("msg") or result.get("censored") or "no reason given; -v shows Ansible's own output")
    if message == "non-zero return code":
        said = str(result.get("stderr") or result.get("stdout") or "").strip().splitlines()
        message = f"exit code {result.get('rc')}" + (f": {said[-1]}" if said else "")
    return " ".join(message.split())


def _first_error(lines: Sequence[str]) -> str | None:
    """Return Ansible's first error in one line, without its mark and with the place that it names."""
    for number, line in enumerate(lines):
        found = re.match(r"\s*(?:\[ERROR\]:|ERROR!)\s*(.*\S)", line)
        if found:
            places = [after for after in lines[number + 1 :] if after.startswith("Origin: ")]
            return found.group(1).rstrip(".") + (f" ({places[0][len('Origin: ') :].strip()})" if places else "")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else None


def _recap(data: Mapping[str, Any]) -> dict[str, Recap]:
    recap: dict[str, Recap] = {}
    for name, counter in (
        ("ok", "ok"),
        ("changed", "changed"),
        ("failures", "failed"),
        ("dark", "unreachable"),
        ("skipped", "skipped"),
    ):
        for host, count in (data.get(name) or {}).items():
            setattr(recap.setdefault(host, Recap()), counter, int(count))
    return recap


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    return value if isinstance(value, str) else ""


def _number(data: Mapping[str, Any], key: str) -> float | None:
    value = data.get(key)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
