"""The HardwareProfile: what a host is, as far as it could be read, and why not where it could not.

Bytes are integers, times are RFC 3339 in UTC. A field that could not be read is
``None`` and has a reason in ``unknown`` under its dotted name
(``cpu.sockets``, ``accelerators.0.name``). ``None`` without a reason is an
answer: no driver is bound, there is no memory limit, this is no container.
``sources`` names where a field, or all below it, was read.
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
class CoreKind:
    """Cores that are alike, in a processor whose cores are not all alike."""

    name: str
    physical_cores: Optional[int] = None
    logical_cores: Optional[int] = None


@dataclass
class Cpu:
    """The processors.

    ``instruction_sets`` has the kernel's names, only those that every core
    has. ``core_kinds`` is empty where all cores are alike. ``limit_cores`` is
    how many processors a control group lets this account use at once, where
    that is fewer than there are; ``None``: there is no such limit.
    """

    model: Optional[str] = None
    architecture: Optional[str] = None
    sockets: Optional[int] = None
    physical_cores: Optional[int] = None
    logical_cores: Optional[int] = None
    instruction_sets: Optional[List[str]] = None
    cache: Cache = field(default_factory=Cache)
    core_kinds: List[CoreKind] = field(default_factory=list)
    limit_cores: Optional[float] = None


@dataclass
class Memory:
    """Main memory. ``limit_bytes`` is a control group's limit below the total; ``None``: there is none."""

    total_bytes: Optional[int] = None
    available_bytes: Optional[int] = None
    limit_bytes: Optional[int] = None


@dataclass
class PcieLink:
    """A PCI Express link as it runs now, and what the device can do. Idle GPUs run theirs slower."""

    generation_now: Optional[int] = None
    generation_max: Optional[int] = None
    width_now: Optional[int] = None
    width_max: Optional[int] = None


@dataclass
class Storage:
    """The file system that holds, or will hold, the model root.

    ``existing_path`` is the nearest directory of ``path`` that exists.
    ``free_bytes`` is what an unprivileged account may still write.
    ``kind`` is nvme, ssd, hdd or network; ``pcie`` is the link of an nvme device, ``None`` for others.
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
    pcie: Optional[PcieLink] = None


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
    secure_boot: Optional[bool] = None


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
    """An address and the ids of a PCI function, in hexadecimal without ``0x``; class with subclass and interface."""

    address: Optional[str] = None
    class_id: Optional[str] = None
    vendor_id: Optional[str] = None
    device_id: Optional[str] = None
    subsystem_vendor_id: Optional[str] = None
    subsystem_device_id: Optional[str] = None


@dataclass
class AcceleratorMemory:
    """The memory of a GPU. ``unified``: it is the main memory, shared with the processor; then there is no total.

    ``budget_bytes`` is the most that one process can have: the largest slice
    of a card that is cut by MIG, the limit that macOS was set to, else the
    total. ``gtt_bytes`` is main memory that an AMD GPU may map besides its own.
    """

    total_bytes: Optional[int] = None
    free_bytes: Optional[int] = None
    budget_bytes: Optional[int] = None
    gtt_bytes: Optional[int] = None
    unified: Optional[bool] = None


@dataclass
class MigSlice:
    """One device that MIG made of a card. Slices of one ``gpu_instance_id`` share their memory."""

    index: Optional[int] = None
    uuid: Optional[str] = None
    profile: Optional[str] = None
    memory_total_bytes: Optional[int] = None
    gpu_instance_id: Optional[int] = None
    compute_instance_id: Optional[int] = None


@dataclass
class Mig:
    """Whether a card is cut into slices (NVIDIA Multi-Instance GPU), and which."""

    enabled: Optional[bool] = None
    slices: List[MigSlice] = field(default_factory=list)


@dataclass
class Accelerator:
    """A GPU.

    ``vendor`` is nvidia, amd, intel, apple or other. ``driver`` is the kernel
    driver bound to it, ``None``: none is. ``pci`` and ``pcie``: ``None``, it
    is on no bus. ``mig``, ``compute_capability`` and ``architecture`` are of
    NVIDIA's, ``gfx_target`` of AMD's, ``None`` for others. ``runtime_version``
    is the CUDA that the driver carries, the ROCm that is installed, or Metal.
    """

    vendor: str
    name: Optional[str] = None
    uuid: Optional[str] = None
    pci: Optional[PciFunction] = None
    driver: Optional[str] = None
    memory: AcceleratorMemory = field(default_factory=AcceleratorMemory)
    mig: Optional[Mig] = None
    architecture: Optional[str] = None
    compute_capability: Optional[str] = None
    gfx_target: Optional[str] = None
    driver_version: Optional[str] = None
    runtime_version: Optional[str] = None
    pcie: Optional[PcieLink] = None
    power_limit_watts: Optional[float] = None


@dataclass
class KernelHeaders:
    """Whether the headers to build modules are there, for the running kernel and for that of the next boot."""

    running: Optional[bool] = None
    next: Optional[bool] = None
    running_kernel: Optional[str] = None
    next_kernel: Optional[str] = None


@dataclass
class DkmsBuilds:
    """Whether DKMS has built the module for the running kernel, and for that of the next boot."""

    running: Optional[bool] = None
    next: Optional[bool] = None


@dataclass
class PackageState:
    """The package manager's state where it can hinder a driver."""

    manager: Optional[str] = None
    locked: Optional[bool] = None
    held: List[str] = field(default_factory=list)
    half_configured: List[str] = field(default_factory=list)


@dataclass
class AccountGroups:
    """Whether the account is in the groups that may open the GPU's device files."""

    render: Optional[bool] = None
    video: Optional[bool] = None


@dataclass
class DriverState:
    """The GPU driver as it is loaded and as it is installed.

    ``mismatch``: the loaded module and the libraries are of different
    versions. ``slow``: the driver's tool gave no answer in time.
    ``persistence_daemon`` is active, inactive or absent.
    """

    vendor: str
    loaded_version: Optional[str] = None
    installed_version: Optional[str] = None
    library_version: Optional[str] = None
    flavour: Optional[str] = None
    mismatch: Optional[bool] = None
    nouveau_loaded: Optional[bool] = None
    slow: bool = False
    secure_boot: Optional[bool] = None
    module_signed: Optional[bool] = None
    headers: KernelHeaders = field(default_factory=KernelHeaders)
    dkms: DkmsBuilds = field(default_factory=DkmsBuilds)
    packages: PackageState = field(default_factory=PackageState)
    reboot_pending: Optional[bool] = None
    persistence_daemon: Optional[str] = None
    groups: AccountGroups = field(default_factory=AccountGroups)


@dataclass
class HardwareProfile:
    """Everything that is known of a host; ``profile_to_dict`` is its one way to JSON."""

    probed_at: str
    accelerators: List[Accelerator] = field(default_factory=list)
    accelerator_driver: Optional[DriverState] = None
    cpu: Cpu = field(default_factory=Cpu)
    memory: Memory = field(default_factory=Memory)
    storage: Storage = field(default_factory=Storage)
    os: OperatingSystem = field(default_factory=OperatingSystem)
    python: PythonInterpreter = field(default_factory=PythonInterpreter)
    account: Account = field(default_factory=Account)
    unknown: Dict[str, str] = field(default_factory=dict)
    sources: Dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


def profile_to_dict(profile: HardwareProfile) -> Dict[str, Any]:
    """Return ``profile`` as plain dictionaries, lists, strings, numbers, booleans and ``None``."""
    return asdict(profile)
