"""What ``modelfleet verify`` tells of installations, proofs, unproved models and memory; texts of hosts do no harm."""

from __future__ import annotations

from typing import Any

from modelfleet.cli.proofs import installation_lines, memory_lines, proof_lines, unproved_lines
from modelfleet.cli.verify import about_hosts
from modelfleet.core.units import MIB
from modelfleet.runner import RunResult, TaskResult

EVIL = "\x1b]0;owned\x07\n"
CHECK = {
    "id": "MF-RUN-021",
    "title": "llama.cpp is built for the host's accelerator",
    "status": "fail",
    "measured": "cpu" + EVIL,
    "required": "cuda",
    "cure": "run ./modelfleet apply",
}
SAID = {
    "python": "3.12.3",
    "driver": "580.82",
    "torch": {"version": "2.15.0+cu130", "cuda": "13.0", "devices": [{"name": "NVIDIA H100" + EVIL}]},
    "llama_cpp": {"version": "0.3.36", "built": ["cpu"], "usable": [{"name": "CPU", "description": "Xeon"}]},
    "onnxruntime": {"version": "1.31.1", "providers": ["CPUExecutionProvider"]},
    "transformers": None,
}


def text_of(lines: Any) -> str:
    """Return lines as text, in which nothing can move a terminal's cursor or name its window."""
    text = "\n".join(lines)
    assert "\x07" not in text and "\x1b]" not in text
    return text


def test_an_installation_is_a_table_of_checks_and_of_what_it_says_of_itself() -> None:
    text = text_of(installation_lines("gpu1", {"passed": False, "checks": [CHECK], "said": SAID}))
    assert "FAILED" in text and "gpu1: the installation" in text
    for said in ("MF-RUN-021", "run ./modelfleet apply", "580.82", "2.15.0+cu130, CUDA 13.0, devices: NVIDIA H100"):
        assert said in text, said
    assert "0.3.36, built for cpu, usable: Xeon" in text and "1.31.1, CPUExecutionProvider" in text
    assert "transformers" not in text
    assert list(installation_lines("gpu1", None)) == []


def test_a_proof_tells_its_pace_its_grounds_and_what_did_not_pass() -> None:
    proof = {
        "host": "gpu1",
        "model": "small",
        "passed": False,
        "checks": [CHECK, {**CHECK, "id": "MF-RUN-051", "status": "pass"}],
        "throughput": {"share": 0.35, "bound_tokens_per_second": 48.2},
        "reasons": ["kernel 6.1 → 6.2" + EVIL],
        "ran": True,
    }
    text = text_of(proof_lines([proof]))
    assert "35% of the 48 tokens/s that the memory allows" in text and "kernel 6.1 → 6.2" in text
    assert "MF-RUN-021" in text and "(wanted: cuda)" in text and "MF-RUN-051" not in text


def test_unproved_models_have_their_command() -> None:
    one = {"model": "whisper", "reason": "x is not there" + EVIL, "command": "./modelfleet verify -l HOST"}
    assert "gpu1: whisper: x is not there" in text_of(unproved_lines("gpu1", [one, 5]))
    assert list(unproved_lines("gpu1", None)) == []


def test_memory_by_device_and_the_headroom_that_covers_it() -> None:
    over = {"device": "CUDA0", "largest_excess_bytes": 65 * MIB, "headroom_mebibytes": 128}
    text = text_of(memory_lines("gpu1", [over, {**over, "largest_excess_bytes": -MIB}, 5]))
    assert "65.0 MiB over the prediction at most; models_headroom_mebibytes of 128 covers it" in text
    assert "1.0 MiB under the prediction at most" in text


def test_what_a_failed_host_said_is_told_too() -> None:
    said = {"installation": {"passed": False}, "unproved": [], "memory": []}
    task = TaskResult("gpu1", "Prove", "verification", "modelfleet_inference_check", "failed", False, False, said)
    assert about_hosts(RunResult(results=[task])) == {"gpu1": said}
