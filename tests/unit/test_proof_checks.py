"""Judging an installation and a proof: recorded answers of a child against replayed and stated hardware."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.hardware.probe import probe_sources
from modelfleet.core.hardware.profile import profile_to_dict
from modelfleet.core.hardware.replay import open_record
from modelfleet.core.inference.checks import TITLES, Check, Host, judge_installation, judge_proof
from modelfleet.core.inference.proof import Wished, installed_host
from modelfleet.core.runtime.checks import CHECKS

CARD = {"vendor": "nvidia", "name": "NVIDIA GeForce RTX 4090", "compute_capability": "8.9", "driver_version": "580.82"}
RADEON = {"vendor": "amd", "name": "Radeon RX 7900 XTX", "gfx_target": "gfx1100"}
APPLE = {"vendor": "apple", "name": "Apple M4 Pro"}
LLAMA = {
    "version": "0.3.36",
    "built": ["cpu", "cuda"],
    "usable": [{"name": "CUDA0", "backend": "cuda", "type": "gpu", "description": "NVIDIA GeForce RTX 4090"}],
    "offload": True,
}
TORCH = {
    "version": "2.15.0+cu130",
    "cuda": "13.0",
    "hip": None,
    "cuda_available": True,
    "mps_built": False,
    "mps_available": False,
    "architectures": ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"],
    "devices": [{"name": "NVIDIA GeForce RTX 4090", "compute_capability": "8.9"}],
}
TORCH_CPU = {
    **TORCH,
    "version": "2.15.0+cpu",
    "cuda": None,
    "cuda_available": False,
    "architectures": [],
    "devices": [],
}
ONNX = {"version": "1.31.1", "providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]}


def host(backend: str = "cuda", *cards: dict[str, Any], best: str = "", **changes: Any) -> Host:
    """Return a host with these cards, whose stack and hardware are of one backend."""
    stated = {"hardware": {"accelerators": list(cards)}, "backend": backend, "best": best or backend}
    return Host(**{**stated, "profiles": (), "packages": {}, **changes})


def judged(said: dict[str, Any], one: Host) -> dict[str, Check]:
    """Return the checks by id; each is one of the table, told in one line, with a cure where it does not pass."""
    found = judge_installation({"python": "3.12.3", "driver": "580.82", **said}, one)
    assert len({check.id for check in found}) == len(found)
    for check in found:
        assert check.title == TITLES[check.id] and "\n" not in check.measured + check.required + check.cure
        assert (check.status == "pass") == (check.cure == "")
    return {check.id: check for check in found}


def failing(said: dict[str, Any], one: Host) -> list[str]:
    """Return the ids of the checks that fail."""
    return [name for name, check in judged(said, one).items() if check.status == "fail"]


def test_a_stack_that_uses_its_card_passes() -> None:
    found = judged({"llama_cpp": LLAMA, "torch": TORCH, "onnxruntime": ONNX}, host("cuda", CARD))
    assert {check.status for check in found.values()} == {"pass"}
    expected = [*(f"MF-RUN-{number:03}" for number in (20, 21, 22, 23, 24, 25, 26, 27, 28, 29)), "MF-RUN-032"]
    assert list(found) == expected


@pytest.mark.parametrize(
    ("package", "change", "fails"),
    [
        ("llama_cpp", {"built": ["cpu"], "usable": []}, "MF-RUN-021"),
        ("llama_cpp", {"usable": [{"name": "CPU", "backend": "cpu"}]}, "MF-RUN-022"),
        ("llama_cpp", {"error": "it ended with SIGILL when it was imported"}, "MF-RUN-020"),
        ("torch", TORCH_CPU, "MF-RUN-024"),
        ("torch", {"architectures": ["sm_90", "sm_100"]}, "MF-RUN-025"),
        ("torch", {"cuda_available": False, "devices": []}, "MF-RUN-027"),
        ("torch", {"error": "OSError: libcudart.so.13: cannot open shared object file"}, "MF-RUN-023"),
        ("onnxruntime", {"providers": ["CPUExecutionProvider"]}, "MF-RUN-029"),
        ("onnxruntime", {"error": "ImportError: x"}, "MF-RUN-028"),
    ],
)
def test_what_computes_on_the_processor_fails_by_name(package: str, change: dict[str, Any], fails: str) -> None:
    whole = {"llama_cpp": LLAMA, "torch": TORCH, "onnxruntime": ONNX}
    one = host("cuda", CARD)
    assert failing({**whole, package: {**whole[package], **change}}, one) == [fails]


def test_a_driver_too_old_for_torchs_cuda() -> None:
    assert failing({"torch": TORCH, "driver": "570.86"}, host("cuda", CARD)) == ["MF-RUN-026"]
    assert failing({"torch": {**TORCH, "cuda": "12.6"}, "driver": "570.86"}, host("cuda", CARD)) == []


@pytest.mark.parametrize(
    ("capability", "code", "runs"),
    [
        ("8.9", "sm_86", True),
        ("8.6", "sm_89", False),
        ("9.0", "sm_90a", True),
        ("12.0", "sm_90", False),
        ("12.0", "compute_90", True),
        ("12.1", "sm_120", True),
        ("12.1", "sm_120a", False),
        ("6.1", "sm_75", False),
        ("10.0", "sm_100", True),
    ],
)
def test_code_for_a_card(capability: str, code: str, runs: bool) -> None:
    card = {**CARD, "compute_capability": capability}
    found = judged({"torch": {**TORCH, "architectures": [code]}}, host("cuda", card))
    assert (found["MF-RUN-025"].status == "pass") is runs


def test_amd_and_apple() -> None:
    rocm = {**TORCH, "cuda": None, "hip": "7.2.1", "architectures": ["gfx1100", "gfx942"]}
    assert failing({"torch": rocm}, host("rocm", RADEON)) == []
    assert failing({"torch": rocm}, host("rocm", {**RADEON, "gfx_target": "gfx1036"})) == ["MF-RUN-025"]
    metal = {**LLAMA, "built": ["cpu", "metal"], "usable": [{"name": "MTL0", "backend": "metal"}]}
    mps = {**TORCH_CPU, "mps_built": True, "mps_available": True}
    assert failing({"llama_cpp": metal, "torch": mps}, host("metal", APPLE)) == []
    assert failing({"torch": {**mps, "mps_available": False}}, host("metal", APPLE)) == ["MF-RUN-027"]


def test_without_a_gpu_nothing_is_expected_of_one() -> None:
    llama = {**LLAMA, "built": ["cpu"], "usable": []}
    assert list(judged({"llama_cpp": llama, "torch": TORCH_CPU}, host("cpu"))) == ["MF-RUN-020", "MF-RUN-023"]


def test_a_stack_for_the_processor_that_was_chosen_is_told() -> None:
    llama = {**LLAMA, "built": ["cpu"], "usable": []}
    found = judged({"llama_cpp": llama}, host("cpu", CARD, best="cuda"))
    assert [(name, check.status) for name, check in found.items()] == [("MF-RUN-020", "pass"), ("MF-RUN-032", "warn")]


def test_what_a_profile_needs_and_is_not_there() -> None:
    found = failing({"llama_cpp": None, "torch": None, "onnxruntime": None}, host("cpu", profiles=("gguf", "onnx")))
    assert found == ["MF-RUN-020", "MF-RUN-028"]


def test_versions_are_held_against_the_lock() -> None:
    said = {"llama_cpp": LLAMA, "torch": TORCH_CPU, "transformers": {"version": "5.23.0"}}
    locked = {"llama_cpp_python": "0.3.36", "torch": "2.15.0+cpu", "transformers": "5.23.0"}
    assert judged(said, host("cpu", packages=locked))["MF-RUN-030"].measured == "3 packages as locked"
    other = judged(said, host("cpu", packages={**locked, "torch": "2.15.0", "transformers": "5.20.2"}))["MF-RUN-030"]
    assert other.status == "fail"
    assert other.measured == "torch 2.15.0+cpu instead of 2.15.0; transformers 5.23.0 instead of 5.20.2"


def test_other_packages_have_to_load() -> None:
    said = {"transformers": {"error": "ImportError: libz"}, "diffusers": {"version": "0.42.1"}, "accelerate": None}
    check = judged(said, host("cpu"))["MF-RUN-031"]
    assert (check.status, check.measured) == ("fail", "transformers: ImportError: libz")


def test_a_cpu_build_on_replayed_hosts_with_a_card(captures: Path, tmp_path: Path) -> None:
    """The hardware is what NVIDIA's tool said of real cards; nobody told which backend was installed."""
    judged_hosts = 0
    for record in sorted((captures / "nvidia-smi-xml").iterdir()):
        profile = profile_to_dict(probe_sources("/opt/models", open_record(str(record))))
        if not profile["accelerators"]:
            continue
        one = Host(profile, "cuda", "", (), {})
        llama = {**LLAMA, "built": ["cpu"], "usable": []}
        assert failing({"llama_cpp": llama, "torch": TORCH_CPU}, one) == ["MF-RUN-021", "MF-RUN-024"], record.name
        judged_hosts += 1
    assert judged_hosts == 5


