"""What nvidia-smi prints, as text in and facts out.

Each driver has its own list of fields for ``--query-gpu`` and its own tags in
the XML of ``-q -x``; any value may be ``N/A`` or ``[N/A]``. ``-L`` alone names
the profiles and ids of MIG devices, the XML alone their memory.
Manual: https://docs.nvidia.com/deploy/nvidia-smi/
"""

import csv
import re
import xml.etree.ElementTree as ElementTree
from typing import Any, Dict, List, NamedTuple, Optional, Set, Tuple

from ..errors import HardwareOutputError
from .facts import Facts, hexadecimal, known, number, pci_address, size, whole
from .profile import MigSlice
from .sources import READ_LIMIT_BYTES, CommandResult

# Field of --query-gpu: the field of Accelerator that it fills, and how its value is read.
QUERY: Dict[str, Tuple[str, Any]] = {
    "index": ("index", whole),
    "name": ("name", known),
    "uuid": ("uuid", known),
    "pci.bus_id": ("pci.address", pci_address),
    "driver_version": ("driver_version", known),
    "kmd_version": ("driver_version", known),
    "memory.total": ("memory.total_bytes", lambda value: size(value, "mib")),
    "memory.free": ("memory.free_bytes", lambda value: size(value, "mib")),
    "compute_cap": ("compute_capability", known),
    "pcie.link.gen.current": ("pcie.generation_now", whole),
    "pcie.link.gen.gpucurrent": ("pcie.generation_now", whole),
    "pcie.link.gen.max": ("pcie.generation_max", whole),
    "pcie.link.width.current": ("pcie.width_now", whole),
    "pcie.link.width.max": ("pcie.width_max", whole),
    "power.limit": ("power_limit_watts", number),
    "enforced.power.limit": ("power_limit_watts", number),
}
# Read by hand below: two ids in one number, and words that are no values.
QUERY_MORE = ("pci.device_id", "pci.sub_device_id", "mig.mode.current")
ALIASES = {"gpu_name": "name", "gpu_uuid": "uuid", "gpu_bus_id": "pci.bus_id"}
XML: Tuple[Tuple[str, str, Any], ...] = (
    ("product_name", "name", known),
    ("uuid", "uuid", known),
    ("pci/pci_bus_id", "pci.address", pci_address),
    ("product_architecture", "architecture", known),
    ("fb_memory_usage/total", "memory.total_bytes", lambda value: size(value, "mib")),
    ("fb_memory_usage/free", "memory.free_bytes", lambda value: size(value, "mib")),
    ("compute_cap", "compute_capability", known),
    ("cuda_compute_capability", "compute_capability", known),
    ("pci/pci_gpu_link_info/pcie_gen/current_link_gen", "pcie.generation_now", whole),
    ("pci/pci_gpu_link_info/pcie_gen/max_link_gen", "pcie.generation_max", whole),
    ("pci/pci_gpu_link_info/link_widths/current_link_width", "pcie.width_now", whole),
    ("pci/pci_gpu_link_info/link_widths/max_link_width", "pcie.width_max", whole),
    ("gpu_power_readings/current_power_limit", "power_limit_watts", number),
    ("gpu_power_readings/power_limit", "power_limit_watts", number),
    ("power_readings/power_limit", "power_limit_watts", number),
    ("power_readings/current_power_limit", "power_limit_watts", number),
    ("gpu_power_readings/enforced_power_limit", "power_limit_watts", number),
    ("power_readings/enforced_power_limit", "power_limit_watts", number),
)
NO_TOTAL = ("n/a", "[n/a]", "not supported", "[not supported]")
XML_DEPTH = 32
MISMATCH = re.compile(r"driver/library version mismatch", re.IGNORECASE)


class ListedGpu(NamedTuple):
    """A line of ``nvidia-smi -L`` and its MIG devices, each with index, profile and id."""

    number: int
    name: str
    uuid: Optional[str]
    mig: List[MigSlice]


def parse_help(text: str) -> Set[str]:
    """Return the names of the fields that ``--help-query-gpu`` lists, synonyms included."""
    names: Set[str] = set()
    for line in text.splitlines():
        if line.startswith('"'):
            names.update(re.findall(r'"([\w.]+)"', line, re.ASCII))
    return names


def parse_version(text: str) -> Dict[str, str]:
    """Return ``driver``, ``cuda`` and ``nvml`` of ``--version``, or of the table that nvidia-smi prints by default."""
    found: Dict[str, str] = {}
    for name, pattern in (("driver", "driver"), ("cuda", r"cuda(?: umd)?"), ("nvml", "nvml")):
        match = re.search(rf"\b{pattern} version\s*:\s*(\d+(?:\.\d+)+)", text, re.IGNORECASE | re.ASCII)
        if match is not None:
            found[name] = match.group(1)
    return found


