"""Recorded machines: each parsed to what its raw text says, stated here by hand, never by the parser.

``pytest tests/unit/test_hardware_captures.py`` prints a table of the captures and the fields that were compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from modelfleet.core.hardware.nvidia_smi import parse_help
from modelfleet.core.hardware.probe import probe_sources
from modelfleet.core.hardware.profile import profile_to_dict
from modelfleet.core.hardware.replay import NOWHERE, DirectorySources, open_record
from modelfleet.core.hardware.sources import CommandResult, Sources

MIB = 1024**2
NO_UUID = "GPU-00000000-0000-0000-0000-000000000000"
UNIFIED = "unified with main memory"


def mig(index: int, mebibytes: int, instance: int, profile: str | None = None) -> dict[str, Any]:
    """Return a MIG device; ids of masked captures count up."""
    uuid = f"MIG-{index:08d}-0000-0000-0000-{index:012d}" if profile else None
    memory = {"memory_total_bytes": mebibytes * MIB}
    return {"index": index, "uuid": uuid, "profile": profile, **memory, "gpu_instance_id": instance, **CI}


CI = {"compute_instance_id": 0}
# Each value is written as the capture has it: mebibytes where nvidia-smi says MiB, bytes where rocm-smi says B.
NVIDIA: dict[str, dict[str, Any]] = {
    "a100-sxm4-v12.xml": {
        "name": "NVIDIA A100-SXM4-80GB",
        "uuid": "GPU-513536b6-7d19-9063-b049-1e69664bb298",
        "pci.address": "0000:01:00.0",
        "pci.vendor_id": "10de",
        "pci.device_id": "20b2",
        "pci.subsystem_vendor_id": "10de",
        "pci.subsystem_device_id": "147f",
        "architecture": "Ampere",
        "driver_version": "535.54.03",
        "runtime_version": "12.2",
        "memory.total_bytes": 81920 * MIB,
        "memory.free_bytes": 80999 * MIB,
        # Not the card: the largest of its slices.
        "memory.budget_bytes": 19968 * MIB,
        "memory.unified": False,
        "mig.enabled": True,
        "mig.slices": [mig(number, 19968, instance) for number, instance in enumerate((3, 4, 5, 6))],
        "pcie.generation_now": 4,
        "pcie.generation_max": 4,
        "pcie.width_now": 16,
        "pcie.width_max": 16,
        "power_limit_watts": 500.0,
        # GA100 by its device id; the XML does not say it.
        "compute_capability": "8.0",
    },
    "gtx-1660-ti.xml": {
        # The driver is older than the card and has no name for it.
        "name": "Graphics Device",
        "uuid": "GPU-304a277d-3545-63b8-3a36-dfde3c992989",
        "pci.address": "0000:43:00.0",
        "pci.device_id": "2184",
        "pci.subsystem_vendor_id": "1458",
        "pci.subsystem_device_id": "3fc8",
        "driver_version": "418.43",
        "runtime_version": "10.1",
        "memory.total_bytes": 5912 * MIB,
        "memory.free_bytes": 5912 * MIB,
        "memory.budget_bytes": 5912 * MIB,
        "mig.enabled": False,
        "pcie.generation_now": 1,
        "pcie.generation_max": 3,
        "pcie.width_now": 16,
        "pcie.width_max": 16,
        "power_limit_watts": 130.0,
        "architecture": "Turing",
        "compute_capability": "7.5",
    },
    "quadro-p400.xml": {
        "name": "Quadro P400",
        "uuid": "GPU-8f750be4-dfbc-23b9-b33f-da729a536494",
        "pci.address": "0000:43:00.0",
        "pci.device_id": "1cb3",
        "pci.subsystem_vendor_id": "10de",
        "pci.subsystem_device_id": "11be",
        "driver_version": "418.43",
        "runtime_version": "10.1",
        "memory.total_bytes": 1998 * MIB,
        "memory.free_bytes": 1998 * MIB,
        "pcie.generation_now": 1,
        "pcie.generation_max": 3,
        "pcie.width_now": 16,
        # N/A, all of them.
        "power_limit_watts": None,
        "architecture": "Pascal",
        "compute_capability": "6.1",
    },
    "rtx-3080-v12.xml": {
        "name": "NVIDIA GeForce RTX 3080",
        "uuid": "GPU-19d6d965-2acc-f646-00f8-4c76979aabb4",
        "pci.address": "0000:04:00.0",
        "pci.device_id": "2216",
        "pci.subsystem_vendor_id": "19da",
        "pci.subsystem_device_id": "1612",
        "architecture": "Ampere",
        "driver_version": "536.40",
        "runtime_version": "12.2",
        "memory.total_bytes": 10240 * MIB,
        "memory.free_bytes": 8938 * MIB,
        "memory.budget_bytes": 10240 * MIB,
        "mig.enabled": False,
        "mig.slices": [],
        "pcie.generation_now": 4,
        "pcie.generation_max": 4,
        "pcie.width_now": 16,
        "pcie.width_max": 16,
        "power_limit_watts": 336.0,
        "compute_capability": "8.6",
    },
    "tesla-t4.xml": {
        "name": "Tesla T4",
        "uuid": "GPU-d37e67a5-91dd-3774-a5cb-99096249601a",
        "pci.address": "0000:00:1e.0",
        "pci.device_id": "1eb8",
        "pci.subsystem_vendor_id": "10de",
        "pci.subsystem_device_id": "12a2",
        "architecture": "Turing",
        "driver_version": "515.105.01",
        "runtime_version": "11.7",
        "memory.total_bytes": 15360 * MIB,
        "memory.free_bytes": 13939 * MIB,
        "mig.enabled": False,
        "pcie.generation_now": 3,
        "pcie.generation_max": 3,
        "pcie.width_now": 8,
        "pcie.width_max": 16,
        "power_limit_watts": 70.0,
        "compute_capability": "7.5",
    },
}
# The section "idle" of each.
NVIDIA_TEXT: dict[str, dict[str, Any]] = {
    "linux-x86_64__nvidia-h100-mig__590.48.01.txt": {
        "name": "NVIDIA H100 80GB HBM3",
        "uuid": NO_UUID,
        "pci.address": "0000:00:09.0",
        "pci.vendor_id": "10de",
        "pci.device_id": "2330",
        "pci.subsystem_vendor_id": "10de",
        "pci.subsystem_device_id": "16c1",
        "architecture": "Hopper",
        "compute_capability": "9.0",
        "driver_version": "590.48.01",
        "runtime_version": "13.1",
        "memory.total_bytes": 81559 * MIB,
        "memory.free_bytes": 81022 * MIB,
        "memory.budget_bytes": 40448 * MIB,
        "mig.enabled": True,
        "mig.slices": [
            mig(0, 40448, 2, "3g.40gb"),
            mig(1, 20096, 3, "2g.20gb"),
            mig(2, 9984, 9, "1g.10gb"),
            mig(3, 9984, 10, "1g.10gb"),
        ],
        "pcie.generation_now": 5,
        "pcie.generation_max": 5,
        "pcie.width_now": 16,
        "pcie.width_max": 16,
        "power_limit_watts": 700.0,
    },
    "linux-x86_64__nvidia-geforce-rtx-2080-super__595.71.05.txt": {
        "name": "NVIDIA GeForce RTX 2080 SUPER",
        "uuid": NO_UUID,
        "pci.address": "0000:0c:00.0",
        "pci.device_id": "1e81",
        "pci.subsystem_vendor_id": "1458",
        "pci.subsystem_device_id": "4005",
        "compute_capability": "7.5",
        "driver_version": "595.71.05",
        "runtime_version": "13.2",
        "memory.total_bytes": 8192 * MIB,
        "memory.free_bytes": 7571 * MIB,
        "memory.budget_bytes": 8192 * MIB,
        "mig.enabled": False,
        "pcie.generation_now": 1,
        "pcie.generation_max": 3,
        "pcie.width_now": 16,
        "pcie.width_max": 16,
        "power_limit_watts": 250.0,
    },
    "linux-x86_64__nvidia-l40s__595.80.txt": {
        "name": "NVIDIA L40S",
        "uuid": NO_UUID,
        "pci.address": "0000:01:00.0",
        "pci.device_id": "26b9",
        "pci.subsystem_vendor_id": "10de",
        "pci.subsystem_device_id": "1851",
        "compute_capability": "8.9",
        "driver_version": "595.80",
        "runtime_version": "13.2",
        "memory.total_bytes": 46068 * MIB,
        "memory.free_bytes": 45460 * MIB,
        "mig.enabled": False,
        "pcie.generation_now": 4,
        "pcie.generation_max": 4,
        "pcie.width_now": 16,
        "pcie.width_max": 16,
        "power_limit_watts": 350.0,
    },
}
AMD: dict[str, dict[str, Any]] = {
    "rocm-smi/mi100_rocm571.json": {
        "name": "Arcturus GL-XL [Instinct MI100]",
        # Unique ID: N/A
        "uuid": None,
        "pci.address": "0000:1e:00.0",
        "pci.device_id": "738c",
        "pci.subsystem_device_id": "0c34",
        "driver_version": "6.2.4",
        "gfx_target": "gfx908",
        "memory.total_bytes": 34342961152,
        "memory.free_bytes": 34342961152 - 6782976,
        "memory.gtt_bytes": 135048462336,
        "memory.unified": False,
        # "0 (8.0GT/s x16)"
        "pcie.generation_now": 3,
        "pcie.width_now": 16,
        "pcie.generation_max": None,
        "power_limit_watts": 290.0,
    },
    "rocm-smi/rx6700xt_rocm430.json": {
        # ROCm 4.3 could not read it and says "0x1002" in its place.
        "name": None,
        "uuid": None,
        "pci.address": "0000:07:00.0",
        "pci.device_id": "73df",
        "pci.subsystem_device_id": None,
        "driver_version": "6.3.6",
        "gfx_target": "gfx1031",
        "memory.total_bytes": 12868124672,
        "memory.free_bytes": 12868124672 - 1622728704,
        "memory.gtt_bytes": 16792432640,
        "pcie.generation_now": 4,
        "pcie.width_now": 16,
        "power_limit_watts": 211.0,
    },
    "rocm-smi/vega-20-WKS-GL-XE.json": {
        "name": "Radeon Instinct MI50 32GB",
        "uuid": "0x2f048617326b1ea",
        "pci.address": "0000:63:00.0",
        "pci.device_id": "66a1",
        "pci.subsystem_device_id": "0834",
        "driver_version": "5.9.17",
        "gfx_target": "gfx906",
        "memory.total_bytes": 34342961152,
        "memory.free_bytes": 34342961152 - 10850304,
        "memory.gtt_bytes": 54974742528,
        "pcie.generation_now": 4,
        "pcie.width_now": 16,
        "power_limit_watts": 225.0,
    },
    "amd-smi/static_mi210.json": {
        "name": "AMD Instinct MI210",
        "pci.address": None,
        "pci.vendor_id": "1002",
        "pci.device_id": "740f",
        "pci.subsystem_vendor_id": "1002",
        "pci.subsystem_device_id": "0c34",
        "driver": "amdgpu",
        # "Linuxversion6.14.0-24-generic(buildd@..."
        "driver_version": "6.14.0-24-generic",
        "gfx_target": "gfx90a",
        "memory.total_bytes": 65520 * MIB,
        "memory.unified": False,
        "pcie.generation_max": 4,
        "pcie.width_max": 16,
        "power_limit_watts": 300.0,
    },
}
APPLE = {
    "name": "Apple M1",
    "runtime_version": "Metal 3",
    "pci": None,
    "memory.unified": True,
    "memory.total_bytes": None,
    "mig": None,
    "compute_capability": None,
}


def field(accelerator: dict[str, Any], name: str) -> Any:
    """Return a field by its dotted name."""
    value: Any = accelerator
    for part in name.split("."):
        value = value[part]
    return value


def profile_of(sources: Sources) -> dict[str, Any]:
    """Return the profile as JSON has it."""
    profile: dict[str, Any] = json.loads(json.dumps(profile_to_dict(probe_sources("/opt/models", sources))))
    return profile


COMPARED: dict[str, list[str]] = {}


def compare(capture: str, vendor: str, accelerator: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare a GPU with what was read off the raw text, and keep the fields for the table."""
    assert accelerator["vendor"] == vendor
    assert {name: field(accelerator, name) for name in expected} == expected
    COMPARED[capture] = list(expected)


