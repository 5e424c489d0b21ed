"""Text for terminals, and the views of a run."""

from __future__ import annotations

import io
import time

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelfleet.cli import text
from modelfleet.cli.live import PlainView, TerminalView, describe
from modelfleet.runner import Output, Progress, TaskResult, TaskStarted
from rich.console import Console


def fetching(host: str = "h", done: float | None = 1048576, total: float | None = 4194304) -> Progress:
    """Return a progress event."""
    return Progress(host, "Publish", "fetching", "chat/7b/a\x1b[31m[b]x[b].gguf", done, total, "bytes", 524288, 6, 2)


@given(st.text())
def test_nothing_that_a_host_says_can_steer_a_terminal(said: str) -> None:
    assert text.clean(said).isprintable()


def test_clean_leaves_what_can_be_read() -> None:
    assert text.clean("Grüße, 世界 [bold]") == "Grüße, 世界 [bold]"
    assert text.clean("a\nb\x1b[0m\u202e\udc80") == "a\\nb\\x1b[0m\\u202e\\udc80"


def test_columns_are_aligned_whatever_their_colour() -> None:
    rows = [["a", click.style("long", fg="red"), "x"], ["abc", "b", ""]]
    assert [click.unstyle(line) for line in text.table(rows)] == ["a    long  x", "abc  b"]


def test_amounts_speeds_and_times() -> None:
    assert text.amount(1048576, 4194304, "bytes") == "1.0 MiB of 4.0 MiB"
    assert text.amount(3, 381, "steps") == "3 of 381 steps"
    assert text.amount(3, None, None) == "3"
    assert text.amount(None, 5, "bytes") == ""
    assert text.speed(1048576, "bytes") == "1.0 MiB/s"
    assert text.speed(2, "steps") == "2.0 steps/s"
    assert text.speed(None, "bytes") == ""
    assert text.time_left(65) == "1m05s left"


@pytest.mark.parametrize(
    ("diff", "lines"),
    [
        ({"before": "a\nb\n", "after": "a\nc\n", "after_header": "/f"}, ["/f", " a", "-b", "+c"]),
        (
            {"before": {"x": {"y": 1}}, "after": {"x": {"y": 2}, "z": [3]}},
            [" x:", "-  y: 1", "+  y: 2", "+z:", "+  - 3"],
        ),
        ({"prepared": "+ new\x1b[2J"}, ["+ new\\x1b[2J"]),
        ([{"before": "", "after": "a"}, {"before": None, "after": "b"}], ["+a", "+b"]),
        ({"before": "same", "after": "same", "after_header": "/f"}, []),
        (None, []),
        ("no diff", []),
    ],
)
def test_differences(diff: object, lines: list[str]) -> None:
    assert [click.unstyle(line) for line in text.diff_lines(diff)] == lines


def test_a_long_difference_is_cut() -> None:
    lines = list(text.diff_lines({"before": "", "after": "x\n" * 5000}))
    assert len(lines) == text.DIFF_LINE_LIMIT + 1
    assert "--show-command" in lines[-1]


def test_plain_lines_name_each_task_once_and_keep_progress_apart_by_five_seconds() -> None:
    stream, now = io.StringIO(), [0.0]
    view = PlainView(verbose=False, stream=stream, clock=lambda: now[0])
    for host in ("h", "i"):
        view.handle(TaskStarted(host, "Publish", "models"))
    for second in (0, 1, 4, 5, 9, 10):
        now[0] = second
        view.handle(fetching(done=second * 1048576))
    view.handle(Output("PLAY [x] ***"))
    view.handle(TaskResult("h", "Publish", "models", "x", "ok", True, False, {}))
    view.close()
    first, *progress = stream.getvalue().splitlines()
    assert first == "models: Publish"
    assert [line.split(": ", 2)[2].split(" of ")[0] for line in progress] == ["0 B", "5.0 MiB", "10.0 MiB"]
    assert progress[0] == ("h: fetching chat/7b/a\\x1b[31m[b]x[b].gguf: 0 B of 4.0 MiB, 512.0 KiB/s, 6s left")


def test_plain_lines_never_repeat_themselves() -> None:
    """Each host has its own; what has not changed is said again when it has, and at once."""
    stream, now = io.StringIO(), [0.0]
    view = PlainView(verbose=False, stream=stream, clock=lambda: now[0])
    for second in range(60):
        now[0] = second
        for host in ("h", "i"):
            elapsed = 365.0 if second < 33 else 398.0
            view.handle(Progress(host, "t", "verifying", None, None, None, None, None, None, elapsed))
    said = ["verifying: for 6m05s", "verifying: for 6m38s"]
    assert stream.getvalue().splitlines() == [f"{host}: {line}" for line in said for host in ("h", "i")]


