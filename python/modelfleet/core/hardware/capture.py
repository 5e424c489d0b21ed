"""A capture: all that the probe of a live machine reads, as one JSON document that anyone can replay.

::

    {"format": "modelfleet-capture", "format_version": 1, "masked": true, "captured_at": "...",
     "machine": "x86_64", "model_root": "...", "volume": {...},
     "files": {path: text}, "links": {path: target}, "directories": {path: [name]}, "existing": [path],
     "commands": [{"arguments": [...], "status": "ok", "output": "...", "error": "...", "exit_code": 0}]}

Masked, it has no serial numbers, unique ids, host and account names, MAC and IP
addresses: each is replaced by one of its form, the same one wherever it occurs,
so that what belongs together still does. Mounts that the models do not lie on
and packages that no driver needs are left out. Accounts and variables are in none.
"""

import ipaddress
import os
import posixpath
import re
import sys
from typing import Any, Callable, Dict, List, Match, Optional, Sequence, Set

from . import amd, apple, macos, nvidia
from .pci import LSPCI
from .probe import probe_sources
from .sources import ABSENT, CommandResult, Sources, Volume

FORMAT = "modelfleet-capture"
FORMAT_VERSION = 1
# What a later modelfleet may want of a machine, beside what this one asked it.
MORE_COMMANDS = {
    "nvidia": ((nvidia.XML, nvidia.TIMEOUT_SECONDS), (nvidia.LIST, nvidia.TIMEOUT_SECONDS)),
    "amd": ((amd.AMD_SMI, amd.TIMEOUT_SECONDS), (amd.ROCM_SMI, amd.TIMEOUT_SECONDS)),
}
MORE_FILES = ("/proc/version", "/proc/modules", "/proc/driver/nvidia/version")
PACKAGE_STATUS = "/var/lib/dpkg/status"
DRIVER_PACKAGES = re.compile(
    r"nvidia|cuda|rocm|hip|hsa|amdgpu|linux-(image|headers|modules)|dkms|firmware|mesa|libdrm|pciutils"
)
GPU_VARIABLE = re.compile(r"\s*(export\s+)?(HSA|HIP|ROCR|ROCM|CUDA|NVIDIA|GPU)_")
SERIAL_WORDS = r"serial|uuid|udid|guid|\bpdi\b|unique.?id|host.?id|host.?name|fru.?id|fru part|asset.?tag|regid"
SERIAL_FILES = re.compile(r"/(unique_id|serial|serial_number|\w+_serial|product_uuid|\w+_asset_tag)$")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
MAC = re.compile(r"(?<![0-9a-f:])[0-9a-f]{2}(?::[0-9a-f]{2}){5,19}(?![0-9a-f:])", re.IGNORECASE)
IPV4 = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])")
IPV6 = re.compile(r"(?<![0-9a-f:.])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![0-9a-f:.])", re.IGNORECASE)
LONG_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32,64}(?![0-9a-f])")
HOME = re.compile(r"(?<=/home/|Users/)[^/\s:\"',]+")
SHARE = re.compile(r"( - (?:nfs4?|cifs|smb3|smbfs|ceph|glusterfs|lustre|beegfs|fuse\.\S+) )\S+")
OLD_SHARE = re.compile(r"(?m)^\S+(?= \S+ (?:nfs4?|cifs|smb3|smbfs|ceph|glusterfs|lustre|beegfs|fuse\.\S+) )")
USER_OPTION = re.compile(r"\b(user(?:name)?|pass(?:word)?)=[^,\s]+")
XML_VALUE = re.compile(rf"(<(\w*(?:{SERIAL_WORDS})\w*)>)([^<]+)(?=</)", re.IGNORECASE)
JSON_VALUE = re.compile(rf'("[^"\n]*(?:{SERIAL_WORDS})[^"\n]*"\s*:\s*")([^"\n]+)(?=")', re.IGNORECASE)
LINE_VALUE = re.compile(rf"(?m)^(\s*[\w .-]*(?:{SERIAL_WORDS})[\w .-]*?\s*: *)(\S.*)$", re.IGNORECASE)
NOT_SECRET = re.compile(r"\s*(\[?n/?a\]?|none|unknown|not supported|0+|0x0+)\s*", re.IGNORECASE)
SHORTEST_NAME = 3
COMMON_NAMES = ("localhost", "root", "user", "debian", "ubuntu", "linux")