@pytest.mark.parametrize("capture", NVIDIA)
def test_nvidia_smi_xml(captures: Path, capture: str) -> None:
    profile = profile_of(open_record(str(captures / "nvidia-smi-xml" / capture)))
    # a100's was cut to the first of its four GPUs.
    assert len(profile["accelerators"]) == 1
    compare(capture, "nvidia", profile["accelerators"][0], NVIDIA[capture])


def sections(path: Path) -> dict[str, str]:
    """Return what each command of a capture of nvidia_gpu_exporter printed, the first time that it was run."""
    parts = re.split(r"^#{80}\n# .*\n# \$ (.*)\n#{80}\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found: dict[str, str] = {}
    for command, text in zip(parts[1::2], parts[2::2]):
        found.setdefault(command.strip(), text)
    return found


@pytest.mark.parametrize("capture", NVIDIA_TEXT)
def test_nvidia_smi_asked_as_a_live_driver_is(captures: Path, capture: str) -> None:
    recorded = sections(captures / "nvidia-smi-text" / capture)
    queried = next(text for command, text in recorded.items() if "--query-gpu=" in command)
    listed = parse_help(recorded["nvidia-smi --help-query-gpu"])
    asked: list[str] = []

    def runner(arguments: Sequence[str], timeout: float) -> CommandResult:
        command = " ".join(arguments)
        asked.append(command)
        if command.startswith("nvidia-smi --query-gpu="):
            assert set(arguments[1].partition("=")[2].split(",")) <= listed, "a field that this driver does not have"
            return CommandResult("ok", queried, "", 0)
        text = recorded.get(command) if arguments[0] == "nvidia-smi" else None
        return CommandResult("absent") if text is None else CommandResult("ok", text, "", 0)

    (gpu,) = profile_of(Sources(NOWHERE, runner))["accelerators"]
    compare(capture, "nvidia", gpu, NVIDIA_TEXT[capture])
    # What need not be asked is not: the XML takes long on a machine of many GPUs.
    assert ("nvidia-smi -q -x" in asked) is ("h100-mig" in capture)


@pytest.mark.parametrize("capture", NVIDIA_TEXT)
@pytest.mark.parametrize("pasted", ["-q", "-L", "--query-gpu"])
def test_nvidia_smi_pasted_in_part(captures: Path, capture: str, pasted: str) -> None:
    recorded = sections(captures / "nvidia-smi-text" / capture)
    names = {"-q": "nvidia-smi-q.txt", "-L": "nvidia-smi-L.txt", "--query-gpu": "nvidia-smi-query-gpu.csv"}
    text = next(text for command, text in recorded.items() if command.startswith(f"nvidia-smi {pasted}"))
    (gpu,) = profile_of(DirectorySources(NOWHERE, {names[pasted]: text}))["accelerators"]
    expected = NVIDIA_TEXT[capture]
    told = {
        "-q": [name for name in expected if name not in ("mig.slices", "memory.budget_bytes")],
        "-L": ["name", "uuid"],
        "--query-gpu": [
            name for name in expected if name not in ("runtime_version", "mig.slices", "memory.budget_bytes")
        ],
    }
    assert {name: field(gpu, name) for name in told[pasted]} == {name: expected[name] for name in told[pasted]}
    sizes = [one["memory_total_bytes"] for one in gpu["mig"]["slices"]]
    expected_sizes = [one["memory_total_bytes"] for one in expected.get("mig.slices", [])]
    assert sizes == {"-q": expected_sizes, "-L": [None] * len(expected_sizes), "--query-gpu": []}[pasted]


@pytest.mark.parametrize("capture", AMD)
def test_amd_tools(captures: Path, capture: str) -> None:
    profile = profile_of(open_record(str(captures / capture)))
    compare(capture, "amd", profile["accelerators"][0], AMD[capture])
    assert len(profile["accelerators"]) == (6 if "mi100" in capture else 1)


def test_all_six_mi100(captures: Path) -> None:
    gpus = profile_of(open_record(str(captures / "rocm-smi" / "mi100_rocm571.json")))["accelerators"]
    addresses = ["0000:1e:00.0", "0000:22:00.0", "0000:3f:00.0", "0000:43:00.0", "0000:46:00.0", "0000:49:00.0"]
    assert [gpu["pci"]["address"] for gpu in gpus] == addresses
    assert {gpu["memory"]["total_bytes"] for gpu in gpus} == {34342961152}


def test_apple_m1(captures: Path) -> None:
    profile = profile_of(open_record(str(captures / "system_profiler" / "SPDisplays_apple-m1.json")))
    compare("SPDisplays_apple-m1.json", "apple", profile["accelerators"][0], APPLE)
    assert profile["unknown"]["accelerators.0.memory.total_bytes"] == UNIFIED
    assert profile["os"]["distribution"] == "macos" and profile["memory"]["total_bytes"] is None


def test_lspci_of_a_virtual_machine_has_no_accelerator(captures: Path) -> None:
    profile = profile_of(open_record(str(captures / "jc" / "ubuntu-20.10" / "lspci-nnmmv.out")))
    # Its one display controller is VMware's SVGA II.
    assert profile["accelerators"] == [] and "accelerators" not in profile["unknown"]
    COMPARED["lspci-nnmmv.out"] = ["accelerators"]


@pytest.mark.parametrize(
    ("capture", "device", "file_system"),
    [
        ("centos-7.7/lsblk-allcols.out", "/dev/mapper/centos-root", "xfs"),
        ("ubuntu-18.04/lsblk-allcols.out", "/dev/sda2", "ext4"),
    ],
)
def test_lsblk(captures: Path, capture: str, device: str, file_system: str) -> None:
    profile = profile_of(open_record(str(captures / "jc" / capture)))
    found = {name: profile["storage"][name] for name in ("mount_point", "device", "file_system", "kind")}
    # Both are virtual machines on a "VMware Virtual S" that calls itself rotating.
    assert found == {"mount_point": "/", "device": device, "file_system": file_system, "kind": None}
    COMPARED[f"jc/{capture}"] = list(found)


def test_all_captures_obey_the_schema(captures: Path, checkout: Path) -> None:
    schema = json.loads((checkout / "docs" / "schemas" / "hardware-profile.schema.json").read_text(encoding="utf-8"))
    names = [*(f"nvidia-smi-xml/{name}" for name in NVIDIA), *AMD, "system_profiler/SPDisplays_apple-m1.json"]
    for name in names:
        jsonschema.validate(profile_of(open_record(str(captures / name))), schema)


def test_the_table_of_captures_and_fields(captures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = {*NVIDIA, *NVIDIA_TEXT, *AMD, "SPDisplays_apple-m1.json", "lspci-nnmmv.out"}
    if len(COMPARED) < len(expected):
        pytest.skip("the table needs the other tests of this file")
    with capsys.disabled():
        print("\n" + "\n".join(f"{name:62} {len(fields):3} {', '.join(fields)}" for name, fields in COMPARED.items()))  # noqa: T201
