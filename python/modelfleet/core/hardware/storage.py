"""The file system that holds the model root, from /proc/self/mountinfo and /sys/dev/block.

mountinfo: https://docs.kernel.org/filesystems/proc.html (3.5)
"""

import posixpath
import re
from typing import Dict, List, NamedTuple, Optional, Set, Tuple

from .pci import read_link
from .profile import PcieLink, Storage
from .sources import Reader

NETWORK_FILE_SYSTEMS = re.compile(
    r"afs|beegfs|ceph|cifs|coda|davfs|glusterfs|gpfs|lustre|ncpfs|nfs4?|orangefs|smb3|smbfs"
    r"|fuse\.(ceph|cephfs|glusterfs|rclone|s3fs|sshfs)"
)
MEMORY_FILE_SYSTEMS = ("ramfs", "rootfs", "tmpfs")
NETWORK_BLOCK_DEVICES = re.compile(r"(nbd|rbd)\d")
# These report a rotating disk or a solid one as the hypervisor likes.
VIRTUAL_BLOCK_DEVICES = re.compile(r"(vd|xvd|ubd)[a-z]")
VIRTUAL_DISK_MAKERS = ("QEMU", "VMware", "VBOX", "Msft", "Google", "Virtual", "Xen")
# From fast to slow: a device made of several is as fast as its slowest.
KINDS = ("nvme", "ssd", "hdd", "network")


class Mount(NamedTuple):
    """One mounted file system; ``device_number`` is ``major:minor``, empty where the source has none."""

    mount_point: str
    file_system: str
    source: str
    device_number: str


def unescape(text: str) -> str:
    """Return a mountinfo field with its octal escapes (space, tab, newline, backslash) undone."""
    return re.sub(r"\\([0-3][0-7]{2})", lambda match: chr(int(match.group(1), 8)), text)


def parse_mountinfo(text: str) -> List[Mount]:
    """Return the mounts of /proc/self/mountinfo; lines of another form are left out."""
    mounts: List[Mount] = []
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if separator and len(fields) >= 6 and len(tail) >= 2:
            mounts.append(Mount(unescape(fields[4]), tail[0], unescape(tail[1]), fields[2]))
    return mounts


def parse_mounts(text: str) -> List[Mount]:
    """Return the mounts of /proc/mounts, which older records have in place of mountinfo."""
    mounts: List[Mount] = []
    for line in text.splitlines():
        fields = line.split(" ")
        if len(fields) >= 4:
            mounts.append(Mount(unescape(fields[1]), fields[2], unescape(fields[0]), ""))
    return mounts


def find_mount(mounts: List[Mount], path: str, device_number: str = "") -> Optional[Mount]:
    """Return the mount that ``path`` lies on.

    That is the deepest mount point above it, the last one where several lie on
    each other. ``device_number`` is the path's own where it is known: a mount
    that another one hides does not have it.
    """
    above = [
        mount
        for mount in mounts
        if mount.mount_point == "/" or path == mount.mount_point or path.startswith(mount.mount_point + "/")
    ]
    matching = [mount for mount in above if device_number and mount.device_number == device_number]
    best: Optional[Mount] = None
    for mount in matching or above:
        if best is None or len(mount.mount_point) >= len(best.mount_point):
            best = mount
    return best


def find_block_device(reader: Reader, mount: Mount) -> Optional[str]:
    """Return the kernel's name (``sda2``, ``dm-0``) of the device below a mount, None where there is none."""
    name = reader.link_name(f"/sys/dev/block/{mount.device_number}") if mount.device_number else None
    if name is not None or not mount.source.startswith("/dev/"):
        return name
    # btrfs shows a device number of its own; its source is the true device.
    source = posixpath.basename(mount.source)
    if reader.exists(f"/sys/class/block/{source}"):
        return source
    for candidate in reader.list("/sys/class/block"):
        if candidate.startswith("dm-") and reader.read_line(f"/sys/class/block/{candidate}/dm/name") == source:
            return candidate
    # A record without /sys: this name alone tells the kind.
    return source if source.startswith("nvme") else None


