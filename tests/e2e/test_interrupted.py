"""Downloads that are watched, left, killed and shared: whole plays on this machine, against a Hub that takes its time.

No test asserts how long anything takes: each waits for what it wants to see.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from modelfleet.core.privilege import Account
from support.grounds import ground, owner
from support.hub import Handler, HubServer, serve, sha256_of
from support.models import gguf

__all__ = ["ground", "owner"]

MODELS = {name: gguf(name.encode() * 1_000_000) for name in ("mine", "other")}
PATIENCE_SECONDS = 600
TOGETHER = 20
# What the command line's verbs do, of a playbook that is none of its own.
COMMAND_LINE = """
import sys
from modelfleet.cli.live import PlainView
from modelfleet.runner import run_playbook
view = PlainView(False, sys.stdout)
code = run_playbook(sys.argv[1:], {}, view.handle).exit_code
view.close()
sys.exit(code)
"""


class Slow:
    """Sends files in small pieces until it is let go, and counts what was sent."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.sent = 0
        self.answers = 0

    def __call__(self, handler: Handler) -> bool:
        if not handler.path.startswith("/cdn/"):
            return False
        self.answers += 1
        content = handler.server.find(handler.path[5:69])
        assert isinstance(content, bytes)
        found = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        handler.send_response(206 if found else 200)
        handler.send_header("Content-Length", str(len(content) - start))
        handler.send_header("ETag", f'"{sha256_of(content)[:32]}"')
        if found:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.end_headers()
        for position in range(start, len(content), 4096):
            piece = content[position : position + 4096]
            handler.wfile.write(piece)
            self.sent += len(piece)
            # Fast enough to show a rate, then so slow that nothing is over for half an hour unless it is let go.
            self.go.wait(0.2 if position - start < 160_000 else 2)
        return True


