"""The command line: what each verb runs, what it says of what came back, and its exit codes."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from modelfleet.cli import VERBS, doctor, main, session
from modelfleet.runner import Event, Recap, RunResult, TaskResult

CHECKOUT = Path(__file__).resolve().parents[2]
EVIL = "\x1b]0;owned\x07\x1b[2Jh\u202ei\r\n"
PROOF = {
    "model": "smollm2-135m-instruct",
    "file": "chat/specialized/smollm2-135m-instruct.q4_1.gguf",
    "backend": "cpu",
    "device": "CPU",
    "prompt": "The capital of France is",
    "output": " Paris." + EVIL,
    "expected": " Paris",
    "passed": True,
    "load_seconds": 0.25,
    "prompt_tokens_per_second": 210.26,
    "generation_tokens_per_second": 45.0,
    "memory": {"devices": [{"name": "CPU", "predicted_bytes": 178000000, "measured_bytes": 180000000}]},
    "isolation": {"account": "ashley-ai", "network": "none", "new_privileges": "refused"},
    "verified_at": "2026-11-23T16:26:07Z",
    "ran": True,
}
PROFILE = {
    "accelerators": [{"vendor": "nvidia", "name": "RTX 4090", "memory": {"total_bytes": 25769803776}}] * 2,
    "cpu": {"model": "AMD EPYC", "physical_cores": 16, "logical_cores": 32, "instruction_sets": ["avx2", "fma"]},
    "memory": {"total_bytes": 68719476736},
    "storage": {"free_bytes": 1099511627776, "kind": "nvme"},
    "os": {"distribution": "debian", "version": "13", "container": None, "virtual_machine": False},
    "unknown": {"cpu.sockets": "no topology" + EVIL},
}
PLAN = {
    "bytes_to_fetch": 98362432,
    "models": [{"model": "big", "action": "refuse", "reason": "does not fit"}],
}


def done(
    task: str, role: str = "", action: str = "x", changed: bool = False, status: str = "ok", **said: Any
) -> TaskResult:
    """Return a host's result of a task."""
    return TaskResult("localhost", task, role, action, status, changed, False, said)


SITE = (
    done("Read the hardware", action="modelfleet_hardware_info", ansible_facts={"modelfleet_hardware": PROFILE}),
    done("Say what is ready", "accelerator"),
    done(
        "Make the model store",
        "model_store",
        "modelfleet_store",
        changed=True,
        path="/home/ann/.local/share/ashley-ai/models",
        owner="ann",
        diff={"before": "", "after": "/home/ann/.local/share/ashley-ai/models: directory\n" + EVIL},
    ),
    done("Install", "inference_runtime", "modelfleet_runtime"),
    done(
        "Publish",
        "models",
        "modelfleet_models",
        changed=True,
        ansible_facts={"modelfleet_plan": PLAN},
        diff={"before": "", "after": "a.gguf\n"},
    ),
    done("Keep", "env_file", "modelfleet_env_file", diff={"before": "A=1\nB=2\n", "after": "A=1\nB=2\n"}),
    done("Prove", "verification", "modelfleet_inference_check", proofs=[PROOF]),
)


class Ansible:
    """Stands in for a run of ansible-playbook: takes down what it was asked, answers what it was told."""

    def __init__(self) -> None:
        self.arguments: list[str] = []
        self.environment: dict[str, str] = {}
        self.password: str | None = None
        self.answer = RunResult(recap={"localhost": Recap(ok=7, changed=2)}, results=list(SITE))

    def run(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        on_event: Callable[[Event], None],
        become_password: str | None = None,
    ) -> RunResult:
        """Answer as run_playbook does."""
        self.arguments, self.environment, self.password = list(arguments), dict(environment), become_password
        for result in self.answer.results:
            on_event(result)
        return self.answer