def test_the_host_is_what_the_role_said_or_the_environments_record(tmp_path: Path) -> None:
    current = tmp_path / "current"
    current.mkdir()
    (current / "modelfleet-runtime.json").write_text(
        '{"python": {}, "backend": "cuda", "profiles": ["gguf"], "distributions": ["torch-2.15.0+cu130"]}'
    )
    recorded = installed_host(str(tmp_path), Wished(()))
    assert (recorded.backend, recorded.profiles) == ("cuda", ("gguf",))
    assert recorded.packages == {"torch": "2.15.0+cu130"}
    assert installed_host(str(tmp_path), Wished((), backend="rocm")).wanted == "rocm"


RECORD: dict[str, Any] = {
    "passed": True,
    "output": " Paris",
    "expected": " Paris",
    "backend": "cuda",
    "device": "NVIDIA GeForce RTX 4090",
    "offloaded_layers": 33,
    "memory": {"devices": [{"name": "CUDA0", "predicted_bytes": 1000, "measured_bytes": 1010}]},
    "throughput": {"share": 0.5, "bytes_per_token": 4_000_000_000, "bound_tokens_per_second": 250.0},
}
PLANNED = {"device": "GPU0", "backend": "cuda", "gpu_layers": 33}


class TestProofs:
    def judged(self, planned: Any = PLANNED, **changes: Any) -> dict[str, str]:
        return {check.id: check.status for check in judge_proof({**RECORD, **changes}, planned, 0.2)}

    def test_as_planned(self) -> None:
        assert self.judged() == {f"MF-RUN-{number:03}": "pass" for number in (51, 52, 53, 54, 55)}

    @pytest.mark.parametrize(
        ("change", "name", "status"),
        [
            ({"passed": False}, "MF-RUN-051", "fail"),
            ({"backend": "cpu", "device": "CPU"}, "MF-RUN-052", "fail"),
            ({"offloaded_layers": 20}, "MF-RUN-053", "fail"),
            (
                {"memory": {"devices": [{"name": "CUDA0", "predicted_bytes": 1000, "measured_bytes": 1200}]}},
                "MF-RUN-054",
                "warn",
            ),
            ({"throughput": {"share": 0.1, "bytes_per_token": 4_000_000_000}}, "MF-RUN-055", "warn"),
        ],
    )
    def test_what_is_not(self, change: dict[str, Any], name: str, status: str) -> None:
        found = self.judged(**change)
        assert found.pop(name) == status and set(found.values()) == {"pass"}

    def test_the_pace_of_a_small_model_is_told_not_judged(self) -> None:
        slow = {"share": 0.01, "bytes_per_token": 100_000_000, "bound_tokens_per_second": 250.0}
        assert self.judged(throughput=slow)["MF-RUN-055"] == "pass"

    def test_on_the_processor_nothing_is_offloaded(self) -> None:
        found = self.judged(None, backend="cpu", offloaded_layers=0, memory={}, throughput={})
        assert found == {"MF-RUN-051": "pass"}


def test_the_ids_are_of_their_ranges_and_nowhere_twice() -> None:
    numbers = {name: int(name[len("MF-RUN-") :]) for name in TITLES}
    assert all(20 <= number < 70 for number in numbers.values()) and not set(TITLES) & set(CHECKS)


def test_docs_have_every_check_with_its_title(checkout: Path) -> None:
    lines = (checkout / "docs/verification.md").read_text(encoding="utf-8").splitlines()
    rows = dict(line.strip("| ").split(" | ")[:2] for line in lines if line.startswith("| MF-RUN-"))
    assert rows == {**{name: check.title for name, check in CHECKS.items()}, **TITLES}
