"""The state of the GPU's driver, from files that anyone may read; a command only where no file tells.

=======================================  =============================================================
/proc/driver/nvidia/version              the loaded module's version; its first line names the flavour
/sys/module/nvidia/{version,taint}       the same; taint has "E" where the module has no valid signature
/var/lib/dkms/NAME/VERSION/KERNEL        what DKMS built, by kernel
/lib/modules/KERNEL/...                  the module on disk, from DKMS or from a signed package
libnvidia-ml.so.VERSION                  the version of the libraries
/sys/firmware/efi/efivars/SecureBoot-*   four bytes of attributes, then 1 where Secure Boot is on
/run/reboot-required                     of Debian and Ubuntu; /run/modelfleet-reboot-required is our own
=======================================  =============================================================

Sources: NVIDIA driver README, chapters "The NVIDIA /proc Interface" and "Open Linux Kernel Modules";
https://docs.kernel.org/admin-guide/module-signing.html (the marker at a signed module's end);
https://docs.kernel.org/admin-guide/tainted-kernels.html; https://uefi.org/specs/UEFI/2.10/ (SecureBoot);
dkms(8) for the tree of /var/lib/dkms.
"""

import os
import re
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Sequence, Tuple, Union

from . import profile
from .package_state import read_package_state
from .profile import Accelerator, AccountGroups
from .sources import OK, Reader, Sources

PREFIX = "accelerator_driver"
# Of several vendors in one machine the first of these decides: it is what inference would use.
VENDORS = ("nvidia", "amd", "intel")
SIGNATURE_MARKER = b"~Module signature appended~\n"
EFI_GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
SECURE_BOOT_VARIABLE = f"/sys/firmware/efi/efivars/SecureBoot-{EFI_GLOBAL}"
REBOOT_FLAGS = ("/run/reboot-required", "/var/run/reboot-required")
# Written by the role accelerator after a change that takes a reboot: the boot id of that moment, then the reason.
REBOOT_MARKER = "/run/modelfleet-reboot-required"
SERVICE_ACCOUNT = "ashley-ai"
LIBRARY_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu/nvidia/current",
    "/usr/lib/aarch64-linux-gnu/nvidia/current",
    "/usr/lib64",
    "/usr/lib",
    "/usr/lib/wsl/lib",
)
# Below /lib/modules/KERNEL: DKMS; RHEL's kmod packages; Ubuntu's signed packages (kernel/nvidia-535); Debian's.
MODULE_FOLDERS = (
    "updates/dkms",
    "updates",
    "extra",
    "extra/nvidia",
    "weak-updates/nvidia",
    "kernel/drivers/video",
    "kernel/drivers/video/nvidia",
)
MODINFO_TIMEOUT_SECONDS = 5.0
COMPANIONS = ("drm", "modeset", "uvm", "peermem", "fs", "vgpu-vfio")
OVERRIDE_FILES = ("/etc/environment",)
OVERRIDE_FOLDER = "/etc/environment.d"
NOT_INSTALLED = "no module is on disk"
# Of a record without these nothing can be said about modules: that none is loaded would be a guess.
NOT_TOLD = "neither /proc/modules nor /sys/module can be read"


@dataclass
class Groups(AccountGroups):
    """``account`` is the one whose groups these are."""

    account: Optional[str] = None


@dataclass
class DriverState(profile.DriverState):
    """With why ``reboot_pending`` is true, and ROCm's HSA_OVERRIDE_GFX_VERSION as every session gets it."""

    groups: Groups = field(default_factory=Groups)
    reboot_reasons: List[str] = field(default_factory=list)
    gfx_override: Optional[str] = None


def parse_nvidia_version(text: str) -> Tuple[Optional[str], Optional[str]]:
    """Return version and flavour (open or proprietary) from the text of /proc/driver/nvidia/version."""
    line = re.search(r"^NVRM version:(.*)$", text, re.MULTILINE)
    if line is None:
        return None, None
    version = re.search(r"\s(\d{2,4}\.\d{1,4}(?:\.\d{1,4})?)(?:\s|$)", line.group(1), re.ASCII)
    if version is None:
        return None, None
    return version.group(1), "open" if "Open Kernel Module" in line.group(1) else "proprietary"


