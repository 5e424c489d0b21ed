"""All GPUs of a machine: from the PCI bus, before any driver, then from their drivers and their vendors' tools.

Tools cost a process each and are asked only where there is a GPU of theirs, or
where nothing tells whether there is one.
"""

from typing import Any, Dict, List, Optional, Tuple

from ..errors import HardwareOutputError
from . import amd, intel, nvidia
from .facts import Facts, apply
from .pci import (
    LSPCI,
    OTHER,
    PCI_DEVICES,
    PciDisplay,
    has_signs,
    link_directory,
    lspci_names,
    read_link,
)
from .profile import Accelerator, AcceleratorMemory, Mig, PcieLink, PciFunction
from .sources import OK, SLOW, Sources

NO_NAME = ("Graphics Device", "NVIDIA Graphics Device")
OF_ONE_VENDOR = {"nvidia": ("architecture", "compute_capability", "mig"), "amd": ("gfx_target", "memory.gtt_bytes")}


class Accelerators:
    """The GPUs found so far, where each field came from, and why tools did not answer."""

    def __init__(self, origin: Dict[str, str]) -> None:
        self.items: List[Accelerator] = []
        self.origin = origin
        self.problems: Dict[str, str] = {}
        self.smi: Optional[nvidia.SmiReport] = None
        self.amd_is_slow = False

    def of(self, vendor: str) -> List[int]:
        """Return the positions of a vendor's GPUs."""
        return [position for position, one in enumerate(self.items) if one.vendor == vendor]

    def add(self, vendor: str, facts: Facts, source: str, driver: Optional[str] = None) -> int:
        """Add a GPU and return its position."""
        self.items.append(Accelerator(vendor=vendor, driver=driver))
        position = len(self.items) - 1
        self.apply(position, facts, source)
        return position

    def apply(self, position: int, facts: Facts, source: str) -> None:
        """Fill in what is not known yet of the GPU at ``position``."""
        item, facts = self.items[position], dict(facts)
        facts.pop("index", None)
        facts.pop("vendor", None)
        slices = facts.pop("mig.slices", None)
        if facts.get("name") in NO_NAME and item.name is None:
            self.problems[f"name {position}"] = facts.pop("name")
        apply(item, facts, source, f"accelerators.{position}", self.origin)
        if slices:
            item.mig = item.mig or Mig(enabled=True)
            item.mig.slices = nvidia.merge_slices(item.mig.slices, slices)
            key = f"accelerators.{position}.mig.slices"
            self.origin[key] = ", ".join(dict.fromkeys([*filter(None, [self.origin.get(key)]), source]))

    def merge(self, vendor: str, gpus: List[Facts], source: str, complete: bool) -> None:
        """Give each GPU that a tool listed to the one that it is, or add it.

        A GPU is known by its address, else by its id, else by its place among
        its vendor's. ``complete``: the bus told of all there are, so that where
        it showed some, what has no address is none but these.
        """
        positions = self.of(vendor)
        alike = len(positions) == len(gpus)
        taken: List[int] = []
        for order, facts in enumerate(gpus):
            found = self._find(positions, taken, facts)
            if found is None and alike and positions[order] not in taken and self._may_be(positions[order], facts):
                found = positions[order]
            if found is None:
                if complete and positions and not facts.get("pci.address"):
                    continue
                found = self.add(vendor, {}, source)
            taken.append(found)
            self.apply(found, facts, source)

    def _may_be(self, position: int, facts: Facts) -> bool:
        """Tell whether nothing says that the GPU at ``position`` is another one than a tool's."""
        item = self.items[position]
        address = item.pci.address if item.pci is not None else None
        return address is None or facts.get("pci.address") in (None, address)

    def _find(self, positions: List[int], taken: List[int], facts: Facts) -> Optional[int]:
        for position in positions:
            item = self.items[position]
            address = item.pci.address if item.pci is not None else None
            if position not in taken and address is not None and address == facts.get("pci.address"):
                return position
        ids = [position for position in positions if facts.get("uuid") and self.items[position].uuid == facts["uuid"]]
        # Ids are all alike where someone has masked them.
        return ids[0] if len(ids) == 1 and ids[0] not in taken else None


