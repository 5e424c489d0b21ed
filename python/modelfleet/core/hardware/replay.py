"""Recorded machines: a capture file, or a directory of raw outputs as people paste them into a bug report.

Runs on the controller and ships to no host. A directory holds any of::

    nvidia-smi-q-x.xml        nvidia-smi -q -x
    nvidia-smi-q.txt          nvidia-smi -q
    nvidia-smi-query-gpu.csv  nvidia-smi --query-gpu=... --format=csv
    nvidia-smi-L.txt          nvidia-smi -L
    nvidia-smi.txt            nvidia-smi, or nvidia-smi --version
    rocm-smi.json             rocm-smi ... --json
    amd-smi-static.json       amd-smi static --json
    system_profiler-SPDisplaysDataType.json
    sysctl.txt  sw_vers.txt   sysctl -a, sw_vers
    lspci-nnmmv.txt           lspci -nnmmv
    lsblk.txt                 lsblk -O
    cpuinfo  meminfo  mounts  mountinfo  os-release
    sys/  proc/  etc/         trees

What is not there is unknown.
"""

import csv
import json
import os
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ..errors import HardwareOutputError
from . import amd, apple, macos, nvidia, nvidia_smi
from .lsblk import LSBLK
from .pci import LSPCI
from .sources import ABSENT, FAILED, OK, READ_LIMIT_BYTES, CommandResult, Sources, Volume

FORMAT = "modelfleet-capture"
FORMAT_VERSION = 1
# Where a record's files are, so that nothing that opens one itself finds this machine's.
NOWHERE = "/nonexistent/modelfleet-capture"
QUERY_FILE = "nvidia-smi-query-gpu.csv"
COMMAND_FILES: Dict[str, Tuple[Tuple[str, ...], ...]] = {
    "nvidia-smi-q-x.xml": (nvidia.XML,),
    "nvidia-smi-q.txt": (nvidia.TEXT,),
    "nvidia-smi-L.txt": (nvidia.LIST,),
    "nvidia-smi.txt": (nvidia.VERSION,),
    "nvidia-smi-version.txt": (nvidia.VERSION,),
    "nvidia-smi-help-query-gpu.txt": (nvidia.HELP,),
    "rocm-smi.json": (amd.ROCM_SMI,),
    "amd-smi-static.json": (amd.AMD_SMI,),
    "system_profiler-SPDisplaysDataType.json": (apple.SYSTEM_PROFILER,),
    "sysctl.txt": (macos.SYSCTL, macos.WIRED_LIMIT),
    "sw_vers.txt": (macos.SW_VERS,),
    "lspci-nnmmv.txt": (LSPCI,),
    "lsblk.txt": (LSBLK,),
}
FLAT_FILES = {
    "/proc/cpuinfo": "cpuinfo",
    "/proc/meminfo": "meminfo",
    "/proc/mounts": "mounts",
    "/proc/self/mountinfo": "mountinfo",
    "/etc/os-release": "os-release",
}
REFUSALS = ("Failed to initialize NVML", "NVIDIA-SMI has failed", "No devices were found", "Unable to determine")
# What a single raw output begins with, after white space and warnings.
SIGNS = (
    ("<nvidia_smi_log", "nvidia-smi-q-x.xml"),
    ("NVSMI LOG", "nvidia-smi-q.txt"),
    ('"SPDisplaysDataType"', "system_profiler-SPDisplaysDataType.json"),
    ('"asic"', "amd-smi-static.json"),
    ('"card0"', "rocm-smi.json"),
    ("Slot:\t", "lspci-nnmmv.txt"),
    (" MAJ:MIN ", "lsblk.txt"),
    ("GPU 0: ", "nvidia-smi-L.txt"),
    ("pci.bus_id", QUERY_FILE),
    ("memory.total", QUERY_FILE),
)


class RecordedSources(Sources):
    """A capture: what the probe of a live machine read, by the same names."""

    def __init__(self, record: Dict[str, Any]) -> None:
        super().__init__(NOWHERE, self._answer)
        self._files: Dict[str, str] = _strings(record.get("files"))
        self._links: Dict[str, str] = _strings(record.get("links"))
        self._directories: Dict[str, List[str]] = {
            path: [name for name in names if isinstance(name, str)]
            for path, names in _mapping(record.get("directories")).items()
            if isinstance(names, list)
        }
        self._existing = {path for path in _list(record.get("existing")) if isinstance(path, str)}
        self._commands = {
            tuple(map(str, _list(one.get("arguments")))): _result(one)
            for one in _list(record.get("commands"))
            if isinstance(one, dict)
        }
        self._machine = record.get("machine")
        root = record.get("model_root")
        self.model_root: Optional[str] = root if isinstance(root, str) and root.startswith("/") else None
        self._volume = _mapping(record.get("volume"))

    def _answer(self, arguments: Sequence[str], timeout: float) -> CommandResult:
        return self._commands.get(tuple(arguments), CommandResult(ABSENT, error="not in the record"))

    def read(self, path: str) -> Optional[str]:
        """Return the text that was read."""
        return self._files.get(path)

    def exists(self, path: str) -> bool:
        """True where the path was there."""
        return any(path in record for record in (self._files, self._links, self._directories, self._existing))

    def list(self, path: str) -> List[str]:
        """Return the names that were listed."""
        return sorted(self._directories.get(path, []))

    def read_link(self, path: str) -> Optional[str]:
        """Return what the symlink held."""
        return self._links.get(path)

    def machine(self) -> Optional[str]:
        """Return the recorded architecture."""
        return self._machine if isinstance(self._machine, str) else None

    def volume(self, path: str) -> Volume:
        """Return the recorded room."""
        volume = super().volume(path)
        for name in ("existing_path", "device_number", "problem"):
            if isinstance(self._volume.get(name), str):
                volume = volume._replace(**{name: self._volume[name]})
        for name in ("total_bytes", "free_bytes", "inodes_free"):
            if type(self._volume.get(name)) is int:
                volume = volume._replace(**{name: self._volume[name]})
        return volume