def parse_modules(text: str) -> List[str]:
    """Return the names of loaded modules from /proc/modules."""
    return [line.split(" ", 1)[0] for line in text.splitlines() if line]


def parse_modinfo(text: str) -> Dict[str, str]:
    """Return the first value of each field that modinfo prints."""
    fields: Dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and value.strip():
            fields.setdefault(key.strip(), value.strip())
    return fields


def version_key(version: str) -> List[Tuple[int, Union[int, str]]]:
    """Return a key that sorts versions and kernel releases as people read them: 6.1.0-9 before 6.1.0-13."""
    parts = re.findall(r"\d{1,20}|[a-zA-Z]+", version, re.ASCII)
    # Numbers above words: 6.12.0 is newer than 6.12.0-rc1 would be, and 6.12-amd64 than 6.12-rc.
    return [(1, int(part)) if part.isdigit() else (0, part) for part in parts]


def is_driver_module(name: str) -> bool:
    """True for nvidia.ko and Debian's nvidia-current.ko, compressed or not; not for their companions."""
    match = re.fullmatch(r"nvidia((?:-[a-z0-9-]+)?)\.ko(?:\.(?:xz|zst|gz))?", name, re.ASCII)
    return match is not None and not match.group(1).endswith(tuple(f"-{companion}" for companion in COMPANIONS))


def modules_folder(reader: Reader) -> str:
    """Return the folder of kernel modules; a record without the link /lib has it below /usr."""
    return "/lib/modules" if reader.list("/lib/modules") else "/usr/lib/modules"


def find_module(reader: Reader, kernel: str) -> Optional[str]:
    """Return the path of NVIDIA's module on disk for ``kernel``, None where there is none."""
    base = f"{modules_folder(reader)}/{kernel}"
    prebuilt = [f"kernel/{name}" for name in reader.list(f"{base}/kernel") if name.startswith("nvidia-")]
    for folder in (*MODULE_FOLDERS, *prebuilt):
        for name in reader.list(f"{base}/{folder}"):
            if is_driver_module(name):
                return f"{base}/{folder}/{name}"
    return None


def dkms_version(reader: Reader, kernel: str) -> Optional[str]:
    """Return the version that DKMS built for ``kernel``, the highest of several."""
    found = []
    for name in reader.list("/var/lib/dkms"):
        if name.startswith("nvidia"):
            for version in reader.list(f"/var/lib/dkms/{name}"):
                if version[:1].isdigit() and reader.list(f"/var/lib/dkms/{name}/{version}/{kernel}"):
                    found.append(version)
    return max(found, key=version_key) if found else None


def next_kernel(reader: Reader) -> Optional[str]:
    """Return the newest kernel that can be started, None where none is installed (a container).

    GRUB and systemd-boot start the newest unless they are told otherwise.
    """
    folder = modules_folder(reader)
    kernels = [
        name
        for name in reader.list(folder)
        if name[:1].isdigit() and (reader.exists(f"/boot/vmlinuz-{name}") or reader.exists(f"{folder}/{name}/vmlinuz"))
    ]
    return max(kernels, key=version_key) if kernels else None


def has_headers(reader: Reader, kernel: str) -> bool:
    """Tell whether modules can be built for ``kernel``; a link that leads nowhere is no headers."""
    build = f"{modules_folder(reader)}/{kernel}/build"
    return reader.exists(f"{reader.link_target(build) or build}/Makefile")


def library_version(reader: Reader) -> Optional[str]:
    """Return the version in the file name of NVIDIA's libraries, None where there are none."""
    for folder in LIBRARY_FOLDERS:
        found: List[str] = []
        for name in reader.list(folder):
            match = re.fullmatch(r"lib(?:nvidia-ml|cuda)\.so\.(\d{2,4}\.\d{1,4}(?:\.\d{1,4})?)", name, re.ASCII)
            if match is not None:
                found.append(match.group(1))
        if found:
            # What a program loads is what the link names; an old file may lie beside it.
            linked = reader.link_name(f"{folder}/libnvidia-ml.so.1") or ""
            named = [version for version in found if linked.endswith(f".so.{version}")]
            return named[0] if named else max(found, key=version_key)
    return None


