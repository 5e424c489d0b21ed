"""What is going on, on standard error: a row for each active host on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from ..core.units import format_duration
from ..runner import Event, Output, Progress, TaskResult, TaskStarted
from .text import amount, clean, joined, speed, time_left, use_colour

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

PLAIN_PROGRESS_SECONDS = 5.0
PLAIN_PROGRESS_LINES = 60
"""For a long step: what takes an hour says so once a minute, not every five seconds."""
NAMED_AFTER_SECONDS = 1.0
BAR_WIDTH = 20
BAR_TERMINAL_WIDTH = 110
_ESCAPE = re.compile(r"(\x1b\[[0-9;]*m)")
# Ansible's own first task in every role.
_NOT_A_STEP = "Validating arguments against arg spec"
_NOT_NEWS = "using the discovered Python interpreter"


def make_view(verbose: bool) -> View:
    """Return the view that fits standard error; ``verbose`` shows Ansible's own output in it."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return TerminalView(verbose)
    return PlainView(verbose, sys.stderr)


class View:
    """Takes the events of a run. Says what failed and what modules warned of, in one line each, as it happens."""

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose
        self._warned: set[str] = set()

    def handle(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Output):
            if self.verbose:
                for line in event.text.splitlines():
                    self.ansible_line(line)
        elif isinstance(event, TaskStarted):
            if not event.task.startswith(_NOT_A_STEP):
                self.started(event)
        elif isinstance(event, Progress):
            self.progress(event)
        else:
            self.reported(event)
            self._report(event)
            self.finished(event)

    def _report(self, result: TaskResult) -> None:
        warnings = result.result.get("warnings")
        for warning in warnings if isinstance(warnings, list) else []:
            line = f"{clean(result.host)}: warning: {clean(' '.join(str(warning).split()))}"
            if _NOT_NEWS not in line and line not in self._warned:
                self._warned.add(line)
                self.line(line, "yellow")
        if result.status == "unreachable" and not result.ignored:
            self.line(f"{clean(result.host)}: unreachable: {clean(result.message)}", "red")
        elif result.status == "failed" and not result.ignored:
            self.line(f"{clean(result.host)}: {clean(result.task)}: {clean(result.message)}", "red")

    def started(self, event: TaskStarted) -> None:
        """Show that a host begins a task."""

    def progress(self, event: Progress) -> None:
        """Show how far a long step is."""

    def reported(self, event: TaskResult) -> None:
        """Take a result, before what went wrong is said."""

    def finished(self, event: TaskResult) -> None:
        """Take a result, after what went wrong was said."""

    def line(self, text: str, colour: str | None = None) -> None:
        """Print a line that stays."""
        raise NotImplementedError

    def ansible_line(self, text: str) -> None:
        """Print a line of Ansible's own output, which may carry colours."""
        raise NotImplementedError

    def close(self) -> None:
        """Take down what does not stay."""


@dataclass
class _Shown:
    """What was last shown of a host's progress, and since when it is at its step."""

    step: tuple[str, str | None] | None = None
    since: float = 0.0
    last: float = float("-inf")
    line: str = ""