def test_plain_lines_of_a_long_step_come_less_often() -> None:
    stream, now = io.StringIO(), [0.0]
    view = PlainView(verbose=False, stream=stream, clock=lambda: now[0])
    when: list[float] = []
    for second in range(0, 7200, 5):
        now[0] = second
        before = stream.tell()
        step = "compiling" if second < 7100 else "installing"
        view.handle(Progress("h", "t", step, None, second, 9000, "steps", None, None, float(second)))
        when += [second] if stream.tell() > before else []
    gaps = [later - earlier for earlier, later in zip(when, when[1:])]
    assert set(gaps[:60]) == {5}, "as often as ever in the first minutes"
    assert max(gaps) in range(110, 125) and len(when) < 300, "every two minutes after two hours"
    assert gaps[-1] == 5, "a new step is a new beginning"


def test_plain_lines_leave_out_what_is_skipped_and_ansibles_own_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    # No timer of these may run out, however slow the machine is.
    monkeypatch.setattr("modelfleet.cli.live.NAMED_AFTER_SECONDS", 3600)
    stream = io.StringIO()
    view = PlainView(verbose=False, stream=stream)
    view.handle(TaskStarted("h", "Validating arguments against arg spec 'main'", "models"))
    view.handle(TaskStarted("h", "Install tools", ""))
    view.handle(TaskResult("h", "Install tools", "", "x", "skipped", False, False, {}))
    view.handle(TaskStarted("h", "Short", ""))
    view.handle(TaskResult("h", "Short", "", "x", "ok", False, False, {}))
    monkeypatch.setattr("modelfleet.cli.live.NAMED_AFTER_SECONDS", 0)
    view.handle(TaskStarted("h", "Long", ""))
    deadline = time.monotonic() + 60
    while "Long" not in stream.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    view.close()
    assert stream.getvalue() == "Short\nLong\n"


def test_verbose_plain_lines_are_ansibles_own_without_colours() -> None:
    stream = io.StringIO()
    view = PlainView(verbose=True, stream=stream)
    view.handle(TaskStarted("h", "Publish", "models"))
    view.handle(Output("\x1b[0;32mok: [h]\x1b[0m\r\nbell \x07"))
    view.close()
    assert stream.getvalue() == "ok: [h]\nbell \\x07\n"


def test_a_step_without_figures_is_just_named() -> None:
    event = Progress("h", "t", "compiling", None, None, None, None, None, None, 0.2)
    assert describe(event) == "compiling"
    assert describe(Progress("h", "t", "compiling", None, 3, 9, "steps", None, None, 61.0)) == (
        "compiling: 3 of 9 steps, for 1m01s"
    )


def draw(view: TerminalView, width: int, height: int = 10) -> list[str]:
    """Return what the view would draw, as lines without colours."""
    stream = io.StringIO()
    view._console = Console(file=stream, width=width, height=height, markup=False)
    view._console.print(view._draw())
    return stream.getvalue().rstrip("\n").split("\n")


def test_the_live_view_has_a_row_for_each_host_that_is_at_work() -> None:
    view = TerminalView(verbose=False)
    for host in ("a", "b", "c"):
        view.started(TaskStarted(host, "Publish", "models"))
    view.progress(fetching("a"))
    view.finished(TaskResult("b", "Publish", "models", "x", "failed", False, False, {}))
    view.finished(TaskResult("c", "Publish", "models", "x", "ok", False, False, {}))
    narrow = draw(view, 80)
    assert len(narrow) == 2, "a failed host has left"
    assert narrow[0].startswith("a  fetching a\\x1b[31m[b]x[") and narrow[0].rstrip().endswith("6s left")
    assert "1.0 MiB of 4.0 MiB, 512.0 KiB/s" in narrow[0]
    assert narrow[1].startswith("c  models: Publish") and "waits for the others" in narrow[1]
    wide = draw(view, 140)
    assert "━" in wide[0] and "a\\x1b[31m[b]x[" in wide[0]


def test_more_hosts_than_lines() -> None:
    view = TerminalView(verbose=False)
    for number in range(30):
        view.started(TaskStarted(f"h{number}", "Publish", "models"))
    for number in range(28):
        view.finished(TaskResult(f"h{number}", "Publish", "models", "x", "ok", False, False, {}))
    lines = draw(view, 80, height=10)
    assert lines[0].startswith("h28") and lines[1].startswith("h29")
    assert len(lines) == 9 and "and 22 more hosts" in lines[-1]