def parse_query(text: str) -> List[Facts]:
    """Return the GPUs of ``--query-gpu=... --format=csv``, with its header, with or without units.

    Raises HardwareOutputError where there is no such table.
    """
    lines = [line for line in text.replace("\0", "").splitlines() if line.strip()]
    names: List[str] = []
    found: List[Facts] = []
    try:
        for row in csv.reader(lines, skipinitialspace=True):
            if not names:
                header = [cell.strip().split(" [")[0].lower() for cell in row]
                header = [ALIASES.get(name, name) for name in header]
                if "name" in header or "uuid" in header or "pci.bus_id" in header:
                    names = header
            elif len(row) == len(names):
                found.append(query_facts(dict(zip(names, row))))
    except csv.Error as error:
        raise HardwareOutputError(f"the output of nvidia-smi --query-gpu is no CSV: {error}") from error
    if not names:
        raise HardwareOutputError("the output of nvidia-smi --query-gpu has no header")
    return found


def query_facts(row: Dict[str, str]) -> Facts:
    """Return the facts of one line of ``--query-gpu``."""
    facts: Facts = {}
    for name, (target, read) in QUERY.items():
        value = read(row[name]) if name in row else None
        if value is not None:
            facts[target] = value
    add_ids(facts, row.get("pci.device_id"), row.get("pci.sub_device_id"))
    add_mode(facts, row.get("mig.mode.current"))
    add_unified(facts, row.get("memory.total"))
    return facts


def add_ids(facts: Facts, device: object, subsystem: object) -> None:
    """Add PCI ids: ``0x20B210DE`` is device 20b2 of vendor 10de."""
    for value, first, second in (
        (device, "pci.device_id", "pci.vendor_id"),
        (subsystem, "pci.subsystem_device_id", "pci.subsystem_vendor_id"),
    ):
        both = hexadecimal(value, 8)
        # A device of 0000 was blanked by whoever recorded it.
        if both is not None and both[:4] != "0000":
            facts[first], facts[second] = both[:4], both[4:]


def add_mode(facts: Facts, mode: Optional[str]) -> None:
    """Add whether MIG is on: a card that has no MIG answers N/A."""
    word = (mode or "").strip().lower()
    if word in ("enabled", "disabled", *NO_TOTAL):
        facts["mig.enabled"] = word == "enabled"


def add_unified(facts: Facts, total: Optional[str]) -> None:
    """Add whether the memory is main memory: NVML then answers N/A, which an error of a card does not look like."""
    if facts.get("memory.total_bytes"):
        facts["memory.unified"] = False
    elif (total or "").strip().lower() in NO_TOTAL:
        facts["memory.unified"] = True


class BoundedBuilder(ElementTree.TreeBuilder):
    """Builds a tree of no more than XML_DEPTH levels."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0

    def start(self, tag: str, attrs: Any) -> Any:
        """Open an element. Raises HardwareOutputError where it lies too deep."""
        self.depth += 1
        if self.depth > XML_DEPTH:
            raise HardwareOutputError("the XML is nested deeper than nvidia-smi's")
        return super().start(tag, attrs)

    def end(self, tag: str) -> Any:
        """Close an element."""
        self.depth -= 1
        return super().end(tag)


def parse_tree(text: str) -> "ElementTree.Element":
    """Return the XML of ``nvidia-smi -q -x`` as a tree.

    Raises HardwareOutputError where it is no such XML, is too long, or
    declares entities, which nvidia-smi never does and a bomb must.
    """
    if len(text) > READ_LIMIT_BYTES:
        raise HardwareOutputError("the XML is longer than nvidia-smi's can be")
    if "<!ENTITY" in text.upper():
        raise HardwareOutputError("the XML declares entities, which nvidia-smi's does not")
    start = text.find("<?xml")
    start = text.find("<nvidia_smi_log") if start < 0 else start
    parser = ElementTree.XMLParser(target=BoundedBuilder())
    try:
        parser.feed(re.sub(r"^<\?xml[^>]*\?>", "", text[max(start, 0) :]).lstrip().encode("utf-8", "replace"))
        root: ElementTree.Element = parser.close()
    except (ElementTree.ParseError, ValueError) as error:
        raise HardwareOutputError(f"the output of nvidia-smi -q -x is no XML: {error}") from error
    if root.tag != "nvidia_smi_log":
        raise HardwareOutputError("the XML is not of nvidia-smi")
    return root


def parse_xml(text: str) -> List[Facts]:
    """Return the GPUs of ``nvidia-smi -q -x``. Raises HardwareOutputError where it is no such XML."""
    return tree_facts(parse_tree(text))


def tree_facts(root: "ElementTree.Element") -> List[Facts]:
    """Return the GPUs of a tree as nvidia-smi's XML has it."""
    found: List[Facts] = []
    for index, gpu in enumerate(root.findall("gpu")):
        facts: Facts = {"index": index}
        for path, target, read in XML:
            value = read(gpu.findtext(path))
            if value is not None:
                facts.setdefault(target, value)
        if "pci.address" not in facts:
            facts["pci.address"] = pci_address(gpu.get("id"))
        add_ids(facts, gpu.findtext("pci/pci_device_id"), gpu.findtext("pci/pci_sub_system_id"))
        facts["driver_version"] = known(root.findtext("driver_version"))
        facts["runtime_version"] = known(root.findtext("cuda_version"))
        add_mode(facts, gpu.findtext("mig_mode/current_mig"))
        add_unified(facts, gpu.findtext("fb_memory_usage/total"))
        slices = [
            MigSlice(
                index=whole(one.findtext("index")),
                uuid=known(one.findtext("uuid")),
                memory_total_bytes=size(one.findtext("fb_memory_usage/total"), "mib"),
                gpu_instance_id=whole(one.findtext("gpu_instance_id")),
                compute_instance_id=whole(one.findtext("compute_instance_id")),
            )
            for one in gpu.iter("mig_device")
        ]
        if slices:
            facts["mig.slices"] = slices
        found.append({name: value for name, value in facts.items() if value is not None})
    return found


