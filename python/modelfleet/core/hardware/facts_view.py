"""Reads a HardwareProfile that came back from a host as plain data: nothing of it can be trusted to be there."""

import re
from typing import Any, Dict, List, Mapping, Optional, Tuple


class Facts:
    """A profile by dotted names; a value of another kind than asked for is None."""

    def __init__(self, profile: Mapping[str, Any]) -> None:
        self.profile = profile

    def get(self, name: str) -> Any:
        """Return the value under a dotted name, None where there is none."""
        value: Any = self.profile
        for part in name.split("."):
            if not isinstance(value, Mapping):
                return None
            value = value.get(part)
        return value

    def number(self, name: str) -> Optional[float]:
        """Return a number of 0 or more."""
        value = self.get(name)
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e18
        return value if good else None

    def text(self, name: str) -> Optional[str]:
        """Return a text of one line, without control characters and not over 200 characters."""
        return line(self.get(name))

    def flag(self, name: str) -> Optional[bool]:
        """Return True or False."""
        value = self.get(name)
        return value if isinstance(value, bool) else None

    def words(self, name: str) -> List[str]:
        """Return a list of texts; what is none is left out."""
        value = self.get(name)
        return [word for word in map(line, value) if word] if isinstance(value, (list, tuple)) else []

    def reason(self, name: str) -> str:
        """Return why a field is unknown: its own reason or that of a part above it."""
        unknown = self.get("unknown")
        while isinstance(unknown, Mapping) and name:
            found = line(unknown.get(name))
            if found:
                return found
            name = name.rpartition(".")[0]
        return "not told"

    @property
    def accelerators(self) -> List[Dict[str, Any]]:
        """Return the GPUs, each with its vendor, driver and driver's version as a text or None."""
        value = self.get("accelerators")
        found = [one for one in value if isinstance(one, Mapping)] if isinstance(value, (list, tuple)) else []
        return [
            {**one, **{name: line(one.get(name)) for name in ("vendor", "driver", "driver_version")}} for one in found
        ]

    def of_vendor(self, vendor: str) -> List[Dict[str, Any]]:
        """Return the GPUs of one vendor."""
        return [one for one in self.accelerators if one.get("vendor") == vendor]


def line(value: Any) -> Optional[str]:
    """Return a text as one printable line, None where it is no text or empty."""
    if not isinstance(value, str):
        return None
    return re.sub(r"[^ -~\u00a0-\u2027\u202f-\uffff]+", " ", value)[:200].strip() or None


def version_numbers(version: Optional[str]) -> Tuple[int, ...]:
    """Return the numbers of a version: 535.309.01 is (535, 309, 1); none where it does not begin with one."""
    match = re.match(r"\d{1,9}(?:\.\d{1,9})*", version or "", re.ASCII)
    return tuple(int(part) for part in match.group().split(".")) if match else ()
