"""Intel GPUs, from sysfs: the kernel's drivers i915 and xe.

i915 and xe name their files differently, and neither has a tool on every
machine; a GPU in the processor is always at 00:02.0 and has main memory.
"""

from typing import Optional

from .amd import hwmon_limit
from .facts import Facts, whole
from .pci import PCI_DEVICES
from .sources import Reader

IN_PROCESSOR = "0000:00:02.0"


def sysfs_facts(reader: Reader, address: str, driver: Optional[str], kernel: Optional[str]) -> Facts:
    """Return what the kernel's driver tells of the GPU at a PCI address."""
    directory = f"{PCI_DEVICES}/{address}"
    facts: Facts = {
        "memory.unified": address == IN_PROCESSOR,
        # Both drivers are the kernel's own; only builds out of its tree have a version.
        "driver_version": (reader.read_line(f"/sys/module/{driver}/version") or kernel) if driver else None,
        "power_limit_watts": hwmon_limit(reader, directory, "power1_max"),
    }
    if address != IN_PROCESSOR:
        facts["memory.total_bytes"] = local_memory(reader, directory)
    return facts


def local_memory(reader: Reader, directory: str) -> Optional[int]:
    """Return the bytes of a card's own memory, None where its driver has no file for it."""
    tiles = [name for name in reader.list(directory) if name.startswith("tile") and name[4:].isdigit()]
    sizes = [whole(reader.read_line(f"{directory}/{tile}/physical_vram_size_bytes")) for tile in tiles]
    if sizes and all(sizes):
        return sum(size for size in sizes if size)
    for card in reader.list(f"{directory}/drm"):
        total = whole(reader.read_line(f"{directory}/drm/{card}/lmem_total_bytes"))
        if total:
            return total
    return None
