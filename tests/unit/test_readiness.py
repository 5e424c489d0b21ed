"""Readiness decides: each rule passes on a ready machine and tells its own fault from all others."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfleet.core.errors import ConfigurationError
from modelfleet.core.hardware.nvidia_cards import flavour_of_device, flavour_of_machine
from modelfleet.core.hardware.readiness import RULES, Check, check, readiness_to_dict, worst
from modelfleet.core.hardware.requirements import parse_requirements

GIB = 1024**3
KERNEL = "6.1.0-40-amd64"

NVIDIA: dict[str, Any] = {
    "vendor": "nvidia",
    "name": "NVIDIA GeForce RTX 4090",
    "driver": "nvidia",
    "pci": {"vendor_id": "10de", "device_id": "2684"},
    "memory": {"total_bytes": 24564 * 1024**2, "unified": False},
    "mig": {"enabled": False, "slices": []},
    "compute_capability": "8.9",
}
AMD: dict[str, Any] = {
    "vendor": "amd",
    "name": "AMD Radeon RX 6700 XT",
    "driver": "amdgpu",
    "pci": {"vendor_id": "1002", "device_id": "73df"},
    "memory": {"total_bytes": 20 * GIB, "unified": False},
    "gfx_target": "gfx1030",
}
READY: dict[str, Any] = {
    "accelerators": [NVIDIA],
    "cpu": {"architecture": "x86_64", "physical_cores": 16, "instruction_sets": ["avx", "avx2"]},
    "memory": {"total_bytes": 62 * GIB, "limit_bytes": None},
    "storage": {
        "mount_point": "/",
        "free_bytes": 900 * GIB,
        "kind": "nvme",
        "pcie": {"generation_now": 3, "generation_max": 4},
    },
    "accelerator_driver": {
        "vendor": "nvidia",
        "loaded_version": "580.95.05",
        "installed_version": "580.95.05",
        "library_version": "580.95.05",
        "flavour": "open",
        "mismatch": False,
        "nouveau_loaded": False,
        "slow": False,
        "secure_boot": False,
        "module_signed": False,
        "headers": {"running": True, "next": True, "running_kernel": KERNEL, "next_kernel": "6.1.0-41-amd64"},
        "dkms": {"running": True, "next": True},
        "packages": {"manager": "dpkg", "locked": False, "held": [], "half_configured": []},
        "reboot_pending": False,
        "reboot_reasons": [],
        "persistence_daemon": "active",
        "groups": {"account": "ashley-ai", "render": True, "video": True},
        "gfx_override": None,
    },
    "unknown": {},
}
AMD_READY = {
    **READY,
    "accelerators": [AMD],
    "accelerator_driver": {**READY["accelerator_driver"], "vendor": "amd", "loaded_version": None},
}
PASCAL = {**NVIDIA, "name": "Quadro P400", "compute_capability": "6.1", "pci": {"vendor_id": "10de"}}
BLACKWELL = {**NVIDIA, "compute_capability": None, "pci": {"vendor_id": "10de", "device_id": "2b85"}}
DRIVER = "accelerator_driver."
NOT_THERE = {
    DRIVER + "loaded_version": None,
    DRIVER + "installed_version": None,
    DRIVER + "library_version": None,
    DRIVER + "flavour": None,
    DRIVER + "mismatch": None,
    DRIVER + "module_signed": None,
    DRIVER + "persistence_daemon": "absent",
    DRIVER + "dkms.running": None,
    DRIVER + "dkms.next": None,
}

# What is wrong, and the one id that tells it: nothing else may change.
FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "less than the minimum of GPU memory": (
        {"accelerators.0.memory.total_bytes": 6 * GIB}, "MF-GPU-002", "fail"),
    "less than the recommended GPU memory": (
        {"accelerators.0.memory.total_bytes": 8188 * 1024**2}, "MF-GPU-002", "warn"),
    "a slice is the budget": ({"accelerators.0.memory.budget_bytes": 5 * GIB}, "MF-GPU-002", "fail"),
    "no driver bound": ({"accelerators.0.driver": None}, "MF-GPU-003", "fail"),
    "given to a virtual machine": ({"accelerators.0.driver": "vfio-pci"}, "MF-GPU-003", "warn"),
    "MIG without slices": ({"accelerators.0.mig.enabled": True}, "MF-GPU-004", "fail"),
    "few cores": ({"cpu.physical_cores": 4}, "MF-CPU-001", "fail"),
    "cores below the recommended": ({"cpu.physical_cores": 8}, "MF-CPU-001", "warn"),
    "cores not told": ({"cpu.physical_cores": None}, "MF-CPU-001", "warn"),
    "no AVX2": ({"cpu.instruction_sets": ["avx"]}, "MF-CPU-002", "fail"),
    "a 32-bit processor": ({"cpu.architecture": "armv7l"}, "MF-CPU-002", "fail"),
    "little memory": ({"memory.total_bytes": 8 * GIB}, "MF-MEM-001", "fail"),
    "memory limited": ({"memory.limit_bytes": 20 * GIB}, "MF-MEM-001", "warn"),
    "a full disk": ({"storage.free_bytes": 20 * GIB}, "MF-DISK-001", "fail"),
    "a slow disk": ({"storage.kind": "hdd"}, "MF-DISK-002", "warn"),
    "a slow slot": ({"storage.pcie.generation_max": 3}, "MF-DISK-003", "warn"),
    "no driver": (NOT_THERE, "MF-DRV-001", "fail"),
    "nvidia-smi hangs": ({DRIVER + "slow": True}, "MF-DRV-001", "fail"),
    "not loaded": ({DRIVER + "loaded_version": None, DRIVER + "mismatch": None}, "MF-DRV-001", "fail"),
    "another module on disk": ({DRIVER + "installed_version": "580.105.08"}, "MF-DRV-002", "warn"),
    "another library": (
        {DRIVER + "library_version": "580.105.08", DRIVER + "mismatch": True}, "MF-DRV-003", "fail"),
    "proprietary for Blackwell": (
        {"accelerators": [BLACKWELL], DRIVER + "flavour": "proprietary"}, "MF-DRV-004", "fail"),
    "open for Pascal": ({"accelerators": [PASCAL]}, "MF-DRV-004", "fail"),
    "cards that no one driver serves": ({"accelerators": [PASCAL, BLACKWELL]}, "MF-DRV-004", "fail"),
    "a branch without Pascal": (
        {
            "accelerators": [PASCAL],
            DRIVER + "flavour": "proprietary",
            DRIVER + "loaded_version": "590.44.01",
            DRIVER + "installed_version": "590.44.01",
        },
        "MF-DRV-005",
        "fail",
    ),
    "too old for CUDA 12": (
        {DRIVER + "loaded_version": "470.256.02", DRIVER + "installed_version": None}, "MF-DRV-006", "fail"),
    "too old for CUDA 13": (
        {DRIVER + "loaded_version": "535.309.01", DRIVER + "installed_version": None}, "MF-DRV-006", "warn"),
    "nouveau": ({DRIVER + "nouveau_loaded": True}, "MF-DRV-007", "fail"),
    "Secure Boot, unsigned": ({DRIVER + "secure_boot": True}, "MF-DRV-008", "fail"),
    "Secure Boot not told": ({DRIVER + "secure_boot": None}, "MF-DRV-008", "warn"),
    "no headers, but built": ({DRIVER + "headers.running": False}, "MF-DRV-009", "warn"),
    "no headers for the next kernel": ({DRIVER + "headers.next": False}, "MF-DRV-010", "warn"),
    "not built": ({DRIVER + "dkms.running": False}, "MF-DRV-011", "fail"),
    "not built for the next kernel": ({DRIVER + "dkms.next": False}, "MF-DRV-012", "fail"),
    "held": ({DRIVER + "packages.held": ["nvidia-driver"]}, "MF-DRV-013", "warn"),
    "half-configured": ({DRIVER + "packages.half_configured": ["nvidia-kernel-dkms"]}, "MF-DRV-014", "fail"),
    "locked": ({DRIVER + "packages.locked": True}, "MF-DRV-015", "warn"),
    "a reboot for a kernel": (
        {DRIVER + "reboot_pending": True, DRIVER + "reboot_reasons": ["kernel 6.1.0-41-amd64 is installed"]},
        "MF-DRV-016", "warn"),
    "a reboot for the driver": (
        {DRIVER + "reboot_pending": True, DRIVER + "reboot_reasons": ["the driver was installed"]},
        "MF-DRV-016", "fail"),
    "no persistence daemon": ({DRIVER + "persistence_daemon": "inactive"}, "MF-DRV-017", "warn"),
}  # fmt: skip
AMD_FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no group": ({DRIVER + "groups.render": False}, "MF-DRV-018", "fail"),
    "no account": ({DRIVER + "groups.render": None}, "MF-DRV-018", "warn"),
    "no override": ({"accelerators.0.gfx_target": "gfx1031"}, "MF-DRV-019", "fail"),
    "another override": (
        {"accelerators.0.gfx_target": "gfx1032", DRIVER + "gfx_override": "9.0.0"}, "MF-DRV-019", "fail"),
}  # fmt: skip


def changed(profile: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a profile with some values, by their dotted names, replaced."""
    result = copy.deepcopy(profile)
    for name, value in changes.items():
        place: Any = result
        *parents, last = name.split(".")
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        place[int(last) if isinstance(place, list) else last] = value
    return result


