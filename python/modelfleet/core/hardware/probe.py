"""The probe: reads a machine, or the record of one, into a HardwareProfile."""

import os
import pwd
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Dict, Optional

from .cpu import read_cpu
from .memory import read_memory
from .pci import has_signs, read_bus
from .profile import Account, HardwareProfile, PythonInterpreter
from .sources import Runner, Sources
from .storage import read_storage
from .system import read_system

if TYPE_CHECKING:
    from .nvidia import SmiReport

REPLAYED = "a record does not tell"


def read_account(unknown: Dict[str, str]) -> Account:
    """Return the account that this process runs as, by its effective user id."""
    uid = os.geteuid()
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        unknown["account.name"] = unknown["account.home"] = f"user id {uid} has no account"
        return Account(uid=uid, privileged=uid == 0)
    return Account(name=entry.pw_name, uid=uid, home=entry.pw_dir, privileged=uid == 0)


def probe(
    model_root: str, root: str = "/", runner: Optional[Runner] = None, platform: str = sys.platform
) -> HardwareProfile:
    """Return what is known of the machine, or of the recorded tree under ``root``.

    ``model_root`` is the absolute path whose file system is described; it need
    not exist. Needs no privileges and raises nothing: what cannot be read is in
    the profile's ``unknown``. On Linux it starts a process only where there is
    a GPU; no command runs longer than its limit.
    """
    return probe_sources(model_root, Sources(root, runner), platform)


def probe_sources(model_root: str, sources: Sources, platform: str = sys.platform) -> HardwareProfile:
    """Return what is known of the machine whose files and commands ``sources`` are; see ``probe``."""
    profile = HardwareProfile(probed_at=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"))
    unknown, origin = profile.unknown, profile.sources
    if is_mac(sources, platform):
        from . import macos

        hardware = macos.read_hardware(sources, sources.machine(), unknown, origin)
        profile.cpu, profile.memory, profile.os, profile.accelerators = hardware
        profile.storage = macos.read_storage(sources, model_root, unknown)
    else:
        profile.cpu = read_cpu(sources, sources.machine(), unknown)
        profile.memory = read_memory(sources, unknown)
        profile.os = read_system(sources, unknown)
        read_gpus(sources, profile)
        profile.storage = read_storage(sources, model_root, unknown)
        if not sources.live and profile.storage.mount_point is None:
            from . import lsblk

            lsblk.read_storage(sources, profile.storage, unknown)
        origin.update(
            {
                "cpu": "/proc/cpuinfo, /sys/devices/system/cpu, control groups",
                "memory": "/proc/meminfo, control groups",
                "storage": "/proc/self/mountinfo, /sys/class/block, statvfs",
                "os": "/etc/os-release, /proc, /sys/class/dmi, /sys/firmware/efi",
            }
        )
    for name, reason in unknown.items():
        if any(path in reason for path in sources.denied):
            unknown[name] = f"{reason}: it needs root"
    if sources.live:
        profile.python = PythonInterpreter(".".join(str(part) for part in sys.version_info[:3]), sys.executable)
        profile.account = read_account(unknown)
    else:
        for name in ("python.version", "python.executable", *(f"account.{key}" for key in vars(profile.account))):
            unknown[name] = REPLAYED
    return profile


def is_mac(sources: Sources, platform: str) -> bool:
    """Tell whether the machine is a Mac: the platform that this process runs on, or what a record holds."""
    if sources.live:
        return platform == "darwin"
    from . import macos

    return macos.is_recorded(sources)


def read_gpus(sources: Sources, profile: HardwareProfile) -> None:
    """Fill in the GPUs of a Linux host and the state of their driver."""
    displays, bus = read_bus(sources)
    if displays == [] and not has_signs(sources):
        return
    # A module is compiled anew each time that Ansible runs it: what only a GPU needs is left alone without one.
    from .accelerators import read_accelerators
    from .driver_state import read_driver_state

    kernel, unknown = profile.os.kernel, profile.unknown
    found = read_accelerators(sources, displays, bus, kernel, unknown, profile.sources)
    profile.accelerators = found.items
    profile.accelerator_driver = state = read_driver_state(sources, found.items, unknown)
    if state is not None and state.vendor == "amd":
        state.slow = state.slow or found.amd_is_slow
    add_smi(profile, found.smi)


def add_smi(profile: HardwareProfile, smi: "Optional[SmiReport]") -> None:
    """Add to the driver's state what only asking nvidia-smi shows: that it hangs, or refuses the loaded module."""
    state = profile.accelerator_driver
    if state is None or smi is None or state.vendor != "nvidia":
        return
    state.slow = state.slow or smi.slow
    if smi.mismatch:
        state.mismatch = True
        profile.unknown.pop("accelerator_driver.mismatch", None)
    if state.library_version is None and smi.library_version is not None:
        state.library_version = smi.library_version
        profile.unknown.pop("accelerator_driver.library_version", None)
