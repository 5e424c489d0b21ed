"""Which of NVIDIA's drivers a card takes, by its compute capability or, before any driver, by its PCI device id.

Open kernel modules need Turing or newer, Blackwell takes no other; Maxwell, Pascal and Volta need the proprietary
ones, and R580 is the last branch that is kept up for them; Kepler ended with R470.
Sources: README of https://github.com/NVIDIA/open-gpu-kernel-modules; NVIDIA driver README, "Supported Products" and
"Open Linux Kernel Modules"; compute capabilities: https://developer.nvidia.com/cuda-gpus; device ids by chip:
https://pci-ids.ucw.cz (display functions; Kepler ends at 12ba, Maxwell begins at 1340, Volta ends at 1df6,
Turing begins at 1e02, Ada ends at 28e1, Blackwell begins at 2901).
"""

import re
from typing import Any, Iterable, Mapping, Optional, Set

OLDER, PROPRIETARY_ONLY, EITHER, OPEN_ONLY = "older", "proprietary", "either", "open"
LAST_BRANCH_PROPRIETARY_ONLY = 580
LAST_BRANCH_OLDER = 470
NVIDIA_PCI_VENDOR = "10de"
FIRST_CAPABILITY = ((10, 0, OPEN_ONLY), (7, 5, EITHER), (5, 0, PROPRIETARY_ONLY))
FIRST_DEVICE_ID = ((0x2900, OPEN_ONLY), (0x1E00, EITHER), (0x1340, PROPRIETARY_ONLY))


def flavour_of_capability(capability: str) -> Optional[str]:
    """Return what a compute capability such as ``8.6`` takes, None where the text is none."""
    match = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", capability, re.ASCII)
    if match is None:
        return None
    found = (int(match.group(1)), int(match.group(2)))
    return next((flavour for major, minor, flavour in FIRST_CAPABILITY if found >= (major, minor)), OLDER)


def flavour_of_device(device_id: str) -> Optional[str]:
    """Return what the card with a PCI device id such as ``2684`` takes, None where the text is no such id."""
    match = re.fullmatch(r"(?:0x)?([0-9a-f]{4})", device_id.lower(), re.ASCII)
    if match is None:
        return None
    found = int(match.group(1), 16)
    return next((flavour for first, flavour in FIRST_DEVICE_ID if found >= first), OLDER)


def flavour_of_card(accelerator: Mapping[str, Any]) -> Optional[str]:
    """Return open, proprietary, either or older for one of a profile's accelerators, None where nothing tells."""
    capability = accelerator.get("compute_capability")
    flavour = flavour_of_capability(capability) if isinstance(capability, str) else None
    pci = accelerator.get("pci")
    if flavour is None and isinstance(pci, Mapping) and pci.get("vendor_id") == NVIDIA_PCI_VENDOR:
        flavour = flavour_of_device(str(pci.get("device_id")))
    return flavour


def flavour_of_machine(accelerators: Iterable[Mapping[str, Any]]) -> Optional[str]:
    """Return the one flavour that serves all NVIDIA cards of a machine.

    ``mixed`` where none does, None where there is no such card or nothing tells.
    """
    found: Set[Optional[str]] = {flavour_of_card(one) for one in accelerators if one.get("vendor") == "nvidia"}
    told = {flavour for flavour in found if flavour is not None}
    strict = told - {EITHER}
    if len(strict) > 1:
        return "mixed"
    return next(iter(strict or told), None)