def not_passed(checks: list[Check]) -> dict[str, str]:
    """Return id and status of what does not pass."""
    return {one.id: one.status for one in checks if one.status != "pass"}


def test_a_ready_machine_passes() -> None:
    checks = check(READY)
    assert not_passed(checks) == {}
    assert worst(checks) == "pass"
    assert {one.cure for one in checks} == {""}


def test_an_amd_machine_passes() -> None:
    assert not_passed(check(AMD_READY)) == {}
    assert "MF-DRV-018" in {one.id for one in check(AMD_READY)}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_apart(fault: str) -> None:
    changes, expected, status = FAULTS[fault]
    checks = check(changed(READY, changes))
    assert not_passed(checks) == {expected: status}
    assert [one.cure for one in checks if one.id == expected] != [""]


@pytest.mark.parametrize("fault", AMD_FAULTS)
def test_a_fault_of_an_amd_machine_is_told_apart(fault: str) -> None:
    changes, expected, status = AMD_FAULTS[fault]
    assert not_passed(check(changed(AMD_READY, changes))) == {expected: status}


def test_every_rule_has_a_fault_here() -> None:
    told = {expected for _, expected, _ in [*FAULTS.values(), *AMD_FAULTS.values()]}
    assert {rule.id for rule in RULES} - told == {"MF-GPU-001"}


