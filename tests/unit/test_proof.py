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
from modelfleet.core.inference import child as child_module
from modelfleet.core.inference.child import Isolation, Limits, find_isolation
from modelfleet.core.inference.ledger import read_ledger
from modelfleet.core.inference.llama import memory_by_device, predicted_bytes
from modelfleet.core.inference.proof import Due, Place, Wished, prove
from modelfleet.core.inference.records import RECORDS, read_records
from modelfleet.core.inference.report import problem
from modelfleet.core.inference.sentinel import fingerprint, installed_key
from modelfleet.core.inference.subjects import DEFAULT_CHECKS, Subject, subjects
from modelfleet.core.jobs import Progress
from modelfleet.core.privilege import Account, acting_as
from modelfleet.core.units import MIB
from support.grounds import needs_root
from support.models import gguf

FILE = "chat/7b/small.gguf"
CHECK = {"prompt": "One and one is", "expected": " two"}
SUBJECT = Subject("small", "gguf", FILE, {FILE: "a" * 64}, CHECK, file=FILE)
GROUNDS = {"kernel": "6.1", "packages": {}}
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
    """Return a function that proves one subject, whose record comes back."""

    def one(subject: Subject = SUBJECT, timeout: float = 30) -> dict[str, Any]:
        place = Place(str(store), str(runtime), Limits(timeout))
        outcome = prove(place, Wished(()), [Due(subject, GROUNDS, ("never proved",))], Progress())
        if outcome.broken:
            raise InferenceError(*outcome.broken)
        (done,) = outcome.proofs
        return done

    return one


def planned(**changes: Any) -> dict[str, Any]:
    """Return a model of a plan."""
    file = {"path": FILE, "sha256": "a" * 64, "size": 4}
    model = {"model": "small", "action": "keep", "kind": "chat", "format": "gguf", "unit": None, "files": [file]}
    return {**model, "check": CHECK, **changes}