def read_secure_boot(reader: Reader, unknown: Dict[str, str]) -> Optional[bool]:
    """Return whether the firmware's Secure Boot is on."""
    text = reader.read(SECURE_BOOT_VARIABLE)
    if text is not None and len(text) >= 5:
        return text[4] == "\x01"
    if reader.exists("/sys/firmware/efi"):
        reason = "/sys/firmware/efi/efivars cannot be read"
    elif reader.live and not reader.exists("/run/systemd/container") and reader.exists("/sys/firmware"):
        return False  # started by a BIOS, which has no such thing
    else:
        reason = "/sys/firmware does not tell, as in a container or a record"
    unknown[f"{PREFIX}.secure_boot"] = reason
    return None


def read_tail(reader: Reader, path: str, size: int) -> Optional[bytes]:
    """Return the last ``size`` bytes of a file, None where it cannot be read."""
    try:
        descriptor = os.open(reader.root + path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, end - size))
            return stream.read(size)
    except OSError:
        return None


def read_signature(reader: Reader, state: DriverState, path: Optional[str], info: Dict[str, str]) -> Optional[bool]:
    """Return whether the module carries a signature: the file's, else what the kernel said when it loaded it."""
    if path is not None and path.endswith(".ko"):
        tail = read_tail(reader, path, len(SIGNATURE_MARKER))
        if tail is not None:
            return tail == SIGNATURE_MARKER
    if info:
        return "signer" in info or "sig_id" in info
    taint = reader.read_line("/sys/module/nvidia/taint") if state.loaded_version else None
    return "E" not in taint if taint is not None else None


def read_nvidia(reader: Sources, state: DriverState, answered: Optional[str], unknown: Dict[str, str]) -> None:
    """Fill in what only NVIDIA's driver has: modules on disk, libraries, flavour, signature, persistence daemon.

    ``answered`` is the version by which the driver has answered: under WSL, and of a pasted nvidia-smi, it is all
    that tells that the driver is loaded.
    """
    loaded, flavour = parse_nvidia_version(reader.read("/proc/driver/nvidia/version") or "")
    state.loaded_version = loaded or reader.read_line("/sys/module/nvidia/version") or answered
    running, following = state.headers.running_kernel, state.headers.next_kernel
    path = find_module(reader, running) if running else None
    path_next = find_module(reader, following) if following else None
    by_dkms = any(name.startswith("nvidia") for name in reader.list("/var/lib/dkms"))
    if state.loaded_version or path or path_next or by_dkms:
        state.dkms.running = path is not None if running else None
        state.dkms.next = path_next is not None if following else None
    info: Dict[str, str] = {}
    kernel = running if path else following
    if path or path_next:
        state.installed_version = dkms_version(reader, kernel or "")
        compressed = not (path or path_next or "").endswith(".ko")
        # modinfo unpacks a compressed module of some 60 MB: asked only for what no file tells.
        if state.installed_version is None or not state.loaded_version or (compressed and state.secure_boot):
            answer = reader.run(("modinfo", "-k", kernel or "", "nvidia"), MODINFO_TIMEOUT_SECONDS)
            info = parse_modinfo(answer.output) if answer.status == OK else {}
            state.installed_version = state.installed_version or info.get("version")
    state.flavour = flavour
    if flavour is None and "license" in info:
        state.flavour = "open" if "GPL" in info["license"] else "proprietary"
    state.library_version = library_version(reader)
    state.module_signed = read_signature(reader, state, path or path_next, info)
    if state.loaded_version and state.library_version:
        state.mismatch = state.loaded_version != state.library_version
    pid = reader.read_line("/run/nvidia-persistenced/nvidia-persistenced.pid") or ""
    if pid.isascii() and pid.isdigit() and reader.exists(f"/proc/{pid}"):
        state.persistence_daemon = "active"
    elif reader.exists("/usr/bin"):
        state.persistence_daemon = "inactive" if reader.exists("/usr/bin/nvidia-persistenced") else "absent"
    reasons = {
        "loaded_version": "no module of NVIDIA is loaded" if state.nouveau_loaded is not None else NOT_TOLD,
        "installed_version": NOT_INSTALLED if not (path or path_next) else "neither DKMS nor modinfo tells",
        "library_version": "libnvidia-ml.so is not found",
        "persistence_daemon": "/usr/bin cannot be read",
        "flavour": "no module of NVIDIA is loaded, and modinfo does not tell",
        "mismatch": "module and libraries are not both there",
        "module_signed": "the module is compressed, and is asked for its signature under Secure Boot only"
        if path or path_next
        else NOT_INSTALLED,
    }
    note(state, reasons, unknown)


