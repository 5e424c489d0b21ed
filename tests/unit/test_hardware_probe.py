"""The probe as a whole: on this machine, on trees written here, and on recorded machines."""

from __future__ import annotations

import os
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from modelfleet.core.hardware.probe import probe
from modelfleet.core.hardware.profile import profile_to_dict
from modelfleet.core.hardware.sources import CommandResult, Reader, Sources, run_command, run_nothing
from modelfleet.core.hardware.storage import device_kind, read_storage

# Where null is an answer: no limit, no container, no driver bound, on no bus.
ANSWERS = {"memory.limit_bytes", "os.container", "cpu.limit_cores", "storage.pcie", "accelerator_driver"}
OF_NVIDIA = (".mig", ".architecture", ".compute_capability")
OF_AMD = (".gfx_target", ".memory.gtt_bytes")
CPUINFO = "processor : 0\nmodel name : Test CPU\nphysical id : 0\ncore id : 0\nflags : lm avx2\n"


def write_tree(root: Path, files: Mapping[str, str]) -> str:
    """Write a recorded tree: a text that starts with ``-> `` is a symlink, an empty name's end ``/`` a directory."""
    for path, text in files.items():
        place = root / path.lstrip("/")
        if path.endswith("/"):
            place.mkdir(parents=True, exist_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            place.symlink_to(text[3:])
        else:
            place.write_text(text)
    return str(root)


def replay(root: Path, files: Mapping[str, str], model_root: str = "/opt/models") -> dict[str, Any]:
    """Return the profile of a tree written at ``root``."""
    return profile_to_dict(probe(model_root, root=write_tree(root, files), runner=run_nothing))


def nulls(value: Any, name: str = "") -> Iterator[str]:
    """Yield the dotted names of all fields that are null."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if (name, key) != ("", "unknown"):
                yield from nulls(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from nulls(inner, f"{name}.{index}")
    elif value is None:
        yield name


def is_answer(name: str, profile: dict[str, Any]) -> bool:
    """Tell whether null in the field ``name`` needs no reason."""
    if name == "os.hypervisor":
        return profile["os"]["virtual_machine"] is False
    if not name.startswith("accelerators."):
        return name in ANSWERS
    vendor = profile["accelerators"][int(name.split(".")[1])]["vendor"]
    of_others = {"nvidia": OF_AMD, "amd": OF_NVIDIA, "apple": (*OF_AMD, *OF_NVIDIA, ".pci", ".pcie")}
    return name.endswith((".driver", *of_others.get(vendor, (*OF_AMD, *OF_NVIDIA))))


def assert_every_null_has_a_reason(profile: dict[str, Any]) -> None:
    """Check both ways: no null without a reason, no reason for what is known."""
    found = set(nulls(profile))
    assert {name for name in found if not is_answer(name, profile)} <= set(profile["unknown"])
    assert {name for name in profile["unknown"] if name != "accelerators"} <= found
    assert "accelerators" not in profile["unknown"] or profile["accelerators"] == []


def test_this_machine(tmp_path: Path) -> None:
    profile = profile_to_dict(probe(str(tmp_path / "not" / "there")))
    assert_every_null_has_a_reason(profile)
    assert profile["schema_version"] == 1
    assert profile["account"]["uid"] == os.geteuid()
    assert profile["os"]["kernel"] == os.uname().release
    assert profile["cpu"]["architecture"] == os.uname().machine
    assert profile["cpu"]["logical_cores"] >= 1
    assert profile["storage"]["existing_path"] == str(tmp_path.resolve())
    usage = os.statvfs(tmp_path)
    assert profile["storage"]["total_bytes"] == usage.f_blocks * usage.f_frsize
    assert "account" in profile and profile["probed_at"].endswith("Z")


def test_an_empty_record_is_all_unknown_and_no_error(tmp_path: Path) -> None:
    profile = replay(tmp_path / "nothing", {})
    assert_every_null_has_a_reason(profile)
    assert profile["cpu"]["model"] is None and profile["memory"]["total_bytes"] is None
    assert profile["unknown"]["accelerators"]


def test_nothing_of_this_machine_gets_into_a_record(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("MemTotal: 4 kB\n")
    profile = replay(tmp_path / "tree", {"/proc/meminfo": f"-> {tmp_path}/outside", "/proc/cpuinfo": CPUINFO})
    assert profile["memory"]["total_bytes"] is None
    assert profile["account"]["uid"] is None and profile["python"]["version"] is None


def test_a_link_inside_a_record_is_followed(tmp_path: Path) -> None:
    files = {"/usr/lib/os-release": "ID=debian\nVERSION_ID=12\n", "/etc/os-release": "-> ../usr/lib/os-release"}
    assert replay(tmp_path, files)["os"]["version"] == "12"


def test_what_needs_root_is_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path, {"/proc/meminfo": "MemTotal: 4 kB\n", "/proc/cpuinfo": CPUINFO})
    true_open = os.open

    def refuse(path: str, *more: Any, **options: Any) -> int:
        if str(path).endswith("/proc/meminfo"):
            raise PermissionError(13, "Permission denied")
        return true_open(path, *more, **options)

    monkeypatch.setattr("modelfleet.core.hardware.sources.os.open", refuse)
    profile = profile_to_dict(probe("/opt", root=str(tmp_path)))
    assert profile["unknown"]["memory.total_bytes"] == "/proc/meminfo cannot be read: it needs root"
    assert profile["unknown"]["os.kernel"] == "/proc/sys/kernel/osrelease cannot be read"


def test_a_named_pipe_in_a_record_does_not_hang(tmp_path: Path) -> None:
    write_tree(tmp_path, {"/proc/": ""})
    os.mkfifo(tmp_path / "proc" / "cpuinfo")
    assert profile_to_dict(probe("/opt", root=str(tmp_path)))["cpu"]["model"] is None


def gpu(address: str, class_id: str, vendor: str, device: str, driver: str = "") -> dict[str, str]:
    """Return the files of a PCI function."""
    directory = f"/sys/bus/pci/devices/{address}"
    files = {"class": f"0x{class_id}\n", "vendor": f"0x{vendor}\n", "device": f"0x{device}\n"}
    files.update(subsystem_vendor="0x1043\n", subsystem_device="0x8888\n")
    if driver:
        files["driver"] = f"-> ../../../../bus/pci/drivers/{driver}"
    return {f"{directory}/{name}": text for name, text in files.items()}


def test_display_devices_before_and_after_a_driver(tmp_path: Path) -> None:
    files = {
        **gpu("0000:00:02.0", "030000", "8086", "a7a0", "i915"),
        **gpu("0000:01:00.0", "030000", "10de", "2684"),
        **gpu("0000:01:00.1", "040300", "10de", "22ba"),
        **gpu("0000:41:00.0", "120000", "1002", "74a1", "amdgpu"),
        **gpu("0000:c4:00.0", "030000", "1a03", "2000", "ast"),
        **gpu("0000:c5:00.0", "030000", "ffff", "0001"),
    }
    profile = replay(tmp_path, files)
    found = [(gpu["vendor"], gpu["pci"]["address"], gpu["driver"]) for gpu in profile["accelerators"]]
    assert found == [
        ("intel", "0000:00:02.0", "i915"),
        ("nvidia", "0000:01:00.0", None),
        ("amd", "0000:41:00.0", "amdgpu"),
        ("other", "0000:c5:00.0", None),
    ]
    assert profile["accelerators"][1]["pci"] == {
        "address": "0000:01:00.0",
        "class_id": "030000",
        "vendor_id": "10de",
        "device_id": "2684",
        "subsystem_vendor_id": "1043",
        "subsystem_device_id": "8888",
    }
    assert profile["unknown"]["accelerators.1.memory.total_bytes"] == "nvidia-smi is not there"
    # The device id tells the chip before any driver does.
    assert profile["accelerators"][1]["compute_capability"] == "8.9"
    assert profile["accelerators"][2]["gfx_target"] == "gfx942"
    assert profile["accelerators"][0]["memory"]["unified"] is True
    assert "accelerators" not in profile["unknown"]
    assert_every_null_has_a_reason(profile)


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": "1048576\n"}, 1048576),
        ({"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/memory.max": "2097152\n"}, 2097152),
        ({"/proc/self/cgroup": "0::/a\n", "/sys/fs/cgroup/a/memory.max": "max\n"}, None),
        ({"/proc/self/cgroup": "4:memory:/x\n", "/sys/fs/cgroup/memory/memory.limit_in_bytes": "524288\n"}, 524288),
        # Version 1 writes the largest number for no limit.
        (
            {"/proc/self/cgroup": "4:memory:/\n", "/sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"},
            None,
        ),
        ({}, None),
    ],
)
def test_a_memory_limit_counts_only_below_the_total(tmp_path: Path, files: dict[str, str], limit: int | None) -> None:
    profile = replay(tmp_path, {"/proc/meminfo": "MemTotal: 4096 kB\nMemAvailable: 2048 kB\n", **files})
    assert profile["memory"] == {"total_bytes": 4194304, "available_bytes": 2097152, "limit_bytes": limit}


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"/proc/self/cgroup": "0::/a\n", "/sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1.0),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "800000 100000\n"}, None),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpuset.cpus.effective": "0-1,3\n"}, 3.0),
        (
            {
                "/proc/self/cgroup": "4:cpu,cpuacct:/x\n",
                "/sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "50000\n",
                "/sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        ({"/proc/self/cgroup": "4:cpu:/\n", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}, None),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "1 0\n"}, None),
    ],
)
def test_a_limit_of_processors(tmp_path: Path, files: dict[str, str], limit: float | None) -> None:
    four = {"/sys/devices/system/cpu/online": "0-3\n", "/proc/cpuinfo": CPUINFO}
    assert replay(tmp_path, {**four, **files})["cpu"]["limit_cores"] == limit


def test_the_counters_tell_the_kinds_of_cores(tmp_path: Path) -> None:
    directory = "/sys/devices/system/cpu"
    siblings = {0: "0-1", 1: "0-1", 2: "2", 3: "3"}
    files = {f"{directory}/cpu{one}/topology/thread_siblings_list": f"{text}\n" for one, text in siblings.items()}
    counters = {"/sys/devices/cpu_core/cpus": "0-1\n", "/sys/devices/cpu_atom/cpus": "2-3\n"}
    profile = replay(tmp_path, {f"{directory}/online": "0-3\n", "/proc/cpuinfo": CPUINFO, **files, **counters})
    assert profile["cpu"]["core_kinds"] == [
        {"name": "performance", "physical_cores": 1, "logical_cores": 2},
        {"name": "efficiency", "physical_cores": 2, "logical_cores": 2},
    ]


def test_the_link_of_the_disk_below_the_models(tmp_path: Path) -> None:
    files = {
        **block("nvme0n1"),
        **block("nvme0n1/nvme0n1p2", partition="2"),
        "/sys/dev/block/259:2": "-> ../../devices/nvme0n1/nvme0n1p2",
        "/proc/self/mountinfo": "1 0 259:2 / / rw - ext4 /dev/nvme0n1p2 rw\n",
        "/sys/class/nvme/nvme0/device/current_link_speed": "8.0 GT/s PCIe\n",
        "/sys/class/nvme/nvme0/device/max_link_speed": "16.0 GT/s PCIe\n",
        "/sys/class/nvme/nvme0/device/current_link_width": "4\n",
        "/sys/class/nvme/nvme0/device/max_link_width": "4\n",
    }
    link = {"generation_now": 3, "generation_max": 4, "width_now": 4, "width_max": 4}
    assert replay(tmp_path, files)["storage"]["pcie"] == link


@pytest.mark.parametrize(
    ("files", "secure"),
    [
        ({"/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c": "\x06\0\0\0\x01"}, True),
        ({"/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c": "\x06\0\0\0\0"}, False),
        ({"/sys/firmware/acpi/": ""}, False),
        ({"/sys/firmware/efi/": ""}, None),
        ({}, None),
    ],
)
def test_secure_boot(tmp_path: Path, files: dict[str, str], secure: bool | None) -> None:
    assert replay(tmp_path, files)["os"]["secure_boot"] is secure


def block(name: str, rotational: str = "", **files: str) -> dict[str, str]:
    """Return the files of a block device under /sys/devices and its link under /sys/class/block."""
    directory = f"/sys/devices/{name}"
    found = {f"{directory}/{path}": text for path, text in files.items()}
    if rotational:
        found[f"{directory}/queue/rotational"] = rotational
    base = name.rpartition("/")[2]
    return {f"{directory}/": "", **found, f"/sys/class/block/{base}": f"-> ../../devices/{name}"}


@pytest.mark.parametrize(
    ("name", "kind", "files"),
    [
        ("nvme0n1p2", "nvme", {**block("nvme0n1"), **block("nvme0n1/nvme0n1p2", partition="2")}),
        ("sda1", "ssd", {**block("sda", "0"), **block("sda/sda1", partition="1")}),
        ("sda1", "hdd", {**block("sda", "1"), **block("sda/sda1", partition="1")}),
        ("nbd0", "network", block("nbd0", "0")),
        ("sda", None, {**block("sda", "1"), "/sys/devices/sda/device/vendor": "QEMU\n"}),
        ("vda", None, block("vda", "1")),
        ("loop3", None, block("loop3", "0")),
        ("sdz", None, {}),
    ],
)
def test_the_kind_of_a_block_device(tmp_path: Path, name: str, kind: str | None, files: dict[str, str]) -> None:
    found, reason = device_kind(Reader(write_tree(tmp_path, files)), name)
    assert found == kind and bool(reason) is (kind is None)


def test_a_device_made_of_several_is_as_fast_as_its_slowest(tmp_path: Path) -> None:
    files = {
        **block("dm-0"),
        "/sys/devices/dm-0/slaves/nvme0n1": "-> ../../nvme0n1",
        "/sys/devices/dm-0/slaves/sda": "-> ../../sda",
        **block("nvme0n1"),
        **block("sda", "1"),
    }
    assert device_kind(Reader(write_tree(tmp_path, files)), "dm-0") == ("hdd", "")


def test_devices_that_name_each_other_end(tmp_path: Path) -> None:
    files = {**block("dm-0"), **block("dm-1")}
    files.update({"/sys/devices/dm-0/slaves/dm-1": "", "/sys/devices/dm-1/slaves/dm-0": ""})
    assert device_kind(Reader(write_tree(tmp_path, files)), "dm-0")[0] is None


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("1 0 8:1 / / rw - ext4 /dev/sda1 rw", "ssd"),
        ("1 0 0:40 / / rw - btrfs /dev/sda1 rw", "ssd"),
        ("1 0 0:41 / / rw - btrfs /dev/mapper/root rw", "ssd"),
        ("1 0 0:42 / / rw - nfs4 nas:/models rw", "network"),
        ("1 0 0:43 / / rw - tmpfs tmpfs rw", None),
        ("1 0 0:44 / / rw - overlay overlay rw", None),
        ("1 0 0:45 / / rw - zfs tank/models rw", None),
        ("1 0 259:2 / / rw - ext4 /dev/nvme0n1p2 rw", "nvme"),
    ],
)
def test_what_a_file_system_lies_on(tmp_path: Path, line: str, kind: str | None) -> None:
    files = {
        **block("sda", "0"),
        **block("sda/sda1", partition="1"),
        "/sys/dev/block/8:1": "-> ../../devices/sda/sda1",
        **block("dm-0"),
        "/sys/devices/dm-0/dm/name": "root\n",
        "/sys/devices/dm-0/slaves/sda1": "",
        "/proc/self/mountinfo": line + "\n",
    }
    unknown: dict[str, str] = {}
    storage = read_storage(Reader(write_tree(tmp_path, files)), "/opt/models", unknown)
    assert storage.kind == kind and ("storage.kind" in unknown) is (kind is None)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/run/systemd/container": "podman\n"}, {"container": "podman"}),
        ({"/run/.containerenv": ""}, {"container": "podman"}),
        ({"/.dockerenv": ""}, {"container": "docker"}),
        ({"/proc/1/environ": "A=1\0container=lxc\0"}, {"container": "lxc"}),
        ({"/proc/sys/kernel/osrelease": "5.15.0-microsoft-standard-WSL2\n"}, {"container": "wsl"}),
        ({"/run/systemd/system/": "", "/proc/1/comm": "systemd\n"}, {"init": "systemd"}),
        ({"/proc/1/comm": "runit\n"}, {"init": "runit"}),
        (
            {"/proc/cpuinfo": "flags : hypervisor\n", "/sys/class/dmi/id/sys_vendor": "QEMU\n"},
            {"virtual_machine": True, "hypervisor": "qemu"},
        ),
        # Amazon's machines without a hypervisor carry the same words.
        (
            {"/proc/cpuinfo": "flags : lm\n", "/sys/class/dmi/id/sys_vendor": "Amazon EC2\n"},
            {"virtual_machine": False, "hypervisor": None},
        ),
        ({"/sys/class/dmi/id/sys_vendor": "NVIDIA\n"}, {"virtual_machine": False}),
        ({}, {"virtual_machine": None, "container": None}),
    ],
)
def test_what_the_system_runs_in(tmp_path: Path, files: dict[str, str], expected: dict[str, Any]) -> None:
    profile = replay(tmp_path, files)
    assert {name: profile["os"][name] for name in expected} == expected
    assert_every_null_has_a_reason(profile)


def test_a_topology_without_a_package_is_not_guessed(tmp_path: Path) -> None:
    directory = "/sys/devices/system/cpu"
    files = {f"{directory}/online": "0\n", f"{directory}/cpu0/topology/thread_siblings_list": "0\n"}
    profile = replay(tmp_path, {**files, f"{directory}/cpu0/topology/physical_package_id": "-1\n"})
    assert profile["cpu"]["sockets"] is None and profile["cpu"]["physical_cores"] == 1


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.binary(max_size=200))
def test_no_content_of_any_file_raises(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    root = tmp_path_factory.mktemp("tree")
    cpu, pci, dev = "/sys/devices/system/cpu", "/sys/bus/pci/devices/0000:01:00.0", "/sys/class/block/sda"
    paths = ["/proc/cpuinfo", "/proc/meminfo", "/proc/self/cgroup", "/proc/self/mountinfo", "/etc/os-release"]
    paths += [f"{cpu}/online", f"{cpu}/cpu0/topology/thread_siblings_list", f"{cpu}/cpu0/topology/physical_package_id"]
    paths += [f"{cpu}/cpu0/cache/index0/{name}" for name in ("level", "type", "size", "shared_cpu_list")]
    paths += [f"{pci}/class", f"{pci}/vendor", f"{dev}/queue/rotational", "/proc/1/comm", "/run/systemd/container"]
    write_tree(root, dict.fromkeys(paths, ""))
    for path in paths:
        (root / path.lstrip("/")).write_bytes(text)
    assert_every_null_has_a_reason(profile_to_dict(probe("/opt/models", root=str(root))))


def test_a_command_comes_to_one_of_four_ends() -> None:
    assert run_command(["echo", "yes"]) == CommandResult("ok", "yes\n", "", 0)
    assert run_command(["sh", "-c", "echo no >&2; exit 3"]) == CommandResult("failed", "", "no\n", 3)
    assert run_command(["/nowhere/command"]).status == "absent"
    assert run_command(["sleep", "5"], 0.2).status == "slow"


@pytest.mark.parametrize(
    "script",
    [
        "trap '' TERM INT HUP; while :; do sleep 1; done",
        # What it leaves behind holds its output open.
        "sleep 60 & echo begun",
        "while :; do echo y; done",
        "exec >&- 2>&-; sleep 60",
    ],
)
def test_no_command_outlives_its_limit(script: str) -> None:
    started = time.monotonic()
    assert run_command(["sh", "-c", script], 0.3).status == "slow"
    assert time.monotonic() - started < 30


def test_a_process_that_does_not_die_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr("modelfleet.core.hardware.sources.os.killpg", lambda pid, _: killed.append(pid))
    started = time.monotonic()
    assert run_command(["sleep", "60"], 0.2).status == "slow"
    assert time.monotonic() - started < 30
    os.kill(killed[0], 9)


def test_a_command_is_run_once() -> None:
    asked: list[tuple[str, ...]] = []

    def runner(words: Sequence[str], limit: float) -> CommandResult:
        asked.append(tuple(words))
        return CommandResult("ok", "1")

    sources = Sources("/", runner)
    assert [sources.run(["a", "b"]).output, sources.run(("a", "b")).output] == ["1", "1"]
    assert asked == [("a", "b")]


# Recorded machines; the expected values are read off the raw text by hand.
RECORDED: dict[str, dict[str, Any]] = {
    "20em64t-hybrid-1p6c2t+2ca4co1t": {
        # hwloc names it: one package, 6 cores of 2 threads and 2 clusters of 4 cores of one.
        "cpu.model": "13th Gen Intel(R) Core(TM) i7-1370P",
        "cpu.architecture": "x86_64",
        "cpu.sockets": 1,
        "cpu.physical_cores": 14,
        "cpu.logical_cores": 20,
        # Firmware's nominal performance is 24 for the first twelve processors and 19 for the others.
        "cpu.core_kinds": [
            {"name": "performance", "physical_cores": 6, "logical_cores": 12},
            {"name": "efficiency", "physical_cores": 8, "logical_cores": 8},
        ],
        # 6 x 48 KiB + 8 x 32 KiB; 6 x 32 + 8 x 64; 6 x 1280 + 2 x 2048; 24 MiB for all.
        "cpu.cache.l1d_bytes": 544 * 1024,
        "cpu.cache.l1i_bytes": 704 * 1024,
        "cpu.cache.l2_bytes": 11776 * 1024,
        "cpu.cache.l3_bytes": 24 * 1024**2,
        "memory.total_bytes": 32489496 * 1024,
        "memory.available_bytes": 28934524 * 1024,
        "os.kernel": "6.1.0-13-amd64",
        "os.virtual_machine": False,
        "storage.mount_point": "/",
        "storage.file_system": "ext4",
        "storage.kind": None,
    },
    "40intel64-2g2n4c+pcilocality": {
        # hwloc's name counts groups; /proc/cpuinfo lists 40 processors of 10 cores in each of 4 packages.
        "cpu.model": "Intel(R) Xeon(R) CPU E7- 4870 @ 2.40GHz",
        "cpu.sockets": 4,
        "cpu.physical_cores": 40,
        "cpu.logical_cores": 40,
        "cpu.core_kinds": [],
        "cpu.cache.l1d_bytes": 40 * 32 * 1024,
        "cpu.cache.l2_bytes": 40 * 256 * 1024,
        "cpu.cache.l3_bytes": 4 * 30720 * 1024,
        "memory.total_bytes": 529428392 * 1024,
        # A kernel before 3.14.
        "memory.available_bytes": None,
        # Its one display device is a Matrox of the management controller.
        "accelerators": [],
        "storage.file_system": "ext3",
        "storage.device": "/dev/sda1",
        "storage.kind": "hdd",
    },
    "nvidia-dgx-gb10": {
        "cpu.model": "Cortex-A725 + Cortex-X925",
        "cpu.architecture": "aarch64",
        "cpu.sockets": 1,
        "cpu.physical_cores": 20,
        "cpu.logical_cores": 20,
        # Ten processors of part 0xd85 and ten of 0xd87; the first have the higher cpu_capacity.
        "cpu.core_kinds": [
            {"name": "Cortex-X925", "physical_cores": 10, "logical_cores": 10},
            {"name": "Cortex-A725", "physical_cores": 10, "logical_cores": 10},
        ],
        # 10 x 512 KiB + 10 x 2 MiB; one 8 MiB and one 16 MiB.
        "cpu.cache.l2_bytes": 25600 * 1024,
        "cpu.cache.l3_bytes": 24 * 1024**2,
        "memory.total_bytes": 125508468 * 1024,
        "os.kernel": "6.17.0-1014-nvidia",
        "os.virtual_machine": False,
        "storage.device": "/dev/nvme0n1p2",
        "storage.kind": "nvme",
    },
}


def recorded(captures: Path, name: str, folder: Path) -> str:
    """Unpack a recorded tree, what a file system can hold of it, and return its root."""
    with tarfile.open(captures / "sysfs" / f"{name}.tar.bz2") as archive:
        members = [member for member in archive if member.isfile() or member.isdir() or member.issym()]
        if hasattr(tarfile, "fully_trusted_filter"):
            archive.extractall(folder, members, filter="fully_trusted")
        else:
            archive.extractall(folder, members)
    (root,) = folder.iterdir()
    return str(root)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_machines(captures: Path, tmp_path: Path, name: str) -> None:
    profile = profile_to_dict(probe("/opt/ashley-ai/models", root=recorded(captures, name, tmp_path)))
    assert_every_null_has_a_reason(profile)
    found: dict[str, Any] = {}
    for field in RECORDED[name]:
        value: Any = profile
        for part in field.split("."):
            value = value[part]
        found[field] = value
    assert found == RECORDED[name]


@pytest.mark.parametrize(
    ("name", "model", "sockets", "instructions"),
    [
        # A virtual machine whose host hides fma and f16c.
        ("cpuinfo", "Intel(R) Core(TM) i5-7360U CPU @ 2.30GHz", 1, {"avx2": True, "fma": False, "f16c": False}),
        # VMware shows each processor as a socket of its own.
        ("cpuinfo2", "Intel(R) Core(TM) i5-8279U CPU @ 2.40GHz", 2, {"avx2": True, "fma": True, "bmi2": True}),
    ],
)
def test_recorded_cpuinfo(
    captures: Path, tmp_path: Path, name: str, model: str, sockets: int, instructions: dict[str, bool]
) -> None:
    text = (captures / "jc" / "linux-proc" / name).read_text()
    profile = replay(tmp_path, {"/proc/cpuinfo": text})
    assert (profile["cpu"]["model"], profile["cpu"]["sockets"]) == (model, sockets)
    assert {key: key in profile["cpu"]["instruction_sets"] for key in instructions} == instructions
    assert profile["os"]["virtual_machine"] is True