@pytest.fixture
def ansible(monkeypatch: pytest.MonkeyPatch) -> Ansible:
    """Put a stand-in in the place of ansible-playbook."""
    ansible = Ansible()
    monkeypatch.setattr(session, "run_playbook", ansible.run)
    for name in ("ANSIBLE_CONFIG", "ANSIBLE_INVENTORY", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return ansible


def call(*arguments: str, **extra: Any) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(main, list(arguments), **extra)


def is_harmless(text: str) -> bool:
    """Tell whether no character of ``text`` can steer a terminal."""
    return all(character.isprintable() or character == "\n" for character in text)


@pytest.mark.parametrize(
    "arguments",
    [(), ("nonsense",), ("apply", "--nonsense"), ("apply", "-f", "0"), ("apply", "-f", "many"), ("apply", "extra")],
)
def test_usage_errors_exit_64(arguments: tuple[str, ...], ansible: Ansible) -> None:
    assert call(*arguments).exit_code == 64
    assert ansible.arguments == []


def test_help_names_every_verb_and_imports_no_verb() -> None:
    program = (
        "import sys\nfrom modelfleet.cli import main\ntry:\n    main(['--help'])\nfinally:\n    print(*sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, check=True)
    *text, modules = answer.stdout.splitlines()
    loaded = set(modules.split())
    assert not loaded & {"rich", "ansible_runner", "ansible", "yaml", "modelfleet.runner", "modelfleet.cli.apply"}
    for verb, sentence in VERBS.items():
        assert any(line.strip().startswith(verb) and line.endswith(sentence) for line in text), verb


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_explains_itself(verb: str) -> None:
    answer = call(verb, "--help")
    assert answer.exit_code == 0
    assert f"modelfleet {verb}" in answer.stdout


def test_python_m_runs_the_command_line() -> None:
    answer = subprocess.run([sys.executable, "-m", "modelfleet.cli", "--version"], text=True, capture_output=True)
    assert answer.stdout.startswith("modelfleet, version ")
    answer = subprocess.run([sys.executable, "-m", "modelfleet.cli", "nonsense"], text=True, capture_output=True)
    assert answer.returncode == 64


@pytest.mark.parametrize(
    ("verb", "playbook", "forced"),
    [
        ("apply", "site.yml", []),
        ("plan", "site.yml", ["--check", "--diff"]),
        ("probe", "probe.yml", []),
        ("verify", "verify.yml", []),
        ("doctor", "site.yml", ["--check"]),
    ],
)
def test_show_command_prints_the_line_that_does_the_same(
    verb: str, playbook: str, forced: list[str], ansible: Ansible, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = call(verb, "--show-command")
    assert answer.exit_code == 0
    assert ansible.arguments == []
    setting, program, *arguments = shlex.split(answer.stdout)
    assert setting == f"ANSIBLE_CONFIG={CHECKOUT / 'ansible.cfg'}"
    assert program.endswith("/ansible-playbook")
    default = ["-i", str(CHECKOUT / "inventory" / "localhost.yml")]
    assert arguments == [*default, *forced, str(CHECKOUT / "playbooks" / playbook)]


def test_options_are_passed_on(ansible: Ansible) -> None:
    options = shlex.split("-i a.yml -i b, -l 'web:!db' -t x -t y,z -C -D -e k=v -b -f 7 -vv")
    answer = call("apply", *options, "-e", '{"a": "b c"}')
    assert answer.exit_code == 0
    assert ansible.arguments == [
        *("-i", "a.yml", "-i", "b,", "--limit", "web:!db", "--tags", "x", "--tags", "y,z", "--check", "--diff"),
        *("--extra-vars", "k=v", "--extra-vars", '{"a": "b c"}', "--become", "--forks", "7", "-vv"),
        str(CHECKOUT / "playbooks" / "site.yml"),
    ]
    assert ansible.environment["ANSIBLE_CONFIG"] == str(CHECKOUT / "ansible.cfg")
    assert ansible.password is None


@pytest.mark.parametrize("name", ["ANSIBLE_CONFIG", "ANSIBLE_INVENTORY"])
def test_a_users_own_settings_choose_the_hosts(ansible: Ansible, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "/etc/mine")
    call("apply")
    assert "-i" not in ansible.arguments
    assert ("ANSIBLE_CONFIG" in ansible.environment) is (name != "ANSIBLE_CONFIG")


def test_the_password_is_asked_for_once_and_never_an_argument(ansible: Ansible) -> None:
    answer = call("apply", "-K", input="s3cret\n")
    assert answer.exit_code == 0
    assert ansible.password == "s3cret"
    assert "--ask-become-pass" in ansible.arguments
    assert "s3cret" not in " ".join(ansible.arguments) + answer.output
    assert "s3cret" not in str(ansible.environment)


def test_no_password_is_an_interruption(ansible: Ansible) -> None:
    assert call("apply", "-K", input="").exit_code == 99


@pytest.mark.parametrize("code", [2, 4])
def test_ansibles_exit_code_is_ours(ansible: Ansible, code: int) -> None:
    ansible.answer.exit_code = code
    assert [call(verb).exit_code for verb in ("apply", "plan", "probe", "verify")] == [code] * 4


def test_no_host_is_one_line_and_exit_code_1(ansible: Ansible) -> None:
    ansible.answer = RunResult(exit_code=1, error="no host matched: the inventory is empty")
    for verb in ("apply", "plan", "probe", "verify", "doctor"):
        answer = call(verb)
        assert answer.exit_code == 1
        assert answer.stderr == "modelfleet: no host matched: the inventory is empty; name hosts with -i and -l\n"


def test_an_interrupted_run_says_what_goes_on_and_how_to_resume(ansible: Ansible) -> None:
    ansible.answer.exit_code = 99
    for verb in ("apply", "doctor"):
        answer = call(verb)
        assert answer.exit_code == 99
        assert "goes on there, and the same command takes it up" in answer.stderr


def test_apply_says_what_became_of_each_host_where_the_store_is_and_what_was_proved(ansible: Ansible) -> None:
    answer = call("apply")
    assert answer.exit_code == 0
    assert is_harmless(answer.output)
    lines = answer.stdout.splitlines()
    assert lines[0] == "localhost  ok=7  changed=2  failed=0  unreachable=0"
    assert lines[1].startswith(
        "localhost: the model store is /home/ann/.local/share/ashley-ai/models, owned by ann; not root"
    )
    text = answer.stdout
    for said in (
        "proved  localhost: smollm2-135m-instruct on cpu\n",
        '"The capital of France is"',
        '" Paris.\\x1b]0;owned',
        "prompt 210.3 tokens/s, generation 45.0 tokens/s, loaded in 0.25 s",
        "171.7 MiB on CPU",
        "account: ashley-ai, network: none, new privileges: refused",
    ):
        assert said in text, said
    assert "verified" not in text


def test_a_proof_from_the_record_and_one_that_failed(ansible: Ansible) -> None:
    ansible.answer.results = [
        done("Prove", "verification", proofs=[{**PROOF, "ran": False}, {**PROOF, "passed": False, "output": "London"}])
    ]
    text = call("verify").stdout
    assert "earlier, at 2026-11-23T16:26:07Z" in text
    assert "FAILED  localhost: smollm2-135m-instruct" in text
    assert 'output     "London"' in text and 'expected   " Paris"' in text


def test_failures_are_one_line_each_on_standard_error(ansible: Ansible) -> None:
    ansible.answer.results = [
        done(
            "Publish", "models", status="failed", msg="the disk is full;\n free 3 GB" + EVIL, warnings=["old\nkernel"]
        ),
        done("Publish", "models", status="unreachable", msg="no route"),
        TaskResult("localhost", "Try", "", "x", "failed", False, True, {"msg": "does not matter"}),
    ]
    answer = call("apply")
    assert is_harmless(answer.output)
    assert [line for line in answer.stderr.splitlines() if line.startswith("localhost: ")] == [
        "localhost: warning: old kernel",
        "localhost: Publish: the disk is full; free 3 GB\\x1b]0;owned\\x07\\x1b[2Jh\\u202ei",
        "localhost: unreachable: no route",
    ]


def test_plan_tells_each_change_with_its_difference_and_the_bytes(ansible: Ansible) -> None:
    answer = call("plan")
    assert is_harmless(answer.output)
    lines = answer.stdout.splitlines()
    assert lines[0] == "localhost: 2 tasks would change it, 93.8 MiB to fetch"
    assert lines[1:3] == [
        "  model_store: Make the model store",
        "    +/home/ann/.local/share/ashley-ai/models: directory",
    ]
    assert "  models: Publish" in lines and "    +a.gguf" in lines
    assert "localhost: big is refused: does not fit" in lines
    assert not any("Keep" in line for line in lines)


def test_plan_with_nothing_to_do(ansible: Ansible) -> None:
    ansible.answer.results = [done("Keep", "env_file")]
    assert call("plan").stdout == "localhost: nothing to change\n"


def test_probe_is_a_line_a_host_and_all_in_detail(ansible: Ansible) -> None:
    text = call("probe").stdout
    assert text.splitlines()[1].split("  ")[0] == "localhost"
    for said in ("2 x RTX 4090 24.0 GiB", "AMD EPYC", "16 (32 threads)", "64.0 GiB", "1.0 TiB, nvme", "debian 13"):
        assert said in text, said
    detail = call("probe", "--detail").stdout
    assert is_harmless(detail)
    for said in ("total_bytes: 68719476736 (64.0 GiB)", "instruction_sets: avx2 fma", "cpu.sockets: no topology"):
        assert said in detail, said


def test_doctor_ticks_off_what_would_not_change(ansible: Ansible) -> None:
    answer = call("doctor", "-i", "my hosts.yml", "--json")
    assert answer.exit_code == 2
    checks = {check["title"]: check for check in json.loads(answer.stdout)["checks"] if check["host"] == "localhost"}
    assert {title: check["status"] for title, check in checks.items()} == {
        "hardware verified": "pass",
        "dependencies installed": "pass",
        "directory tree made": "fail",
        "models published": "fail",
        "environment configured": "pass",
        "installation verified": "pass",
    }
    assert checks["directory tree made"]["measured"] == "to do: Make the model store"
    assert checks["directory tree made"]["cure"] == "./modelfleet apply -i 'my hosts.yml'"


def test_doctor_passes_where_nothing_is_left_to_do(ansible: Ansible, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")  # No podman is a warning, no failure.
    ansible.answer.results = [
        TaskResult(old.host, old.task, old.role, old.action, old.status, False, False, old.result) for old in SITE
    ]
    answer = call("doctor")
    assert answer.exit_code == 0, answer.stdout
    assert "warn  controller  podman" in answer.stdout
    assert "fail" not in answer.stdout


def test_doctor_judges_catalog_and_lock(checkout: Path, tmp_path: Path) -> None:
    good = doctor.catalog_check(checkout)
    assert (good.id, good.status) == ("MF-CTL-006", "pass") and " variants pinned" in good.measured
    catalog = tmp_path / "roles" / "models" / "defaults" / "main"
    catalog.mkdir(parents=True)
    (catalog / "catalog.yml").write_text("models_catalog:\n  - id: one\n    categry: chat/7b\n")
    bad = doctor.catalog_check(tmp_path)
    assert bad.status == "fail" and "catalog.yml, line 3: " in bad.measured and bad.cure


def test_doctor_tells_what_was_not_reached(ansible: Ansible) -> None:
    ansible.answer.results = [done("Read the hardware", status="unreachable", msg="no route" + EVIL)]
    answer = call("doctor")
    assert answer.exit_code == 2
    assert is_harmless(answer.output)
    assert answer.stdout.count("no route") == 6


@pytest.mark.parametrize("verb", ["apply", "plan", "probe", "verify", "doctor"])
def test_json_is_one_document(verb: str, ansible: Ansible) -> None:
    answer = call(verb, "--json")
    assert answer.stdout.isascii()
    document = json.loads(answer.stdout)
    assert document["schema_version"] == 1
    assert (document["verb"], document["exit_code"]) == (verb, answer.exit_code)
    host = document["hosts"]["localhost"]
    assert host["recap"] == {"ok": 7, "changed": 2, "failed": 0, "unreachable": 0, "skipped": 0}
    assert document["changed"] == {"localhost": ["model_store: Make the model store", "models: Publish"]}
    assert document["proofs"] == [{"host": "localhost", **PROOF}]
    if verb == "plan":
        assert document["bytes_to_fetch"] == host["bytes_to_fetch"] == 98362432
        assert host["plan"] == PLAN
        assert [change["task"] for change in host["changes"]] == ["Make the model store", "Publish"]
    if verb == "probe":
        assert host["profile"] == PROFILE
    if verb == "apply":
        assert host["store"]["unprivileged"] is True


def test_a_package_without_its_checkout_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("modelfleet.cli.options.__file__", str(tmp_path / "a" / "b" / "c" / "options.py"))
    answer = call("apply")
    assert answer.exit_code == 1
    assert answer.stderr.startswith("modelfleet: the playbooks are not beside this package; ")
    assert answer.stderr.count("\n") == 1
