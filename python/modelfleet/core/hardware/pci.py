"""Display controllers on the PCI bus: they are there before any driver is.

From sysfs, or where a record has no /sys, from ``lspci -nnmmv``.
Class codes: https://pcisig.com "PCI Code and ID Assignment": 03 display controller,
12 processing accelerator (the class of AMD's MI300).
Vendor ids: https://pci-ids.ucw.cz
"""

import posixpath
import re
from typing import Dict, List, NamedTuple, Optional, Tuple

from .facts import Facts, generation_of, pci_address, whole
from .sources import OK, Reader, Sources

PCI_DEVICES = "/sys/bus/pci/devices"
LSPCI = ("lspci", "-nnmmv")
LSPCI_TIMEOUT_SECONDS = 5.0
VENDORS = {"10de": "nvidia", "1002": "amd", "8086": "intel", "106b": "apple"}
OTHER = "other"
# A console and nothing more: the display chip of a server's management controller, or a hypervisor's.
DISPLAY_ONLY_VENDORS = {
    "1013": "Cirrus Logic, emulated",
    "102b": "Matrox, of a management controller",
    "1039": "SiS",
    "1234": "QEMU",
    "126f": "Silicon Motion",
    "1414": "Microsoft Hyper-V",
    "15ad": "VMware",
    "18ca": "XGI",
    "19e5": "Huawei, of a management controller",
    "1a03": "ASPEED, of a management controller",
    "1ab8": "Parallels",
    "1af4": "virtio",
    "1b36": "Red Hat QXL",
    "80ee": "VirtualBox",
}
# ATI's Rage XL and ES1000, which servers had for a console.
DISPLAY_ONLY_DEVICES = {"1002": ("4752", "515e", "5969")}
# Class 12 is also that of neural and cryptographic coprocessors: only these makers' are GPUs.
COMPUTE_VENDORS = ("10de", "1002")
# Where there are GPUs of NVIDIA's though no PCI bus shows them: containers, WSL, boards with a GPU in the processor.
SIGNS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg", "/proc/device-tree/compatible")

# The switch on an AMD card, behind which the GPU always has its full link: what counts is the switch's own.
AMD_UPSTREAM_PORT = "1478"
AMD_SWITCH_PORTS = (AMD_UPSTREAM_PORT, "1479")
NO_WIDTH = (0, 255)


class PciDisplay(NamedTuple):
    """A display controller: where it is, what it is, and what lspci calls it."""

    facts: Facts
    vendor: str
    driver: Optional[str] = None
    name: Optional[str] = None


def parse_id(text: Optional[str], digits: int = 4) -> Optional[str]:
    """Return a sysfs id such as ``0x10de`` as ``10de``, None where it is no such id."""
    match = re.fullmatch(rf"(?:0x)?([0-9a-f]{{{digits}}})", (text or "").strip().lower())
    return match.group(1) if match else None


def is_accelerator(class_id: str, vendor_id: str, device_id: str = "") -> bool:
    """True for a GPU: a display controller that is no mere console, or a compute-only card."""
    if device_id in DISPLAY_ONLY_DEVICES.get(vendor_id, ()):
        return False
    if class_id.startswith("03"):
        return vendor_id not in DISPLAY_ONLY_VENDORS
    return class_id.startswith("12") and vendor_id in COMPUTE_VENDORS


def parse_lspci(text: str) -> List[Dict[str, str]]:
    """Return the records of ``lspci -nnmmv`` (or ``-nnvmm``): one dictionary of its keys for each function."""
    records: List[Dict[str, str]] = []
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if not colon or not key.strip():
            continue
        # Old versions have both the slot and the name under "Device".
        if key == "Slot" or (key == "Device" and pci_address(value)):
            records.append({"Slot": value.strip()})
        elif records:
            records[-1].setdefault(key.strip(), value.strip())
    return records


def named_id(text: Optional[str]) -> Optional[str]:
    """Return the id of lspci's ``Intel Corporation [8086]``, None where it has none."""
    match = re.search(r"\[([0-9a-fA-F]{4})\]$", text or "")
    return match.group(1).lower() if match else None


def display_name(text: Optional[str]) -> Optional[str]:
    """Return the name of lspci's ``GA102 [GeForce RTX 3080] [2206]`` without the id."""
    return re.sub(r"\s*\[[0-9a-fA-F]{4}\]$", "", text or "").strip() or None


