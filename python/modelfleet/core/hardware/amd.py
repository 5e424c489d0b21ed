"""AMD GPUs: sysfs first, then what amd-smi and rocm-smi print, in the many forms that their versions have.

sysfs of the driver: https://docs.kernel.org/gpu/amdgpu/driver-misc.html
Topology of compute nodes: /sys/class/kfd (include/uapi/linux/kfd_sysfs.h)
Marketing names: libdrm's amdgpu.ids
"""

import re
from typing import Any, Dict, List, Optional

from .chips import amd_target, amd_unified
from .facts import Facts, find_json, generation_of, hexadecimal, known, number, pci_address, size, whole
from .pci import PCI_DEVICES
from .sources import Reader

AMD_SMI = ("amd-smi", "static", "--json")
ROCM_SMI = (
    *("rocm-smi", "--showid", "--showproductname", "--showuniqueid", "--showbus", "--showmeminfo", "all"),
    *("--showmaxpower", "--showdriverversion", "--json"),
)
# Both are Python programs that read every register there is.
TIMEOUT_SECONDS = 20.0
KFD_NODES = "/sys/class/kfd/kfd/topology/nodes"
NAME_FILES = ("/usr/share/libdrm/amdgpu.ids", "/opt/amdgpu/share/libdrm/amdgpu.ids")
ROCM_VERSION_FILES = ("/opt/rocm/.info/version", "/opt/rocm/.info/version-utils", "/opt/rocm/.info/version-dev")
MAX_NODES = 512


def target_from_number(value: int) -> Optional[str]:
    """Return ``gfx90a`` for KFD's 90010: major, minor and stepping, two decimal digits each."""
    major, minor, stepping = value // 10000, value // 100 % 100, value % 100
    # The last two are single hexadecimal digits of the name.
    return f"gfx{major}{minor:x}{stepping:x}" if major and minor < 16 and stepping < 16 else None


def target_from_text(value: object) -> Optional[str]:
    """Return a gfx target that a tool printed; some versions print KFD's number behind ``gfx``."""
    match = re.fullmatch(r"(?:gfx)?([0-9a-f]{3,6})", (known(value) or "").lower(), re.ASCII)
    if match is None:
        return None
    digits = match.group(1)
    if len(digits) >= 5 and digits.isdigit():
        return target_from_number(int(digits))
    return f"gfx{digits}"


def parse_properties(text: str) -> Dict[str, int]:
    """Return the numbers of a KFD node's ``properties``."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and re.fullmatch(r"\d{1,20}", pair[1], re.ASCII)}


def kfd_targets(reader: Reader) -> Dict[str, str]:
    """Return the gfx target of each compute node by its PCI address."""
    targets: Dict[str, str] = {}
    for node in reader.list(KFD_NODES)[:MAX_NODES]:
        properties = parse_properties(reader.read(f"{KFD_NODES}/{node}/properties") or "")
        target = target_from_number(properties.get("gfx_target_version", 0))
        location = properties.get("location_id", 0)
        if target is not None:
            bus, device, function = location >> 8 & 0xFF, location >> 3 & 0x1F, location & 7
            targets[f"{properties.get('domain', 0):04x}:{bus:02x}:{device:02x}.{function}"] = target
    return targets


def discovered_target(reader: Reader, directory: str) -> Optional[str]:
    """Return the gfx target from the table of blocks that newer cards carry."""
    block = f"{directory}/ip_discovery/die/0/GC/0"
    parts = [whole(reader.read_line(f"{block}/{name}")) for name in ("major", "minor", "revision")]
    if any(part is None for part in parts):
        return None
    major, minor, revision = (part or 0 for part in parts)
    # 9.4.3 is gfx942 and 9.4.2 gfx90a: there block and target are numbered apart.
    return target_from_number(major * 10000 + minor * 100 + revision) if major >= 10 else None


def parse_names(text: str, device_id: str, revision: str) -> Optional[str]:
    """Return the marketing name of a device and revision (hexadecimal) in libdrm's amdgpu.ids."""
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",", 2)]
        if len(fields) == 3 and (fields[0].lower(), fields[1].lower()) == (device_id, revision):
            return fields[2] or None
    return None


def marketing_name(reader: Reader, device_id: str, revision: Optional[str]) -> Optional[str]:
    """Return the name by libdrm's table, None where it has none."""
    for path in NAME_FILES:
        name = parse_names(reader.read(path) or "", device_id, revision) if revision else None
        if name is not None:
            return name
    return None


