"""What the modules' action plugins share: long work in the background of a host, with its progress shown.

The module starts the work and returns at once; here its small progress file is
read until the work is over, and the module's own result becomes the task's.
Nothing looks like a failure meanwhile, check mode starts nothing, and an
interrupted controller finds the work again when it comes back.

Each step of progress goes as a line of JSON to the file that the environment
variable MODELFLEET_PROGRESS_FILE names (the command line's live view), else as
a line of text to Ansible's display: whichever stdout callback is set shows what
it always shows, these lines between. Where the callback writes JSON, they go to
the standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.action import ActionBase

from .core.units import format_bytes, format_duration

PROGRESS_FILE = "MODELFLEET_PROGRESS_FILE"
POLL_SECONDS = 1.0
FIRST_POLL_SECONDS = 0.2
SHOW_SECONDS = 5.0
SHOWN_AT_LEAST = 60
"""Lines for a long step: what takes an hour says so once a minute, not every five seconds."""
SILENT_SECONDS = 60.0
"""How long work may say nothing at all after its start before it counts as lost."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

Result = dict[str, Any]


class BackgroundAction(ActionBase):  # type: ignore[misc]
    """Runs the module of its own name; follows the work that the module leaves running."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> Result:
        """Return the module's result; see ActionBase."""
        super().run(tmp, task_vars)
        try:
            return self.execute(dict(self._task.args), task_vars or {})
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)

    def execute(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> Result:
        """Run the module, in the background unless in check mode, and return its result."""
        if self._task.check_mode:
            return self.call(arguments, task_vars)
        answer = self.call({**arguments, "background": True}, task_vars)
        return self._follow(answer["job"], task_vars) if answer.get("job") else answer

    def call(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> Result:
        """Run the module once, in the foreground."""
        result: Result = self._execute_module(module_args=arguments, task_vars=task_vars)
        return result

    def _follow(self, job: dict[str, str], task_vars: dict[str, Any]) -> Result:
        """Read the progress of a job until it ends; returns its result."""
        teller = Teller(str(task_vars.get("inventory_hostname", "")), self._task.get_name(), self._display)
        wait, process, started, ansible = FIRST_POLL_SECONDS, None, time.monotonic(), os.getppid()
        while True:
            time.sleep(wait)
            if os.getppid() != ansible:
                # Nobody would read what is told, until the pipe is full and this process stays for ever.
                return {"failed": True, "msg": "ansible-playbook was killed; run again: the work on the host goes on"}
            wait = min(wait * 1.5, POLL_SECONDS)
            # One cheap command, no Python on the host: what the work says, and whether it still lives.
            said = self._read(f"{_alive(process)}; tail -n 1 {shlex.quote(job['progress'])}")
            state = _parse(said.removeprefix("gone"))
            # Another run may have started the same work again: then another process writes here.
            gone = said.startswith("gone") and state.get("pid") in (None, process)
            gone = gone or (process is None and not state and time.monotonic() - started > SILENT_SECONDS)
            if state.get("state") == "finished":
                # The result stays where it is, for whoever else follows this job; a later job forgets it.
                result = _parse(self._read(f"cat {shlex.quote(job['result'])}"))
                if result:
                    return result
                gone = True
            if gone:
                return {
                    "failed": True,
                    "msg": "the work on the host ended without a result; run again: it goes on where it was",
                }
            process = state["pid"] if isinstance(state.get("pid"), int) else process
            teller.tell(state)

    def _read(self, command: str) -> str:
        return str(self._low_level_execute_command(command, sudoable=True).get("stdout", "")).strip()

    def bring(self, name: str, content: bytes) -> str:
        """Write ``content`` to the host's temporary folder of this task and return its path."""
        folder = self._connection._shell.tmpdir or self._make_tmp_path()
        path: str = self._connection._shell.join_path(folder, name)
        self._transfer_data(path, content)
        self._fixup_perms2((folder, path))
        return path


class Teller:
    """Tells each step once, and its progress now and then."""

    def __init__(self, host: str, task: str, display: Any) -> None:
        self._host = host
        self._task = task
        self._display = display
        self._step: tuple[Any, Any] = (None, None)
        self._first: tuple[float, float] = (0.0, 0.0)
        self._shown = float("-inf")

    def tell(self, state: Result) -> None:
        """Pass on what the host says; its texts are cleaned, its numbers checked."""
        step, item = clean(state.get("step")), clean(state.get("item"))
        if not step:
            return
        now = time.monotonic()
        done, total = _number(state.get("done")), _number(state.get("total"))
        new = (step, item) != self._step
        if new:
            self._step, self._first = (step, item), (now, done or 0.0)
        rate = None
        if done is not None and now - self._first[0] > 1:
            rate = (done - self._first[1]) / (now - self._first[0])
        event = {
            "host": self._host,
            "task": self._task,
            "step": step,
            "item": item,
            "done": done,
            "total": total,
            "unit": clean(state.get("unit")),
            "rate": rate,
            "eta_seconds": (total - done) / rate if rate and total and done is not None else None,
            "elapsed_seconds": _number(state.get("elapsed_seconds")),
        }
        stream = os.environ.get(PROGRESS_FILE)
        if stream:
            with Path(stream).open("a", encoding="utf-8") as target:
                target.write(json.dumps(event) + "\n")
        elif new or now - self._shown >= max(SHOW_SECONDS, (now - self._first[0]) / SHOWN_AT_LEAST):
            self._shown = now
            with undisturbed():
                self._display.display(_line(event), stderr="json" in str(constants.DEFAULT_STDOUT_CALLBACK))


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let Ctrl-C wait while something is displayed.

    Ansible ends its workers with the signal that it got itself. One that is ended between writing to Ansible's queue
    and letting go of the queue's lock takes the lock with it: ansible-playbook waits for it to the end of days
    (StrategyBase.cleanup, ansible-core 2.19 to 2.21). People press Ctrl-C when they see a line, which is that moment.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _line(event: Result) -> str:
    text = f"  {event['host']}: {event['step']}"
    if event["item"]:
        text += f": {event['item']}"
    if event["done"] is not None and event["total"]:
        tell = format_bytes if event["unit"] == "bytes" else lambda count: f"{count:.0f}"
        text += f": {tell(event['done'])} of {tell(event['total'])} ({event['done'] / event['total']:.0%})"
        if event["unit"] == "bytes" and event["rate"]:
            text += f", {format_bytes(event['rate'])}/s"
        if event["eta_seconds"] is not None:
            text += f", {format_duration(event['eta_seconds'])} left"
    return text


def _alive(process: int | None) -> str:
    """Return a command that says ``gone`` where a process of the host has ended, be it that nobody reaped it."""
    if process is None:
        return "true"
    return f"{{ kill -0 {process} && ! grep -qs '^State:.Z' /proc/{process}/status; }} 2>/dev/null || echo gone"


def _parse(text: str) -> Result:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def clean(value: Any) -> str | None:
    """Return a text of a host without control characters, and not too long of it; None where it is no text."""
    return _CONTROL.sub("", value)[:200] if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    """Return a count that can be reckoned with: JSON knows NaN, infinity and numbers of any length."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if 0 <= value < 2**63 else None