class RecordingSources(Sources):
    """The running machine; keeps what is read."""

    def __init__(self) -> None:
        super().__init__("/")
        self.files: Dict[str, str] = {}
        self.links: Dict[str, str] = {}
        self.directories: Dict[str, List[str]] = {}
        self.existing: Set[str] = set()
        self.results: Dict[Sequence[str], CommandResult] = {}
        self.volumes: List[Volume] = []

    def read(self, path: str) -> Optional[str]:
        """Read a file and keep its text."""
        text = super().read(path)
        if text is not None:
            self.files[path] = text
        return text

    def exists(self, path: str) -> bool:
        """Tell whether there is such a path, and keep it."""
        found = super().exists(path)
        if found:
            self.existing.add(path)
        return found

    def list(self, path: str) -> List[str]:
        """List a directory and keep the names."""
        names = super().list(path)
        if names:
            self.directories[path] = names
        return names

    def read_link(self, path: str) -> Optional[str]:
        """Read a symlink and keep its target."""
        target = super().read_link(path)
        if target is not None:
            self.links[path] = target
        return target

    def volume(self, path: str) -> Volume:
        """Measure a file system and keep the numbers."""
        self.volumes.append(super().volume(path))
        return self.volumes[-1]

    def run(self, arguments: Sequence[str], timeout: float = 10.0) -> CommandResult:
        """Run a command and keep what it came to."""
        result = super().run(arguments, timeout)
        if result.status != ABSENT:
            self.results[tuple(arguments)] = result
        return result