def note(state: DriverState, reasons: Dict[str, str], unknown: Dict[str, str]) -> None:
    """Keep the reason of every field of ``reasons`` that is unknown."""
    for name, reason in reasons.items():
        if getattr(state, name) is None:
            unknown[f"{PREFIX}.{name}"] = reason


def read_open_vendor(reader: Reader, state: DriverState, unknown: Dict[str, str]) -> None:
    """Fill in the driver that is part of the kernel: AMD's and Intel's."""
    if state.vendor == "amd":
        state.loaded_version = reader.read_line("/sys/module/amdgpu/version")
        state.library_version = reader.read_line("/opt/rocm/.info/version")
        state.gfx_override = read_gfx_override(reader)
    part = "the driver is part of the kernel and has no version of its own"
    reasons = dict.fromkeys(("loaded_version", "installed_version", "flavour", "module_signed", "mismatch"), part)
    reasons["library_version"] = "ROCm is not found" if state.vendor == "amd" else part
    reasons["persistence_daemon"] = "only NVIDIA's driver has one"
    note(state, reasons, unknown)


def read_gfx_override(reader: Reader) -> Optional[str]:
    """Return HSA_OVERRIDE_GFX_VERSION as every session gets it, None where it is not set."""
    paths = [*OVERRIDE_FILES, *(f"{OVERRIDE_FOLDER}/{name}" for name in reader.list(OVERRIDE_FOLDER))]
    found = None
    for path in paths:
        for match in re.finditer(
            r"^\s*(?:export\s+)?HSA_OVERRIDE_GFX_VERSION=[\"']?([0-9.]{1,20})", reader.read(path) or "", re.MULTILINE
        ):
            found = match.group(1)
    return found


def read_kernels(reader: Reader, state: DriverState, unknown: Dict[str, str]) -> None:
    """Fill in the kernels and their headers."""
    headers = state.headers
    headers.running_kernel = reader.read_line("/proc/sys/kernel/osrelease")
    if headers.running_kernel is None:
        match = re.match(r"Linux version (\S+)", reader.read("/proc/version") or "")
        headers.running_kernel = match.group(1) if match else None
    headers.next_kernel = next_kernel(reader)
    for when, reason in (
        ("running", "/proc/sys/kernel/osrelease cannot be read"),
        ("next", "no kernel is installed here, as in a container"),
    ):
        kernel = getattr(headers, f"{when}_kernel")
        # A release is one name: a slash in a record would lead elsewhere.
        if kernel is not None and "/" not in kernel:
            setattr(headers, when, has_headers(reader, kernel))
        else:
            setattr(headers, f"{when}_kernel", None)
            unknown[f"{PREFIX}.headers.{when}"] = unknown[f"{PREFIX}.headers.{when}_kernel"] = reason


def read_reboot(reader: Reader, state: DriverState, unknown: Dict[str, str]) -> None:
    """Fill in whether a reboot is pending, and why."""
    for path in REBOOT_FLAGS:
        if reader.exists(path):
            state.reboot_reasons.append(f"{path} exists")
            break
    marker = (reader.read(REBOOT_MARKER) or "").splitlines()
    # The marker speaks for the boot that it was written in: another boot id means that the reboot has been.
    if marker and marker[0].strip() == (reader.read_line("/proc/sys/kernel/random/boot_id") or ""):
        state.reboot_reasons.append(marker[1].strip() if len(marker) > 1 else "the driver was changed")
    running, following = state.headers.running_kernel, state.headers.next_kernel
    if running and following and version_key(following) > version_key(running):
        state.reboot_reasons.append(f"kernel {following} is installed, {running} is running")
    if state.reboot_reasons:
        state.reboot_pending = True
    elif reader.exists("/run"):
        state.reboot_pending = False
    else:
        unknown[f"{PREFIX}.reboot_pending"] = "/run cannot be read"


