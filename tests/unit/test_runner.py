"""The runner, with real ansible-runner and real playbooks on this machine."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from modelfleet import runner
from modelfleet.runner import Event, Output, Progress, RunResult, TaskResult, TaskStarted, run_playbook

LOCAL = ("-i", "localhost,", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}")

SUCCESS = """
- name: Work
  hosts: all
  gather_facts: false
  tasks:
    - name: Say
      ansible.builtin.debug:
        msg: hello
    - name: Change
      ansible.builtin.command:
        argv: [{python}, -c, "pass"]
    - name: Leave out
      ansible.builtin.debug:
      when: false
"""
FAILURE = """
- name: Work
  hosts: all
  gather_facts: false
  tasks:
    - name: May fail
      ansible.builtin.fail:
        msg: let go
      ignore_errors: true
    - name: Fail
      ansible.builtin.fail:
        msg: "it broke\\nbadly; mend it"
"""


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the runner a temporary folder of its own; after each test nothing may be left in it."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def play(tmp_path: Path, temporary_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunResult]:
    """Return a function that runs a playbook's text in tmp_path and checks that the run left nothing behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANSIBLE_CONFIG", raising=False)

    def play(
        text: str,
        *arguments: str,
        on_event: Callable[[Event], None] = lambda event: None,
        become_password: str | None = None,
        **environment: str,
    ) -> RunResult:
        (tmp_path / "play.yml").write_text(text.replace("{python}", sys.executable))
        (tmp_path / "ansible.cfg").write_text("[inventory]\nunparsed_is_failed = True\nany_unparsed_is_failed = True\n")
        environment = {"ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg"), **environment}
        result = run_playbook([*(arguments or LOCAL), "play.yml"], environment, on_event, become_password)
        assert os.listdir(temporary_folder) == []
        return result

    return play


def test_a_run_is_told_as_typed_events(play: Callable[..., RunResult]) -> None:
    events: list[Event] = []
    result = play(SUCCESS, on_event=events.append)
    assert (result.exit_code, result.error) == (0, None)
    assert [event.task for event in events if isinstance(event, TaskStarted)] == ["Say", "Change", "Leave out"]
    done = [event for event in events if isinstance(event, TaskResult)]
    assert done == result.results
    assert [(event.task, event.status, event.changed) for event in done] == [
        ("Say", "ok", False),
        ("Change", "ok", True),
        ("Leave out", "skipped", False),
    ]
    assert done[0].action == "ansible.builtin.debug"
    assert any(isinstance(event, Output) and "PLAY [Work]" in event.text for event in events)
    recap = result.recap["localhost"]
    assert (recap.ok, recap.changed, recap.failed, recap.unreachable, recap.skipped) == (2, 1, 0, 0, 1)


def test_a_failure_has_ansibles_exit_code_and_the_modules_message_in_one_line(play: Callable[..., RunResult]) -> None:
    result = play(FAILURE)
    assert result.exit_code == runner.EXIT_FAILED
    assert [(failed.task, failed.ignored, failed.message) for failed in result.results] == [
        ("May fail", True, "let go"),
        ("Fail", False, "it broke badly; mend it"),
    ]
    assert result.recap["localhost"].failed == 1