def read_accelerators(
    sources: Sources,
    displays: Optional[List[PciDisplay]],
    bus: str,
    kernel: Optional[str],
    unknown: Dict[str, str],
    origin: Dict[str, str],
) -> Accelerators:
    """Return the GPUs of a Linux host and what their vendors' tools came to, if they were asked.

    ``displays`` and ``bus`` are what ``read_bus`` returned, ``kernel`` is the
    release of the running kernel. Reasons go to ``unknown`` and sources to
    ``origin``, both under dotted names.
    """
    found = Accelerators(origin)
    names: Dict[str, str] = {}
    for display in displays or []:
        position = found.add(display.vendor, display.facts, bus, display.driver)
        if display.name is not None:
            names[display.facts["pci.address"]] = display.name
        if display.driver is not None:
            origin[f"accelerators.{position}.driver"] = bus
    add_nvidia(sources, found, displays is not None)
    add_amd(sources, found, displays is not None, kernel)
    for position in found.of("intel"):
        pci = found.items[position].pci
        if pci is not None and pci.address is not None:
            facts = intel.sysfs_facts(sources, pci.address, found.items[position].driver, kernel)
            found.apply(position, facts, f"{PCI_DEVICES}/{pci.address}")
    for position, item in enumerate(found.items):
        finish(sources, found, position, item, names)
    if not found.items and displays is None:
        unknown["accelerators"] = f"{PCI_DEVICES} cannot be read"
    for position, item in enumerate(found.items):
        add_reasons(item, f"accelerators.{position}", found.problems, bus, unknown)
    return found


def add_nvidia(sources: Sources, found: Accelerators, complete: bool) -> None:
    """Add what nvidia-smi and the driver's files tell."""
    if not (found.of("nvidia") or not complete or has_signs(sources)):
        return
    found.smi = nvidia.read_smi(sources)
    if found.smi.problem:
        found.problems["nvidia"] = found.smi.problem
    for source, gpus in found.smi.found:
        found.merge("nvidia", gpus, source, complete)
    for position in found.of("nvidia"):
        item = found.items[position]
        address = item.pci.address if item.pci is not None else None
        found.apply(position, nvidia.driver_facts(sources, address), nvidia.DRIVER_DIRECTORY)
        device_id = item.pci.device_id if item.pci is not None else None
        found.apply(position, nvidia.chip_facts(device_id, item.architecture), "PCI device id, architecture")


def add_amd(sources: Sources, found: Accelerators, complete: bool, kernel: Optional[str]) -> None:
    """Add what sysfs tells of AMD's GPUs, and the tools' words where something is missing."""
    for position in found.of("amd"):
        pci = found.items[position].pci
        if pci is not None and pci.address is not None and pci.device_id is not None:
            facts = amd.sysfs_facts(sources, pci.address, pci.device_id)
            found.apply(position, facts, f"{PCI_DEVICES}/{pci.address}")
    targets = amd.kfd_targets(sources)
    for position in found.of("amd"):
        pci = found.items[position].pci
        if pci is not None and pci.address in targets:
            found.apply(position, {"gfx_target": targets[pci.address]}, amd.KFD_NODES)
    if not complete or any(lacks(found.items[position]) for position in found.of("amd")):
        for arguments, parse in ((amd.AMD_SMI, amd.parse_amd_smi), (amd.ROCM_SMI, amd.parse_rocm_smi)):
            name, result = f"{arguments[0]} --json", sources.run(arguments, amd.TIMEOUT_SECONDS)
            if result.status == SLOW:
                # The other one waits for the same driver.
                found.problems["amd"], found.amd_is_slow = f"{arguments[0]} is slow: {result.error}", True
                break
            # Warnings about one GPU come with a code that says failed, and with all the others' JSON.
            if result.status != OK and "{" not in result.output:
                continue
            try:
                found.merge("amd", parse(result.output), name, complete)
            except HardwareOutputError as error:
                found.problems["amd"] = f"{name}: {error}"
            if found.of("amd") and not any(lacks(found.items[position]) for position in found.of("amd")):
                break
    for position in found.of("amd"):
        item = found.items[position]
        if item.pci is not None and item.pci.vendor_id is None:
            item.pci.vendor_id = "1002"
        found.apply(position, amd.driver_facts(sources, kernel), "/sys/module/amdgpu, /opt/rocm/.info")
        device_id = item.pci.device_id if item.pci is not None else None
        found.apply(position, amd.chip_facts(device_id, item.gfx_target), "PCI device id")