def test_ids_are_in_order_and_unique() -> None:
    ids = [rule.id for rule in RULES]
    assert len(set(ids)) == len(ids)
    for group in {name.rpartition("-")[0] for name in ids}:
        own = [name for name in ids if name.startswith(group)]
        assert own == [f"{group}-{number:03}" for number in range(1, len(own) + 1)]


def test_a_machine_without_a_gpu_is_served() -> None:
    checks = check({**READY, "accelerators": [], "accelerator_driver": None})
    assert not_passed(checks) == {"MF-GPU-001": "warn"}
    assert not [one.id for one in checks if one.id.startswith("MF-DRV")]


@pytest.mark.parametrize(
    ("changes", "ready"),
    [
        ({}, True),
        ({DRIVER + "packages.held": ["nvidia-driver"]}, True),
        ({DRIVER + "persistence_daemon": "inactive"}, True),
        ({DRIVER + "reboot_pending": True, DRIVER + "reboot_reasons": ["kernel 6.1.0-41-amd64 is installed"]}, True),
        ({DRIVER + "reboot_pending": True, DRIVER + "reboot_reasons": ["the driver was installed"]}, False),
        ({DRIVER + "mismatch": True, DRIVER + "library_version": "580.65.06"}, False),
        ({DRIVER + "nouveau_loaded": True, DRIVER + "loaded_version": None}, False),
    ],
)
def test_a_gpu_is_ready_only_where_nothing_stops_a_process(changes: dict[str, Any], ready: bool) -> None:
    assert readiness_to_dict(changed(READY, changes))["accelerator_ready"] is ready


def test_no_gpu_is_not_a_ready_one() -> None:
    assert readiness_to_dict({**READY, "accelerators": [], "accelerator_driver": None})["accelerator_ready"] is False


