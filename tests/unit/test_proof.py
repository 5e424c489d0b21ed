"""Proofs of inference: when one is due, how far its child is kept from the rest, and what it can do wrong.

The child is real: a real interpreter at the environment's own path, under the owner's account, in its namespaces. Only
what it runs is a script of the test, which says what it sees or breaks as a native library does.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.errors import InferenceError, ModelfleetError, UnsafePathError
from modelfleet.core.inference import proof as proof_module
from modelfleet.core.inference.llama import memory_by_device, predicted_bytes
from modelfleet.core.inference.proof import (
    RECORDS,
    Isolation,
    Subject,
    due,
    find_isolation,
    fingerprint,
    installed_key,
    prove,
    read_records,
    subjects,
)
from modelfleet.core.jobs import Progress
from modelfleet.core.privilege import Account, acting_as
from modelfleet.core.units import MIB
from support.grounds import needs_root
from support.models import gguf

FILE = "chat/7b/small.gguf"
SUBJECT = Subject("small", FILE, "a" * 64, "One and one is", " two")
RESULT = {
    "backend": "cpu",
    "device": "CPU",
    "output": " two.",
    "passed": True,
    "load_seconds": 0.1,
    "prompt_tokens_per_second": 10.0,
    "generation_tokens_per_second": 5.0,
    "offloaded_layers": 0,
    "memory": {
        "devices": [{"name": "CPU", "predicted_bytes": 990, "measured_bytes": 1000}],
        "resident_bytes": 2000,
    },
    "versions": {"llama_cpp_python": "0.3.36"},
}
REPORT = f"print('loading', flush=True); print(); print(json.dumps({{**{RESULT!r}, **seen}}))"

Install = Callable[[str], None]
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def runtime(ground: Path) -> Path:
    return ground / "base" / "runtime"


@pytest.fixture
def install(store: Path, runtime: Path) -> Install:
    """Return a function that puts an environment there whose Python runs a script of the test's."""
    (store / FILE).write_bytes(b"GGUF")
    binaries = runtime / "current" / "bin"

    def write(script: str) -> None:
        binaries.mkdir(parents=True, exist_ok=True)
        # The system's Python: the owner may not be able to read the one that runs the tests.
        interpreter = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
        path = binaries / "python"
        path.write_text(
            f"#!{interpreter} -S\nimport json, os, sys\nrequest = json.load(sys.stdin)\nseen = {{}}\n{script}\n"
        )
        path.chmod(0o755)

    return write


@pytest.fixture
def run(store: Path, runtime: Path) -> Run:
    """Return a function that proves one subject."""

    def one(subject: Subject = SUBJECT, timeout: float = 30) -> dict[str, Any]:
        (done,) = prove(str(store), str(runtime), [(subject, "mark")], timeout, Progress())
        return done

    return one


class TestSubjects:
    def test_of_a_plan(self) -> None:
        file = {"path": FILE, "sha256": "a" * 64, "size": 4}
        check = {"prompt": SUBJECT.prompt, "expected": SUBJECT.expected}
        planned: list[dict[str, Any]] = [
            {"model": "small", "files": [file, {"path": "other"}], "check": check},
            {"model": "no check", "files": [file], "check": None},
            {"model": "no files", "files": [], "check": check},
            {"model": "another format", "files": [{**file, "path": "embeddings/x.onnx"}], "check": check},
            {"model": "of an older plan"},
        ]
        found, unproved = subjects(planned)
        assert found == [SUBJECT]
        assert unproved == ["no check", "no files", "another format", "of an older plan"]