class Masker:
    """Replaces what identifies a machine or a person, each thing by the same other thing wherever it occurs."""

    def __init__(self, names: Sequence[str]) -> None:
        self._given: Dict[str, Dict[str, str]] = {}
        wanted = [name for name in names if len(name) >= SHORTEST_NAME and name.lower() not in COMMON_NAMES]
        # LVM doubles the hyphens of a name in the names of its devices.
        wanted += [name.replace("-", "--") for name in wanted if "-" in name]
        longest_first = sorted({name.lower() for name in wanted}, key=lambda name: (-len(name), name))
        alternatives = "|".join(re.escape(name) for name in longest_first)
        self._names = re.compile(rf"(?<![A-Za-z0-9])(?:{alternatives})(?![A-Za-z0-9])", re.I) if wanted else None

    def _number(self, kind: str, original: str, make: Callable[[int], str]) -> str:
        given = self._given.setdefault(kind, {})
        if original not in given:
            given[original] = make(len(given) + 1)
        return given[original]

    def _uuid(self, match: Match[str]) -> str:
        return self._number("uuid", match.group().lower(), lambda number: f"00000000-0000-0000-0000-{number:012d}")

    def _mac(self, match: Match[str]) -> str:
        return self._number("mac", match.group().lower(), lambda number: f"02:00:00:00:00:{number % 256:02x}")

    def _address(self, match: Match[str]) -> str:
        text = match.group()
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return text
        if address.is_loopback or address.is_unspecified or text.endswith("::"):
            return text
        documentation = "192.0.2.{}" if address.version == 4 else "2001:db8::{}"
        return self._number("address", text, lambda number: documentation.format(number % 256))

    def serial(self, text: str) -> str:
        """Return a serial number's stand-in, of the same form: hexadecimal stays that."""
        stripped = text.strip()
        masked_already = re.search(r"00000000-0000-0000", text)
        if masked_already or not stripped or NOT_SECRET.fullmatch(text):
            return text
        start = "0x" if stripped.lower().startswith("0x") else ""
        body = stripped[len(start) :]
        if re.fullmatch(r"[0-9a-fA-F]{4,}", body):
            return self._number("serial", stripped, lambda number: f"{start}{number:0{len(body)}x}")
        return self._number("serial", stripped, lambda number: f"masked-{number}")

    def text(self, text: str) -> str:
        """Return ``text`` with everything replaced."""
        text = UUID.sub(self._uuid, text)
        text = MAC.sub(self._mac, text)
        text = SHARE.sub(r"\1server:/share", OLD_SHARE.sub("server:/share", text))
        text = IPV6.sub(self._address, IPV4.sub(self._address, text))
        text = XML_VALUE.sub(lambda match: match.group(1) + self.serial(match.group(3)), text)
        text = JSON_VALUE.sub(lambda match: match.group(1) + self.serial(match.group(2)), text)
        text = LINE_VALUE.sub(lambda match: match.group(1) + self.serial(match.group(2)), text)
        text = LONG_ID.sub(lambda match: "0" * len(match.group()), text)
        text = USER_OPTION.sub(r"\1=masked", HOME.sub("user", text))
        return self._names.sub("masked", text) if self._names is not None else text

    def value(self, value: Any) -> Any:
        """Return a JSON value with all its texts, and the names of its fields, masked."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(one) for one in value]
        if isinstance(value, dict):
            return {self.text(key): self.value(one) for key, one in value.items()}
        return value


def own_names() -> List[str]:
    """Return what this machine and its account are called."""
    names = [os.uname().nodename, os.uname().nodename.partition(".")[0]]
    for variable in ("SUDO_USER", "USER", "LOGNAME"):
        names.append(os.environ.get(variable, ""))
    return [name for name in names if name]


def only_mounts_of(text: str, path: str) -> str:
    """Return the lines of mountinfo or mounts whose mount point ``path`` lies below."""
    above = {"/"}
    while path not in ("/", ""):
        above.add(path)
        path = posixpath.dirname(path)
    kept: List[str] = []
    for line in text.splitlines():
        fields = line.split(" ")
        point = fields[4] if " - " in line and len(fields) > 4 else (fields[1] if len(fields) > 1 else "")
        if point.replace("\\040", " ") in above:
            kept.append(line)
    return "\n".join(kept) + "\n"


def only_driver_packages(text: str) -> str:
    """Return the paragraphs of dpkg's status of packages that a GPU's driver needs, or that are half configured."""
    kept: List[str] = []
    for paragraph in text.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version|Architecture): (.*)$", paragraph, re.MULTILINE))
        broken = not fields.get("Status", "").endswith((" installed", " not-installed", " config-files"))
        held = fields.get("Status", "").startswith("hold")
        if "Package" in fields and (broken or held or DRIVER_PACKAGES.search(fields["Package"])):
            kept.append("".join(f"{name}: {value}\n" for name, value in fields.items()))
    return "\n".join(kept)


def reduced(path: str, text: str) -> str:
    """Return what a capture keeps of a file in any case: no accounts, no secrets in variables, no list of packages."""
    if path in ("/etc/passwd", "/etc/group"):
        return ""
    if path == "/proc/1/environ":
        return "\0".join(variable for variable in text.split("\0") if variable.startswith("container="))
    if path.startswith("/etc/environment"):
        return "".join(f"{line}\n" for line in text.splitlines() if GPU_VARIABLE.match(line))
    return only_driver_packages(text) if path == PACKAGE_STATUS else text


def capture(model_root: str, captured_at: str, unmasked: bool = False, platform: str = sys.platform) -> Dict[str, Any]:
    """Return the capture of the running machine.

    ``captured_at`` is a time in RFC 3339; ``model_root`` as for ``probe``.
    ``unmasked`` leaves in what identifies the machine.
    """
    sources = RecordingSources()
    profile = probe_sources(model_root, sources, platform)
    for vendor, commands in MORE_COMMANDS.items():
        if any(one.vendor == vendor for one in profile.accelerators):
            for arguments, timeout in commands:
                sources.run(arguments, timeout)
    if profile.accelerators and platform != "darwin":
        sources.run(LSPCI)
    if platform == "darwin":
        sources.run(apple.SYSTEM_PROFILER, apple.TIMEOUT_SECONDS)
        sources.run(macos.SW_VERS)
    else:
        for path in MORE_FILES:
            sources.read(path)
    sources.files = {
        path: kept for path, text in sources.files.items() for kept in (reduced(path, text),) if kept or not text
    }
    masker = Masker([] if unmasked else own_names())
    if not unmasked:
        place = sources.volumes[-1].existing_path or model_root if sources.volumes else model_root
        for path in ("/proc/self/mountinfo", "/proc/mounts"):
            if path in sources.files:
                sources.files[path] = only_mounts_of(sources.files[path], place)
        for path, text in sources.files.items():
            if SERIAL_FILES.search(path):
                sources.files[path] = masker.serial(text)
    document: Dict[str, Any] = {
        "machine": sources.machine(),
        "model_root": model_root,
        "volume": sources.volumes[-1]._asdict() if sources.volumes else {},
        "files": dict(sorted(sources.files.items())),
        "links": dict(sorted(sources.links.items())),
        "directories": dict(sorted(sources.directories.items())),
        "existing": sorted(sources.existing),
        "commands": [
            {"arguments": list(arguments), **result._asdict()} for arguments, result in sources.results.items()
        ],
    }
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "masked": not unmasked, "captured_at": captured_at}
    return {**head, **(document if unmasked else masker.value(document))}