def sysfs_facts(reader: Reader, address: str, device_id: str) -> Facts:
    """Return what the kernel's driver tells of the GPU at a PCI address."""
    directory = f"{PCI_DEVICES}/{address}"
    total, used = (whole(reader.read_line(f"{directory}/mem_info_vram_{name}")) for name in ("total", "used"))
    unique = hexadecimal(reader.read_line(f"{directory}/unique_id"), 16)
    facts: Facts = {
        "memory.total_bytes": total,
        "memory.free_bytes": total - used if total is not None and used is not None and used <= total else None,
        "memory.gtt_bytes": whole(reader.read_line(f"{directory}/mem_info_gtt_total")),
        "uuid": None if unique is None or not unique.strip("0") else f"0x{unique.lstrip('0')}",
        "power_limit_watts": hwmon_limit(reader, directory, "power1_cap"),
        "name": known(reader.read_line(f"{directory}/product_name")),
        "gfx_target": discovered_target(reader, directory),
    }
    revision = hexadecimal(reader.read_line(f"{directory}/revision"), 2)
    facts["name"] = facts["name"] or marketing_name(reader, device_id, revision)
    return facts


def hwmon_limit(reader: Reader, directory: str, name: str) -> Optional[float]:
    """Return a power limit in watts; the kernel has microwatts, and 0 for no limit."""
    for monitor in reader.list(f"{directory}/hwmon"):
        limit = whole(reader.read_line(f"{directory}/hwmon/{monitor}/{name}"))
        if limit:
            return limit / 1000000
    return None


def driver_facts(reader: Reader, kernel: Optional[str]) -> Facts:
    """Return the versions of the kernel driver and of ROCm."""
    facts: Facts = {"driver_version": reader.read_line("/sys/module/amdgpu/version")}
    # The kernel's own driver has no version but the kernel's.
    if facts["driver_version"] is None and reader.exists("/sys/module/amdgpu"):
        facts["driver_version"] = kernel
    for path in ROCM_VERSION_FILES:
        match = re.match(r"\d+(?:\.\d+){1,2}", reader.read_line(path) or "", re.ASCII)
        if match is not None:
            facts["runtime_version"] = match.group()
            break
    return facts


def chip_facts(device_id: Optional[str], target: Optional[str]) -> Facts:
    """Return what the device id, or the gfx target, tells of the chip."""
    target = target or amd_target(device_id)
    return {"gfx_target": target, "memory.unified": amd_unified(target, device_id)}


def amount(value: object, unit: str) -> object:
    """Return amd-smi's ``{"value": 65520, "unit": "MB"}`` as ``65520 MB``, and anything else as it is."""
    if isinstance(value, dict):
        inner = known(value.get("value"))
        return None if inner is None else f"{inner} {known(value.get('unit')) or unit}"
    return value


def _part(entry: Dict[str, Any], *names: str) -> Dict[str, Any]:
    for name in names:
        if isinstance(entry.get(name), dict):
            found: Dict[str, Any] = entry[name]
            return found
    return {}


def _first(entry: Dict[str, Any], *names: str) -> object:
    return next((entry[name] for name in names if known(amount(entry.get(name), "")) is not None), None)


def _name(value: object) -> Optional[str]:
    """Return a marketing name; where the tools have no table of them they print a hexadecimal id."""
    text = known(value)
    return None if text is None or re.fullmatch(r"0x[0-9a-fA-F]+", text) else text