# Headings and keys of ``nvidia-smi -q`` whose tag in the XML is not just their words joined by ``_``.
TEXT_TAGS = {
    "gpu_uuid": "uuid",
    "serial_number": "serial",
    "mig_device": "mig_device",
    "shared_fb_memory_usage": "fb_memory_usage",
    "gpu_link_info": "pci_gpu_link_info",
    "pcie_generation": "pcie_gen",
    "link_width": "link_widths",
    "bus_id": "pci_bus_id",
    "device_id": "pci_device_id",
    "sub_system_id": "pci_sub_system_id",
    "mig_mode/current": "current_mig",
    "pcie_gen/max": "max_link_gen",
    "pcie_gen/current": "current_link_gen",
    "link_widths/max": "max_link_width",
    "link_widths/current": "current_link_width",
}


def parse_text(text: str) -> List[Facts]:
    """Return the GPUs of ``nvidia-smi -q`` without ``-x``, which people paste. Raises HardwareOutputError."""
    if len(text) > READ_LIMIT_BYTES or "NVSMI LOG" not in text:
        raise HardwareOutputError("the text is not of nvidia-smi -q")
    root = ElementTree.Element("nvidia_smi_log")
    # From the outermost to the innermost open element, each with the indentation of its own line.
    open_elements: List[Tuple[int, ElementTree.Element]] = [(-1, root)]
    for line in text.partition("NVSMI LOG")[2].splitlines():
        indent = len(line) - len(line.lstrip())
        if not line.strip() or indent >= 4 * XML_DEPTH:
            continue
        while open_elements[-1][0] >= indent:
            open_elements.pop()
        parent = open_elements[-1][1]
        key, colon, value = line.partition(" :")
        tag = re.sub(r"\W+", "_", key.strip().lower())
        gpu = re.fullmatch(r"GPU ([0-9A-Fa-f:.]+)", line.strip())
        if gpu is not None:
            element = ElementTree.SubElement(root, "gpu", {"id": gpu.group(1)})
            open_elements = [(-1, root)]
        else:
            tag = TEXT_TAGS.get(f"{parent.tag}/{tag}", TEXT_TAGS.get(tag, tag))
            element = ElementTree.SubElement(parent, tag)
            if colon:
                element.text = value.strip()
        open_elements.append((indent, element))
    return tree_facts(root)


def parse_list(text: str) -> List[ListedGpu]:
    """Return the GPUs and MIG devices of ``nvidia-smi -L``; lines of another form are left out."""
    found: List[ListedGpu] = []
    for line in text.splitlines():
        gpu = re.match(r"GPU (\d{1,6}): (.+?)(?: \(UUID: ([^)]*)\))?\s*$", line, re.ASCII)
        if gpu is not None:
            found.append(ListedGpu(int(gpu.group(1)), gpu.group(2), known(gpu.group(3)), []))
        mig = re.match(r"\s+MIG (\S+)\s+Device\s+(\d{1,6}): \(UUID: ([^)]*)\)", line, re.ASCII)
        if mig is not None and found:
            profile, index, uuid = mig.groups()
            found[-1].mig.append(MigSlice(index=int(index), uuid=known(uuid), profile=profile))
    return found


def list_facts(gpus: List[ListedGpu]) -> List[Facts]:
    """Return the facts of ``nvidia-smi -L``; it does not say whether MIG is on where there is no MIG device."""
    found: List[Facts] = []
    for gpu in gpus:
        facts: Facts = {"index": gpu.number, "name": gpu.name, "uuid": gpu.uuid}
        if gpu.mig:
            facts.update({"mig.enabled": True, "mig.slices": gpu.mig})
        found.append(facts)
    return found


def is_mismatch(result: CommandResult) -> bool:
    """True where NVML refused because the loaded module is of another version than the library."""
    return MISMATCH.search(result.output + result.error) is not None


def complaint(result: CommandResult) -> str:
    """Return in one line why nvidia-smi gave no answer."""
    for line in (result.output + "\n" + result.error).splitlines():
        if line.strip():
            return f"nvidia-smi: {' '.join(line.split())[:200]}"
    return f"nvidia-smi ended with code {result.exit_code}"
