"""modelfleet_inference_check as Ansible calls it: what is due, what is told, and when it fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.store.manifest import RACY_NS, FileRecord, write_manifest
from support.work import result_of

Call = Callable[..., dict[str, Any]]

# Under the name that Ansible ships it by.
SENTINEL = "ansible.module_utils.modelfleet.core.inference.sentinel"
FILE = "chat/7b/small.gguf"
RESULT = {
    "backend": "cpu",
    "device": "CPU",
    "output": " two.",
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


INSTALLATION = {
    "python": "3.11.2",
    "kernel": "6.1.0",
    "driver": None,
    "torch": None,
    "llama_cpp": {"version": "0.3.36", "built": ["cpu"], "usable": [], "offload": False},
    "onnxruntime": None,
}
CARD = {"vendor": "nvidia", "name": "NVIDIA GeForce RTX 4090", "compute_capability": "8.9"}


def publish(store: Path, content: bytes = b"GGUF") -> None:
    """Put the model there as the role models does: with its record, older than what may be a racy stamp."""
    (store / FILE).write_bytes(content)
    status = (store / FILE).stat()
    record = FileRecord(
        *("small", status.st_size, "a" * 64, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns),
        *("file:///x", None, "2026-01-01T00:00:00Z", status.st_ctime_ns + RACY_NS + 1),
    )
    write_manifest(str(store), {FILE: record})


@pytest.fixture
def call(runner: Callable[[str], Call], store: Path) -> Call:
    """Return a function that runs the module for one model, proved by a script in the environment's place."""
    publish(store)
    binaries = store.parent / "runtime" / "current" / "bin"
    binaries.mkdir(parents=True)
    interpreter = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
    (binaries / "python").write_text(
        f"#!{interpreter} -S\nimport json, sys\n"
        f"said = {INSTALLATION!r} if json.load(sys.stdin)['kind'] == 'installation' else {RESULT!r}\n"
        "print(json.dumps(said))\n"
    )
    (binaries / "python").chmod(0o755)
    model = {
        "model": "small",
        "files": [{"path": FILE, "sha256": "a" * 64, "size": 4}],
        "check": {"prompt": "One and one is", "expected": " two"},
    }
    arguments = {"store_path": str(store), "models": [model], "timeout": 30}
    run = runner("modelfleet_inference_check")
    return lambda **changes: run(**{**arguments, **changes})


def install_package(store: Path, name: str) -> None:
    """Put a distribution into the environment, as pip names its folder."""
    (store.parent / "runtime/current/lib/python3.11/site-packages" / f"{name}.dist-info").mkdir(parents=True)


def expecting(text: str) -> dict[str, Any]:
    """Return the argument for a model of which another text is expected."""
    file = {"path": FILE, "sha256": "a" * 64, "size": 4}
    return {"models": [{"model": "small", "files": [file], "check": {"prompt": "One", "expected": text}}]}


def test_check_mode_tells_and_a_second_run_proves_nothing(call: Call) -> None:
    predicted = call(check=True)
    assert predicted["changed"] is True and predicted["proofs"] == []
    assert predicted["diff"] == {"before": "", "after": f"{FILE}: proved (never proved)\n"}
    result = call()
    assert result["changed"] is True and result["diff"] == predicted["diff"]
    (proof,) = result["proofs"]
    assert proof["ran"] is True and proof["passed"] is True and proof["output"] == " two."
    for check in (True, False):
        again = call(check=check)
        assert again["changed"] is False and again["diff"]["after"] == ""
        assert again["proofs"] == [{**proof, "ran": False}]


def test_another_environment_makes_it_due(call: Call) -> None:
    call(environment_key="one")
    assert call(environment_key="one", check=True)["changed"] is False
    assert call(environment_key="two", check=True)["changed"] is True


def test_a_wrong_answer_fails_and_stays_due(call: Call) -> None:
    result = call(**expecting(" three"))
    assert result["failed"] is True and result["proofs"][0]["passed"] is False
    assert result["msg"] == (
        "MF-RUN-051 the model answers as expected: small: found ' two.', wanted ' three'; "
        "the files are the pinned ones, so look at the runtime: its build flags and this host's processor"
    )
    assert call(check=True, **expecting(" three"))["changed"] is True