class DirectorySources(Sources):
    """A directory of raw outputs and of trees of files."""

    def __init__(self, directory: str, outputs: Optional[Dict[str, str]] = None) -> None:
        super().__init__(directory, self._answer)
        self._outputs = read_outputs(directory) if outputs is None else outputs

    def read(self, path: str) -> Optional[str]:
        """Return the text of a file of the tree, or of the one that lies in the directory itself."""
        text = super().read(path)
        return super().read("/" + FLAT_FILES[path]) if text is None and path in FLAT_FILES else text

    def _answer(self, arguments: Sequence[str], timeout: float) -> CommandResult:
        words = tuple(arguments)
        text = None
        if len(words) > 1 and words[1].startswith("--query-gpu="):
            text = self._outputs.get(QUERY_FILE)
        for name, commands in COMMAND_FILES.items():
            if words in commands:
                text = self._outputs.get(name) if text is None else text
        if text is None and words == nvidia.HELP and QUERY_FILE in self._outputs:
            text = help_of(self._outputs[QUERY_FILE])
        if text is None:
            return CommandResult(ABSENT, error="not in the record")
        if words[0] == nvidia.NVIDIA_SMI and text.lstrip().startswith(REFUSALS):
            return CommandResult(FAILED, text)
        return CommandResult(OK, text, "", 0)


def help_of(table: str) -> str:
    """Return what ``--help-query-gpu`` says of the fields that a recorded query has."""
    for row in csv.reader(table.replace("\0", "").splitlines(), skipinitialspace=True):
        fields = [nvidia_smi.ALIASES.get(name, name) for name in (cell.strip().split(" [")[0] for cell in row)]
        if {"name", "uuid", "pci.bus_id"} & set(fields):
            return "".join(f'"{name}"\n' for name in fields)
    return ""


def read_outputs(directory: str) -> Dict[str, str]:
    """Return the raw outputs in a directory by their file names."""
    found: Dict[str, str] = {}
    for name in (*COMMAND_FILES, QUERY_FILE):
        path = os.path.join(directory, name)
        if os.path.isfile(path):
            found[name] = read_file(path)
    return found


def read_file(path: str) -> str:
    """Return the text of a file. Raises HardwareOutputError where it cannot be read or is too long."""
    try:
        with open(path, "rb") as stream:
            data = stream.read(4 * READ_LIMIT_BYTES + 1)
    except OSError as error:
        raise HardwareOutputError(f"{path}: {error.strerror}") from error
    if len(data) > 4 * READ_LIMIT_BYTES:
        raise HardwareOutputError(f"{path}: too long for a capture", "give a file of modelfleet probe --capture")
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return data.decode(encoding, "replace")


def open_record(path: str) -> Sources:
    """Return the sources of a record: a capture file, one raw output, or a directory of them.

    Raises HardwareOutputError where it is none of these.
    """
    if os.path.isdir(path):
        return DirectorySources(tree_root(path))
    text = read_file(path)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = None
    if isinstance(record, dict) and record.get("format") == FORMAT:
        if record.get("format_version") != FORMAT_VERSION:
            raise HardwareOutputError(
                f"{path}: a capture of version {record.get('format_version')}, this modelfleet reads {FORMAT_VERSION}",
                "use the modelfleet that wrote it, or a newer one",
            )
        return RecordedSources(record)
    name = os.path.basename(path)
    if name not in COMMAND_FILES and name != QUERY_FILE:
        name = next((known_name for sign, known_name in SIGNS if sign in text), "")
    if not name:
        raise HardwareOutputError(
            f"{path}: neither a capture nor an output that is known",
            "give a file of modelfleet probe --capture, or a directory as docs/hardware.md describes it",
        )
    return DirectorySources(NOWHERE, {name: text})


def tree_root(path: str) -> str:
    """Return the directory itself, or the one directory in it where that alone holds the trees."""
    names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    if len(names) == 1 and any(os.path.isdir(os.path.join(path, names[0], tree)) for tree in ("proc", "sys")):
        return os.path.join(path, names[0])
    return os.path.abspath(path)


def _mapping(value: object) -> Dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> List[Any]:
    return value if isinstance(value, list) else []


def _strings(value: object) -> Dict[str, str]:
    return {name: text for name, text in _mapping(value).items() if isinstance(text, str)}


def _result(entry: Dict[str, Any]) -> CommandResult:
    texts = [entry[name] if isinstance(entry.get(name), str) else "" for name in ("status", "output", "error")]
    code = entry.get("exit_code")
    return CommandResult(texts[0] or ABSENT, texts[1], texts[2], code if type(code) is int else None)