def amd_smi_entry(entry: Dict[str, Any]) -> Facts:
    """Return the facts of one GPU of ``amd-smi static --json``."""
    asic, bus, driver = _part(entry, "asic"), _part(entry, "bus"), _part(entry, "driver")
    vram, limit, board = _part(entry, "vram"), _part(entry, "limit"), _part(entry, "board")
    # Since ROCm 7 the limits lie one level deeper, by regulator.
    limit = _part(limit, "ppt0") or limit
    version = known(_first(driver, "version", "driver_version"))
    kernel = re.match(r"Linux ?version ?([\w.+~-]+)", version or "")
    serial = hexadecimal(asic.get("asic_serial"), 16)
    bdf = pci_address(_first(bus, "bdf") or _first(entry, "bdf", "pci_bdf") or asic.get("pci_bdf"))
    facts: Facts = {
        "index": whole(entry.get("gpu")),
        "name": _name(asic.get("market_name")) or _name(board.get("product_name")),
        "uuid": known(entry.get("uuid")),
        "pci.address": bdf,
        "pci.vendor_id": hexadecimal(asic.get("vendor_id")),
        "pci.device_id": hexadecimal(asic.get("device_id")),
        "pci.subsystem_vendor_id": hexadecimal(asic.get("subvendor_id")),
        "pci.subsystem_device_id": hexadecimal(asic.get("subsystem_id")),
        "driver": known(_first(driver, "name", "driver_name")),
        "driver_version": kernel.group(1) if kernel else version,
        "gfx_target": target_from_text(asic.get("target_graphics_version")),
        "memory.total_bytes": size(amount(_first(vram, "size", "vram_size", "vram_size_mb"), "MB"), "mb"),
        "pcie.generation_max": generation_of(amount(_first(bus, "max_pcie_speed", "pcie_max_speed"), "GT/s")),
        "pcie.width_max": whole(_first(bus, "max_pcie_width", "max_pcie_lanes")),
        "power_limit_watts": number(
            amount(_first(limit, "socket_power", "socket_power_limit", "current_power", "power_cap", "max_power"), "W")
        ),
    }
    if facts["uuid"] is None and serial is not None and serial.strip("0"):
        facts["uuid"] = f"0x{serial.lstrip('0')}"
    if facts["pcie.generation_max"] is None:
        match = re.fullmatch(r"(?:Gen ?)?([1-7])", known(bus.get("pcie_interface_version")) or "", re.IGNORECASE)
        facts["pcie.generation_max"] = int(match.group(1)) if match else None
    return {name: value for name, value in facts.items() if value is not None}


def parse_amd_smi(text: str) -> List[Facts]:
    """Return the GPUs of ``amd-smi static --json``: a list, or since ROCm 7 a list under ``gpu_data``.

    Raises HardwareOutputError where it is no JSON.
    """
    document = find_json(text)
    entries = document.get("gpu_data", [document]) if isinstance(document, dict) else document
    found = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return [amd_smi_entry(entry) for entry in found if "asic" in entry or "vram" in entry or "bus" in entry]


def parse_rocm_smi(text: str) -> List[Facts]:
    """Return the GPUs of ``rocm-smi ... --json``. Raises HardwareOutputError where it is no JSON.

    Until ROCm 5 "Card series" is the name, "Card model" the subsystem and
    "GPU ID" the device; from 6 on "Card Series", "Subsystem ID" and "Device ID",
    and "Card Model" is the device.
    """
    document = find_json(text)
    if not isinstance(document, dict):
        return []
    # Capitals, spaces and colons at the end change with the version.
    system = _plain(document.get("system"))
    found: List[Facts] = []
    for key, value in document.items():
        match = re.fullmatch(r"card(\d{1,4})", key, re.ASCII)
        card = _plain(value)
        if match is None or not card:
            continue
        link = re.search(r"\(?([\d.]+) ?GT/s,? ?x(\d{1,2})\)?", known(card.get("pcie clock level")) or "", re.ASCII)
        total, used = size(card.get("vram total memory (b)")), size(card.get("vram total used memory (b)"))
        device = hexadecimal(card.get("device id")) or hexadecimal(card.get("gpu id"))
        subsystem = hexadecimal(card.get("subsystem id"))
        if device is None:
            device = hexadecimal(card.get("card model"))
        elif subsystem is None and hexadecimal(card.get("card model")) != device:
            # Where ROCm 4 could not read the names, it put the vendor's id in all of them.
            subsystem = hexadecimal(card.get("card model")) if known(card.get("card vendor")) != "0x1002" else None
        facts: Facts = {
            "index": int(match.group(1)),
            "name": _name(card.get("card series")) or _name(card.get("device name")) or _name(card.get("market name")),
            "uuid": known(card.get("unique id")),
            "pci.address": pci_address(card.get("pci bus")),
            "pci.vendor_id": "1002" if device else None,
            "pci.device_id": device,
            "pci.subsystem_device_id": subsystem,
            "driver_version": known(system.get("driver version")),
            "gfx_target": target_from_text(card.get("gfx version")),
            "memory.total_bytes": total,
            "memory.free_bytes": total - used if total is not None and used is not None and used <= total else None,
            "memory.gtt_bytes": size(card.get("gtt total memory (b)")),
            "pcie.generation_now": generation_of(link.group(1)) if link else None,
            "pcie.width_now": int(link.group(2)) if link else None,
            "power_limit_watts": number(card.get("max graphics package power (w)")),
        }
        found.append({name: value for name, value in facts.items() if value is not None})
    return found


def _plain(value: object) -> Dict[str, Any]:
    """Return a card's values by lower-case names without a colon at the end."""
    if not isinstance(value, dict):
        return {}
    return {str(key).strip().rstrip(":").lower(): one for key, one in value.items()}
