"""modelfleet_runtime as Ansible calls it: what is missing, what check mode tells, what cannot be done."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.privilege import Account
from modelfleet.core.store.tree import Tree, converge
from support.grounds import needs_root
from support.machines import amd, machine, nvidia
from support.work import result_of

Call = Callable[..., dict[str, Any]]
TOOLS = ["c++", "cc", "cmake", "ninja"]


def hardware(instruction_sets: list[str], **parts: Any) -> dict[str, Any]:
    """Return what the probe would tell of this machine, with other instruction sets."""
    cpu = {"architecture": os.uname().machine, "instruction_sets": instruction_sets}
    return {"cpu": cpu, "python": {"version": platform.python_version()}, "accelerators": [], **parts}


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only folder in which programs are found; it holds all that compiling needs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        (folder / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def call(runner: Callable[[str], Call], store: Path, tools: Path) -> Call:
    arguments = {
        "store_path": str(store),
        "requirements": "numpy==2.0.2 --hash=sha256:0\n",
        "build_requirements": "cmake==4 --hash=sha256:0\n",
        "source_requirement": "llama-cpp-python==0.3.36 --hash=sha256:0\n",
        "hardware": hardware(["avx", "avx2", "fma", "f16c", "bmi2"]),
        "package_sha256": "0" * 64,
    }
    run = runner("modelfleet_runtime")
    return lambda **changes: run(**{**arguments, **changes})


def make_environment(call: Call, store: Path) -> dict[str, Any]:
    """Put an environment there that is as wanted, and return what the module says of it."""
    key = call(state="inspect")["ansible_facts"]["modelfleet_runtime"]["key"]
    environment = store.parent / "runtime" / "environments" / key
    (environment / "bin").mkdir(parents=True)
    (environment / "bin/python").symlink_to(sys.executable)
    real = os.path.realpath(sys.executable)
    state = {"key": key, "python": {"executable": sys.executable, "real_executable": real}, "distributions": []}
    (environment / "modelfleet-runtime.json").write_text(json.dumps(state))
    (store.parent / "runtime" / "current").symlink_to(environment)
    return call(state="inspect")


def test_inspect_changes_nothing_and_tells_all(call: Call, store: Path) -> None:
    seen = call(state="inspect")
    current = str(store.parent / "runtime" / "current")
    assert seen["changed"] is False and seen["update_required"] is True and seen["build_required"] is True
    assert seen["reasons"] == ["MF-RUN-001: there is no environment yet"] and seen["missing_build_tools"] == []
    assert seen["path"] == current and seen["wheel"] is None
    assert seen["ansible_facts"]["modelfleet_runtime"]["path"] == current
    assert seen["build_key"].startswith("llama_cpp_python-0.3.36-cpu-")
    assert not os.path.exists(store.parent / "runtime")


def test_check_mode_says_changed(call: Call, store: Path) -> None:
    result = call(check=True)
    assert result["changed"] is True and result["diff"]["after"].endswith("(MF-RUN-001: there is no environment yet)\n")
    assert not os.path.exists(store.parent / "runtime")


@pytest.mark.parametrize("check", [True, False])
def test_as_wanted_there_is_nothing_to_do(call: Call, store: Path, check: bool) -> None:
    assert make_environment(call, store)["reasons"] == []
    result = call(check=check, background=True)
    assert result["changed"] is False and "job" not in result and result["diff"] == {"before": "", "after": ""}


def test_missing_tools_matter_only_where_something_is_compiled(call: Call, store: Path, tools: Path) -> None:
    (tools / "cmake").unlink()
    (tools / "ninja").unlink()
    assert call(state="inspect")["missing_build_tools"] == ["cmake", "ninja"]
    assert call()["msg"] == (
        "compiling llama-cpp-python needs what this host lacks: cmake, ninja; install it, or run with become"
    )
    brought = call(wheel_path="/x.whl", state="inspect")
    assert brought["build_required"] is False and brought["missing_build_tools"] == []
    folder = store.parent / "runtime" / "wheelhouse" / call(state="inspect")["build_key"]
    folder.mkdir(parents=True)
    (folder / "x.whl").touch()
    (folder / "x.whl.sha256").touch()
    kept = call(state="inspect")
    assert kept["build_required"] is False and kept["wheel"] == str(folder / "x.whl")


def test_old_processors_are_another_build(call: Call) -> None:
    keys = {call(state="inspect", hardware=hardware(sets))["build_key"] for sets in ([], ["avx"], ["avx", "avx2"])}
    assert len(keys) == (3 if os.uname().machine == "x86_64" else 1)


def test_without_the_action_plugin(call: Call) -> None:
    assert call()["msg"] == (
        "the modelfleet package was not brought to the host; run this module through its action plugin"
    )


def test_without_a_store(call: Call, ground: Path) -> None:
    missing = str(ground / "none")
    assert call(store_path=missing, check=True)["changed"] is True
    result = call(store_path=missing, package_path="/x.whl")
    assert result["msg"] == f"{missing}: there is no model store; run the role model_store first"


def test_a_package_that_is_not_there(call: Call, ground: Path) -> None:
    result = call(package_path=str(ground / "x.whl"))
    assert result["msg"].startswith(f"{ground}/x.whl: No such file or directory; ")


def test_another_package_than_was_sent(call: Call, ground: Path) -> None:
    (ground / "x.whl").write_bytes(b"x")
    assert call(package_path=str(ground / "x.whl"))["msg"].startswith(f"x.whl: expected sha256 {'0' * 64}, found sha2")


def test_a_failure_in_the_background_is_one_line(call: Call, ground: Path, module_jobs: Path) -> None:
    (ground / "x.whl").write_bytes(b"x")
    started = call(package_path=str(ground / "x.whl"), background=True)
    assert started["changed"] is False
    result = result_of(started["job"])
    assert result["failed"] and result["msg"].startswith("x.whl: expected sha256 ") and "\n" not in result["msg"]


def test_the_same_environment_at_two_paths_is_two_works(call: Call, ground: Path, module_jobs: Path) -> None:
    (ground / "x.whl").write_bytes(b"x")
    package = str(ground / "x.whl")
    jobs = [call(package_path=package, background=True, path=str(ground / name))["job"] for name in ("one", "two")]
    assert jobs[0]["folder"] != jobs[1]["folder"]
    assert all(result_of(job)["failed"] for job in jobs)


@needs_root
def test_a_store_of_roots(call: Call, ground: Path) -> None:
    root = Account("root", 0, 0, "/root")
    converge(Tree(str(ground / "own" / "models"), root, 0, 0o755, None))
    result = call(store_path=str(ground / "own" / "models"), package_path="/x.whl")
    assert result["msg"] == (
        "the inference runtime would be compiled and installed as root; set model_store_owner to another account"
    )


class TestStack:
    """What the module tells of a host whose replayed hardware has a CUDA card."""

    @pytest.fixture
    def cuda(self, call: Call) -> Call:
        there = machine(nvidia("8.6"))
        return lambda **changes: call(**{"hardware": there, "profiles": ["torch"], **changes})

    def test_what_compiling_for_it_needs(self, call: Call) -> None:
        there = machine(amd("gfx803"))
        seen = call(state="inspect", hardware=there)
        assert seen["stack"]["backend"] == "vulkan" and seen["build_key"].startswith("llama_cpp_python-0.3.36-vulkan-")
        assert seen["missing_build_tools"] == ["glslc"] and "glslc" in seen["system_packages"] and seen["lock"] is None
        assert call(hardware=there, package_path="/x.whl")["msg"] == (
            "compiling llama-cpp-python needs what this host lacks: glslc (Vulkan headers, glslc, SPIR-V headers); "
            "install it, or run with become"
        )

    def test_models_decide_the_packages(self, call: Call) -> None:
        facts = call(state="inspect", models=["gguf chat/7b", "safetensors embeddings"], hardware=machine())
        assert facts["ansible_facts"]["modelfleet_runtime"]["profiles"] == ["gguf", "embeddings"]
        assert facts["lock"]["required"] and facts["lock"]["key"] == facts["packages_key"]
        assert call(state="inspect")["ansible_facts"]["modelfleet_runtime"]["profiles"] == ["gguf"]

    def test_a_build_for_the_processor_is_found(self, cuda: Call, store: Path) -> None:
        make_environment(cuda, store)
        packages = store.parent / "runtime/current/lib/python3.12/site-packages"
        (packages / "torch-2.15.0+cu132.dist-info").mkdir(parents=True)
        record = store.parent / "runtime/current/modelfleet-runtime.json"
        state = json.loads(record.read_text())
        record.write_text(json.dumps({**state, "distributions": ["torch-2.15.0+cu132"]}))
        seen = cuda(state="inspect")
        assert seen["reasons"] == [] and not seen["update_required"]
        assert seen["ansible_facts"]["modelfleet_runtime"]["packages"] == {"torch": "2.15.0+cu132"}
        (packages / "torch-2.15.0+cu132.dist-info").rename(packages / "torch-2.15.0+cpu.dist-info")
        seen = cuda(state="inspect")
        assert seen["update_required"] and seen["reasons"] == [
            "MF-RUN-007: torch is 2.15.0+cpu, not 2.15.0+cu132: another build"
        ]
        assert seen["findings"][0]["cure"].startswith("run ./modelfleet apply")

    def test_a_stack_that_cannot_be_is_one_line(self, cuda: Call) -> None:
        said = cuda(state="inspect", versions={"torch": "latest"})["msg"]
        assert said == "'latest' is no version of torch; write one such as '2.13.0', in quotes"