class Desk:
    """A Hub, hosts that are all this machine, and plays that are run on them."""

    def __init__(self, checkout: Path, ground: Path, owner: Account, hub: HubServer) -> None:
        self.checkout, self.ground = checkout, ground
        self.folder = ground / "base"
        self.folder.mkdir()
        os.chown(self.folder, owner.uid, owner.gid)
        self.slow = Slow()
        hub.lie = self.slow
        catalog, lock = [], {}
        for name, content in MODELS.items():
            commit = hub.add(f"owner/{name}", {f"{name}.gguf": content}).names["main"]
            file = {"name": f"{name}.q8_0.gguf", "source": f"hf://owner/{name}/{name}.gguf"}
            catalog.append({"id": name, "category": "chat/7b", "variants": {"q8_0": {"files": [file]}}})
            pin = {**file, "commit": commit, "size": len(content), "sha256": sha256_of(content)}
            lock[name] = {"q8_0": {"files": [pin]}}
        (ground / "lock.json").write_text(json.dumps({"schema_version": 1, "models": lock}))
        self.variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": "{{ ansible_playbook_python }}",
            "model_store_path": str(self.folder / "models"),
            "model_store_owner": owner.name,
            "model_store_link": "",
            "models_lock_file": str(ground / "lock.json"),
            "models_catalog_extra": catalog,
            "models_hub_endpoints": [hub.endpoint],
            "models_wanted": [{"model": "mine"}],
        }
        self.plays: list[Play] = []
        self.tasks({"roles": ["model_store", "models"]})
        self.hosts({"first": {}})

    def tasks(self, *plays: dict[str, Any]) -> None:
        """Say what is played, on all hosts."""
        document = [
            {"name": f"Play {number}", "hosts": "all", "gather_facts": False, **play}
            for number, play in enumerate(plays)
        ]
        (self.ground / "play.yml").write_text(yaml.safe_dump(document))

    def hosts(self, hosts: dict[str, dict[str, Any]]) -> None:
        """Say which hosts there are, each with variables of its own."""
        (self.ground / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": self.variables}}))

    def store(self, name: str = "models") -> dict[str, bytes]:
        """Return what a store has published."""
        found = (self.folder / name).glob("chat/7b/*")
        return {path.name.partition(".")[0]: path.read_bytes() for path in found}

    def play(self, command_line: bool = False) -> Play:
        """Start a play in a process group of its own: plain ansible-playbook, or the command line's way to run it."""
        program = [str(Path(sys.executable).with_name("ansible-playbook"))]
        if command_line:
            program = [sys.executable, "-c", COMMAND_LINE]
        environment = {
            **os.environ,
            "ANSIBLE_ROLES_PATH": str(self.checkout / "roles"),
            "NO_COLOR": "1",
            "PYTHONPATH": str(self.checkout / "python"),
        }
        command = [*program, "-i", str(self.ground / "hosts.yml"), str(self.ground / "play.yml")]
        self.plays.append(Play(command, self.checkout, environment))
        return self.plays[-1]


class Play:
    """A running ansible-playbook, and what it has said so far."""

    def __init__(self, command: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.said = ""
        self.ended = False
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._more:
                self.said += line
                self._more.notify_all()
        with self._more:
            self.ended = True
            self._more.notify_all()

    def until(self, true: Callable[[str], object]) -> None:
        """Wait until what was said is as wanted."""
        with self._more:
            self._more.wait_for(lambda: true(self.said) or self.ended, PATIENCE_SECONDS)
            assert true(self.said), self.said

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the whole group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def interrupt(self) -> None:
        """Press Ctrl-C, once: that must do, at whatever moment."""
        self.send(signal.SIGINT)
        assert self.end() == 99, self.said

    def end(self) -> int:
        """Wait for the end and return the exit code."""
        code = self.process.wait(PATIENCE_SECONDS)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture
def desk(checkout: Path, ground: Path, owner: Account) -> Iterator[Desk]:
    with serve() as hub:
        desk = Desk(checkout, ground, owner, hub)
        try:
            yield desk
        finally:
            desk.slow.go.set()
            for play in desk.plays:
                play.send(signal.SIGKILL)
                play.end()


def jobs_of(folder: Path) -> dict[int, str]:
    """Return the processes that download into ``folder``, by the part that they hold open."""
    found = {}
    for process in os.listdir("/proc"):
        if process.isdigit():
            with contextlib.suppress(OSError):
                for descriptor in os.scandir(f"/proc/{process}/fd"):
                    target = os.readlink(descriptor.path)
                    if target.startswith(str(folder)) and target.endswith(".part"):
                        found[int(process)] = target
    return found


def test_progress_is_shown_of_each_host_and_ctrl_c_leaves_the_download_to_the_next_run(desk: Desk) -> None:
    stores = {name: {"model_store_path": str(desk.folder / name)} for name in ("first", "second")}
    desk.hosts(stores)
    line = r"  %s: fetching mine\.q8_0\.gguf: [\d.]+ KiB of 3\.8 MiB \(\d+%%\), [\d.]+ KiB/s, [\dms]+ left\n"
    play = desk.play()
    play.until(lambda said: all(re.search(line % host, said) for host in stores))
    play.interrupt()
    said = play.said.replace("failed=0", "").replace("[ERROR]: User interrupted execution", "")
    assert not re.search("fail|fatal|error|retry", said, re.IGNORECASE), play.said

    assert len(jobs_of(desk.folder)) == 2, "both downloads go on"
    again = desk.play(command_line=True)
    again.until(lambda said: all(f"\n{host}: fetching mine" in said for host in stores))
    again.interrupt()
    assert len(jobs_of(desk.folder)) == 2, "they still go on"
    again = desk.play()
    again.until(lambda said: all(f"  {host}: fetching mine" in said for host in stores))
    desk.slow.go.set()
    assert again.end() == 0, again.said
    assert desk.slow.answers == 2 and desk.slow.sent == 2 * len(MODELS["mine"]), "it was the same download"
    assert all(desk.store(host) == {"mine": MODELS["mine"]} for host in stores)


def test_twenty_runs_at_once_make_one_download_of_each_file(desk: Desk) -> None:
    share_one_store(desk, TOGETHER)
    play = desk.play()
    play.until(lambda said: said.count(": fetching mine") + said.count(": waiting for another run") >= TOGETHER)
    desk.slow.go.set()
    assert play.end() == 0, play.said
    assert desk.slow.answers == 2 and desk.slow.sent == sum(map(len, MODELS.values()))
    assert desk.store() == MODELS
    share_one_store(desk, 2)
    again = desk.play()
    assert again.end() == 0
    assert len(re.findall(r"host\d+ +: ok=\d+ +changed=0 ", again.said)) == 2, again.said


@pytest.mark.long
def test_when_the_one_that_downloads_is_killed_the_next_goes_on(desk: Desk) -> None:
    share_one_store(desk, 2)
    play = desk.play()
    play.until(lambda said: ": fetching mine" in said and "waiting for another run to release the store" in said)
    (holder,) = jobs_of(desk.folder)
    os.kill(holder, signal.SIGKILL)
    desk.slow.go.set()
    assert play.end() == 2
    assert play.said.count("FAILED!") == 1 and "the work on the host ended without a result" in play.said, play.said
    assert len(re.findall(r"host\d+ +: .* unreachable=0 +failed=0 ", play.said)) == 1, play.said
    again = desk.play()
    assert again.end() == 0, again.said
    assert desk.store() == MODELS


def share_one_store(desk: Desk, count: int) -> None:
    """Let ``count`` hosts carry out two plans on one store: every second one has a model more."""
    plans = {"less": ["mine"], "more": list(MODELS)}
    tasks: list[dict[str, Any]] = [{"ansible.builtin.import_role": {"name": "model_store"}, "run_once": True}]
    tasks.append({"modelfleet_hardware_info": {}, "run_once": True})
    for name, models in plans.items():
        plan = {
            "wanted": [{"model": model} for model in models],
            "store_path": "{{ model_store_path }}",
            "catalog": "{{ models_catalog_extra }}",
            "lock": "{{ lookup('ansible.builtin.file', models_lock_file) | from_json }}",
            "hardware": "{{ ansible_facts['modelfleet_hardware'] }}",
        }
        tasks.append({"modelfleet_plan": plan, "run_once": True, "register": name})
    models = {
        "plan": "{{ lookup('ansible.builtin.vars', which)['ansible_facts']['modelfleet_plan'] }}",
        "hub_endpoints": "{{ models_hub_endpoints }}",
    }
    tasks.append({"modelfleet_models": models})
    desk.tasks({"tasks": tasks})
    desk.hosts({f"host{number}": {"which": list(plans)[number % 2]} for number in range(count)})


@pytest.mark.long
def test_a_play_that_is_killed_again_and_again_converges(desk: Desk) -> None:
    """With everything that it started, the download included, or without that, at times that chance gives."""
    chance = random.Random(5)
    wish = {"models_wanted": [{"model": name} for name in MODELS]}
    desk.hosts({"first": wish})
    for number in range(12):
        play = desk.play()
        with contextlib.suppress(subprocess.TimeoutExpired):
            play.process.wait(chance.uniform(0.5, 5))
        play.send(signal.SIGKILL)
        play.end()
        if number % 2 == 0:
            for process in jobs_of(desk.folder):
                os.kill(process, signal.SIGKILL)
        assert all(content == MODELS[name] for name, content in desk.store().items()), "never half a file"
    desk.slow.go.set()
    last = desk.play()
    assert last.end() == 0, last.said
    assert desk.store() == MODELS
    again = desk.play()
    assert again.end() == 0 and "changed=0" in again.said, again.said
    assert list((desk.folder / "models" / "cache" / "temp").iterdir()) == []
