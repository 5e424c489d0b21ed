"""What the vendors' tools print: the dialects of their versions, their failures, and any text at all."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.errors import HardwareOutputError
from modelfleet.core.hardware import amd, nvidia, nvidia_smi
from modelfleet.core.hardware.chips import amd_target, nvidia_chip
from modelfleet.core.hardware.probe import probe_sources
from modelfleet.core.hardware.profile import profile_to_dict
from modelfleet.core.hardware.replay import NOWHERE, DirectorySources
from modelfleet.core.hardware.sources import CommandResult, Sources, run_command

MIB, GIB = 1024**2, 1024**3
DOCTYPE = "<!DOCTYPE nvidia_smi_log SYSTEM 'nvsmi_device_v12.dtd'>"
XML = "<?xml version='1.0' ?>\n" + DOCTYPE + "\n<nvidia_smi_log>{}</nvidia_smi_log>"


def gpus_of(outputs: dict[str, str]) -> list[dict[str, Any]]:
    """Return the accelerators that a directory of pasted outputs shows."""
    found: list[dict[str, Any]] = profile_of(DirectorySources(NOWHERE, outputs))["accelerators"]
    return found


def profile_of(sources: Sources) -> dict[str, Any]:
    """Return the profile of a machine as a dictionary."""
    return profile_to_dict(probe_sources("/opt/models", sources))


def write_gpu(
    root: Path, address: str = "0000:01:00.0", vendor: str = "10de", device: str = "2684", **more: str
) -> Path:
    """Write a GPU into a recorded tree and return its directory."""
    directory = root / "sys" / "bus" / "pci" / "devices" / address
    directory.mkdir(parents=True)
    files = {"class": "0x030000", "vendor": f"0x{vendor}", "device": f"0x{device}", **more}
    for name, text in files.items():
        (directory / name).write_text(text + "\n")
    return directory


# nvidia-smi


def test_a_gpu_without_memory_of_its_own() -> None:
    xml = XML.format(
        "<driver_version>580.95.05</driver_version><cuda_version>13.0</cuda_version><gpu id='0000000F:01:00.0'>"
        "<product_name>NVIDIA GB10</product_name><product_architecture>Blackwell</product_architecture>"
        "<fb_memory_usage><total>N/A</total><reserved>N/A</reserved><used>N/A</used><free>N/A</free></fb_memory_usage>"
        "<pci><pci_bus_id>0000000F:01:00.0</pci_bus_id><pci_device_id>2E1210DE</pci_device_id></pci></gpu>"
    )
    table = "name, uuid, memory.total [MiB], memory.free [MiB], compute_cap\nNVIDIA GB10, GPU-1, [N/A], [N/A], 12.1\n"
    for outputs in ({"nvidia-smi-q-x.xml": xml}, {"nvidia-smi-query-gpu.csv": table}):
        profile = profile_of(DirectorySources(NOWHERE, outputs))
        (gpu,) = profile["accelerators"]
        assert gpu["memory"]["unified"] is True and gpu["memory"]["total_bytes"] is None
        assert gpu["memory"]["budget_bytes"] is None and gpu["compute_capability"] == "12.1"
        assert profile["unknown"]["accelerators.0.memory.total_bytes"] == "unified with main memory"


@pytest.mark.parametrize(("name", "capability"), [("Turing", "7.5"), ("Ada Lovelace", "8.9"), ("Ampere", None)])
def test_a_blanked_device_id_leaves_the_architecture(name: str, capability: str | None) -> None:
    gpu = f"<gpu><product_architecture>{name}</product_architecture>"
    gpu += "<pci><pci_device_id>000010DE</pci_device_id></pci></gpu>"
    (found,) = gpus_of({"nvidia-smi-q-x.xml": XML.format(gpu)})
    assert (found["pci"]["device_id"], found["compute_capability"]) == (None, capability)


def test_an_error_in_place_of_memory_is_not_unified() -> None:
    (gpu,) = gpus_of({"nvidia-smi-query-gpu.csv": "name, memory.total [MiB]\nTesla T4, [GPU requires reset]\n"})
    assert gpu["memory"]["unified"] is None and gpu["memory"]["total_bytes"] is None


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("name, memory.total [MiB], power.limit [W]", "NVIDIA RTX A6000, 49140 MiB, 300.00 W"),
        # --format=csv,nounits
        ("name, memory.total [MiB], power.limit [W]", "NVIDIA RTX A6000, 49140, 300.00"),
        ("gpu_name,memory.total [MiB],power.limit [W]", "NVIDIA RTX A6000,49140 MiB,300.00 W"),
        ("power.limit [W], memory.total [MiB], name", "300.00 W, 49140 MiB, NVIDIA RTX A6000"),
    ],
)
def test_queries_as_people_write_them(header: str, line: str) -> None:
    two = gpus_of({"nvidia-smi-query-gpu.csv": f"{header}\n{line}\n{line}\n"})
    assert [gpu["name"] for gpu in two] == ["NVIDIA RTX A6000"] * 2
    assert two[1]["memory"]["total_bytes"] == 49140 * MIB and two[1]["power_limit_watts"] == 300.0


def test_a_query_and_a_list_and_the_xml_are_one_machine() -> None:
    table = "index, name, mig.mode.current\n0, NVIDIA A100, Enabled\n1, NVIDIA A100, Disabled\n"
    listed = (
        "GPU 0: NVIDIA A100 (UUID: GPU-a)\n  MIG 3g.20gb Device 0: (UUID: MIG-GPU-a/1/0)\n"
        "GPU 1: NVIDIA A100 (UUID: GPU-b)\n"
    )
    cut = (
        "<mig_mode><current_mig>Enabled</current_mig></mig_mode><mig_devices><mig_device><index>0</index>"
        "<gpu_instance_id>1</gpu_instance_id><fb_memory_usage><total>20096 MiB</total></fb_memory_usage></mig_device>"
        "</mig_devices>"
    )
    xml = XML.format(f"<gpu id='00000000:07:00.0'>{cut}</gpu><gpu id='00000000:08:00.0'></gpu>")
    names = ("nvidia-smi-query-gpu.csv", "nvidia-smi-L.txt", "nvidia-smi-q-x.xml")
    first, second = gpus_of(dict(zip(names, (table, listed, xml))))
    assert (first["uuid"], second["uuid"]) == ("GPU-a", "GPU-b")
    assert (first["pci"]["address"], second["pci"]["address"]) == ("0000:07:00.0", "0000:08:00.0")
    assert first["mig"]["slices"] == [
        {
            "index": 0,
            "uuid": "MIG-GPU-a/1/0",
            "profile": "3g.20gb",
            "memory_total_bytes": 20096 * MIB,
            "gpu_instance_id": 1,
            "compute_instance_id": None,
        }
    ]
    assert first["memory"]["budget_bytes"] == 20096 * MIB and second["mig"]["enabled"] is False


def test_a_card_that_is_cut_into_nothing_is_no_budget() -> None:
    mode = "<mig_mode><current_mig>Enabled</current_mig></mig_mode><mig_devices>None</mig_devices>"
    memory = "<fb_memory_usage><total>81920 MiB</total></fb_memory_usage>"
    (gpu,) = gpus_of({"nvidia-smi-q-x.xml": XML.format(f"<gpu>{mode}{memory}</gpu>")})
    assert gpu["mig"] == {"enabled": True, "slices": []} and gpu["memory"]["budget_bytes"] == 0


@pytest.mark.parametrize(
    ("text", "mismatch"),
    [
        ("Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 535.309\n", True),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", False),
        ("No devices were found\n", False),
    ],
)
def test_what_nvidia_smi_says_in_place_of_an_answer(tmp_path: Path, text: str, mismatch: bool) -> None:
    write_gpu(tmp_path)
    (tmp_path / "nvidia-smi-q-x.xml").write_text(text)
    profile = profile_of(DirectorySources(str(tmp_path)))
    assert profile["unknown"]["accelerators.0.memory.total_bytes"] == "nvidia-smi: " + text.splitlines()[0]
    assert profile["accelerator_driver"]["slow"] is False
    if mismatch:
        assert profile["accelerator_driver"]["mismatch"] is True
        assert profile["accelerator_driver"]["library_version"] == "535.309"


def test_a_nvidia_smi_that_hangs_is_slow_and_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gpu(tmp_path)
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho $$ >>{tmp_path}/asked\ntrap '' TERM\nsleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setattr(nvidia, "TIMEOUT_SECONDS", 1.5)

    def runner(arguments: Sequence[str], timeout: float) -> CommandResult:
        command = [str(tool), *arguments[1:]] if arguments[0] == "nvidia-smi" else ["/nowhere"]
        return run_command(command, timeout)

    started = time.monotonic()
    profile = profile_of(Sources(str(tmp_path), runner))
    assert time.monotonic() - started < 30
    assert profile["accelerator_driver"]["slow"] is True
    assert profile["unknown"]["accelerators.0.memory.total_bytes"] == "nvidia-smi is slow: no answer within 1.5 s"
    assert len((tmp_path / "asked").read_text().split()) == 1
    assert profile["accelerators"][0]["compute_capability"] == "8.9"


def test_an_amd_smi_that_hangs_is_slow_and_rocm_smi_not_asked(tmp_path: Path) -> None:
    write_gpu(tmp_path, vendor="1002", device="744c")
    asked: list[str] = []

    def runner(arguments: Sequence[str], timeout: float) -> CommandResult:
        asked.append(arguments[0])
        return CommandResult("slow", "", "no answer within 20 s") if "smi" in arguments[0] else CommandResult("absent")

    profile = profile_of(Sources(str(tmp_path), runner))
    assert profile["accelerator_driver"]["slow"] is True
    assert profile["unknown"]["accelerators.0.memory.total_bytes"] == "amd-smi is slow: no answer within 20 s"
    assert "rocm-smi" not in asked


def test_an_absent_nvidia_smi_is_not_slow(tmp_path: Path) -> None:
    write_gpu(tmp_path)
    profile = profile_of(Sources(str(tmp_path)))
    assert profile["accelerator_driver"]["slow"] is False
    assert profile["unknown"]["accelerators.0.memory.total_bytes"] == "nvidia-smi is not there"


def test_the_driver_s_own_files(tmp_path: Path) -> None:
    (write_gpu(tmp_path) / "driver").symlink_to("../../drivers/nvidia")
    directory = tmp_path / "proc" / "driver" / "nvidia" / "gpus" / "0000:01:00.0"
    directory.mkdir(parents=True)
    (directory / "information").write_text("Model: \t\t NVIDIA GeForce RTX 4090\nGPU UUID: \t GPU-????????-????\n")
    version = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (root@b)\n"
    (directory.parents[1] / "version").write_text(version)
    (gpu,) = profile_of(Sources(str(tmp_path)))["accelerators"]
    assert (gpu["name"], gpu["uuid"]) == ("NVIDIA GeForce RTX 4090", None)
    assert (gpu["driver"], gpu["driver_version"]) == ("nvidia", "580.95.05")


@pytest.mark.parametrize(
    "text",
    [
        "<!DOCTYPE a [<!ENTITY x 'xxxxxxxxxx'><!ENTITY y '&x;&x;'>]><nvidia_smi_log>&y;</nvidia_smi_log>",
        "<?xml version='1.0'?><!DOCTYPE a [<!ENTITY % x SYSTEM 'file:///etc/passwd'>%x;]><nvidia_smi_log/>",
        "<nvidia_smi_log>" + "<gpu>" * 100000,
        "<nvidia_smi_log>" * 40 + "</nvidia_smi_log>" * 40,
        "<html></html>",
        "<nvidia_smi_log>",
        "",
        "No devices were found",
        "<nvidia_smi_log>\0</nvidia_smi_log>",
        "<nvidia_smi_log>\ud800</nvidia_smi_log>\udfff",
    ],
)
def test_xml_that_is_not_of_nvidia_smi(text: str) -> None:
    started = time.process_time()
    with pytest.raises(HardwareOutputError):
        nvidia_smi.parse_xml(text)
    assert time.process_time() - started < 2


def test_an_embedded_dtd_is_no_bomb() -> None:
    text = "<!DOCTYPE nvidia_smi_log [<!ELEMENT nvidia_smi_log ANY>]>"
    text += "<nvidia_smi_log><gpu id='00000000:01:00.0'/></nvidia_smi_log>"
    assert nvidia_smi.parse_xml(text)[0]["pci.address"] == "0000:01:00.0"


# AMD


def rocm(**card: str) -> str:
    """Return what a rocm-smi of today prints, warnings in front."""
    warning = "WARNING: AMD GPU device(s) is/are in a low-power state. Check power control/runtime_status\n[skipped]\n"
    return warning + json.dumps({"card1": card, "system": {"Driver version": "6.14.14"}}) + "\n"


def test_rocm_6() -> None:
    text = rocm(
        **{
            "Device Name": "AMD Radeon AI PRO R9700",
            "Device ID": "0x7551",
            "Card Series": "AMD Radeon AI PRO R9700",
            "Card Model": "0x7551",
            "Card Vendor": "Advanced Micro Devices, Inc. [AMD/ATI]",
            "Subsystem ID": "0x0b13",
            "GFX Version": "gfx1201",
            "PCI Bus": "0000:03:00.0",
            "Unique ID": "0xa1b2c3",
            "VRAM Total Memory (B)": "34208743424",
            "VRAM Total Used Memory (B)": "889229312",
            "Max Graphics Package Power (W)": "300.0",
        }
    )
    (gpu,) = gpus_of({"rocm-smi.json": text})
    assert (gpu["name"], gpu["gfx_target"]) == ("AMD Radeon AI PRO R9700", "gfx1201")
    assert (gpu["pci"]["device_id"], gpu["pci"]["subsystem_device_id"]) == ("7551", "0b13")
    assert gpu["memory"]["free_bytes"] == 34208743424 - 889229312
    assert (gpu["uuid"], gpu["driver_version"], gpu["power_limit_watts"]) == ("0xa1b2c3", "6.14.14", 300.0)


def test_a_processor_with_graphics_has_unified_memory() -> None:
    (gpu,) = gpus_of({"rocm-smi.json": rocm(**{"Card Series": "Radeon 680M", "GFX Version": "gfx1035"})})
    assert gpu["memory"]["unified"] is True and gpu["memory"]["budget_bytes"] is None


AMD_SMI = {
    "gpu": 0,
    "asic": {
        "market_name": "AMD Instinct MI300X",
        "vendor_id": "0x1002",
        "device_id": "0x74a1",
        "asic_serial": "0x00AB12CD34EF5678",
        "target_graphics_version": "gfx942",
    },
    "bus": {"bdf": "0000:05:00.0", "max_pcie_width": 16, "max_pcie_speed": {"value": 32, "unit": "GT/s"}},
    "driver": {"name": "amdgpu", "version": "6.10.5"},
}


@pytest.mark.parametrize(
    "entry",
    [
        {"vram": {"size": {"value": 196592, "unit": "MB"}}, "limit": {"socket_power": {"value": 750, "unit": "W"}}},
        # Before ROCm 6.2 values and units were one text.
        {"vram": {"size": "196592 MB"}, "limit": {"socket_power": "750 W", "max_power": "750 W"}},
        {"vram": {"vram_size_mb": "196592"}, "limit": {"power_cap": "750"}},
        # Since ROCm 7 limits are given by regulator.
        {"vram": {"size": {"value": 196592, "unit": "MB"}}, "limit": {"ppt0": {"socket_power_limit": {"value": 750}}}},
    ],
)
@pytest.mark.parametrize("wrap", [lambda gpu: [gpu], lambda gpu: {"gpu_data": [gpu]}])
def test_amd_smi_of_many_versions(entry: dict[str, Any], wrap: Callable[[Any], Any]) -> None:
    text = "WARNING: [User is missing the following required groups: render]\n" + json.dumps(wrap({**AMD_SMI, **entry}))
    (gpu,) = gpus_of({"amd-smi-static.json": text})
    assert gpu["memory"]["total_bytes"] == 196592 * MIB and gpu["power_limit_watts"] == 750.0
    assert (gpu["name"], gpu["gfx_target"], gpu["uuid"]) == ("AMD Instinct MI300X", "gfx942", "0xab12cd34ef5678")
    assert (gpu["pci"]["address"], gpu["pcie"]["generation_max"]) == ("0000:05:00.0", 5)


def test_both_tools_tell_of_one_machine() -> None:
    outputs = {
        "amd-smi-static.json": json.dumps([{**AMD_SMI, "vram": "N/A"}]),
        "rocm-smi.json": rocm(**{"PCI Bus": "0000:05:00.0", "VRAM Total Memory (B)": "206141652992"}),
    }
    (gpu,) = gpus_of(outputs)
    assert gpu["name"] == "AMD Instinct MI300X" and gpu["memory"]["total_bytes"] == 206141652992


def test_sysfs_needs_no_tool(tmp_path: Path) -> None:
    card = write_gpu(
        tmp_path,
        "0000:03:00.0",
        "1002",
        "744c",
        revision="0xc8",
        mem_info_vram_total=str(24 * GIB),
        mem_info_vram_used=str(GIB),
        mem_info_gtt_total=str(32 * GIB),
        unique_id="00ab12",
    )
    (card / "hwmon" / "hwmon4").mkdir(parents=True)
    (card / "hwmon" / "hwmon4" / "power1_cap").write_text("303000000\n")
    node = tmp_path / "sys" / "class" / "kfd" / "kfd" / "topology" / "nodes" / "1"
    node.mkdir(parents=True)
    (node / "properties").write_text("gfx_target_version 110000\nlocation_id 768\ndomain 0\n")
    table = tmp_path / "usr" / "share" / "libdrm" / "amdgpu.ids"
    table.parent.mkdir(parents=True)
    table.write_text(
        "# device, revision, name\n744C,\tCC,\tAMD Radeon RX 7900 XT\n744C,\tC8,\tAMD Radeon RX 7900 XTX\n"
    )
    asked: list[Sequence[str]] = []

    def runner(arguments: Sequence[str], timeout: float) -> CommandResult:
        asked.append(arguments)
        return CommandResult("absent")

    (gpu,) = profile_of(Sources(str(tmp_path), runner))["accelerators"]
    assert (gpu["name"], gpu["gfx_target"], gpu["uuid"]) == ("AMD Radeon RX 7900 XTX", "gfx1100", "0xab12")
    assert gpu["memory"] == {
        "total_bytes": 24 * GIB,
        "free_bytes": 23 * GIB,
        "budget_bytes": 24 * GIB,
        "gtt_bytes": 32 * GIB,
        "unified": False,
    }
    assert gpu["power_limit_watts"] == 303.0
    assert not [command for command in asked if "smi" in command[0]]


def test_the_link_of_a_card_with_a_switch_is_the_switch_s(tmp_path: Path) -> None:
    chain = "devices/pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:03:00.0"
    ports = {"0000:00:01.0": ("8086", "a70d"), "0000:01:00.0": ("1002", "1478"), "0000:02:00.0": ("1002", "1479")}
    directory = tmp_path / "sys" / "devices" / "pci0000:00"
    for name, (vendor, device) in ports.items():
        directory = directory / name
        directory.mkdir(parents=True)
        (directory / "vendor").write_text(f"0x{vendor}\n")
        (directory / "device").write_text(f"0x{device}\n")
    speeds = {"current_link_speed": "8.0 GT/s PCIe", "max_link_speed": "16.0 GT/s PCIe"}
    widths = {"current_link_width": "4", "max_link_width": "16"}
    for name, text in {**speeds, **widths}.items():
        (directory.parent / name).write_text(text + "\n")
    card = tmp_path / "sys" / chain
    write_gpu(tmp_path, "0000:03:00.0", "1002", "73ff").rename(card)
    for name, text in {"current_link_speed": "16.0 GT/s PCIe", "current_link_width": "16"}.items():
        (card / name).write_text(text + "\n")
    (tmp_path / "sys" / "bus" / "pci" / "devices" / "0000:03:00.0").symlink_to(f"../../../{chain}")
    (gpu,) = profile_of(Sources(str(tmp_path)))["accelerators"]
    assert gpu["pcie"] == {"generation_now": 3, "generation_max": 4, "width_now": 4, "width_max": 16}


@pytest.mark.parametrize(
    ("number", "target"), [(90010, "gfx90a"), (90402, "gfx942"), (100301, "gfx1031"), (110501, "gfx1151"), (0, None)]
)
def test_targets_by_kfd_s_numbers(number: int, target: str | None) -> None:
    assert amd.target_from_number(number) == target


@pytest.mark.parametrize(
    ("text", "target"),
    [("gfx90a", "gfx90a"), ("gfx90010", "gfx90a"), ("gfx1100", "gfx1100"), ("N/A", None), ("x", None)],
)
def test_targets_as_tools_print_them(text: str, target: str | None) -> None:
    assert amd.target_from_text(text) == target


# Intel and Apple


def test_intel_in_a_processor_and_on_a_card(tmp_path: Path) -> None:
    write_gpu(tmp_path, "0000:00:02.0", "8086", "a7a0")
    card = write_gpu(tmp_path, "0000:03:00.0", "8086", "e20b")
    (card / "tile0").mkdir()
    (card / "tile0" / "physical_vram_size_bytes").write_text(f"{12 * GIB}\n")
    inside, outside = profile_of(Sources(str(tmp_path)))["accelerators"]
    assert inside["memory"]["unified"] is True and inside["memory"]["total_bytes"] is None
    assert outside["memory"]["unified"] is False and outside["memory"]["budget_bytes"] == 12 * GIB


def mac(*displays: dict[str, str], sysctl: str = "") -> dict[str, Any]:
    """Return the profile of a Mac with these entries of system_profiler."""
    outputs = {"system_profiler-SPDisplaysDataType.json": json.dumps({"SPDisplaysDataType": displays})}
    return profile_of(DirectorySources(NOWHERE, {**outputs, "sysctl.txt": sysctl}))


APPLE = {"_name": "Apple M3 Max", "sppci_model": "Apple M3 Max", "spdisplays_vendor": "sppci_vendor_Apple"}


def test_apple_s_wired_limit_is_the_budget() -> None:
    sysctl = (
        "hw.memsize: 68719476736\nhw.optional.arm64: 1\nmachdep.cpu.brand_string: Apple M3 Max\nhw.nperflevels: 2\n"
        "hw.perflevel0.name: Performance\nhw.perflevel0.physicalcpu: 12\nhw.perflevel0.logicalcpu: 12\n"
        "hw.perflevel1.name: Efficiency\nhw.perflevel1.physicalcpu: 4\nhw.perflevel1.logicalcpu: 4\n"
    )
    profile = mac({**APPLE, "spdisplays_mtlgpufamilysupport": "spdisplays_metal4"}, sysctl=sysctl)
    (gpu,) = profile["accelerators"]
    assert gpu["runtime_version"] == "Metal 4" and gpu["memory"]["unified"] is True
    assert gpu["memory"]["budget_bytes"] is None and profile["memory"]["total_bytes"] == 64 * GIB
    assert [kind["name"] for kind in profile["cpu"]["core_kinds"]] == ["performance", "efficiency"]
    (gpu,) = mac(APPLE, sysctl=sysctl + "iogpu.wired_limit_mb: 57344\n")["accelerators"]
    assert gpu["memory"]["budget_bytes"] == 56 * GIB
    (gpu,) = mac(APPLE, sysctl=sysctl + "iogpu.wired_limit_mb: 0\n")["accelerators"]
    assert gpu["memory"]["budget_bytes"] is None


def test_an_intel_mac_with_two_gpus_and_a_mac_in_a_virtual_machine() -> None:
    profile = mac(
        {
            "sppci_model": "Intel UHD Graphics 630",
            "spdisplays_vendor": "Intel",
            "spdisplays_vram_shared": "1536 MB",
            "spdisplays_device-id": "0x3e9b",
        },
        {
            "sppci_model": "AMD Radeon Pro 5500M",
            "spdisplays_vendor": "sppci_vendor_amd",
            "_spdisplays_vram": "8192 MB",
            "spdisplays_pcie_width": "x16",
        },
        {"_name": "Display", "spdisplays_vendor": "QEMU (0x1234)", "sppci_device_type": "spdisplays_gpu"},
    )
    assert [gpu["vendor"] for gpu in profile["accelerators"]] == ["intel", "amd"]
    inside, card = profile["accelerators"]
    assert inside["memory"]["unified"] is True and inside["pci"]["device_id"] == "3e9b"
    assert card["memory"]["budget_bytes"] == 8 * GIB and card["pcie"]["width_now"] == 16


@pytest.mark.parametrize(
    ("display", "vendor", "name", "size"),
    [
        (
            {"_name": "kHW_NVidiaItem", "sppci_model": "NVIDIA GeForce GT 750M", "spdisplays_vram": "2 GB"},
            "nvidia",
            "",
            2,
        ),
        ({"_name": "Radeon Pro 560", "spdisplays_vram": "4096 MB"}, "amd", "Radeon Pro 560", 4),
        (
            {"_name": "Intel Iris Pro", "spdisplays_vram_shared": "1536 MB", "sppci_model": "Intel Iris Pro"},
            "intel",
            "",
            None,
        ),
    ],
)
def test_old_macs_name_no_vendor(display: dict[str, str], vendor: str, name: str, size: int | None) -> None:
    (gpu,) = mac(display)["accelerators"]
    assert (gpu["vendor"], gpu["name"]) == (vendor, name or display["sppci_model"])
    assert gpu["memory"]["total_bytes"] == (size * GIB if size else None)


# Names and chips


def test_lspci_names_what_has_no_driver(tmp_path: Path) -> None:
    write_gpu(tmp_path, device="2206")
    record = (
        "Slot:\t01:00.0\nClass:\tVGA compatible controller [0300]\nVendor:\tNVIDIA Corporation [10de]\n"
        "Device:\tGA102 [GeForce RTX 3080] [2206]\n\nSlot:\t02:00.0\nClass:\tNon-Volatile memory controller [0108]\n"
    )
    (tmp_path / "lspci-nnmmv.txt").write_text(record)
    (gpu,) = profile_of(DirectorySources(str(tmp_path)))["accelerators"]
    assert gpu["name"] == "GA102 [GeForce RTX 3080]" and gpu["compute_capability"] == "8.6"


def test_lspci_alone(tmp_path: Path) -> None:
    record = (
        "Slot:\t41:00.0\nClass:\t3D controller [0302]\nVendor:\tNVIDIA Corporation [10de]\nDevice:\tGB202GL [2bb1]\n"
        "SVendor:\tNVIDIA Corporation [10de]\nSDevice:\tDevice [204b]\nDriver:\tnvidia\n\n"
        "Slot:\t0001:03:00.0\nClass:\tVGA compatible controller [0300]\nVendor:\tASPEED Technology, Inc. [1a03]\n"
        "Device:\tASPEED Graphics Family [2000]\n"
    )
    (gpu,) = gpus_of({"lspci-nnmmv.txt": record})
    assert (gpu["vendor"], gpu["driver"], gpu["architecture"]) == ("nvidia", "nvidia", "Blackwell")
    assert gpu["pci"] == {
        "address": "0000:41:00.0",
        "class_id": "030200",
        "vendor_id": "10de",
        "device_id": "2bb1",
        "subsystem_vendor_id": "10de",
        "subsystem_device_id": "204b",
    }


@pytest.mark.parametrize(
    ("device", "capability"),
    [
        ("1eb8", "7.5"),
        ("1db4", "7.0"),
        ("1b06", "6.1"),
        ("2330", "9.0"),
        ("2b85", "12.0"),
        ("2901", "10.0"),
        ("ffff", None),
    ],
)
def test_chips_by_device_id(device: str, capability: str | None) -> None:
    chip = nvidia_chip(device)
    assert (chip.compute_capability if chip else None) == capability
    assert amd_target("73ff") == "gfx1032" and amd_target(None) is None and nvidia_chip("no") is None


@pytest.mark.parametrize(("name", "rota", "kind"), [("sda", "0", "ssd"), ("sda", "1", "hdd"), ("nvme0n1", "0", "nvme")])
def test_lsblk_tells_the_kind_of_a_disk(name: str, rota: str, kind: str) -> None:
    table = (
        "NAME        MAJ:MIN RM SIZE RO TYPE MOUNTPOINT  KNAME     FSTYPE MODEL ROTA SCHED\n"
        f"{name:11}   8:0    0  1T  0 disk             {name:9}        Fast     {rota} none\n"
        f"`-{name + 'p1':9}   8:1    0  1T  0 part /opt/models {name + 'p1':9} xfs             {rota} none\n"
    )
    profile = profile_of(DirectorySources(NOWHERE, {"lsblk.txt": table}))
    found = [profile["storage"][field] for field in ("mount_point", "file_system", "device", "kind")]
    assert found == ["/opt/models", "xfs", f"/dev/{name}p1", kind]
