"""The driver's state from trees of files, as they lie on machines with one fault each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelfleet.core.hardware import driver_state as under_test
from modelfleet.core.hardware.driver_state import DriverState, read_driver_state, version_key
from modelfleet.core.hardware.package_state import parse_dpkg_status, parse_locks, parse_version_locks
from modelfleet.core.hardware.profile import Accelerator
from modelfleet.core.hardware.sources import ABSENT, CommandResult, Sources

KERNEL, NEXT = "6.1.0-9-amd64", "6.1.0-13-amd64"
VERSION = "535.309.01"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.309.01  Release Build  (archlinux-builder@)\n"
PROPRIETARY = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.309.01  Wed Jul  2 18:45:40 UTC 2026\n"
    "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
)
SIGNED = "\x7fELF module ~Module signature appended~\n"
DPKG = """Package: nvidia-driver
Status: install ok installed
Priority: optional
Version: 535.309.01-1

Package: nvidia-kernel-dkms
Priority: optional
Status: hold ok installed

Package: firefox-esr
Status: hold ok installed

Package: nvidia-persistenced
Status: install ok half-configured
"""
READY = {
    "/proc/driver/nvidia/version": PROPRIETARY,
    "/proc/modules": "nvidia 56803328 42 nvidia_modeset, Live 0x0 (POE)\nnouveau_like 1 0 - Live 0x0\n",
    "/proc/sys/kernel/osrelease": KERNEL,
    "/proc/sys/kernel/random/boot_id": "11111111-2222-3333-4444-555555555555\n",
    "/proc/locks": "",
    "/proc/77/comm": "nvidia-persiste\n",
    f"/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko": SIGNED,
    f"/lib/modules/{KERNEL}/updates/dkms/nvidia-current-modeset.ko": "",
    f"/lib/modules/{KERNEL}/build": f"-> /usr/src/linux-headers-{KERNEL}",
    f"/usr/src/linux-headers-{KERNEL}/Makefile": "",
    f"/boot/vmlinuz-{KERNEL}": "",
    f"/var/lib/dkms/nvidia-current/{VERSION}/{KERNEL}/x86_64/module/nvidia-current.ko": "",
    f"/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.{VERSION}": "",
    "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1": f"-> libnvidia-ml.so.{VERSION}",
    "/usr/bin/nvidia-persistenced": "",
    "/run/nvidia-persistenced/nvidia-persistenced.pid": "77\n",
    "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c": "\x06\0\0\0\x01",
    "/var/lib/dpkg/status": "Package: nvidia-driver\nStatus: install ok installed\n",
    "/var/lib/dpkg/lock-frontend": "",
    "/etc/passwd": "ashley:x:1000:1000::/home/ashley:/bin/bash\n",
    "/etc/group": "video:x:44:ashley\nrender:x:104:someone\n",
}
NVIDIA = (Accelerator("nvidia", driver="nvidia"),)


def write(root: Path, files: dict[str, str | None]) -> Path:
    """Write a tree; a text that starts with ``-> `` is a symlink, None leaves the file out."""
    for path, text in files.items():
        place = root / path.lstrip("/")
        if text is None:
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            place.symlink_to(text[3:])
        else:
            place.write_text(text)
    return root


def read(
    root: Path,
    changes: dict[str, str | None] | None = None,
    accelerators: tuple[Accelerator, ...] = NVIDIA,
    modinfo: str | None = None,
) -> tuple[DriverState, dict[str, str]]:
    """Return the state of a ready machine with changes, and the reasons for what is unknown."""

    def runner(arguments: Any, timeout: float) -> CommandResult:
        assert arguments[0] == "modinfo"
        return CommandResult("ok", modinfo) if modinfo else CommandResult(ABSENT)

    unknown: dict[str, str] = {}
    sources = Sources(str(write(root, {**READY, **(changes or {})})), runner)
    state = read_driver_state(sources, accelerators, unknown, account="ashley")
    assert state is not None
    return state, unknown


def test_a_ready_machine(tmp_path: Path) -> None:
    state, unknown = read(tmp_path)
    assert (state.loaded_version, state.installed_version, state.library_version) == (VERSION,) * 3
    assert (state.flavour, state.mismatch, state.nouveau_loaded) == ("proprietary", False, False)
    assert (state.secure_boot, state.module_signed) == (True, True)
    assert vars(state.headers) == {
        "running": True, "next": True, "running_kernel": KERNEL, "next_kernel": KERNEL}  # fmt: skip
    assert vars(state.dkms) == {"running": True, "next": True}
    assert vars(state.packages) == {"manager": "dpkg", "locked": False, "held": [], "half_configured": []}
    assert (state.reboot_pending, state.reboot_reasons) == (False, [])
    assert state.persistence_daemon == "active"
    assert vars(state.groups) == {"account": "ashley", "render": False, "video": True}
    assert set(unknown) == {"accelerator_driver.gfx_override"}


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"/proc/driver/nvidia/version": OPEN}, "flavour", "open"),
        ({"/proc/modules": "nouveau 1 0 - Live 0x0\n"}, "nouveau_loaded", True),
        ({f"/lib/modules/{KERNEL}/updates/dkms/nvidia-current.ko": "\x7fELF"}, "module_signed", False),
        ({"/run/nvidia-persistenced/nvidia-persistenced.pid": None}, "persistence_daemon", "inactive"),
        ({"/proc/77/comm": None}, "persistence_daemon", "inactive"),
        ({"/run/reboot-required": ""}, "reboot_reasons", ["/run/reboot-required exists"]),
        ({f"/boot/vmlinuz-{NEXT}": "", f"/lib/modules/{NEXT}/modules.dep": ""}, "reboot_reasons",
         [f"kernel {NEXT} is installed, {KERNEL} is running"]),
        ({"/run/modelfleet-reboot-required": "11111111-2222-3333-4444-555555555555\nthe driver was installed\n"},
         "reboot_reasons", ["the driver was installed"]),
        ({"/run/modelfleet-reboot-required": "another boot\nthe driver was installed\n"}, "reboot_pending", False),
    ],
)  # fmt: skip
def test_one_thing_differs(tmp_path: Path, changes: dict[str, str | None], field: str, value: object) -> None:
    state, _ = read(tmp_path, changes)
    assert getattr(state, field) == value


def test_an_upgrade_behind_its_back_is_a_mismatch(tmp_path: Path) -> None:
    folder = "/usr/lib/x86_64-linux-gnu"
    newer = "535.400.02"
    changes = {f"{folder}/libnvidia-ml.so.{newer}": "", f"{folder}/libnvidia-ml.so.1": f"-> libnvidia-ml.so.{newer}"}
    state, _ = read(tmp_path, changes)
    assert (state.library_version, state.mismatch) == (newer, True)


def test_the_next_kernel_has_neither_headers_nor_module(tmp_path: Path) -> None:
    state, _ = read(tmp_path, {f"/lib/modules/{NEXT}/vmlinuz": ""})
    assert (state.headers.next_kernel, state.headers.next, state.dkms.next) == (NEXT, False, False)
    assert (state.headers.running, state.dkms.running) == (True, True)


def test_a_link_that_leads_nowhere_is_no_headers(tmp_path: Path) -> None:
    assert read(tmp_path, {f"/usr/src/linux-headers-{KERNEL}/Makefile": None})[0].headers.running is False


def test_before_any_driver(tmp_path: Path) -> None:
    kept = ("/proc/sys", "/proc/locks", "/proc/modules", "/sys", "/etc", "/var/lib/dpkg", "/boot")
    changes: dict[str, str | None] = {path: None for path in READY if not path.startswith(kept)}
    changes |= {f"/lib/modules/{KERNEL}/modules.dep": "", "/usr/bin/env": ""}
    state, unknown = read(tmp_path, changes)
    names = ("loaded_version", "installed_version", "library_version", "flavour", "mismatch", "module_signed")
    assert [getattr(state, name) for name in names] == [None] * 6
    assert {f"accelerator_driver.{name}" for name in names} <= set(unknown)
    assert (state.dkms.running, state.persistence_daemon, state.headers.running) == (None, "absent", False)


def test_modinfo_is_asked_for_what_no_file_tells(tmp_path: Path) -> None:
    changes: dict[str, str | None] = {path: None for path in READY if "dkms" in path}
    changes["/proc/driver/nvidia/version"] = None
    changes[f"/lib/modules/{KERNEL}/kernel/nvidia-580-open/nvidia.ko.zst"] = "compressed"
    modinfo = "filename: /lib/modules/x\nversion: 580.95.05\nlicense: Dual MIT/GPL\nsigner: Canonical Ltd.\n"
    state, _ = read(tmp_path, changes, modinfo=modinfo)
    assert (state.installed_version, state.flavour, state.module_signed) == ("580.95.05", "open", True)
    assert state.dkms.running is True


def test_held_and_half_configured_packages(tmp_path: Path) -> None:
    packages = read(tmp_path, {"/var/lib/dpkg/status": DPKG})[0].packages
    assert (packages.held, packages.half_configured) == (["nvidia-kernel-dkms"], ["nvidia-persistenced"])


def test_a_locked_package_manager(tmp_path: Path) -> None:
    write(tmp_path, {"/var/lib/dpkg/lock-frontend": ""})
    entry = os.stat(tmp_path / "var/lib/dpkg/lock-frontend")
    lock = f"{os.major(entry.st_dev):02x}:{os.minor(entry.st_dev):02x}:{entry.st_ino}"
    assert read(tmp_path, {"/proc/locks": f"1: POSIX  ADVISORY  WRITE 4711 {lock} 0 EOF\n"})[0].packages.locked is True


def test_version_locks_of_rpm(tmp_path: Path) -> None:
    changes: dict[str, str | None] = {path: None for path in READY if "dpkg" in path}
    changes["/var/lib/rpm/rpmdb.sqlite"] = ""
    changes["/etc/dnf/plugins/versionlock.list"] = "# comment\nnvidia-driver-3:580.95.05-1.el9.*\nvim-2:9.0-1.*\n"
    packages = read(tmp_path, changes)[0].packages
    assert (packages.manager, packages.held) == ("rpm", ["nvidia-driver"])
    assert parse_version_locks('[[packages]]\nname = "kmod-nvidia-open-dkms"\n') == ["kmod-nvidia-open-dkms"]


def test_amd(tmp_path: Path) -> None:
    changes: dict[str, str | None] = {
        "/etc/environment": 'HSA_OVERRIDE_GFX_VERSION="10.3.0"\n', "/opt/rocm/.info/version": "6.4.1-83\n"}  # fmt: skip
    state, unknown = read(tmp_path, changes, (Accelerator("amd", driver="amdgpu"),))
    assert (state.vendor, state.gfx_override, state.library_version) == ("amd", "10.3.0", "6.4.1-83")
    assert unknown["accelerator_driver.loaded_version"].startswith("the driver is part of the kernel")


def test_no_gpu_and_no_driver_of_its_own(tmp_path: Path) -> None:
    for vendors in ((), ("apple",), ("other",)):
        assert read_driver_state(Sources(str(tmp_path)), [Accelerator(name) for name in vendors], {}) is None


def test_an_empty_record_is_unknown(tmp_path: Path) -> None:
    unknown: dict[str, str] = {}
    state = read_driver_state(Sources(str(tmp_path)), NVIDIA, unknown)
    assert state is not None
    assert (state.secure_boot, state.reboot_pending, state.packages.manager) == (None, None, None)
    for name in ("secure_boot", "reboot_pending", "packages.manager", "headers.running", "groups.render"):
        assert unknown[f"accelerator_driver.{name}"]


def test_kernels_sort_as_people_read_them() -> None:
    assert sorted(["6.1.0-13-amd64", "6.1.0-9-amd64", "6.12.1-1", "6.2"], key=version_key) == [
        "6.1.0-9-amd64", "6.1.0-13-amd64", "6.2", "6.12.1-1"]  # fmt: skip


@given(st.text())
def test_no_text_breaks_a_parser(text: str) -> None:
    under_test.parse_nvidia_version(f"NVRM version: {text}")
    under_test.parse_modules(text)
    under_test.parse_modinfo(text)
    parse_dpkg_status(f"Package: {text}")
    parse_locks(text)
    parse_version_locks(text)
    assert version_key(text) is not None
