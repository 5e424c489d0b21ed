"""Facts about GPUs on their way from a source into the profile.

A parser returns for each GPU a flat dictionary: the dotted name of a field of
Accelerator (``memory.total_bytes``) and its value. ``apply`` fills in what is
not known yet, so sources are applied in the order in which they are trusted.
"""

import json
import math
import re
from typing import Any, Dict, List, Optional

from ..errors import HardwareOutputError
from .profile import Accelerator, Mig, PcieLink, PciFunction
from .sources import READ_LIMIT_BYTES

Facts = Dict[str, Any]

UNITS = {"": 1, "b": 1, "kb": 1024, "kib": 1024, "mb": 1024**2, "mib": 1024**2, "gb": 1024**3, "gib": 1024**3}
# Words of tools for what they do not know; anything in brackets is one, too: [N/A], [GPU requires reset].
NOT_KNOWN = ("", "n/a", "na", "none", "null", "unknown", "not supported", "not available", "unknown error", "err!")
DEPRECATED = "requested functionality has been deprecated"
# GT/s of a lane by PCI Express generation.
SPEEDS = {"2.5": 1, "5": 2, "8": 3, "16": 4, "32": 5, "64": 6}
LONGEST_NUMBER = 24
JSON_ATTEMPTS = 200
JSON_DEPTH = 64


def known(value: object) -> Optional[str]:
    """Return a tool's word as text, None where it says that it does not know."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    text = " ".join(str(value).split())
    lowered = text.lower()
    if lowered in NOT_KNOWN or lowered == DEPRECATED or (text.startswith("[") and text.endswith("]")):
        return None
    return text


def number(value: object) -> Optional[float]:
    """Return a number, also one written as text with a unit behind it (``500.00 W``, ``16x``), else None."""
    text = known(value)
    match = re.match(r"[x(]?\s*(\d+(?:\.\d+)?)(?![\w.]*\d)", text or "", re.ASCII)
    if match is None or len(match.group(1)) > LONGEST_NUMBER:
        return None
    found = float(match.group(1))
    return found if math.isfinite(found) else None


def whole(value: object) -> Optional[int]:
    """Return a whole number of zero or more, else None."""
    text = known(value)
    match = re.match(r"x?(\d+)(?:\.0+)?(?!\.?\d|x[0-9a-f])", text or "", re.ASCII)
    return int(match.group(1)) if match is not None and len(match.group(1)) <= LONGEST_NUMBER else None


def size(value: object, unit: str = "b") -> Optional[int]:
    """Return the bytes of ``81920 MiB``, or of a bare number in ``unit``; None where it is neither.

    The tools write MB and GB and mean MiB and GiB.
    """
    match = re.fullmatch(r"(\d{1,18})(\.\d{1,9})?\s*([A-Za-z]*)", known(value) or "", re.ASCII)
    if match is None:
        return None
    factor = UNITS.get((match.group(3) or unit).lower())
    if factor is None:
        return None
    return int(match.group(1)) * factor + int(float("0" + (match.group(2) or ".0")) * factor)


def generation_of(speed: object) -> Optional[int]:
    """Return the PCI Express generation of a lane's speed (``16.0 GT/s PCIe``), None where it is none."""
    found = number(speed)
    return SPEEDS.get(f"{found:g}") if found is not None else None


def hexadecimal(value: object, digits: int = 4) -> Optional[str]:
    """Return an id such as ``0x10DE`` as ``digits`` digits in lower case, None where it is none."""
    match = re.fullmatch(r"(?:0x)?([0-9a-f]{1,16})", (known(value) or "").lower(), re.ASCII)
    return match.group(1).zfill(digits) if match is not None and len(match.group(1)) <= digits else None


def pci_address(value: object) -> Optional[str]:
    """Return ``00000000:0C:00.0`` or ``0c:00.0`` as sysfs has it (``0000:0c:00.0``), None where it is no address."""
    pattern = r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})\.([0-7])"
    match = re.fullmatch(pattern, (known(value) or "").lower(), re.ASCII)
    if match is None:
        return None
    domain, bus, device, function = match.groups()
    return f"{int(domain or '0', 16):04x}:{int(bus, 16):02x}:{int(device, 16):02x}.{function}"


def find_json(text: str) -> Any:
    """Return the first JSON object, or array of them, in ``text``: tools print warnings in front of it.

    Raises HardwareOutputError where there is none.
    """
    if len(text) > READ_LIMIT_BYTES:
        raise HardwareOutputError("the output is too long to be JSON of a tool")
    decoder = json.JSONDecoder()
    for attempt, match in enumerate(re.finditer(r"[{\[]", text)):
        if attempt >= JSON_ATTEMPTS:
            break
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        of_objects = isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)
        if (isinstance(value, dict) or of_objects) and not _deeper_than(value, JSON_DEPTH):
            return value
    raise HardwareOutputError("the output holds no JSON object")


def _deeper_than(value: object, depth: int) -> bool:
    """Tell whether a JSON value is nested deeper than any tool's, so that reading it could exhaust the stack."""
    level: List[object] = [value]
    for _ in range(depth):
        following: List[object] = []
        for one in level:
            if isinstance(one, dict):
                following.extend(one.values())
            elif isinstance(one, list):
                following.extend(one)
        if not following:
            return False
        level = following
    return True


def apply(accelerator: Accelerator, facts: Facts, source: str, prefix: str, sources: Dict[str, str]) -> None:
    """Fill in what ``accelerator`` does not know yet, and note under ``prefix`` in ``sources`` what came from where."""
    for name, value in facts.items():
        if value is None:
            continue
        owner: Any = accelerator
        part, _, rest = name.partition(".")
        if rest:
            if getattr(accelerator, part) is None:
                setattr(accelerator, part, {"pci": PciFunction, "pcie": PcieLink, "mig": Mig}[part]())
            owner, part = getattr(accelerator, part), rest
        if getattr(owner, part) in (None, []):
            setattr(owner, part, value)
            sources[f"{prefix}.{name}"] = source