def test_what_cannot_be_proved_here_is_told_and_not_run_again(call: Call, store: Path) -> None:
    program = store.parent / "runtime/current/bin/python"
    said = {"error": "unproven here: no voice", "unproven": True, "reason": "no voice", "command": "say it"}
    program.write_text(f"#!/usr/bin/env python3\nimport json\nprint(json.dumps({said!r}))\n")
    told = [{"model": "small", "reason": "no voice", "command": "say it"}]
    assert call(check=True)["changed"] is True
    result = call()
    assert (result["changed"], result["proofs"], result["unproved"], "failed" in result) == (True, [], told, False)
    program.unlink()
    for check in (True, False):
        again = call(check=check)
        assert (again["changed"], again["proofs"], again["unproved"]) == (False, [], told)


def test_what_has_no_room_just_now_is_asked_again(call: Call, store: Path) -> None:
    program = store.parent / "runtime/current/bin/python"
    there = program.read_text()
    said = {"error": "x", "unproven": True, "reason": "no room", "command": "free some", "passing": True}
    program.write_text(f"#!/usr/bin/env python3\nimport json\nprint(json.dumps({said!r}))\n")
    assert call()["unproved"] == [{"model": "small", "reason": "no room", "command": "free some"}]
    program.write_text(there)
    assert call(check=True)["changed"] is True
    result = call()
    assert result["unproved"] == [] and result["proofs"][0]["passed"] is True
    assert call()["changed"] is False


def test_in_the_background(call: Call, module_jobs: Path) -> None:
    started = call(background=True)
    assert started["changed"] is False
    result = result_of(started["job"])
    assert result["changed"] is True and result["proofs"][0]["passed"] is True
    assert "job" not in call(background=True)


def test_a_wrong_answer_in_the_background(call: Call, module_jobs: Path) -> None:
    result = result_of(call(background=True, **expecting(" three"))["job"])
    assert result["failed"] is True and "\n" not in result["msg"]


def test_check_mode_starts_nothing(call: Call, module_jobs: Path) -> None:
    assert "job" not in call(background=True, check=True) and list(module_jobs.iterdir()) == []


def test_models_without_a_proof_are_named(call: Call) -> None:
    bare = {"model": "bare", "files": [{"path": FILE, "sha256": "a" * 64}], "check": None}
    result = call(models=[bare])
    (unproved,) = result["unproved"]
    assert (unproved["model"], unproved["reason"]) == ("bare", "its catalog entry has no check")
    assert unproved["command"].endswith("./modelfleet verify -l HOST") and result["changed"] is False


def test_a_kind_whose_library_is_not_installed(call: Call, store: Path) -> None:
    file = {"path": FILE, "sha256": "a" * 64}
    model = {"model": "e", "kind": "embedding", "format": "safetensors", "files": [file], "check": None}
    (unproved,) = call(models=[model])["unproved"]
    assert unproved["reason"] == "sentence_transformers is not in the managed environment"
    install_package(store, "sentence_transformers-6.2.0")
    result = call(models=[model], check=True)
    assert result["unproved"] == [] and result["changed"] is True


def test_before_anything_is_there_check_mode_predicts(call: Call, ground: Path) -> None:
    missing = str(ground / "none" / "models")
    assert call(check=True, store_path=missing)["changed"] is True
    result = call(store_path=missing)
    assert result["failed"] is True and "there is no model store; run the role model_store first" in result["msg"]


def test_no_environment(call: Call, ground: Path) -> None:
    result = call(runtime_path=str(ground / "none"))
    assert result["msg"].startswith(
        f"MF-RUN-056 the proof runs to its end: {ground}/none/current/bin/python cannot be run: "
    )


def test_the_same_proof_in_two_stores_is_two_works(call: Call, ground: Path, store: Path, module_jobs: Path) -> None:
    other = ground / "link"
    other.symlink_to(store)
    # A proof that fails stays due, however soon the first work is over.
    unmet = {"runtime_path": str(store.parent / "runtime"), **expecting(" three")}
    jobs = [call(background=True, store_path=str(path), **unmet)["job"] for path in (store, other)]
    assert jobs[0]["folder"] != jobs[1]["folder"]
    assert [result_of(job)["proofs"][0]["output"] for job in jobs] == [" two.", " two."]


