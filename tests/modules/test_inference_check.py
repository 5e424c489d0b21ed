"""modelfleet_inference_check as Ansible calls it: what is due, what is told, and when it fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.work import result_of

Call = Callable[..., dict[str, Any]]

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


@pytest.fixture
def call(runner: Callable[[str], Call], store: Path) -> Call:
    """Return a function that runs the module for one model, proved by a script in the environment's place."""
    (store / FILE).write_bytes(b"GGUF")
    binaries = store.parent / "runtime" / "current" / "bin"
    binaries.mkdir(parents=True)
    interpreter = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
    (binaries / "python").write_text(f"#!{interpreter} -S\nimport json\nprint(json.dumps({RESULT!r}))\n")
    (binaries / "python").chmod(0o755)
    model = {
        "model": "small",
        "files": [{"path": FILE, "sha256": "a" * 64, "size": 4}],
        "check": {"prompt": "One and one is", "expected": " two"},
    }
    arguments = {"store_path": str(store), "models": [model], "timeout": 30}
    run = runner("modelfleet_inference_check")
    return lambda **changes: run(**{**arguments, **changes})


def expecting(text: str) -> dict[str, Any]:
    """Return the argument for a model of which another text is expected."""
    file = {"path": FILE, "sha256": "a" * 64, "size": 4}
    return {"models": [{"model": "small", "files": [file], "check": {"prompt": "One", "expected": text}}]}


def test_check_mode_tells_and_a_second_run_proves_nothing(call: Call) -> None:
    predicted = call(check=True)
    assert predicted["changed"] is True and predicted["proofs"] == []
    assert predicted["diff"] == {"before": "", "after": f"{FILE}: proved\n"}
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
        "small continued 'One' with ' two.', expected ' three'; the file is the pinned one, "
        "so look at the runtime: its build flags and this host's processor"
    )
    assert call(check=True, **expecting(" three"))["changed"] is True


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
    result = call(models=[{"model": "bare", "files": [{"path": "embeddings/x.onnx"}], "check": None}])
    assert result["unproved"] == ["bare"] and result["changed"] is False


def test_before_anything_is_there_check_mode_predicts(call: Call, ground: Path) -> None:
    missing = str(ground / "none" / "models")
    assert call(check=True, store_path=missing)["changed"] is True
    result = call(store_path=missing)
    assert result["msg"] == f"{missing}: there is no model store; run the role model_store first"


def test_no_environment(call: Call, ground: Path) -> None:
    result = call(runtime_path=str(ground / "none"))
    assert result["msg"].startswith(f"{ground}/none/current/bin/python cannot be run: ")


def test_the_same_proof_in_two_stores_is_two_works(call: Call, ground: Path, store: Path, module_jobs: Path) -> None:
    other = ground / "link"
    other.symlink_to(store)
    # A proof that fails stays due, however soon the first work is over.
    unmet = {"runtime_path": str(store.parent / "runtime"), **expecting(" three")}
    jobs = [call(background=True, store_path=str(path), **unmet)["job"] for path in (store, other)]
    assert jobs[0]["folder"] != jobs[1]["folder"]
    assert [result_of(job)["proofs"][0]["output"] for job in jobs] == [" two.", " two."]