def test_a_host_that_cannot_be_reached(play: Callable[..., RunResult]) -> None:
    result = play(
        "- hosts: all\n  gather_facts: false\n  tasks:\n    - ansible.builtin.ping:\n",
        *("-i", "127.0.0.1,", "-e", "ansible_port=1", "-e", "ansible_ssh_common_args='-F /dev/null'"),
    )
    assert result.exit_code == runner.EXIT_UNREACHABLE
    assert [failed.status for failed in result.results] == ["unreachable"]
    assert "127.0.0.1" in result.results[0].message
    assert result.recap["127.0.0.1"].unreachable == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-i", "localhost,", "-l", "nowhere"), "no hosts to target"),
        (("-i", "missing.yml"), "missing.yml"),
        (("-i", "empty.yml"), "no host matched"),
    ],
)
def test_no_host_is_exit_code_1_and_one_line(
    play: Callable[..., RunResult], tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    (tmp_path / "empty.yml").write_text("all:\n")
    result = play(SUCCESS, *arguments)
    assert result.exit_code == runner.EXIT_NO_HOSTS
    assert result.error is not None and said in result.error and "\n" not in result.error


def test_a_playbook_that_cannot_be_read_is_not_an_unreachable_host(play: Callable[..., RunResult]) -> None:
    result = play("- hosts: all\n  tasks: {\n")
    assert result.exit_code == runner.EXIT_NO_HOSTS
    assert result.error is not None and "play.yml:" in result.error


def test_relative_paths_are_those_of_the_working_directory(play: Callable[..., RunResult], tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("all: {hosts: {one: {ansible_connection: local}}}\n")
    (tmp_path / "more.yml").write_text("text: from a file\n")
    result = play(
        "- hosts: all\n  gather_facts: false\n  tasks:\n    - ansible.builtin.debug: {var: text}\n",
        *("-i", "hosts.yml", "-e", "@more.yml"),
    )
    assert result.exit_code == 0
    assert result.results[0].result["text"] == "from a file"


def test_ansibles_own_settings_stay_in_force(play: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANSIBLE_HOST_KEY_CHECKING", raising=False)
    names = ("ANSIBLE_HOST_KEY_CHECKING", "ANSIBLE_CACHE_PLUGIN", "ANSIBLE_CACHE_PLUGIN_CONNECTION", "ADDED")
    lookups = ", ".join(f"lookup('env', '{name}')" for name in names)
    result = play(
        "- hosts: all\n  gather_facts: false\n  tasks:\n"
        f'    - ansible.builtin.debug:\n        msg: "{{{{ [{lookups}] }}}}"\n',
        ADDED="by the caller",
    )
    assert result.results[0].result["msg"] == ["", "", "", "by the caller"]


def test_progress_lines_become_events_while_the_task_runs(play: Callable[..., RunResult], tmp_path: Path) -> None:
    emit = tmp_path / "emit.py"
    emit.write_text(
        "import json, os, pathlib, time\n"
        "event = {'host': 'localhost', 'task': 't', 'step': 'fetching', 'item': 'a.gguf', 'done': 1, 'total': 4,\n"
        "         'unit': 'bytes', 'rate': 0.5, 'eta_seconds': 6, 'elapsed_seconds': 2}\n"
        "with open(os.environ['MODELFLEET_PROGRESS_FILE'], 'a') as file:\n"
        "    file.write('no json\\n[1]\\n' + json.dumps(event) + '\\n')\n"
        "    file.flush()\n"
        "    deadline = time.monotonic() + 300\n"
        "    while not pathlib.Path('seen').exists() and time.monotonic() < deadline:\n"
        "        time.sleep(0.05)\n"
        "    file.write(json.dumps({**event, 'done': 4}) + '\\n')\n"
    )
    events: list[Event] = []

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, Progress):
            (tmp_path / "seen").touch()

    result = play(
        "- hosts: all\n  gather_facts: false\n  tasks:\n"
        f"    - ansible.builtin.command: {{argv: ['{{python}}', emit.py], chdir: '{tmp_path}'}}\n",
        on_event=on_event,
    )
    assert result.exit_code == 0
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.done for event in progress] == [1, 4]
    assert progress[0] == Progress("localhost", "t", "fetching", "a.gguf", 1, 4, "bytes", 0.5, 6, 2)
    first, last = events.index(progress[0]), max(n for n, event in enumerate(events) if isinstance(event, TaskResult))
    assert first < last, "progress is told while the task runs"


def test_the_become_password_reaches_ansible_and_nothing_else(
    play: Callable[..., RunResult], tmp_path: Path, temporary_folder: Path
) -> None:
    secret = "p4ss w0rd-of-this-test"
    sudo = tmp_path / "sudo"
    # Asks as sudo does, says what it was told, then runs the rest of sudo's arguments.
    sudo.write_text(
        "#!/bin/sh\n"
        "while [ $# -gt 0 ]; do case $1 in -p) prompt=$2; shift 2;; -u) shift 2;; -*) shift;; *) break;; esac; done\n"
        'printf "%s" "$prompt" >&2\n'
        "read -r said\n"
        f'printf "%s" "$said" > {tmp_path}/said\n'
        'exec "$@"\n'
    )
    sudo.chmod(0o755)
    found: list[str] = []

    def look(event: Event) -> None:
        if isinstance(event, TaskResult):
            for folder, _, names in os.walk(temporary_folder):
                found.extend(name for name in names if secret in (Path(folder) / name).read_text(errors="replace"))
            for command in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    if secret.encode() in command.read_bytes():
                        found.append(str(command))
                except OSError:
                    continue

    result = play(
        "- hosts: all\n  gather_facts: false\n  become: true\n  tasks:\n    - ansible.builtin.ping:\n",
        *LOCAL,
        *("--ask-become-pass", "-e", f"ansible_become_exe={sudo}"),
        on_event=look,
        become_password=secret,
        ANSIBLE_BECOME_ALLOW_SAME_USER="true",
    )
    assert result.exit_code == 0, [failed.message for failed in result.results]
    assert (tmp_path / "said").read_text() == secret
    assert found == []


def test_the_environment_is_not_kept_beside_a_run(
    play: Callable[..., RunResult], temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "token-of-this-test")
    found: list[Path] = []
    modes: set[int] = set()

    def look(event: Event) -> None:
        modes.update(path.stat().st_mode & 0o777 for path in temporary_folder.iterdir())
        for path in temporary_folder.rglob("*"):
            if path.is_file() and "token-of-this-test" in path.read_text(errors="replace"):
                found.append(path)

    assert play(SUCCESS, on_event=look).exit_code == 0
    assert found == []
    assert modes == {0o700}


def test_ctrl_c_stops_ansible_in_order(play: Callable[..., RunResult]) -> None:
    def interrupt_at_change(event: Event) -> None:
        if isinstance(event, TaskStarted) and event.task == "Wait":
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

    before = signal.getsignal(signal.SIGINT)
    result = play(
        "- hosts: all\n  gather_facts: false\n  tasks:\n"
        "    - name: Wait\n      ansible.builtin.command: {argv: [sleep, '60']}\n",
        on_event=interrupt_at_change,
    )
    assert result.exit_code == runner.EXIT_INTERRUPTED
    assert result.results == [], "the task was not waited for"
    assert signal.getsignal(signal.SIGINT) is before


def test_ansible_that_does_not_stop_is_told_again(
    play: Callable[..., RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a worker of its died with the lock of its queue: the first signal is taken, and nothing comes of it."""
    monkeypatch.setattr(runner, "STOP_SECONDS", 0.5)
    hanging = tmp_path / "filter_plugins" / "hanging.py"
    hanging.parent.mkdir()
    hanging.write_text(
        "import pathlib, signal, threading\n\n\n"
        "def hang(text):\n"
        "    def taken(number, frame):\n"
        "        signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        "        pathlib.Path('taken').touch()\n\n"
        "    signal.signal(signal.SIGINT, taken)\n"
        "    pathlib.Path('hanging').touch()\n"
        "    threading.Event().wait(60)\n"
        "    pathlib.Path('not ended').touch()\n\n\n"
        "class FilterModule:\n"
        "    def filters(self):\n"
        "        return {'hang': hang}\n"
    )

    def interrupt() -> None:
        deadline = time.monotonic() + 300
        while not (tmp_path / "hanging").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    def on_event(event: Event) -> None:
        if isinstance(event, Output) and "Hangs" in event.text:
            threading.Thread(target=interrupt, daemon=True).start()

    # The hosts of a play are templated in Ansible's own process, not in a worker.
    first = "- name: Hangs\n  hosts: all\n  gather_facts: false\n"
    result = play(first + "- hosts: \"{{ 'all' | hang }}\"\n", on_event=on_event)
    assert result.exit_code == runner.EXIT_INTERRUPTED
    assert (tmp_path / "taken").exists() and not (tmp_path / "not ended").exists()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"msg": "one\n  two"}, "one two"),
        ({"msg": "non-zero return code", "rc": 3, "stderr": "first\nlast word"}, "exit code 3: last word"),
        (
            {"msg": "One or more items failed", "results": [{"failed": True, "msg": "a"}, {"msg": "fine"}]},
            "a",
        ),
        ({"censored": "hidden"}, "hidden"),
        ({}, "no reason given; -v shows Ansible's own output"),
    ],
)
def test_failure_messages(answer: dict[str, object], message: str) -> None:
    assert runner.failure_message(answer) == message


@pytest.mark.parametrize("line", ["", "{", "[]", '{"host": 3}', "null"])
def test_what_is_no_progress_event_is_passed_over(line: str) -> None:
    assert runner.parse_progress(line) is None


def test_progress_fields_of_a_wrong_kind_are_unknown() -> None:
    event = runner.parse_progress('{"host": "h", "done": "9", "total": true, "unit": "parsecs", "item": 4}')
    assert event == Progress("h", "", "", None, None, None, None, None, None, 0.0)