class TestSentinel:
    """What changed is proved again, says what it was, and is quiet then; nothing else is run."""

    def again(self, call: Call, *reasons: str, **arguments: Any) -> None:
        predicted = call(check=True, **arguments)
        assert predicted["changed"] is True
        result = call(**arguments)
        assert result["changed"] is True and result["proofs"][0]["reasons"] == list(reasons)
        assert result["diff"] == predicted["diff"]
        assert call(**arguments)["changed"] is False

    def test_another_kernel(self, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("platform.release", lambda: "6.1.0")
        call()
        monkeypatch.setattr("platform.release", lambda: "6.2.0")
        self.again(call, "kernel 6.1.0 → 6.2.0")

    def test_another_driver(self, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
        call()
        monkeypatch.setattr(f"{SENTINEL}.driver_version", lambda: "nvidia 595.71")
        self.again(call, "driver none → nvidia 595.71")

    def test_another_package(self, call: Call, store: Path) -> None:
        install_package(store, "numpy-2.0.1")
        call()
        folder = store.parent / "runtime/current/lib/python3.11/site-packages"
        (folder / "numpy-2.0.1.dist-info").rename(folder / "numpy-2.1.0.dist-info")
        self.again(call, "package numpy 2.0.1 → 2.1.0")

    def test_another_check(self, call: Call) -> None:
        call()
        self.again(call, "the check is another", **expecting(" two."))

    def test_another_placement(self, call: Call) -> None:
        file = {"path": FILE, "sha256": "a" * 64}
        model = {"model": "small", "files": [file], "check": {"prompt": "One and one is", "expected": " two"}}
        call(models=[model])
        placement = {"device": "CPU", "backend": "cpu", "gpu_layers": 0}
        self.again(call, "placement none → CPU", models=[{**model, "placement": placement}])

    def test_a_file_that_was_published_again(self, call: Call, store: Path) -> None:
        call()
        (store / FILE).unlink()
        (store / "other").touch()
        publish(store)
        self.again(call, f"{FILE} was published again")

    def test_a_file_replaced_by_hand_is_not_loaded(self, call: Call, store: Path) -> None:
        call()
        (store / FILE).unlink()
        (store / FILE).write_bytes(b"EVIL")
        assert call(check=True)["diff"]["after"] == f"{FILE}: proved ({FILE} was changed since it was published)\n"
        result = call()
        assert result["failed"] is True and result["changed"] is False
        assert result["msg"] == (
            f"MF-RUN-050 the model's files are the published ones: small: {FILE} was changed since it was published; "
            "run ./modelfleet apply: it fetches what is not as pinned"
        )
        (store / FILE).unlink()
        publish(store)
        assert call()["proofs"][0]["passed"] is True
        assert call()["changed"] is False

    def test_a_file_that_is_gone(self, call: Call, store: Path) -> None:
        (store / FILE).unlink()
        assert f"small: {FILE} is not in the store" in call()["msg"]


class TestInstallation:
    def test_it_is_checked_once(self, call: Call) -> None:
        predicted = call(environment_key="one", check=True)
        assert predicted["diff"]["after"].startswith("installation: proved (never proved)\n")
        result = call(environment_key="one")
        assert [check["id"] for check in result["installation"]["checks"]] == ["MF-RUN-020"]
        assert result["installation"]["ran"] is True and result["diff"] == predicted["diff"]
        again = call(environment_key="one")
        assert again["changed"] is False and again["installation"] == {**result["installation"], "ran": False}

    def test_a_gpu_host_that_computes_on_its_processor_fails_by_name(self, call: Call) -> None:
        arguments = {"environment_key": "one", "backend": "cuda", "hardware": {"accelerators": [CARD]}}
        result = call(**arguments)
        assert result["failed"] is True and result["proofs"] == []
        assert result["msg"].startswith(
            "MF-RUN-021 llama.cpp is built for the host's accelerator: the installation: found cpu, wanted cuda; "
            "it computes on the CPU; "
        )
        assert call(check=True, **arguments)["changed"] is True