class TestSubjects:
    def test_a_chat_model_and_where_the_plan_puts_it(self) -> None:
        placement = {"device": "GPU0+CPU", "backend": "cuda", "gpu_layers": 20, "layers": 32, "split": []}
        (found,), unproved = subjects([planned(placement=placement, context=4096, kv_type="f16")])
        assert unproved == []
        assert found.request("/store", None) == {
            "kind": "gguf",
            "path": f"/store/{FILE}",
            "check": CHECK,
            "placement": {
                "device": "GPU0+CPU",
                "backend": "cuda",
                "gpu_layers": 20,
                "split": [],
                "context": 4096,
                "kv_type": "f16",
            },
            "allow_pickle": False,
            "output_folder": None,
        }

    @pytest.mark.parametrize(
        ("kind", "form", "proved_by"),
        [
            ("chat", "safetensors", "transformers"),
            ("embedding", "safetensors", "embedding"),
            ("embedding", "onnx", "onnx"),
            ("diffusion", "safetensors", "diffusion"),
            ("tts", "pickle", "speech"),
            ("stt", "ggml", "speech"),
        ],
    )
    def test_every_kind_has_what_proves_it(self, kind: str, form: str, proved_by: str) -> None:
        (found,), unproved = subjects([planned(kind=kind, format=form, unit="chat/7b/folder")])
        assert (found.kind, found.path, unproved) == (proved_by, "chat/7b/folder", [])

    @pytest.mark.parametrize(("kind", "form"), [("embedding", "safetensors"), ("diffusion", "safetensors")])
    def test_kinds_that_need_no_check_of_their_own(self, kind: str, form: str) -> None:
        (found,), _ = subjects([planned(kind=kind, format=form, check=None)])
        assert found.check == DEFAULT_CHECKS[kind] and found.prompt
        (other,), _ = subjects([planned(kind=kind, format=form, check={"dimension": 384})])
        assert other.check == {**DEFAULT_CHECKS[kind], "dimension": 384}

    @pytest.mark.parametrize(
        ("kind", "form", "name", "command"),
        [
            ("stt", "ggml", "whisper/ggml-base.bin", "whisper-cli --model voice/whisper/ggml-base.bin"),
            ("tts", "pickle", "xtts-v2/model.pth", "tts --model_path voice/xtts-v2"),
            ("tts", "pickle", "bark/text_2.pt", "python -m bark"),
            ("diffusion", "safetensors", "sd-v1.5.safetensors", "configuration: FOLDER"),
        ],
    )
    def test_files_of_other_programs_are_listed_with_what_proves_them(
        self, kind: str, form: str, name: str, command: str
    ) -> None:
        files = [{"path": f"voice/{name}", "sha256": "a" * 64, "size": 4}]
        found, (unproved,) = subjects([planned(kind=kind, format=form, files=files, check=None)])
        assert found == [] and command in unproved.command and unproved.reason

    def test_a_single_file_with_its_configuration_is_proved(self) -> None:
        files = [{"path": "image/sd-v1.5.safetensors", "sha256": "a" * 64, "size": 4}]
        check = {"configuration": "/opt/configurations/sd-v1.5"}
        (found,), _ = subjects([planned(kind="diffusion", format="safetensors", files=files, check=check)])
        assert found.check == {**DEFAULT_CHECKS["diffusion"], **check}

    def test_what_cannot_be_proved_says_why_and_what_would(self) -> None:
        found, unproved = subjects(
            [
                planned(model="no check", check=None),
                planned(model="no files", files=[]),
                planned(model="steering", kind="controlnet", format="safetensors"),
                planned(model="refused", action="refuse"),
                planned(model="gone", action="remove"),
                {"model": "of an older plan"},
            ]
        )
        assert found == []
        assert [(one.model, one.reason) for one in unproved] == [
            ("no check", "its catalog entry has no check"),
            ("no files", "the plan names no files of it"),
            ("steering", "a ControlNet computes only beside the diffusion model that it steers"),
            ("refused", "the plan refuses it"),
            ("of an older plan", "the plan names no files of it"),
        ]
        assert all(one.command for one in unproved)


class TestRecords:
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
        assert read_records(str(store)) == ({}, None)