def device_kind(reader: Reader, name: str, seen: Optional[Set[str]] = None) -> Tuple[Optional[str], str]:
    """Return the kind of the block device ``name``, or None and the reason why it cannot be told."""
    seen = set() if seen is None else seen
    seen.add(name)
    directory = f"/sys/class/block/{name}"
    parts = [part for part in reader.list(f"{directory}/slaves") if part not in seen]
    if parts:
        kinds: List[str] = []
        for part in parts:
            kind, reason = device_kind(reader, part, seen)
            if kind is None:
                return None, reason
            kinds.append(kind)
        return max(kinds, key=KINDS.index), ""
    if reader.exists(f"{directory}/partition"):
        # A partition's directory lies in that of its disk.
        target = reader.link_target(directory) or ""
        name = posixpath.basename(posixpath.dirname(target)) or name
        directory = f"/sys/class/block/{name}"
    if NETWORK_BLOCK_DEVICES.match(name):
        return "network", ""
    if name.startswith("nvme"):
        return "nvme", ""
    maker = f"{reader.read_line(f'{directory}/device/vendor')} {reader.read_line(f'{directory}/device/model')}"
    if VIRTUAL_BLOCK_DEVICES.match(name) or any(word in maker for word in VIRTUAL_DISK_MAKERS):
        return None, f"{name} is a virtual disk; its host does not tell what it lies on"
    if name.startswith("loop"):
        return None, f"{name} is a file on another file system"
    rotational = reader.read_line(f"{directory}/queue/rotational")
    if rotational not in ("0", "1"):
        return None, f"{directory}/queue/rotational does not tell"
    return ("hdd" if rotational == "1" else "ssd"), ""


def read_nvme_link(reader: Reader, name: str, unknown: Dict[str, str]) -> PcieLink:
    """Return the PCI Express link of the nvme device ``name``; of the first one below a volume of several."""
    for slave in reader.list(f"/sys/class/block/{name}/slaves"):
        return read_nvme_link(reader, slave, unknown)
    match = re.match(r"nvme\d+", name)
    facts = read_link(reader, f"/sys/class/nvme/{match.group() if match else name}/device", "pcie")
    link = PcieLink(**{key.partition(".")[2]: value for key, value in facts.items()})
    for key, value in vars(link).items():
        if value is None:
            unknown[f"storage.pcie.{key}"] = "sysfs does not tell of its link"
    return link


def read_kind(reader: Reader, mount: Mount, unknown: Dict[str, str]) -> Optional[str]:
    """Return what the mount lies on: nvme, ssd, hdd or network."""
    if NETWORK_FILE_SYSTEMS.fullmatch(mount.file_system):
        return "network"
    name = find_block_device(reader, mount)
    if mount.file_system in MEMORY_FILE_SYSTEMS:
        kind, reason = None, f"{mount.file_system} lies in memory"
    elif name is None:
        kind, reason = None, f"{mount.file_system} on {mount.source} shows no block device"
    else:
        kind, reason = device_kind(reader, name)
    if kind is None:
        unknown["storage.kind"] = reason
    return kind


def read_storage(reader: Reader, model_root: str, unknown: Dict[str, str]) -> Storage:
    """Return the file system of the absolute path ``model_root``, which need not exist yet."""
    volume = reader.volume(model_root)
    storage = Storage(path=model_root)
    for name in ("existing_path", "total_bytes", "free_bytes", "inodes_free"):
        setattr(storage, name, getattr(volume, name))
        if getattr(volume, name) is None:
            unknown[f"storage.{name}"] = volume.problem
    mountinfo = reader.read("/proc/self/mountinfo")
    mounts = parse_mountinfo(mountinfo) if mountinfo is not None else parse_mounts(reader.read("/proc/mounts") or "")
    mount = find_mount(mounts, storage.existing_path or model_root, volume.device_number)
    if mount is None:
        for name in ("mount_point", "file_system", "device", "kind"):
            unknown[f"storage.{name}"] = "/proc/self/mountinfo has no mount for it"
        return storage
    storage.mount_point, storage.file_system, storage.device = mount.mount_point, mount.file_system, mount.source
    storage.kind = read_kind(reader, mount, unknown)
    block = find_block_device(reader, mount) if storage.kind == "nvme" else None
    if block is not None:
        storage.pcie = read_nvme_link(reader, block, unknown)
    return storage