def test_what_is_unknown_is_no_pass() -> None:
    unknown = {"accelerators": "no bus", "storage.kind": "a virtual disk"}
    checks = {one.id: one for one in check({"unknown": unknown})}
    assert {one.status for one in checks.values()} == {"warn"}
    assert checks["MF-GPU-001"].measured == "unknown: no bus"
    assert checks["MF-DISK-002"].measured == "unknown: a virtual disk"


def test_unified_memory_is_main_memory() -> None:
    gpu = {"vendor": "nvidia", "driver": "nvidia", "memory": {"unified": True, "total_bytes": None}}
    checks = {one.id: one for one in check({**READY, "accelerators": [gpu]})}
    assert checks["MF-GPU-002"].measured == "62.0 GiB"


def test_missing_headers_stand_in_the_way_of_a_build() -> None:
    profile = changed(READY, {**NOT_THERE, DRIVER + "headers.running": False})
    assert not_passed(check(profile)) == {"MF-DRV-001": "fail", "MF-DRV-009": "fail"}


def test_a_signed_module_that_is_loaded_passes_under_secure_boot() -> None:
    signed = {DRIVER + "secure_boot": True, DRIVER + "module_signed": True}
    assert not_passed(check(changed(READY, signed))) == {}


def test_requirements_are_editable() -> None:
    wish = {"minimum": {"cpu_cores": 2}, "recommended": {"cpu_cores": "4", "storage_kinds": ["hdd", "nvme"]}}
    machine = changed(READY, {"cpu.physical_cores": 4, "storage.kind": "hdd"})
    assert not_passed(check(machine, wish)) == {}
    assert {one.id for one in check(machine)} == {rule.id for rule in RULES} - {
        "MF-GPU-004", "MF-DISK-003", "MF-DRV-005", "MF-DRV-018", "MF-DRV-019"}  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [[], {"best": {}}, {"minimum": 3}, {"minimum": {"cores": 3}}, {"minimum": {"cpu_cores": "many"}},
     {"minimum": {"cpu_cores": True}}, {"minimum": {"storage_kinds": "ssd"}},
     {"recommended": {"storage_kinds": ["tape"]}}],
)  # fmt: skip
def test_wrong_requirements_are_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="requirements"):
        parse_requirements(wrong)


# Ids of cards from pci-ids.ucw.cz: GTX 680, GTX 980, GTX 1080, V100, RTX 2080, A100, RTX 4090, H100, RTX 5090, GB10.
@pytest.mark.parametrize(
    ("device", "flavour"),
    [("1180", "older"), ("13c0", "proprietary"), ("1b80", "proprietary"), ("1db1", "proprietary"), ("1e82", "either"),
     ("20b0", "either"), ("2684", "either"), ("2330", "either"), ("2b85", "open"), ("2e12", "open"), ("x", None)],
)  # fmt: skip
def test_a_card_is_known_before_its_driver(device: str, flavour: str | None) -> None:
    assert flavour_of_device(device) == flavour


def test_cards_share_one_driver() -> None:
    assert flavour_of_machine([NVIDIA, BLACKWELL]) == "open"
    assert flavour_of_machine([NVIDIA, PASCAL]) == "proprietary"
    assert flavour_of_machine([AMD]) is None


def leaves() -> st.SearchStrategy[Any]:
    """Return any plain data in the place of a profile's values."""
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    return st.recursive(
        plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    )


def paths(value: Any, name: str = "") -> list[str]:
    """Return the dotted names of all values."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, inner in items for path in (f"{name}{key}", *paths(inner, f"{name}{key}."))]


@settings(max_examples=300)
@given(st.sampled_from([READY, AMD_READY]), st.data())
def test_nothing_that_a_host_returns_breaks_it(profile: dict[str, Any], data: st.DataObject) -> None:
    broken = changed(profile, {data.draw(st.sampled_from(paths(profile))): data.draw(leaves())})
    for one in check(broken):
        assert one.status in ("pass", "warn", "fail")
        assert "\n" not in one.measured + one.cure + one.required and "\x1b" not in one.measured
        assert (one.cure == "") == (one.status == "pass")
        json.dumps(one.measured)