class TestDue:
    def test_never_run_failed_or_of_another_fingerprint(self) -> None:
        assert due(SUBJECT, "mark", {})
        assert due(SUBJECT, "mark", {FILE: {"passed": False, "fingerprint": "mark"}})
        assert due(SUBJECT, "mark", {FILE: {"passed": True, "fingerprint": "other"}})
        assert due(SUBJECT, "mark", {FILE: {}})
        assert not due(SUBJECT, "mark", {FILE: {"passed": True, "fingerprint": "mark"}})

    @pytest.mark.parametrize(
        "change",
        [{"sha256": "b" * 64}, {"prompt": "x"}, {"expected": "x"}],
    )
    def test_the_fingerprint_knows_the_subject(self, change: dict[str, str]) -> None:
        assert fingerprint(SUBJECT._replace(**change), "key") != fingerprint(SUBJECT, "key")

    def test_it_knows_the_environment(self) -> None:
        assert fingerprint(SUBJECT, "other") != fingerprint(SUBJECT, "key") == fingerprint(SUBJECT, "key")

    @pytest.mark.parametrize("what", ["kernel", "driver", "modelfleet"])
    def test_it_knows_the_host(self, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
        before = fingerprint(SUBJECT, "key")
        if what == "kernel":
            monkeypatch.setattr("platform.release", lambda: "7.0")
        elif what == "driver":
            monkeypatch.setattr(proof_module, "_driver_version", lambda: "NVRM version: 580.1")
        else:
            monkeypatch.setattr(proof_module, "__version__", "99")
        assert fingerprint(SUBJECT, "key") != before

    def test_the_key_of_the_environment_in_use(self, tmp_path: Path) -> None:
        assert installed_key(str(tmp_path)) == ""
        (tmp_path / "current").mkdir()
        (tmp_path / "current" / "modelfleet-runtime.json").write_text('{"key": "abc", "python": {}}')
        assert installed_key(str(tmp_path)) == "abc"
        (tmp_path / "current" / "modelfleet-runtime.json").write_text("[]")
        assert installed_key(str(tmp_path)) == ""

    @pytest.mark.parametrize(
        "content", [None, "", "{", "[]", "5", "{}", '{"proofs": []}', '{"proofs": 5}', '{"proofs": {"x": 5}}', "\0"]
    )
    def test_records_that_cannot_be_read_are_none(self, store: Path, content: str | None) -> None:
        if content is not None:
            (store / RECORDS).write_text(content)
        assert read_records(str(store)) == {}


class TestProof:
    def test_it_is_recorded(self, store: Path, owner: Account, install: Install, run: Run) -> None:
        install(REPORT)
        done = run()
        assert done == {
            **RESULT,
            "model": "small",
            "file": FILE,
            "prompt": "One and one is",
            "expected": " two",
            "isolation": {**done["isolation"], "account": owner.name, "environment": "emptied"},
            "fingerprint": "mark",
            "verified_at": done["verified_at"],
        }
        assert read_records(str(store)) == {FILE: done}
        assert not due(SUBJECT, "mark", read_records(str(store)))
        status = (store / RECORDS).stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (owner.uid, 0o644)

    def test_what_was_expected_is_judged_here(self, install: Install, run: Run) -> None:
        install("seen = {'output': ' three', 'passed': True}\n" + REPORT)
        assert run()["passed"] is False

    def test_the_child_replaces_nothing_of_ours(self, install: Install, run: Run) -> None:
        install(
            "seen = {'fingerprint': 'x', 'model': 'x', 'file': 'x', 'isolation': 'x', 'verified_at': 'x'}\n" + REPORT
        )
        done = run()
        assert (done["fingerprint"], done["model"], done["file"]) == ("mark", "small", FILE)
        assert done["isolation"] != "x" and done["verified_at"] != "x"

    def test_it_is_asked_what_the_catalog_asks(self, store: Path, install: Install, run: Run) -> None:
        install("seen = {'request': request, 'arguments': sys.argv[1:]}\n" + REPORT)
        done = run()
        assert done["request"] == {"path": str(store / FILE), "prompt": "One and one is", "expected": " two"}
        assert done["arguments"] == ["-I", "-m", "modelfleet.core.inference"]

    def test_earlier_records_stay_and_are_kept_at_once(
        self, store: Path, runtime: Path, install: Install, run: Run
    ) -> None:
        install("if 'crash' in request['prompt']: os._exit(9)\n" + REPORT)
        run()
        (store / "chat/7b/other.gguf").touch()
        other = SUBJECT._replace(file="chat/7b/other.gguf")
        crash = SUBJECT._replace(prompt="crash")
        with pytest.raises(InferenceError):
            prove(str(store), str(runtime), [(other, "other"), (crash, "crash")], 30, Progress())
        records = read_records(str(store))
        assert {name: record["fingerprint"] for name, record in records.items()} == {FILE: "mark", other.file: "other"}


class TestChild:
    """What the child has, and has not."""

    def test_it_is_under_the_owners_account(self, owner: Account, install: Install, run: Run) -> None:
        install(
            "seen = {'ids': [*os.getresuid(), *os.getresgid()], 'groups': os.getgroups(), 'folder': os.getcwd()}\n"
            "seen['status'] = open('/proc/self/status').read()\n" + REPORT
        )
        done = run()
        assert done["ids"] == [owner.uid] * 3 + [owner.gid] * 3
        assert done["folder"] == "/"
        if os.geteuid() == 0:
            assert done["groups"] == [owner.gid]
            assert "CapEff:\t0000000000000000" in done["status"] and "CapPrm:\t0000000000000000" in done["status"]
        assert "NoNewPrivs:\t1" in done["status"] and done["isolation"]["new_privileges"] == "refused"

    def test_it_has_nothing_of_our_environment(
        self, owner: Account, install: Install, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("HF_TOKEN", "HTTPS_PROXY", "SSH_AUTH_SOCK", "LD_PRELOAD_X", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "canary")
        install("seen = {'environment': dict(os.environ)}\n" + REPORT)
        environment = run()["environment"]
        assert "canary" not in json.dumps(environment)
        assert set(environment) <= {"PATH", "HOME", "USER", "LOGNAME", "LC_CTYPE"}
        assert environment["HOME"] == owner.home

    def test_it_has_no_network(self, install: Install, run: Run) -> None:
        if find_isolation().enter is None:
            pytest.skip("this machine grants no network namespace")
        with socket.create_server(("127.0.0.1", 0)) as server:
            install(
                "import socket\n"
                f"for address in (('127.0.0.1', {server.getsockname()[1]}), ('192.0.2.1', 80)):\n"
                "    try:\n"
                "        socket.create_connection(address, timeout=2).close()\n"
                "        seen[address[0]] = 'reached'\n"
                "    except OSError as error:\n"
                "        seen[address[0]] = error.strerror or str(error)\n"
                "seen['devices'] = open('/proc/net/dev').read().count(':')\n" + REPORT
            )
            done = run()
        assert done["127.0.0.1"] == done["192.0.2.1"] == "Network is unreachable"
        assert done["devices"] == 1, "only the loopback, which is down"
        assert done["isolation"]["network"] == "none: a network namespace of its own"

    def test_the_record_says_where_there_is_no_isolation(
        self, install: Install, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(proof_module, "find_isolation", lambda: Isolation("not isolated: for a reason", None))
        install(REPORT)
        assert run()["isolation"]["network"] == "not isolated: for a reason"

    def test_it_has_a_session_and_descriptors_of_its_own(self, install: Install, run: Run) -> None:
        install(
            "seen = {'session': os.getsid(0), 'pid': os.getpid(), 'count': len(os.listdir('/proc/self/fd'))}\n" + REPORT
        )
        extra = os.open("/", os.O_RDONLY)
        os.set_inheritable(extra, True)
        try:
            done = run()
        finally:
            os.close(extra)
        assert done["session"] == done["pid"] != os.getsid(0)
        # Its three streams, the script itself perhaps, and the listing.
        assert done["count"] <= 5


class TestTrouble:
    """One line each; nothing is recorded."""

    def refused(self, store: Path, run: Run, **arguments: Any) -> str:
        with pytest.raises(InferenceError) as caught:
            run(**arguments)
        assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
        assert read_records(str(store)) == {}
        return str(caught.value)

    def test_a_crash_as_of_a_native_library(self, store: Path, install: Install, run: Run) -> None:
        install("sys.stderr.write('loading\\nGGML_ASSERT(x) failed\\n'); sys.stderr.flush(); os.kill(os.getpid(), 6)")
        assert self.refused(store, run) == (
            "small: the proof ended with signal 6: GGML_ASSERT(x) failed; run apply again"
        )

    def test_a_crash_without_a_word(self, store: Path, install: Install, run: Run) -> None:
        install("os.kill(os.getpid(), 4)")
        assert self.refused(store, run) == "small: the proof ended with signal 4: no message; run apply again"

    def test_a_last_word_for_the_terminal(self, store: Path, install: Install, run: Run) -> None:
        install("sys.stderr.buffer.write(b'\\x1b[31mred\\x07 \\xff end'); sys.stderr.flush(); os._exit(3)")
        message = self.refused(store, run)
        assert message.startswith("small: the proof ended with status 3: [31mred") and message.isprintable()

    @pytest.mark.parametrize("said", ["", "no json", "5", "[]", "{}", '{"output": " two"}', "null"])
    def test_no_result(self, store: Path, install: Install, run: Run, said: str) -> None:
        install(f"print({said!r})")
        assert self.refused(store, run) == "small: the proof ended with status 0: no message; run apply again"

    def test_its_own_error(self, store: Path, install: Install, run: Run) -> None:
        install("print(json.dumps({'error': 'x cannot\\nbe loaded; do y'}))")
        assert self.refused(store, run) == "small: x cannot be loaded; do y"

    def test_too_slow_with_all_that_it_started(self, store: Path, ground: Path, install: Install, run: Run) -> None:
        install("import subprocess, time\nchild = subprocess.Popen(['sleep', '60'])\ntime.sleep(60)\n")
        begun = time.monotonic()
        assert self.refused(store, run, timeout=1) == (
            "small: the proof took over 1 s; raise verification_timeout_seconds, or choose a smaller model"
        )
        assert time.monotonic() - begun < 20

    def test_no_environment(self, store: Path, runtime: Path, run: Run) -> None:
        (store / FILE).touch()
        message = self.refused(store, run)
        assert message.startswith(f"{runtime}/current/bin/python cannot be run: ")
        assert message.endswith("; run apply, or the role inference_runtime, first")

    def test_an_environment_whose_python_is_no_program(
        self, store: Path, install: Install, run: Run, runtime: Path
    ) -> None:
        install(REPORT)
        (runtime / "current/bin/python").chmod(0o644)
        assert "cannot be run: " in self.refused(store, run)

    def test_no_model(self, store: Path, install: Install, run: Run) -> None:
        install(REPORT)
        (store / FILE).unlink()
        assert self.refused(store, run) == f"small: {FILE} is not in the store; run apply, or the role models, first"

    def test_no_store(self, ground: Path, runtime: Path) -> None:
        with pytest.raises(ModelfleetError, match="there is no model store; run the role model_store first"):
            prove(str(ground / "none"), str(runtime), [(SUBJECT, "mark")], 30, Progress())

    @needs_root
    def test_a_stranger_may_not(self, store: Path, runtime: Path, install: Install, stranger: Account) -> None:
        install(REPORT)
        with acting_as(stranger), pytest.raises(UnsafePathError, match="run with become"):
            prove(str(store), str(runtime), [(SUBJECT, "mark")], 30, Progress())


@needs_root
def test_an_account_without_roots_rights_is_isolated_too(
    checkout: Path, store: Path, runtime: Path, owner: Account, install: Install
) -> None:
    """As one who was never root: in a user namespace, where the system grants one, and said so where it does not."""
    install("seen = {'uid': os.getuid(), 'devices': open('/proc/net/dev').read().count(':')}\n" + REPORT)
    program = """
import json, sys
sys.path.insert(0, sys.argv[1])
from modelfleet.core.inference.proof import *
from modelfleet.core.jobs import Progress
(done,) = prove(sys.argv[2], sys.argv[3], [(Subject(*sys.argv[4:]), "mark")], 30, Progress())
print(json.dumps(done))
"""
    answer = subprocess.run(
        ["/usr/bin/python3", "-c", program, str(checkout / "python"), str(store), str(runtime), *SUBJECT],
        user=owner.uid,
        group=owner.gid,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
    )
    if "No module named 'modelfleet'" in answer.stderr:
        pytest.skip(f"{owner.name} cannot read this checkout")
    done = json.loads(answer.stdout)
    assert done["uid"] == owner.uid
    if done["isolation"]["network"].startswith("none"):
        assert done["devices"] == 1


@needs_root
def test_a_system_that_grants_a_namespace_but_nothing_in_it(monkeypatch: pytest.MonkeyPatch, owner: Account) -> None:
    """As Ubuntu does for accounts without rights: the proof runs, and its record says that it was not isolated."""

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(proof_module, "_map_to_itself", refuse)
    with acting_as(owner):
        assert find_isolation() == Isolation("not isolated: the system refuses a network namespace", None)


def test_the_child_that_proves(checkout: Path, tmp_path: Path) -> None:
    """The program of the managed environment itself, where the library is missing: one line of JSON, no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "modelfleet.core.inference"],
        input=json.dumps({"path": str(tmp_path / "x.gguf"), "prompt": "a", "expected": "b"}),
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(checkout / "python"), "PATH": os.defpath},
    )
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0 and "\n" not in result["error"]
    assert "llama_cpp" in result["error"] or "x.gguf" in result["error"]


class TestMemory:
    LOG = (
        "load_tensors: offloaded 20/31 layers to GPU\n"
        "load_tensors:   CPU_Mapped model buffer size =    92.10 MiB\n"
        "load_tensors:        CUDA0 model buffer size =    50.00 MiB\n"
        "llama_context:  CUDA_Host  output buffer size =     0.19 MiB\n"
        "llama_kv_cache:      CUDA0 KV buffer size =    11.25 MiB\n"
        "llama_kv_cache: size =   11.25 MiB (   512 cells,  30 layers,  1/1 seqs), K (f16):    5.62 MiB\n"
        "sched_reserve:      CUDA0 compute buffer size =    98.25 MiB\n"
    )

    def test_buffers_are_counted_where_they_lie(self) -> None:
        cuda, main = memory_by_device(self.LOG, {"CPU": 5})[::-1]
        assert cuda == {"name": "CUDA0", "predicted_bytes": None, "measured_bytes": round(159.5 * MIB)}
        assert main == {"name": "CPU", "predicted_bytes": 5, "measured_bytes": round(92.29 * MIB)}

    def test_what_cannot_be_predicted_is_not(self, tmp_path: Path) -> None:
        (tmp_path / "small.gguf").write_bytes(gguf(b"no tensors"))
        assert predicted_bytes(str(tmp_path / "small.gguf")) == {}
