"""The probe: reads a machine, or the record of one, into a HardwareProfile."""

import os
import pwd
import sys
from datetime import datetime, timezone
from typing import Dict

from . import macos
from .cpu import read_cpu
from .memory import read_memory
from .pci import read_accelerators
from .profile import Account, HardwareProfile, PythonInterpreter
from .sources import Reader, Runner, run_command
from .storage import read_storage
from .system import read_system

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
    model_root: str, root: str = "/", runner: Runner = run_command, platform: str = sys.platform
) -> HardwareProfile:
    """Return what is known of the machine, or of the recorded tree under ``root``.

    ``model_root`` is the absolute path whose file system is described; it need
    not exist. Needs no privileges, starts no process on Linux and raises
    nothing: what cannot be read is in the profile's ``unknown``.
    """
    reader = Reader(root)
    profile = HardwareProfile(probed_at=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"))
    unknown = profile.unknown
    machine = os.uname().machine if reader.live else None
    if reader.live and platform == "darwin":
        hardware = macos.read_hardware(runner, machine, unknown)
        profile.cpu, profile.memory, profile.os, profile.accelerators = hardware
        profile.storage = macos.read_storage(model_root, unknown)
    else:
        profile.cpu = read_cpu(reader, machine, unknown)
        profile.memory = read_memory(reader, unknown)
        profile.os = read_system(reader, unknown)
        profile.accelerators = read_accelerators(reader, unknown)
        profile.storage = read_storage(reader, model_root, unknown)
    if reader.live:
        profile.python = PythonInterpreter(".".join(str(part) for part in sys.version_info[:3]), sys.executable)
        profile.account = read_account(unknown)
    else:
        for name in ("python.version", "python.executable", *(f"account.{key}" for key in vars(profile.account))):
            unknown[name] = REPLAYED
    return profile