def default_account(reader: Reader) -> Optional[str]:
    """Return the account that will use the GPU: who called sudo, oneself, or under root the service account."""
    if not reader.live:
        return None
    uid = os.geteuid()
    if uid == 0:
        name = os.environ.get("SUDO_USER", "root")
        return SERVICE_ACCOUNT if name == "root" else name
    for line in (reader.read("/etc/passwd") or "").splitlines():
        parts = line.split(":")
        if len(parts) > 2 and parts[2] == str(uid):
            return parts[0]
    return None


def read_groups(reader: Reader, account: Optional[str], unknown: Dict[str, str]) -> Groups:
    """Return the membership of ``account`` by /etc/passwd and /etc/group; another directory is not asked."""
    groups = Groups(account=account)
    primary = None
    for line in (reader.read("/etc/passwd") or "").splitlines():
        parts = line.split(":")
        if len(parts) > 3 and parts[0] == account:
            primary = parts[3]
    members: Dict[str, bool] = {}
    for line in (reader.read("/etc/group") or "").splitlines():
        parts = line.split(":")
        if len(parts) > 3:
            members[parts[0]] = account in parts[3].strip().split(",") or (primary is not None and parts[2] == primary)
    for name in ("render", "video"):
        if account is None:
            unknown[f"{PREFIX}.groups.{name}"] = "the account that uses the GPU is not known"
        elif primary is None:
            unknown[f"{PREFIX}.groups.{name}"] = f"/etc/passwd has no account {account}"
        else:
            setattr(groups, name, members.get(name, False))
    if account is None:
        unknown[f"{PREFIX}.groups.account"] = "a record does not tell"
    return groups


def read_driver_state(
    sources: Sources,
    accelerators: Sequence[Accelerator],
    unknown: Dict[str, str],
    account: Optional[str] = None,
) -> Optional[DriverState]:
    """Return the state of the driver of the machine's GPUs, None where there is none that a driver could serve.

    Args:
        sources: the machine; modinfo is asked at most once, and only where NVIDIA's module is on disk.
        accelerators: what was found; the vendors decide what is looked for.
        unknown: gets the reason of every field that is None, under ``accelerator_driver``.
        account: who will use the GPU; None for who called sudo, oneself, or the service account under root.

    Raises nothing, needs no privileges.
    """
    present = {accelerator.vendor for accelerator in accelerators}
    vendor = next((name for name in VENDORS if name in present), None)
    if vendor is None:
        return None
    state = DriverState(vendor=vendor)
    modules = sources.read("/proc/modules")
    if "nouveau" in parse_modules(modules or "") or any(one.driver == "nouveau" for one in accelerators):
        state.nouveau_loaded = True
    elif modules is not None or sources.exists("/sys/module"):
        state.nouveau_loaded = sources.exists("/sys/module/nouveau")
    else:
        unknown[f"{PREFIX}.nouveau_loaded"] = NOT_TOLD
    state.secure_boot = read_secure_boot(sources, unknown)
    read_kernels(sources, state, unknown)
    if vendor == "nvidia":
        versions = [one.driver_version for one in accelerators if one.vendor == "nvidia" and one.driver_version]
        read_nvidia(sources, state, versions[0] if versions else None, unknown)
        unknown[f"{PREFIX}.gfx_override"] = "only ROCm has one"
    else:
        read_open_vendor(sources, state, unknown)
        if state.gfx_override is None:
            unknown[f"{PREFIX}.gfx_override"] = "HSA_OVERRIDE_GFX_VERSION is not set in /etc/environment"
    for name in ("running", "next"):
        if getattr(state.dkms, name) is None:
            unknown[f"{PREFIX}.dkms.{name}"] = (
                "no driver is installed, or its kernel is not known" if vendor == "nvidia" else "part of the kernel"
            )
    state.packages = read_package_state(sources, unknown, f"{PREFIX}.packages")
    read_reboot(sources, state, unknown)
    state.groups = read_groups(sources, account or default_account(sources), unknown)
    return state
