"""The operating system, and whether it runs in a container or a virtual machine.

os-release: https://www.freedesktop.org/software/systemd/man/latest/os-release.html
Containers: https://systemd.io/CONTAINER_INTERFACE
"""

import re
from typing import Dict, Optional

from .profile import OperatingSystem
from .sources import Reader

# Distributions by what they are derived from; os-release's ID_LIKE tells it for those not named here.
FAMILIES = {
    "debian": "debian",
    "ubuntu": "debian",
    "rhel": "redhat",
    "fedora": "redhat",
    "centos": "redhat",
    "rocky": "redhat",
    "almalinux": "redhat",
    "amzn": "redhat",
    "ol": "redhat",
    "suse": "suse",
    "opensuse": "suse",
    "sles": "suse",
    "arch": "arch",
    "alpine": "alpine",
    "gentoo": "gentoo",
    "nixos": "nixos",
}
# Substrings of the firmware's maker and product, as systemd-detect-virt takes them.
HYPERVISORS = (
    ("KVM", "kvm"),
    ("OpenStack", "kvm"),
    ("KubeVirt", "kvm"),
    ("Amazon EC2", "kvm"),
    ("Google Compute Engine", "kvm"),
    ("QEMU", "qemu"),
    ("VMware", "vmware"),
    ("VirtualBox", "virtualbox"),
    ("innotek GmbH", "virtualbox"),
    ("Parallels", "parallels"),
    ("Xen", "xen"),
    ("Apple Virtualization", "apple"),
    ("Microsoft Corporation Virtual Machine", "hyperv"),
)


def parse_os_release(text: str) -> Dict[str, str]:
    """Return the assignments of /etc/os-release, quotes removed."""
    fields: Dict[str, str] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"\s*([A-Z][A-Z0-9_]*)=(.*)", line, re.ASCII)
        if match is not None:
            value = match.group(2).strip()
            if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
                value = re.sub(r'\\([\\"$`])', r"\1", value[1:-1])
            fields[match.group(1)] = value
    return fields


def family_of(release: Dict[str, str]) -> Optional[str]:
    """Return the family of a distribution by its id, else by what it says that it is like."""
    for name in [release.get("ID", ""), *release.get("ID_LIKE", "").split()]:
        family = FAMILIES.get(name.lower()) or FAMILIES.get(name.lower().split("-")[0])
        if family is not None:
            return family
    return None


def kernel_from_version(text: str) -> Optional[str]:
    """Return the release from /proc/version: ``Linux version 6.1.0-13-amd64 (...)``."""
    match = re.match(r"Linux version (\S+)", text)
    return match.group(1) if match else None


def read_container(reader: Reader, kernel: Optional[str]) -> Optional[str]:
    """Return the name of the engine whose container this is, None outside of one."""
    named = reader.read_line("/run/systemd/container")
    if named is not None:
        return named
    if kernel is not None and "microsoft" in kernel.lower():
        return "wsl"
    if reader.exists("/run/.containerenv"):
        return "podman"
    if reader.exists("/.dockerenv"):
        return "docker"
    # Only root may read this one; it is the engine's own word, kept for last as it is seldom the only one.
    match = re.search(r"(?:^|\0)container=([\w.-]+)", reader.read("/proc/1/environ") or "")
    return match.group(1) if match else None


def hypervisor_of(firmware: str) -> Optional[str]:
    """Return the hypervisor that the firmware's maker and product name, None where they name none."""
    for words, name in HYPERVISORS:
        if words in firmware:
            return name
    return None


def read_virtual_machine(reader: Reader, system: OperatingSystem, unknown: Dict[str, str]) -> None:
    """Fill in whether this is a virtual machine, and of which hypervisor."""
    directory = "/sys/class/dmi/id"
    words = (reader.read_line(f"{directory}/{name}") for name in ("sys_vendor", "product_name", "bios_vendor"))
    hypervisor = hypervisor_of(" ".join(word for word in words if word is not None))
    flags = re.search(r"^flags\s*:(.*)$", reader.read("/proc/cpuinfo") or "", re.MULTILINE)
    if flags is not None:
        # x86: the hypervisor sets this bit; Amazon's machines without one carry the same firmware strings.
        system.virtual_machine = "hypervisor" in flags.group(1).split()
    elif hypervisor is not None or reader.exists("/proc/device-tree/hypervisor"):
        system.virtual_machine = True
    elif reader.exists(directory):
        system.virtual_machine = False
    else:
        unknown["os.virtual_machine"] = unknown["os.hypervisor"] = "neither processor nor firmware tells"
    if system.virtual_machine:
        system.hypervisor = hypervisor or reader.read_line("/sys/hypervisor/type")
        if system.hypervisor is None:
            unknown["os.hypervisor"] = "the firmware does not name it"


def read_secure_boot(reader: Reader) -> Optional[bool]:
    """Return whether the firmware checks signatures at boot, None where it cannot be told. A BIOS cannot."""
    directory = "/sys/firmware/efi"
    # Four bytes of attributes come before the value.
    variable = reader.read(f"{directory}/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c")
    if variable is not None and len(variable) == 5:
        return variable[4] == "\x01"
    if reader.exists("/sys/firmware") and not reader.exists(directory):
        return False
    return None


def read_init(reader: Reader) -> Optional[str]:
    """Return the init system: systemd where it is in charge, else the name of the first process."""
    return "systemd" if reader.exists("/run/systemd/system") else reader.read_line("/proc/1/comm")


def read_system(reader: Reader, unknown: Dict[str, str]) -> OperatingSystem:
    """Return the operating system of a Linux host."""
    text = reader.read("/etc/os-release")
    text = reader.read("/usr/lib/os-release") if text is None else text
    release = parse_os_release(text or "")
    kernel = reader.read_line("/proc/sys/kernel/osrelease") or kernel_from_version(reader.read("/proc/version") or "")
    system = OperatingSystem(
        family=family_of(release),
        distribution=release.get("ID"),
        version=release.get("VERSION_ID"),
        kernel=kernel,
        boot_id=reader.read_line("/proc/sys/kernel/random/boot_id"),
        init=read_init(reader),
        container=read_container(reader, kernel),
    )
    system.secure_boot = read_secure_boot(reader)
    # A rolling distribution (Debian testing, Arch) has no VERSION_ID.
    reasons = {
        "family": "/etc/os-release cannot be read" if text is None else "/etc/os-release names no known family",
        "distribution": "/etc/os-release does not tell",
        "version": "/etc/os-release does not tell",
        "kernel": "/proc/sys/kernel/osrelease cannot be read",
        "boot_id": "/proc/sys/kernel/random/boot_id cannot be read",
        "init": "/proc/1/comm cannot be read",
        "secure_boot": "the firmware's variables cannot be read",
    }
    for name, reason in reasons.items():
        if getattr(system, name) is None:
            unknown[f"os.{name}"] = reason
    if not reader.live and system.container is None:
        unknown["os.container"] = "the record does not tell"
    read_virtual_machine(reader, system, unknown)
    return system