def lspci_displays(text: str) -> List[PciDisplay]:
    """Return the GPUs among the records of ``lspci -nnmmv``."""
    found: List[PciDisplay] = []
    for record in parse_lspci(text):
        class_id, vendor_id, device_id = (named_id(record.get(name)) for name in ("Class", "Vendor", "Device"))
        address = pci_address(record["Slot"])
        if address is None or class_id is None or vendor_id is None or device_id is None:
            continue
        if not is_accelerator(class_id, vendor_id, device_id):
            continue
        facts: Facts = {
            "pci.address": address,
            # lspci leaves out an interface of 00.
            "pci.class_id": class_id + (parse_id(record.get("ProgIf"), 2) or "00"),
            "pci.vendor_id": vendor_id,
            "pci.device_id": device_id,
            "pci.subsystem_vendor_id": named_id(record.get("SVendor")),
            "pci.subsystem_device_id": named_id(record.get("SDevice")),
        }
        vendor = VENDORS.get(vendor_id, OTHER)
        found.append(PciDisplay(facts, vendor, record.get("Driver"), display_name(record.get("Device"))))
    return found


def sysfs_displays(reader: Reader, addresses: List[str]) -> List[PciDisplay]:
    """Return the GPUs among the functions that sysfs has, in the order of their addresses."""
    found: List[PciDisplay] = []
    for address in addresses:
        directory = f"{PCI_DEVICES}/{address}"
        class_id = parse_id(reader.read(f"{directory}/class"), 6)
        # Most functions are bridges and controllers: one read settles that.
        if class_id is None or class_id[:2] not in ("03", "12"):
            continue
        vendor_id = parse_id(reader.read(f"{directory}/vendor"))
        device_id = parse_id(reader.read(f"{directory}/device"))
        if vendor_id is None or device_id is None or not is_accelerator(class_id, vendor_id, device_id):
            continue
        facts: Facts = {
            "pci.address": address,
            "pci.class_id": class_id,
            "pci.vendor_id": vendor_id,
            "pci.device_id": device_id,
            "pci.subsystem_vendor_id": parse_id(reader.read(f"{directory}/subsystem_vendor")),
            "pci.subsystem_device_id": parse_id(reader.read(f"{directory}/subsystem_device")),
        }
        driver = reader.link_name(f"{directory}/driver")
        found.append(PciDisplay(facts, VENDORS.get(vendor_id, OTHER), driver))
    return found


def lspci_names(sources: Sources) -> Dict[str, str]:
    """Return what lspci calls the GPUs, by their addresses; nothing where there is no lspci."""
    result = sources.run(LSPCI, LSPCI_TIMEOUT_SECONDS)
    if result.status != OK:
        return {}
    return {display.facts["pci.address"]: display.name for display in lspci_displays(result.output) if display.name}


def link_directory(reader: Reader, address: str) -> str:
    """Return the sysfs directory of the function whose link reaches the slot: the card's own switch, if it has one."""
    directory = f"{PCI_DEVICES}/{address}"
    place = reader.link_target(directory)
    while place is not None:
        place = posixpath.dirname(place)
        is_amd = parse_id(reader.read(f"{place}/vendor")) == "1002"
        device = parse_id(reader.read(f"{place}/device")) if is_amd else None
        if device not in AMD_SWITCH_PORTS:
            break
        directory = place
    return directory


def read_link(reader: Reader, directory: str, name: str = "pcie") -> Facts:
    """Return the PCI Express link of the function at the sysfs ``directory``; kernels write 0 or 255 for no width."""
    facts: Facts = {}
    for when, part in (("current", "now"), ("max", "max")):
        facts[f"{name}.generation_{part}"] = generation_of(reader.read_line(f"{directory}/{when}_link_speed"))
        width = whole(reader.read_line(f"{directory}/{when}_link_width"))
        facts[f"{name}.width_{part}"] = None if width in NO_WIDTH else width
    return facts


def read_bus(sources: Sources) -> Tuple[Optional[List[PciDisplay]], str]:
    """Return the display controllers and where they were read; None where nothing tells of the bus."""
    addresses = sources.list(PCI_DEVICES)
    # A live machine without a PCI bus has no such directory; a record without it does not tell.
    if addresses or (sources.live and sources.exists("/sys/bus")):
        return sysfs_displays(sources, addresses), PCI_DEVICES
    result = sources.run(LSPCI, LSPCI_TIMEOUT_SECONDS)
    if result.status == OK and result.output.strip():
        return lspci_displays(result.output), " ".join(LSPCI)
    return None, ""


def has_signs(reader: Reader) -> bool:
    """True where something but the PCI bus says that there is an NVIDIA GPU."""
    if any(reader.exists(path) for path in SIGNS[:-1]):
        return True
    return "nvidia,tegra" in (reader.read(SIGNS[-1]) or "")
