"""The package manager's state, as far as a driver's installation meets it: held, half-configured, locked.

dpkg's status file and its words: https://manpages.debian.org/dpkg-query (section on the status fields)
Locks as the kernel lists them: https://docs.kernel.org/filesystems/proc.html (/proc/locks) and proc(5)
dnf's version lock: https://dnf-plugins-core.readthedocs.io/en/latest/versionlock.html,
dnf5's: https://dnf5.readthedocs.io/en/latest/dnf5_plugins/versionlock.8.html
"""

import os
import re
from typing import Dict, List, Optional, Tuple

from .profile import PackageState
from .sources import Reader

DPKG_STATUS = "/var/lib/dpkg/status"
# The first that exists says which manager this is; all of its locks are looked at.
DPKG_LOCKS = ("/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock", "/var/lib/apt/lists/lock")
RPM_LOCKS = ("/usr/lib/sysimage/rpm/.rpm.lock", "/var/lib/rpm/.rpm.lock")
RPM_DATABASES = ("/usr/lib/sysimage/rpm", "/var/lib/rpm")
VERSION_LOCKS = ("/etc/dnf/plugins/versionlock.list", "/etc/dnf/versionlock.toml")
# Only these stand in a driver's way; a held browser does not.
DRIVER_PACKAGES = re.compile(
    r"(?:lib|xserver-xorg-video-|kmod-)?(?:nvidia|cuda|rocm|amdgpu)|libcuda|dkms$|linux-(?:image|headers|modules)|"
    r"kernel(?:$|-core|-devel|-headers|-modules)"
)
SETTLED = ("installed", "not-installed", "config-files")


def parse_dpkg_status(text: str) -> Tuple[List[str], List[str]]:
    """Return the names of held and of half-installed or half-configured packages, each list sorted.

    A half-configured package is listed whatever its name: dpkg goes on with nothing else before it.
    """
    held, unsettled = set(), set()
    for match in re.finditer(r"^Package: (\S+)\n(?:[^\n]+\n)*?Status: (\S+) (\S+) (\S+)$", text, re.MULTILINE):
        name, want, _, state = match.groups()
        if want == "hold" and DRIVER_PACKAGES.match(name):
            held.add(name)
        if state not in SETTLED:
            unsettled.add(name)
    return sorted(held), sorted(unsettled)


def parse_version_locks(text: str) -> List[str]:
    """Return the sorted names of locked packages from dnf's list or from dnf5's TOML."""
    names = set()
    for line in text.splitlines():
        named = re.match(r'\s*name\s*=\s*"([^"]+)"', line)
        # NAME-EPOCH:VERSION-RELEASE.ARCH; a leading "!" excludes a version, which holds nothing.
        listed = re.match(r"\s*([A-Za-z0-9][\w.+-]*?)-(?:\d+:|\d|\*)", line)
        match = named or listed
        if match is not None and DRIVER_PACKAGES.match(match.group(1)):
            names.add(match.group(1))
    return sorted(names)


def parse_locks(text: str) -> List[Tuple[int, int, int]]:
    """Return device (major, minor) and inode of every lock for writing in /proc/locks, those waited for excepted."""
    found = []
    for line in text.splitlines():
        match = re.match(
            r"\d+:\s+\S+\s+\S+\s+WRITE\s+-?\d+\s+([0-9a-f]{1,8}):([0-9a-f]{1,8}):(\d{1,20})\s", line, re.ASCII
        )
        if match is not None:
            found.append((int(match.group(1), 16), int(match.group(2), 16), int(match.group(3))))
    return found


def is_locked(reader: Reader, paths: Tuple[str, ...]) -> Optional[bool]:
    """Tell whether a process holds a lock on one of ``paths``; None where /proc/locks cannot be read.

    Opening the lock files takes root; their inodes and /proc/locks do not.
    """
    text = reader.read("/proc/locks")
    if text is None:
        return None
    locks = parse_locks(text)
    for path in paths:
        try:
            entry = os.lstat(reader.root + path)
        except OSError:
            continue
        major, minor = os.major(entry.st_dev), os.minor(entry.st_dev)
        for lock_major, lock_minor, inode in locks:
            # btrfs and overlayfs show another anonymous device (major 0) here than stat does.
            if inode == entry.st_ino and ((lock_major, lock_minor) == (major, minor) or major == 0):
                return True
    return False


def read_package_state(reader: Reader, unknown: Dict[str, str], prefix: str) -> PackageState:
    """Return the package manager's state; what is unknown goes into ``unknown`` under ``prefix``."""
    state = PackageState()
    status = reader.read(DPKG_STATUS)
    if status is not None:
        state.manager = "dpkg"
        state.held, state.half_configured = parse_dpkg_status(status)
        state.locked = is_locked(reader, DPKG_LOCKS)
    elif any(reader.exists(path) for path in RPM_DATABASES):
        state.manager = "rpm"
        texts = [reader.read(path) or "" for path in VERSION_LOCKS]
        state.held = sorted({name for text in texts for name in parse_version_locks(text)})
        state.locked = is_locked(reader, RPM_LOCKS)
    else:
        for name in ("manager", "locked"):
            unknown[f"{prefix}.{name}"] = "neither dpkg nor rpm is found"
        return state
    if state.locked is None:
        unknown[f"{prefix}.locked"] = "/proc/locks cannot be read"
    return state
