"""The verbs wheelhouse and rollback: what they run, what they say of what came back, and their exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from modelfleet.cli import main, session
from modelfleet.runner import EXIT_FAILED, Event, Recap, RunResult, TaskResult
from modelfleet.wheelhouse import Wheelhouse
from support.index import sha256

KEY = "llama_cpp_python-0.3.36-cpu-linux_x86_64-glibc2.36-abcdef01"
STACK = "stack-cpu-py3.11-linux_x86_64-glibc2.36-abcdef01"
WHEEL = "llama_cpp_python-0.3.36-py3-none-any.whl"
EVIL = "\x1b]0;owned\x07\u202e"


class Ansible:
    """Stands in for a run of ansible-playbook."""

    def __init__(self) -> None:
        self.arguments: list[str] = []
        self.answer = RunResult()

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str], on_event: Callable[[Event], None], _: Any = None
    ) -> RunResult:
        self.arguments = list(arguments)
        return self.answer


@pytest.fixture
def ansible(monkeypatch: pytest.MonkeyPatch) -> Ansible:
    """Put a stand-in in the place of ansible-playbook."""
    ansible = Ansible()
    monkeypatch.setattr(session, "run_playbook", ansible.run)
    return ansible


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """Return a wheelhouse with a wheel, and with the packages for hosts without an index."""
    (tmp_path / WHEEL).write_bytes(b"compiled")
    (tmp_path / "numpy-2.0.2-py3-none-any.whl").write_bytes(b"numpy")
    wheelhouse = Wheelhouse(tmp_path / "house")
    numpy = tmp_path / "numpy-2.0.2-py3-none-any.whl"
    wheelhouse.keep(KEY, str(tmp_path / WHEEL), sha256(tmp_path / WHEEL), f"host1{EVIL}", copy)
    lock = f"numpy==2.0.2 --hash=sha256:{sha256(numpy)}\n"
    wheelhouse.keep_packages(STACK, lock, [(str(numpy), sha256(numpy))], copy)
    return wheelhouse.folder


def copy(remote: str, local: str) -> None:
    Path(local).write_bytes(Path(remote).read_bytes())


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


class TestWheelhouse:
    def test_what_is_kept_is_listed(self, house: Path, ansible: Ansible) -> None:
        answer = call("wheelhouse", "--output", str(house))
        first, *rest = answer.stdout.splitlines()
        assert first.startswith(f"{house}: ") and first.endswith("for 2 kinds")
        assert [line.split()[:4] for line in rest] == [["whole", KEY, "1", "file"], ["whole", STACK, "2", "files"]]
        assert "by host1" in rest[0] and "\x1b" not in answer.stdout and "\u202e" not in answer.stdout
        assert answer.exit_code == 0 and ansible.arguments == []

    def test_json(self, house: Path) -> None:
        answer = json.loads(call("wheelhouse", "--output", str(house), "--json").stdout)
        assert [(kept["key"], kept["files"], kept["damaged"]) for kept in answer["kept"]] == [
            (KEY, 1, []),
            (STACK, 2, []),
        ]
        assert answer["bytes"] == sum(kept["bytes"] for kept in answer["kept"]) > 0

    @pytest.mark.parametrize(
        "name", [f"{KEY}/{WHEEL}", f"{STACK}/requirements.txt", f"{STACK}/wheels/numpy-2.0.2-py3-none-any.whl"]
    )
    def test_one_other_byte_is_damage(self, house: Path, name: str) -> None:
        with (house / name).open("ab") as target:
            target.write(b"#")
        answer = call("wheelhouse", "--output", str(house))
        assert answer.exit_code == 2
        assert f"  {name.replace('wheels/', '')} is not what was kept" in answer.stdout

    def test_nothing_is_kept(self, tmp_path: Path) -> None:
        answer = call("wheelhouse", "--output", str(tmp_path / "none"))
        assert (answer.exit_code, answer.stdout) == (0, f"{tmp_path}/none: empty\n")

    def test_making_it_runs_the_runtime(self, house: Path, ansible: Ansible) -> None:
        ansible.answer = RunResult(EXIT_FAILED, recap={"host1": Recap(failed=1)})
        answer = call("wheelhouse", "--for", "gguf", "--for", "onnx", "--output", str(house), "-l", "host1")
        assert answer.exit_code == EXIT_FAILED and KEY in answer.stdout
        given = json.loads(ansible.arguments[ansible.arguments.index("--extra-vars") + 1])
        assert given == {
            "inference_runtime_profiles": ["gguf", "onnx"],
            "inference_runtime_wheelhouse": str(house),
            "inference_runtime_collect": True,
        }
        assert ansible.arguments[-1].endswith("playbooks/runtime.yml") and "host1" in ansible.arguments

    def test_a_profile_that_is_none(self) -> None:
        assert call("wheelhouse", "--for", "everything").exit_code == 64


class TestRollback:
    def went(self, host: str, **more: Any) -> TaskResult:
        said = {
            "diff": {
                "before": "/r/current -> environments/new\n",
                "after": f"/r/current -> environments/old{EVIL}\n",
            },
            "packages": {"llama-cpp-python": "0.3.35", "numpy": "2.0.2"},
            **more,
        }
        return TaskResult(host, "Go back", "inference_runtime", "modelfleet_runtime", "ok", True, False, said)

    def test_it_says_from_where_to_where(self, ansible: Ansible) -> None:
        ansible.answer = RunResult(recap={"host1": Recap(ok=2, changed=1)}, results=[self.went("host1")])
        answer = call("rollback", "-l", "host1")
        assert answer.exit_code == 0 and ansible.arguments[-1].endswith("playbooks/runtime_rollback.yml")
        assert answer.stdout.startswith("host1: went back from new to old")
        assert answer.stdout.splitlines()[0].endswith(" (llama-cpp-python 0.3.35)") and "\x1b" not in answer.stdout

    def test_check_mode_says_where_it_would(self, ansible: Ansible) -> None:
        ansible.answer = RunResult(recap={"host1": Recap(ok=2, changed=1)}, results=[self.went("host1", packages=None)])
        answer = call("rollback", "--check")
        assert "host1: would go back from new to old" in answer.stdout and "--check" in ansible.arguments

    def test_json_and_a_host_that_has_no_other(self, ansible: Ansible) -> None:
        no = TaskResult(
            *("host2", "Go back", "inference_runtime", "modelfleet_runtime", "failed", False, False), {"msg": "no"}
        )
        ansible.answer = RunResult(EXIT_FAILED, results=[self.went("host1"), no])
        done = call("rollback", "--json")
        hosts = json.loads(done.stdout)["hosts"]
        assert done.exit_code == EXIT_FAILED and hosts["host2"]["rollback"] is None
        assert hosts["host1"]["rollback"]["from"] == "new" and hosts["host2"]["failures"][0]["message"] == "no"
        assert "host2: stays as it is" in call("rollback").stdout