class PlainView(View):
    """Lines for a log: each task once, each host's progress at most every PLAIN_PROGRESS_SECONDS.

    A long step is shown less often, and no line of a host follows one that is the same.

    A task is named when a host has done something in it, or is still at it after NAMED_AFTER_SECONDS: most of those
    that are skipped everywhere never show.
    """

    def __init__(self, verbose: bool, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(verbose)
        self.stream = stream
        self.clock = clock
        self._task = ""
        self._timer: threading.Timer | None = None
        self._lock = threading.RLock()
        self._hosts: dict[str, _Shown] = {}

    def started(self, event: TaskStarted) -> None:
        name = full_name(event)
        with self._lock:
            if name == self._task:
                return
            self._forget()
            self._task = name
            self._timer = threading.Timer(NAMED_AFTER_SECONDS, self._name_task, (name,))
            self._timer.daemon = True
            self._timer.start()

    def progress(self, event: Progress) -> None:
        self._name_task(self._task)
        now, line = self.clock(), f"{clean(event.host)}: {describe(event)}"
        shown = self._hosts.setdefault(event.host, _Shown())
        if shown.step != (event.step, event.item):
            shown.step, shown.since = (event.step, event.item), now
        pause = max(PLAIN_PROGRESS_SECONDS, (now - shown.since) / PLAIN_PROGRESS_LINES)
        if now - shown.last >= pause and line != shown.line:
            shown.last, shown.line = now, line
            self.line(line)

    def reported(self, event: TaskResult) -> None:
        if event.status != "skipped":
            self._name_task(full_name(event))

    def _name_task(self, name: str) -> None:
        with self._lock:
            if name == self._task and self._timer is not None:
                self._forget()
                if not self.verbose:
                    self.line(name)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def line(self, text: str, colour: str | None = None) -> None:
        with self._lock:
            self.stream.write(text + "\n")
            self.stream.flush()

    def ansible_line(self, text: str) -> None:
        self.line(clean(_ESCAPE.sub("", text)))

    def close(self) -> None:
        with self._lock:
            self._forget()


def full_name(event: TaskStarted | TaskResult) -> str:
    """Return ``role: task``, or the task alone where it is in no role."""
    return ": ".join(clean(part) for part in (event.role, event.task) if part)


def describe(event: Progress) -> str:
    """Return a progress event in one line: step, item, how much of how much, rate, time left."""
    what = " ".join(clean(part) for part in (event.step or event.task, event.item) if part)
    left = time_left(event.eta_seconds)
    if not left and event.elapsed_seconds >= 1:
        left = f"for {format_duration(event.elapsed_seconds)}"
    so_far = joined((amount(event.done, event.total, event.unit), speed(event.rate, event.unit), left))
    return f"{what}: {so_far}" if so_far else what


@dataclass
class _Row:
    task: str
    since: float
    progress: Progress | None = None
    waiting: bool = False


class TerminalView(View):
    """A table that is drawn over itself, a row for each host that is still at work."""

    def __init__(self, verbose: bool) -> None:
        super().__init__(verbose)
        self._rows: dict[str, _Row] = {}
        self._lock = threading.Lock()
        self._console: Console | None = None
        self._live: Live | None = None

    def handle(self, event: Event) -> None:
        if self._live is None:
            self._start()
        super().handle(event)

    def _start(self) -> None:
        # Imported at the first event: Ansible is starting meanwhile, so it costs no time.
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._live = Live(
            console=self._console,
            get_renderable=self._draw,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def started(self, event: TaskStarted) -> None:
        with self._lock:
            self._rows[event.host] = _Row(full_name(event), time.monotonic())

    def progress(self, event: Progress) -> None:
        with self._lock:
            row = self._rows.get(event.host)
            if row is not None and not row.waiting:
                row.progress = event

    def finished(self, event: TaskResult) -> None:
        with self._lock:
            if event.status == "unreachable" or (event.status == "failed" and not event.ignored):
                self._rows.pop(event.host, None)
            elif event.host in self._rows:
                row = self._rows[event.host]
                row.waiting, row.progress = True, None

    def line(self, text: str, colour: str | None = None) -> None:
        from rich.text import Text

        if self._console is not None:
            self._console.print(Text(text, style=colour or ""))

    def ansible_line(self, text: str) -> None:
        from rich.text import Text

        if self._console is not None:
            parts = _ESCAPE.split(text)
            parts[::2] = [clean(part) for part in parts[::2]]
            self._console.print(Text.from_ansi("".join(parts)))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        assert self._console is not None
        height, width = self._console.height, self._console.width
        with self._lock:
            rows = list(self._rows.items())
        grid = Table.grid(padding=(0, 2))
        # The terminal shows Ctrl-C as ^C behind the last line; if that broke the line, the table would not be erased.
        grid.width = max(width - len("^C^C"), 1)
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1, min_width=12)
        for _ in range(3):
            grid.add_column(no_wrap=True)
        room = max(height - 2, 1)
        # With more hosts than lines those that are at work come first.
        if len(rows) > room:
            rows.sort(key=lambda item: item[1].waiting)
        for host, row in rows[:room]:
            grid.add_row(Text(clean(host), style="bold"), *self._cells(row, alone=len(rows) == 1, width=width))
        if len(rows) > room:
            grid.add_row("", Text(f"and {len(rows) - room} more hosts", style="dim"))
        return grid

    def _cells(self, row: _Row, alone: bool, width: int) -> list[Text | ProgressBar]:
        """Return what a host does, a bar where there is room, how much of how much, and the time."""
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        running = format_duration(time.monotonic() - row.since)
        progress = row.progress
        if row.waiting:
            return [Text(row.task), Text(), Text("" if alone else "waits for the others", style="dim")]
        if progress is None:
            return [Text(row.task), Text(), Text(), Text(running, style="dim")]
        item = clean(progress.item or "").rpartition("/")[2]
        figures = (amount(progress.done, progress.total, progress.unit), speed(progress.rate, progress.unit))
        bar: Text | ProgressBar = Text()
        if progress.total and progress.done is not None and width >= BAR_TERMINAL_WIDTH:
            bar = ProgressBar(total=progress.total, completed=min(progress.done, progress.total), width=BAR_WIDTH)
        return [
            Text(" ".join(part for part in (clean(progress.step or progress.task), item) if part)),
            bar,
            Text(joined(figures)),
            Text(time_left(progress.eta_seconds) or running, style="dim"),
        ]


def wants_colour() -> bool:
    """Tell whether Ansible's own output, shown on standard error, may carry colours."""
    return use_colour(sys.stderr)
