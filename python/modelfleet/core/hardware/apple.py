"""The GPUs of a Mac: Apple's own, which have main memory, and the cards of Intel Macs.

From ``system_profiler SPDisplaysDataType -json``; how much of main memory a GPU
may wire down is ``iogpu.wired_limit_mb`` of sysctl, where 0 stands for the
system's own rule, which only Metal tells.
"""

import re
from typing import Any, Dict, List, Optional

from ..errors import HardwareOutputError
from .facts import Facts, find_json, hexadecimal, known, size, whole
from .pci import DISPLAY_ONLY_VENDORS, VENDORS

SYSTEM_PROFILER = ("/usr/sbin/system_profiler", "SPDisplaysDataType", "-json")
TIMEOUT_SECONDS = 15.0
WIRED_LIMIT = ("iogpu.wired_limit_mb", "debug.iogpu.wired_limit")
MAKERS = {"nvidia": "10de", "amd": "1002", "ati": "1002", "intel": "8086", "apple": "106b"}


def vendor_id_of(entry: Dict[str, Any]) -> Optional[str]:
    """Return the PCI vendor id: written as such, in brackets behind a name, alone, or before the model's."""
    for name in ("spdisplays_vendor-id", "spdisplays_vendor_id"):
        found = hexadecimal(entry.get(name))
        if found is not None:
            return found
    words = known(entry.get("spdisplays_vendor")) or ""
    match = re.search(r"\(0x([0-9a-fA-F]{4})\)", words)
    if match is not None:
        return match.group(1).lower()
    maker = re.sub(r"^sppci_vendor_", "", words).lower()
    model = (known(entry.get("sppci_model")) or known(entry.get("_name")) or "").lower()
    for text in (maker, model):
        for name, number in MAKERS.items():
            if re.match(rf"{name}\b", text):
                return number
    # A Radeon of the time when the maker's name was not part of it.
    return MAKERS["amd"] if model.startswith("radeon") else None


def entry_facts(entry: Dict[str, Any]) -> Facts:
    """Return the facts of one GPU; ``vendor`` is the profile's word for its maker."""
    vendor_id = vendor_id_of(entry)
    name = known(entry.get("sppci_model")) or known(entry.get("_name"))
    vendor = VENDORS.get(vendor_id or "", "other")
    support = known(entry.get("spdisplays_mtlgpufamilysupport")) or known(entry.get("spdisplays_metal")) or ""
    metal = re.fullmatch(r"(?:spdisplays_metal|metal )?(\d{1,2})", support.lower(), re.ASCII)
    facts: Facts = {
        "vendor": vendor,
        "name": name,
        "runtime_version": f"Metal {metal.group(1)}" if metal else None,
    }
    if vendor == "apple":
        facts["memory.unified"] = True
        return facts
    own, shared = (
        size(known(entry.get(f"spdisplays_{kind}")) or known(entry.get(f"_spdisplays_{kind}")))
        for kind in ("vram", "vram_shared")
    )
    facts["memory.unified"] = True if shared is not None and own is None else (False if own is not None else None)
    facts["memory.total_bytes"] = own
    facts["pci.vendor_id"] = vendor_id
    facts["pci.device_id"] = hexadecimal(entry.get("spdisplays_device-id") or entry.get("spdisplays_device_id"))
    facts["pcie.width_now"] = whole(entry.get("spdisplays_pcie_width"))
    return facts


def parse_displays(text: str) -> List[Facts]:
    """Return the GPUs of ``system_profiler SPDisplaysDataType -json``.

    Raises HardwareOutputError where it is no such JSON.
    """
    document = find_json(text)
    entries = document.get("SPDisplaysDataType") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise HardwareOutputError("the output of system_profiler has no SPDisplaysDataType")
    found: List[Facts] = []
    for entry in entries:
        if not isinstance(entry, dict) or vendor_id_of(entry) in DISPLAY_ONLY_VENDORS:
            continue
        kind = known(entry.get("sppci_device_type"))
        named = any(name in entry for name in ("sppci_model", "spdisplays_vendor", "spdisplays_vram", "sppci_cores"))
        if kind in (None, "spdisplays_gpu") and named:
            found.append(entry_facts(entry))
    return found


def wired_limit(values: Dict[str, str]) -> Optional[int]:
    """Return the bytes that a GPU may wire down by sysctl's ``values``; None where the system's own rule holds."""
    for name in WIRED_LIMIT:
        limit = whole(values.get(name))
        if limit:
            # The older of the two counts in bytes.
            return limit * 1024**2 if name.endswith("_mb") else limit
    return None