class TestProof:
    def test_it_is_recorded(self, store: Path, owner: Account, install: Install, run: Run) -> None:
        install(REPORT)
        done = run()
        assert done == {
            **RESULT,
            "model": "small",
            "kind": "gguf",
            "file": FILE,
            "prompt": "One and one is",
            "expected": " two",
            "isolation": {**done["isolation"], "account": owner.name, "environment": "emptied"},
            "throughput": {
                "bandwidth_bytes_per_second": None,
                "bytes_per_token": None,
                "bound_tokens_per_second": None,
                "share": None,
            },
            "checks": done["checks"],
            "fingerprint": fingerprint(GROUNDS),
            "grounds": GROUNDS,
            "reasons": ["never proved"],
            "verified_at": done["verified_at"],
        }
        assert [(check["id"], check["status"]) for check in done["checks"]] == [
            ("MF-RUN-051", "pass"),
            ("MF-RUN-054", "pass"),
        ]
        assert read_records(str(store)).proofs == {FILE: done}
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
        assert (done["fingerprint"], done["model"], done["file"]) == (fingerprint(GROUNDS), "small", FILE)
        assert done["isolation"] != "x" and done["verified_at"] != "x"

    def test_it_is_asked_what_the_catalog_asks(self, store: Path, install: Install, run: Run) -> None:
        install("seen = {'request': request, 'arguments': sys.argv[1:]}\n" + REPORT)
        done = run()
        assert done["request"] == {
            "kind": "gguf",
            "path": str(store / FILE),
            "check": CHECK,
            "placement": None,
            "allow_pickle": False,
            "output_folder": str(store / ".modelfleet/proofs"),
            "memory_limit_bytes": None,
        }
        assert done["arguments"] == ["-I", "-m", "modelfleet.core.inference"]

    def test_earlier_records_stay_and_are_kept_at_once(
        self, store: Path, runtime: Path, install: Install, run: Run
    ) -> None:
        install("if 'crash' in request['check']['prompt']: os._exit(9)\n" + REPORT)
        run()
        other = SUBJECT._replace(file="chat/7b/other.gguf")
        crash = SUBJECT._replace(check={"prompt": "crash", "expected": " two"})
        place = Place(str(store), str(runtime), Limits(30))
        kept = read_records(str(store)).proofs[FILE]
        outcome = prove(place, Wished(()), [Due(one, GROUNDS, ()) for one in (crash, other)], Progress())
        assert [record["file"] for record in outcome.proofs] == [other.file], "a crash does not end the next proof"
        assert outcome.broken == ["small: the proof ended with status 9: no message; run apply again"]
        assert problem(outcome, {}) == f"MF-RUN-056 the proof runs to its end: {outcome.broken[0]}"
        assert read_records(str(store)).proofs == {FILE: kept, other.file: outcome.proofs[0]}

    def test_its_memory_is_limited(self, store: Path, runtime: Path, install: Install) -> None:
        install("seen = {'limit': request['memory_limit_bytes']}\n" + REPORT)
        place = Place(str(store), str(runtime), Limits(30, 512 * MIB))
        (done,) = prove(place, Wished(()), [Due(SUBJECT, GROUNDS, ())], Progress()).proofs
        assert done["limit"] == 512 * MIB and done["isolation"]["memory"].startswith("536870912 bytes")

    def test_memory_is_entered_in_the_ledger(self, store: Path, install: Install, run: Run) -> None:
        install(REPORT)
        run()
        (entry,) = read_ledger(str(store))["CPU"]
        assert (entry["model"], entry["predicted_bytes"], entry["measured_bytes"]) == ("small", 990, 1000)


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
        monkeypatch.setattr(child_module, "find_isolation", lambda: Isolation("not isolated: for a reason", None))
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
        assert read_records(str(store)) == ({}, None)
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
        assert time.monotonic() - begun < 50

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

    def test_no_store(self, ground: Path, runtime: Path) -> None:
        with pytest.raises(ModelfleetError, match="there is no model store; run the role model_store first"):
            prove(
                Place(str(ground / "none"), str(runtime), Limits(30)),
                Wished(()),
                [Due(SUBJECT, GROUNDS, ())],
                Progress(),
            )

    @needs_root
    def test_a_stranger_may_not(self, store: Path, runtime: Path, install: Install, stranger: Account) -> None:
        install(REPORT)
        with acting_as(stranger), pytest.raises(UnsafePathError, match="run with become"):
            prove(Place(str(store), str(runtime), Limits(30)), Wished(()), [Due(SUBJECT, GROUNDS, ())], Progress())


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
from modelfleet.core.inference.child import Limits
from modelfleet.core.jobs import Progress
due = Due(Subject(*json.loads(sys.argv[4])), {}, ())
(done,) = prove(Place(sys.argv[2], sys.argv[3], Limits(30)), Wished(()), [due], Progress()).proofs
print(json.dumps(done))
"""
    answer = subprocess.run(
        ["/usr/bin/python3", "-c", program, str(checkout / "python"), str(store), str(runtime), json.dumps(SUBJECT)],
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

    monkeypatch.setattr(child_module, "_map_to_itself", refuse)
    with acting_as(owner):
        assert find_isolation() == Isolation("not isolated: the system refuses a network namespace", None)


def test_the_child_that_proves(checkout: Path, tmp_path: Path) -> None:
    """The program of the managed environment itself, where the library is missing: one line of JSON, no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "modelfleet.core.inference"],
        input=json.dumps({"kind": "gguf", "path": str(tmp_path / "x.gguf"), "check": {"prompt": "a", "expected": "b"}}),
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
