"""What models may take of a machine's memories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from modelfleet.cli.probe import replayed
from modelfleet.core.planning.budgets import Machine, read_machine
from modelfleet.core.units import GIB, MIB
from support.machines import amd, machine, nvidia
from support.planning import card, profile

HEADROOM, MEMORY_HEADROOM = GIB, 4 * GIB


def read(host: dict[str, Any]) -> Machine:
    return read_machine(host, HEADROOM, MEMORY_HEADROOM)


def rooms(machine: Machine) -> dict[str, float | None]:
    """Return the budgets in GiB by device."""
    budgets = (*machine.accelerators, machine.cpu)
    return {one.device: None if one.budget_bytes is None else round(one.budget_bytes / GIB, 2) for one in budgets}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (profile(), {"CPU": 28}),
        (profile(memory=4), {"CPU": 2}),
        (profile(limit_bytes=8 * GIB), {"CPU": 4}),
        (profile(memory=8, limit_bytes=64 * GIB), {"CPU": 4}),
        ({}, {"CPU": None}),
        (profile(card(12), card(24)), {"GPU0": 11, "GPU1": 23, "CPU": 28}),
        # Smaller than its headroom: no budget, no device.
        (profile(card(0.5)), {"CPU": 28}),
        (profile({"vendor": "intel", "name": "Arc", "memory": {"total_bytes": 16 * GIB}}), {"GPU0": 15, "CPU": 28}),
        # Graphics in a processor, of which AMD's may have some memory set aside.
        (profile({"vendor": "intel", "name": "UHD", "memory": {"unified": True}}), {"CPU": 28}),
        (profile({"vendor": "intel", "name": "UHD", "memory": {}}), {"CPU": 28}),
        (profile({"vendor": "amd", "memory": {"unified": True, "total_bytes": 8 * GIB}}), {"CPU": 28}),
        (profile({"vendor": "other", "name": "ASPEED", "memory": {}}), {"CPU": 28}),
        (profile({"vendor": "apple", "memory": {"unified": True}}, memory=16), {"GPU0": 9.67, "CPU": 12}),
        (profile({"vendor": "apple", "memory": {"unified": True}}, memory=64), {"GPU0": 47, "CPU": 60}),
        (
            profile({"vendor": "apple", "memory": {"unified": True, "budget_bytes": 14 * GIB}}, memory=16),
            {"GPU0": 12, "CPU": 12},
        ),
        (profile({"vendor": "nvidia", "memory": {"unified": True}}, memory=120), {"GPU0": 116, "CPU": 116}),
    ],
)
def test_capacity_minus_headroom(host: dict[str, Any], expected: dict[str, float | None]) -> None:
    assert rooms(read(host)) == expected


def test_what_is_free_changes_no_budget() -> None:
    idle, busy = read(profile(card(12, free=12))), read(profile(card(12, free=1), available_bytes=GIB))
    assert idle.accelerators == busy.accelerators and idle.cpu == busy.cpu
    assert busy.free == {"GPU0": GIB, "CPU": GIB}


def test_memory_that_is_not_known_yet_is_not_guessed() -> None:
    machine = read(profile({"vendor": "nvidia", "name": "GA106", "memory": {}, "driver": None}))
    assert machine.accelerators == () and machine.provisional
    assert machine.warnings[0].startswith("GPU0 (GA106): its memory is not known before its driver works")
    assert not read(profile(card(12))).provisional


def test_a_card_that_a_virtual_machine_has() -> None:
    machine = read(profile(card(24, driver="vfio-pci"), card(12)))
    assert rooms(machine) == {"GPU1": 11, "CPU": 28}
    assert machine.warnings == ("GPU0 (Card) is given to a virtual machine",)


def test_one_backend_serves() -> None:
    amd = {"vendor": "amd", "name": "RX", "memory": {"total_bytes": 16 * GIB, "unified": False}}
    intel = {"vendor": "intel", "name": "Arc", "memory": {"total_bytes": 48 * GIB, "unified": False}}
    assert list(rooms(read(profile(card(12), card(12), amd)))) == ["GPU2", "CPU"]
    assert list(rooms(read(profile(card(12), card(24), amd)))) == ["GPU0", "GPU1", "CPU"]
    assert list(rooms(read(profile(card(12), intel)))) == ["GPU0", "CPU"]
    assert [one.backend for one in read(profile(intel)).accelerators] == ["vulkan"]


def test_a_card_that_no_runtime_serves() -> None:
    machine = read(profile(card(12, name="Tesla K80", compute_capability="3.7")))
    assert machine.accelerators == () and not machine.provisional
    assert machine.warnings == ("GPU0 (Tesla K80) is from before Maxwell, which no CUDA in use serves",)


def test_slices_are_budgets_of_their_own() -> None:
    def one(index: int, instance: int | None, size: int) -> dict[str, Any]:
        return {"index": index, "gpu_instance_id": instance, "profile": "2g.20gb", "memory_total_bytes": size * MIB}

    slices = [one(0, 3, 19968), one(1, 3, 19968), one(2, 5, 9984), one(3, None, 9984)]
    machine = read(profile(card(80, mig={"enabled": True, "slices": slices})))
    assert rooms(machine) == {"GPU0/MIG0": 18.5, "GPU0/MIG2": 8.75, "GPU0/MIG3": 8.75, "CPU": 28}
    assert all(budget.alone for budget in machine.accelerators)
    empty = read(profile(card(80, mig={"enabled": True, "slices": []})))
    assert empty.accelerators == () and "has no slice; make one with nvidia-smi mig" in empty.warnings[0]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("nvidia-smi-xml/a100-sxm4-v12.xml", {"GPU0/MIG0": 18.5}),
        ("nvidia-smi-text/linux-x86_64__nvidia-h100-mig__590.48.01.txt", {"GPU0/MIG0": 38.5, "GPU0/MIG2": 8.75}),
        ("nvidia-smi-xml/rtx-3080-v12.xml", {"GPU0": 9.0}),
    ],
)
def test_recorded_machines(captures: Path, record: str, expected: dict[str, float]) -> None:
    ((_, host),) = replayed((str(captures / record),)).items()
    found = rooms(read(host))
    assert {device: found.get(device) for device in expected} == expected


def test_a_card_that_the_stack_leaves_out() -> None:
    """No one driver serves Pascal and Blackwell; ROCm serves no Polaris card, Vulkan does."""
    mixed = machine(nvidia("6.1", gib=24), nvidia("12.0", gib=16), driver=None)
    found = read({**mixed, "memory": {"total_bytes": 32 * GIB}})
    assert list(rooms(found)) == ["GPU1", "CPU"]
    assert found.warnings[0].endswith("the runtime of this host (cuda) does not serve it; nothing is planned on it")
    polaris = read({**machine(amd("gfx803")), "memory": {"total_bytes": 32 * GIB}})
    assert [(one.device, one.backend) for one in polaris.accelerators] == [("GPU0", "vulkan")]


def test_a_backend_that_the_runtime_was_told() -> None:
    """What is planned is what will be installed: nothing on a card that a build for the processor does not use."""
    host = {**machine(nvidia("8.6", gib=24)), "memory": {"total_bytes": 32 * GIB}}
    told = {name: read_machine(host, GIB, GIB, name) for name in ("", "cuda", "vulkan", "cpu")}
    assert [told[name].accelerators[0].backend for name in ("", "cuda", "vulkan")] == ["cuda", "cuda", "vulkan"]
    assert told["cpu"].accelerators == () and "(cpu) does not serve it" in told["cpu"].warnings[0]
