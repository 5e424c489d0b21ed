"""Where the models' file system lies, by ``lsblk -O`` (``--output-all``), which people paste. Replays only.

The columns differ with the version and are aligned, numbers to the right; what
is needed stands in an order that all versions keep: the name, drawn as a tree,
the type, the mount point, the kernel's name and the file system.
"""

import re
from typing import Dict, List, NamedTuple, Optional

from .profile import Storage
from .sources import OK, Sources
from .storage import KINDS, VIRTUAL_BLOCK_DEVICES, VIRTUAL_DISK_MAKERS

LSBLK = ("lsblk", "-O")
TYPES = ("disk", "part", "lvm", "crypt", "loop", "rom", "mpath", "dm", "raid0", "raid1", "raid5", "raid6", "raid10")
TREE = "|`- \u2502\u251c\u2514\u2500"


class BlockDevice(NamedTuple):
    """A line of lsblk and the disk that it lies on; ``rotational`` and ``line`` are the disk's own."""

    name: str
    mount_point: Optional[str]
    file_system: Optional[str]
    disk: str
    rotational: Optional[bool]
    line: str


def parse_lsblk(text: str) -> List[BlockDevice]:
    """Return the devices of a table of ``lsblk -O``; lines of another form are left out."""
    lines = text.splitlines()
    header = next((line for line in lines if line.startswith("NAME ")), "")
    column = header.find(" ROTA")
    found: List[BlockDevice] = []
    disk, rotational, disk_line = "", None, ""
    for line in lines[lines.index(header) + 1 :] if header else ():
        words = line.lstrip(TREE).split()
        if not words:
            continue
        if line[0] not in TREE:
            disk, disk_line = words[0], line
            rotational = {"1": True, "0": False}.get(line[column : column + 5].strip()) if column > 0 else None
        kind = next((place for place, word in enumerate(words) if word in TYPES), None)
        mounted = kind is not None and len(words) > kind + 1 and words[kind + 1].startswith("/")
        point = words[kind + 1] if kind is not None and mounted else None
        file_system = words[kind + 3] if kind is not None and mounted and len(words) > kind + 3 else None
        found.append(BlockDevice(words[0], point, file_system, disk, rotational, disk_line))
    return found


def kind_of(device: BlockDevice) -> Optional[str]:
    """Return nvme, ssd or hdd; None for a virtual disk and where the table does not tell."""
    if device.disk.startswith("nvme"):
        return "nvme"
    if VIRTUAL_BLOCK_DEVICES.match(device.disk) or any(word in device.line for word in VIRTUAL_DISK_MAKERS):
        return None
    return None if device.rotational is None else ("hdd" if device.rotational else "ssd")


def read_storage(sources: Sources, storage: Storage, unknown: Dict[str, str]) -> None:
    """Fill in where ``storage.path`` lies, if the record holds a table that tells."""
    result = sources.run(LSBLK)
    path = storage.path or "/"
    above = [
        device
        for device in (parse_lsblk(result.output) if result.status == OK else [])
        if device.mount_point is not None
        and (device.mount_point in ("/", path) or path.startswith(device.mount_point + "/"))
    ]
    if not above:
        return
    deepest = max(above, key=lambda device: len(device.mount_point or ""))
    # Mirrored halves are listed once below each disk.
    kinds = [kind_of(device) for device in above if device.mount_point == deepest.mount_point]
    name = deepest.name
    in_mapper = re.search(rf"\b{re.escape(name)}\b.*\b(lvm|crypt|mpath)\b", "\n".join(result.output.splitlines()))
    storage.mount_point, storage.file_system = deepest.mount_point, deepest.file_system
    storage.device = f"/dev/mapper/{name}" if in_mapper else f"/dev/{name}"
    told = [kind for kind in kinds if kind is not None]
    storage.kind = max(told, key=KINDS.index) if told and len(told) == len(kinds) else None
    for field in ("mount_point", "file_system", "device", "kind"):
        if getattr(storage, field) is not None:
            unknown.pop(f"storage.{field}", None)
    if storage.kind is None:
        unknown["storage.kind"] = f"{deepest.disk} is a virtual disk, or lsblk does not tell"
