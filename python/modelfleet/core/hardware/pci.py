"""Display controllers on the PCI bus, from sysfs: they are there before any driver is.

Class codes: https://pcisig.com "PCI Code and ID Assignment": 03 display controller,
12 processing accelerator (the class of AMD's MI300).
Vendor ids: https://pci-ids.ucw.cz
"""

import re
from typing import Dict, List, Optional

from .profile import Accelerator, PciFunction
from .sources import Reader

PCI_DEVICES = "/sys/bus/pci/devices"
VENDORS = {"10de": "nvidia", "1002": "amd", "8086": "intel", "106b": "apple", "1ed5": "moore threads"}
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
    "1af4": "virtio",
    "1b36": "Red Hat QXL",
    "80ee": "VirtualBox",
}
# Class 12 is also that of neural and cryptographic coprocessors: only these makers' are GPUs.
COMPUTE_VENDORS = ("10de", "1002")
DRIVER_QUERY = "part of the driver query, which this release does not make"


def parse_id(text: Optional[str], digits: int = 4) -> Optional[str]:
    """Return a sysfs id such as ``0x10de`` as ``10de``, None where it is no such id."""
    match = re.fullmatch(rf"(?:0x)?([0-9a-f]{{{digits}}})", (text or "").strip().lower())
    return match.group(1) if match else None


def is_accelerator(class_id: str, vendor_id: str) -> bool:
    """True for a GPU: a display controller that is no mere console, or a compute-only card."""
    if class_id.startswith("03"):
        return vendor_id not in DISPLAY_ONLY_VENDORS
    return class_id.startswith("12") and vendor_id in COMPUTE_VENDORS


def read_accelerators(reader: Reader, unknown: Dict[str, str]) -> List[Accelerator]:
    """Return the GPUs on the PCI bus in the order of their addresses."""
    found: List[Accelerator] = []
    addresses = reader.list(PCI_DEVICES)
    # A live machine without a PCI bus has no such directory; a record without it does not tell.
    if not addresses and not (reader.live and reader.exists("/sys/bus")):
        unknown["accelerators"] = f"{PCI_DEVICES} cannot be read"
    for address in addresses:
        directory = f"{PCI_DEVICES}/{address}"
        class_id = parse_id(reader.read(f"{directory}/class"), 6)
        # Most functions are bridges and controllers: one read settles that.
        if class_id is None or class_id[:2] not in ("03", "12"):
            continue
        vendor_id = parse_id(reader.read(f"{directory}/vendor"))
        device_id = parse_id(reader.read(f"{directory}/device"))
        if vendor_id is None or device_id is None or not is_accelerator(class_id, vendor_id):
            continue
        prefix = f"accelerators.{len(found)}"
        pci = PciFunction(
            address=address,
            class_id=class_id,
            vendor_id=vendor_id,
            device_id=device_id,
            subsystem_vendor_id=parse_id(reader.read(f"{directory}/subsystem_vendor")),
            subsystem_device_id=parse_id(reader.read(f"{directory}/subsystem_device")),
        )
        for name in ("subsystem_vendor_id", "subsystem_device_id"):
            if getattr(pci, name) is None:
                unknown[f"{prefix}.pci.{name}"] = f"{directory} does not tell"
        unknown[f"{prefix}.name"] = DRIVER_QUERY
        unknown[f"{prefix}.memory_total_bytes"] = DRIVER_QUERY
        found.append(
            Accelerator(
                vendor=VENDORS.get(vendor_id, f"pci vendor {vendor_id}"),
                pci=pci,
                driver=reader.link_name(f"{directory}/driver"),
            )
        )
    return found
