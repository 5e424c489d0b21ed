"""The HardwareProfile: what a host is, as far as it could be read, and why not where it could not.

Bytes are integers, times are RFC 3339 in UTC. A field that could not be read is
``None`` and has a reason in ``unknown`` under its dotted name
(``cpu.sockets``, ``accelerators.0.name``). ``None`` without a reason is an
answer: no driver is bound, there is no memory limit, this is no container.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Optional

SCHEMA_VERSION = 1


@dataclass
class Cache:
    """Bytes of cache by level, all instances of the machine added up, as lscpu does."""

    l1d_bytes: Optional[int] = None
    l1i_bytes: Optional[int] = None
    l2_bytes: Optional[int] = None
    l3_bytes: Optional[int] = None


@dataclass
class Cpu:
    """The processors. ``instruction_sets`` has the kernel's names, only those that every core has."""

    model: Optional[str] = None
    architecture: Optional[str] = None
    sockets: Optional[int] = None
    physical_cores: Optional[int] = None
    logical_cores: Optional[int] = None
    instruction_sets: Optional[List[str]] = None
    cache: Cache = field(default_factory=Cache)


@dataclass
class Memory:
    """Main memory. ``limit_bytes`` is a control group's limit below the total; ``None``: there is none."""

    total_bytes: Optional[int] = None
    available_bytes: Optional[int] = None
    limit_bytes: Optional[int] = None


@dataclass
class Storage:
    """The file system that holds, or will hold, the model root.

    ``existing_path`` is the nearest directory of ``path`` that exists.
    ``free_bytes`` is what an unprivileged account may still write.
    ``kind`` is nvme, ssd, hdd or network.
    """

    path: Optional[str] = None
    existing_path: Optional[str] = None
    mount_point: Optional[str] = None
    file_system: Optional[str] = None
    device: Optional[str] = None
    kind: Optional[str] = None
    total_bytes: Optional[int] = None
    free_bytes: Optional[int] = None
    inodes_free: Optional[int] = None


@dataclass
class OperatingSystem:
    """``family`` is debian, redhat, ... or darwin; ``container`` names the engine, ``None``: no container."""

    family: Optional[str] = None
    distribution: Optional[str] = None
    version: Optional[str] = None
    kernel: Optional[str] = None
    boot_id: Optional[str] = None
    init: Optional[str] = None
    container: Optional[str] = None
    virtual_machine: Optional[bool] = None
    hypervisor: Optional[str] = None


@dataclass
class PythonInterpreter:
    """The interpreter that the probe runs under."""

    version: Optional[str] = None
    executable: Optional[str] = None


@dataclass
class Account:
    """The account that the probe runs as. ``privileged``: it is root."""

    name: Optional[str] = None
    uid: Optional[int] = None
    home: Optional[str] = None
    privileged: Optional[bool] = None


@dataclass
class PciFunction:
    """An address and the four-digit ids of a PCI function, in hexadecimal without ``0x``."""

    address: str
    class_id: str
    vendor_id: str
    device_id: str
    subsystem_vendor_id: Optional[str] = None
    subsystem_device_id: Optional[str] = None


@dataclass
class Accelerator:
    """A GPU. ``driver`` is the kernel driver bound to it, ``None``: none is. ``pci``: ``None``, it is on no bus."""

    vendor: str
    name: Optional[str] = None
    pci: Optional[PciFunction] = None
    driver: Optional[str] = None
    memory_total_bytes: Optional[int] = None


@dataclass
class HardwareProfile:
    """Everything that is known of a host; ``profile_to_dict`` is its one way to JSON."""

    probed_at: str
    accelerators: List[Accelerator] = field(default_factory=list)
    cpu: Cpu = field(default_factory=Cpu)
    memory: Memory = field(default_factory=Memory)
    storage: Storage = field(default_factory=Storage)
    os: OperatingSystem = field(default_factory=OperatingSystem)
    python: PythonInterpreter = field(default_factory=PythonInterpreter)
    account: Account = field(default_factory=Account)
    unknown: Dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


def profile_to_dict(profile: HardwareProfile) -> Dict[str, Any]:
    """Return ``profile`` as plain dictionaries, lists, strings, numbers, booleans and ``None``."""
    return asdict(profile)