def lacks(item: Accelerator) -> bool:
    """True where a tool may tell of an AMD GPU what sysfs did not."""
    return item.name is None or item.memory.total_bytes is None or item.gfx_target is None


def finish(sources: Sources, found: Accelerators, position: int, item: Accelerator, names: Dict[str, str]) -> None:
    """Add the link, a name by lspci where nobody has a better one, and what follows from the rest."""
    address = item.pci.address if item.pci is not None else None
    if address is not None and sources.exists(f"{PCI_DEVICES}/{address}"):
        directory = link_directory(sources, address) if item.vendor == "amd" else f"{PCI_DEVICES}/{address}"
        found.apply(position, read_link(sources, directory), directory)
        if item.driver is None:
            item.driver = sources.link_name(f"{PCI_DEVICES}/{address}/driver")
    if item.name is None and address is not None:
        names = names or lspci_names(sources)
        found.apply(position, {"name": names.get(address)}, " ".join(LSPCI))
    if item.name is None:
        item.name = found.problems.get(f"name {position}")
    set_budget(item.memory, item.mig)


def set_budget(memory: AcceleratorMemory, mig: Optional[Mig]) -> None:
    """Set what one process can have at most; a card that MIG cuts is the budget of nobody."""
    if memory.budget_bytes is not None:
        return
    if mig is not None and mig.enabled:
        sizes = [one.memory_total_bytes for one in mig.slices]
        known_sizes = [size for size in sizes if size is not None]
        memory.budget_bytes = max(known_sizes, default=0) if len(known_sizes) == len(sizes) else None
    elif not memory.unified:
        memory.budget_bytes = memory.total_bytes


def add_reasons(item: Accelerator, prefix: str, problems: Dict[str, str], bus: str, unknown: Dict[str, str]) -> None:
    """Say of each field that is None why it is, unless None is an answer."""
    tool = {"nvidia": "nvidia-smi", "amd": "sysfs, amd-smi or rocm-smi", "intel": "sysfs"}.get(item.vendor, "the bus")
    reason = problems.get(item.vendor) or f"{tool} does not tell"
    if item.vendor == OTHER:
        reason = "not of a vendor whose GPUs are asked"
    elif bus == PCI_DEVICES and item.driver is None and item.vendor not in problems:
        reason = "no driver is bound to it"
    if item.vendor == "nvidia" and item.mig is None:
        item.mig = Mig()
    item.pci = item.pci or PciFunction()
    item.pcie = item.pcie or PcieLink()
    # sysfs tells of all drivers, and a field that the vendor has no such thing for is answered.
    answers = [name for vendor, fields in OF_ONE_VENDOR.items() if vendor != item.vendor for name in fields]
    if bus == PCI_DEVICES:
        answers.append("driver")
    for name, value in leaves(item):
        if value is None and name not in answers:
            unknown[f"{prefix}.{name}"] = special_reason(item, name) or reason


def special_reason(item: Accelerator, name: str) -> Optional[str]:
    """Return why a field in particular is not known, None where the reason is that of the whole GPU."""
    if name.startswith("memory.") and item.memory.unified:
        return "unified with main memory"
    if name.startswith("mig.slices."):
        return "only nvidia-smi -L tells" if name.endswith((".uuid", ".profile")) else "only nvidia-smi -q tells"
    if name == "memory.budget_bytes" and item.mig is not None and item.mig.enabled:
        return "the memory of its MIG devices is not known"
    if name == "memory.free_bytes" and item.memory.total_bytes is None:
        return None
    if name.startswith("pcie.") and item.vendor == "intel":
        return "part of the processor, or its link is not told"
    return None


def leaves(item: Accelerator) -> List[Tuple[str, Any]]:
    """Return the dotted names and values of all fields but the vendor's name."""
    found: List[Tuple[str, Any]] = []
    for name, value in vars(item).items():
        if name == "mig" and value is not None:
            found.append(("mig.enabled", value.enabled))
            for position, one in enumerate(value.slices):
                found.extend((f"mig.slices.{position}.{key}", inner) for key, inner in vars(one).items())
        elif hasattr(value, "__dataclass_fields__"):
            found.extend((f"{name}.{key}", inner) for key, inner in vars(value).items())
        else:
            found.append((name, value))
    return found
