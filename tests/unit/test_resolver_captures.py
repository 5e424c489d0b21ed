"""The stack of every recorded machine, expected by hand from what its card and driver are.

``pytest tests/unit/test_resolver_captures.py`` prints a table of the captures and their stacks. Most records are of one
tool and tell neither processor nor system: those are completed to a workstation with Ubuntu 24.04.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.errors import ModelfleetError, StackError
from modelfleet.core.hardware.facts_view import Facts
from modelfleet.core.hardware.probe import probe, probe_sources
from modelfleet.core.hardware.profile import profile_to_dict
from modelfleet.core.hardware.replay import open_record
from modelfleet.core.planning.budgets import read_machine
from modelfleet.core.runtime.resolver.cards import read_cards
from modelfleet.core.runtime.resolver.settings import StackSettings
from modelfleet.core.runtime.resolver.stack import Stack, resolve_stack
from support.machines import MODERN

XML, TEXT = "nvidia-smi-xml", "nvidia-smi-text/linux-x86_64__nvidia"
# Backend, the flag that names the cards' code, torch, toolkit that its wheels carry.
STACKS: dict[str, tuple[str, str, str, str]] = {
    # Driver 535 carries CUDA 12.2: stack B.
    f"{XML}/a100-sxm4-v12.xml": ("cuda", "80-real", "2.14.1+cu126", "12.6"),
    f"{XML}/rtx-3080-v12.xml": ("cuda", "86-real", "2.14.1+cu126", "12.6"),
    f"{TEXT}-h100-mig__590.48.01.txt": ("cuda", "90-real", "2.15.0+cu132", "13.2"),
    f"{TEXT}-geforce-rtx-2080-super__595.71.05.txt": ("cuda", "75-real", "2.15.0+cu132", "13.2"),
    f"{TEXT}-l40s__595.80.txt": ("cuda", "89-real", "2.15.0+cu132", "13.2"),
    "rocm-smi/mi100_rocm571.json": ("rocm", "gfx908", "2.15.0+rocm7.2", "7.2"),
    # A gfx1031, which runs the code for gfx1030.
    "rocm-smi/rx6700xt_rocm430.json": ("rocm", "gfx1030", "2.15.0+rocm7.2", "7.2"),
    "rocm-smi/vega-20-WKS-GL-XE.json": ("rocm", "gfx906", "2.15.0+rocm7.2", "7.2"),
    "amd-smi/static_mi210.json": ("rocm", "gfx90a", "2.15.0+rocm7.2", "7.2"),
    "system_profiler/SPDisplays_apple-m1.json": ("metal", "ON", "2.15.0", ""),
    # A virtual machine with VMware's SVGA.
    "jc/ubuntu-20.10/lspci-nnmmv.out": ("cpu", "", "2.15.0+cpu", ""),
}
# Drivers of 2019 and 2022, of CUDA 10.1 and 11.7.
REFUSED = {
    f"{XML}/gtx-1660-ti.xml": "418.43",
    f"{XML}/quadro-p400.xml": "418.43",
    f"{XML}/tesla-t4.xml": "515.105.01",
}
TREES = {
    # Its PCI bus was not recorded, so no GPU is known.
    "nvidia-dgx-gb10": ("cpu", "", "2.15.0+cpu", ""),
    # A Westmere: no AVX. Its display is a Matrox of the management controller.
    "40intel64-2g2n4c+pcilocality": ("cpu", "", "2.15.0+cpu", ""),
    # A laptop, whose PCI bus was not recorded either.
    "20em64t-hybrid-1p6c2t+2ca4co1t": ("cpu", "", "2.15.0+cpu", ""),
}
PROFILES = StackSettings(profiles=("gguf", "torch", "diffusion", "embeddings", "onnx"))
TABLE: dict[str, str] = {}


def completed(profile: dict[str, Any]) -> dict[str, Any]:
    """Return the profile with what a record of one tool does not tell."""
    mac = profile["os"]["family"] == "darwin"
    for section, name, value in (
        ("cpu", "architecture", "arm64" if mac else "x86_64"),
        ("cpu", "instruction_sets", MODERN),
        ("os", "family", "debian"),
        ("os", "distribution", "ubuntu"),
        ("os", "version", "15.5" if mac else "24.04"),
        ("python", "version", "3.12.3"),
    ):
        if profile[section][name] is None:
            profile[section][name] = value
    return profile


def profile_of(captures: Path, name: str) -> dict[str, Any]:
    """Return the profile that a record shows."""
    return completed(profile_to_dict(probe_sources("/opt/models", open_record(str(captures / name)))))


def compare(name: str, stack: Stack, expected: tuple[str, str, str, str]) -> None:
    """Compare a stack with what is expected, and keep a line for the table."""
    assert stack.llama is not None
    code = {"cuda": "CMAKE_CUDA_ARCHITECTURES", "rocm": "GPU_TARGETS", "metal": "GGML_METAL"}.get(stack.backend)
    found = [one.split("=")[1] for one in stack.llama.cmake_arguments if code and one.startswith(f"-D{code}=")]
    assert (stack.backend, "".join(found), stack.packages[0].requirement.split("==")[1], stack.toolkit) == expected
    onnx = next(one.requirement for one in stack.packages if one.name.startswith("onnxruntime"))
    why = f"  ({stack.reason})" if stack.backend == "cpu" else ""
    TABLE[name] = f"{stack.backend:5} {''.join(found):10} {stack.packages[0].requirement:22} {onnx}{why}"


@pytest.mark.parametrize("name", STACKS)
def test_records_of_a_tool(captures: Path, name: str) -> None:
    compare(name, resolve_stack(profile_of(captures, name), PROFILES), STACKS[name])


def agree(profile: dict[str, Any]) -> None:
    """Compare where the planner places models with what the stack serves: no card that the stack leaves out."""
    stack = resolve_stack(profile, PROFILES)
    budgets = read_machine(profile, 0, 0).accelerators
    assert {one.backend for one in budgets} <= {stack.backend}
    cards = read_cards(Facts(profile))
    placed = [cards[int(one.device.split("/")[0][len("GPU") :])].name for one in budgets]
    assert set(placed) <= set(stack.devices)


def test_every_record_is_planned_as_its_stack_serves_it(captures: Path) -> None:
    """All records that are the output of one tool; those whose stack is refused have nothing to agree with."""
    agreed = 0
    for path in sorted(captures.glob("*/*")):
        try:
            profile = profile_of(captures, str(path.relative_to(captures)))
            resolve_stack(profile, PROFILES)
        except ModelfleetError:
            continue
        agree(profile)
        agreed += 1
    assert agreed >= len(STACKS)


@pytest.mark.parametrize("name", REFUSED)
def test_drivers_that_are_too_old(captures: Path, name: str) -> None:
    with pytest.raises(StackError, match="is too old for any CUDA") as refused:
        resolve_stack(profile_of(captures, name), PROFILES)
    # Pascal's last branch, and one that is new enough for all: 580.
    assert REFUSED[name] in refused.value.message and "branch 580" in str(refused.value.cure)
    TABLE[name] = f"refused: {refused.value.message}"


def unpacked(captures: Path, folder: Path, name: str) -> dict[str, Any]:
    """Return the profile of a recorded tree."""
    with tarfile.open(captures / "sysfs" / f"{name}.tar.bz2") as archive:
        members = [member for member in archive if member.isfile() or member.isdir() or member.issym()]
        if hasattr(tarfile, "fully_trusted_filter"):
            archive.extractall(folder, members, filter="fully_trusted")
        else:
            archive.extractall(folder, members)
    (root,) = folder.iterdir()
    return completed(profile_to_dict(probe("/opt/models", root=str(root))))


@pytest.mark.parametrize("name", TREES)
def test_recorded_trees(captures: Path, tmp_path: Path, name: str) -> None:
    stack = resolve_stack(unpacked(captures, tmp_path, name), PROFILES)
    compare(name, stack, TREES[name])
    assert stack.llama is not None
    off = {one[len("-DGGML_") : -len("=OFF")] for one in stack.llama.cmake_arguments if one.endswith("=OFF")}
    assert ("AVX" in off) is (name == "40intel64-2g2n4c+pcilocality")
    # Never a quiet stack for the processor.
    assert any("whether there is a GPU is not known" in one for one in stack.warnings) is (
        name != "40intel64-2g2n4c+pcilocality"
    )


def test_the_recorded_dgx_with_the_gpu_that_it_has(captures: Path, tmp_path: Path) -> None:
    profile = unpacked(captures, tmp_path, "nvidia-dgx-gb10")
    assert profile["cpu"]["architecture"] == "aarch64"
    chip = {"pci": {"vendor_id": "10de", "device_id": "2e12"}, "memory": {"unified": True}}
    profile["accelerators"] = [{"vendor": "nvidia", "name": "NVIDIA GB10", "driver": "nvidia", **chip}]
    stack = resolve_stack(profile, PROFILES)
    compare("nvidia-dgx-gb10 with its GPU", stack, ("cuda", "121a-real", "2.15.0+cu132", "13.2"))
    assert stack.platform == "linux_aarch64"


def test_a_hidden_instruction_set_is_switched_off(captures: Path) -> None:
    """A virtual machine whose host hides fma, f16c and bmi2 of its Core i5."""
    text = (captures / "jc" / "linux-proc" / "cpuinfo").read_text(encoding="utf-8")
    flags = next(line for line in text.splitlines() if line.startswith("flags")).split()
    profile = {"cpu": {"architecture": "x86_64", "instruction_sets": flags}, "python": {"version": "3.12.3"}}
    stack = resolve_stack(profile)
    assert stack.llama is not None
    off = {one for one in stack.llama.cmake_arguments if one not in ("-DGGML_NATIVE=OFF", "-DGGML_OPENMP=OFF")}
    assert off == {"-DGGML_FMA=OFF", "-DGGML_F16C=OFF", "-DGGML_BMI2=OFF"}


def test_no_capture_breaks_the_resolver_as_it_is(captures: Path) -> None:
    """A record that is not completed gives a stack, or an error that says what is not known."""
    for name in (*STACKS, *REFUSED):
        profile = profile_to_dict(probe_sources("/opt/models", open_record(str(captures / name))))
        try:
            assert resolve_stack(profile).backend == "metal"
        except StackError as error:
            assert "not known" in error.message and error.cure


def test_the_table_of_captures_and_stacks(captures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if len(TABLE) < len({*STACKS, *REFUSED, *TREES}):
        pytest.skip("the table needs the other tests of this file")
    with capsys.disabled():
        print("\n" + "\n".join(f"{name.split('/')[-1]:62} {line}" for name, line in TABLE.items()))  # noqa: T201
