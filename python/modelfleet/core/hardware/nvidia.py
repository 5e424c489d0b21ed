"""NVIDIA GPUs: what the driver's own files and nvidia-smi tell of them.

nvidia-smi runs in a child process with a hard limit of time. It is asked for
the fields of ``--query-gpu`` that this driver's ``--help-query-gpu`` lists; the
XML of ``-q -x`` adds the memory of MIG devices, and stands in where the query
does not work.
"""

import re
from typing import Callable, List, NamedTuple, Optional, Tuple

from ..errors import HardwareOutputError
from . import nvidia_smi
from .chips import CAPABILITIES, nvidia_chip
from .facts import Facts, known
from .profile import MigSlice
from .sources import ABSENT, OK, SLOW, CommandResult, Reader, Sources

NVIDIA_SMI = "nvidia-smi"
HELP = (NVIDIA_SMI, "--help-query-gpu")
XML = (NVIDIA_SMI, "-q", "-x")
TEXT = (NVIDIA_SMI, "-q")
LIST = (NVIDIA_SMI, "-L")
VERSION = (NVIDIA_SMI, "--version")
# Eight GPUs without a persistence daemon are each initialised anew, at a second or two.
TIMEOUT_SECONDS = 20.0
DRIVER_DIRECTORY = "/proc/driver/nvidia"
WITHOUT_MIG = ("8.6", "8.9", "12.1")


class SmiReport(NamedTuple):
    """What nvidia-smi came to: (source, GPUs) of each output, and what kept it from more."""

    found: List[Tuple[str, List[Facts]]]
    problem: str = ""
    slow: bool = False
    mismatch: bool = False
    library_version: Optional[str] = None


class _StopError(Exception):
    """Raised when nvidia-smi cannot answer anything more."""


class _Smi:
    """Asks nvidia-smi one thing after the other, until one of them tells that asking on is in vain."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.found: List[Tuple[str, List[Facts]]] = []
        self.problem = ""
        self.last: Optional[CommandResult] = None

    def ask(self, arguments: Tuple[str, ...], optional: bool = False) -> Optional[str]:
        """Return an output, None where there is none. Raises _StopError where there will be none to anything.

        ``optional``: not all drivers know these arguments, so that a refusal says nothing.
        """
        result = self.last = self.sources.run(arguments, TIMEOUT_SECONDS)
        if result.status == OK:
            return result.output
        if result.status == SLOW:
            self.problem = f"nvidia-smi is slow: {result.error}"
            raise _StopError
        if result.status == ABSENT:
            self.problem = self.problem or "nvidia-smi is not there"
            return None
        if nvidia_smi.is_mismatch(result):
            self.problem = nvidia_smi.complaint(result)
            raise _StopError
        if optional:
            return None
        self.problem = nvidia_smi.complaint(result)
        # A GPU that fell off the bus makes it fail though it tells of the others.
        return result.output if "<gpu" in result.output or "," in result.output else None

    def query(self) -> List[Facts]:
        """Return the GPUs by ``--query-gpu``, asked only for what this driver lists."""
        listed = nvidia_smi.parse_help(self.ask(HELP, optional=True) or "")
        fields = [name for name in (*nvidia_smi.QUERY, *nvidia_smi.QUERY_MORE) if name in listed]
        if not {"name", "uuid", "pci.bus_id"} & set(fields):
            return []
        return self.read(nvidia_smi.parse_query, (NVIDIA_SMI, f"--query-gpu={','.join(fields)}", "--format=csv"))

    def read(self, parse: Callable[[str], List[Facts]], arguments: Tuple[str, ...]) -> List[Facts]:
        """Return the GPUs that ``parse`` finds in an output, and keep them."""
        output = self.ask(arguments)
        if output is None:
            return []
        try:
            gpus: List[Facts] = parse(output)
        except HardwareOutputError as error:
            self.problem = str(error)
            return []
        if gpus:
            name = "nvidia-smi --query-gpu" if arguments[1].startswith("--query") else " ".join(arguments)
            self.found.append((name, gpus))
        return gpus

    def read_all(self) -> None:
        """Ask for all that is needed and no more. Raises _StopError."""
        gpus = self.query()
        versions = nvidia_smi.parse_version(self.ask(VERSION, optional=True) or "")
        detailed: List[Facts] = []
        if not gpus or "cuda" not in versions or any(gpu.get("mig.enabled") is not False for gpu in gpus):
            detailed = self.read(nvidia_smi.parse_xml, XML) or self.read(nvidia_smi.parse_text, TEXT)
        everything = gpus or detailed
        if not everything or any(gpu.get("mig.enabled") is not False for gpu in detailed or gpus):
            listed = self.read(lambda text: nvidia_smi.list_facts(nvidia_smi.parse_list(text)), LIST)
            everything = everything or listed
        if everything:
            self.problem = ""
            more = {"driver_version": versions.get("driver"), "runtime_version": versions.get("cuda")}
            self.found.append((" ".join(VERSION), [dict(more) for _ in everything]))


def read_smi(sources: Sources) -> SmiReport:
    """Return what nvidia-smi tells; once it is slow or refuses, it is not asked again."""
    smi = _Smi(sources)
    mismatch, library = False, None
    try:
        smi.read_all()
    except _StopError:
        if smi.last is not None and smi.last.status != SLOW:
            mismatch = True
            library = nvidia_smi.parse_version("\n".join((smi.last.output, smi.last.error))).get("nvml")
            library = library or _nvml_library(smi.last)
    slow = smi.last is not None and smi.last.status == SLOW
    return SmiReport(smi.found, smi.problem, slow, mismatch, library)


def _nvml_library(result: CommandResult) -> Optional[str]:
    match = re.search(r"NVML library version:\s*(\d+(?:\.\d+)+)", result.output + result.error, re.ASCII)
    return match.group(1) if match else None


def parse_driver_version(text: str) -> Optional[str]:
    """Return the version of the loaded module from /proc/driver/nvidia/version, None where it does not tell."""
    match = re.search(r"^NVRM version:.*?\s(\d{2,4}(?:\.\d{1,4}){1,3})\b", text, re.MULTILINE | re.ASCII)
    return match.group(1) if match else None


def parse_information(text: str) -> Facts:
    """Return the facts of /proc/driver/nvidia/gpus/*/information."""
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    uuid = known(fields.get("GPU UUID"))
    # The module writes question marks for what it has not read from the card yet.
    return {"name": known(fields.get("Model")), "uuid": None if uuid is None or "?" in uuid else uuid}


def driver_facts(reader: Reader, address: Optional[str]) -> Facts:
    """Return what the loaded module's own files tell of the GPU at a PCI address."""
    facts: Facts = {"driver_version": parse_driver_version(reader.read(f"{DRIVER_DIRECTORY}/version") or "")}
    if address is not None:
        facts.update(parse_information(reader.read(f"{DRIVER_DIRECTORY}/gpus/{address}/information") or ""))
    return facts


def chip_facts(device_id: Optional[str], architecture: Optional[str] = None) -> Facts:
    """Return what the device id tells of the chip, or where it is not known the name of the architecture."""
    chip = nvidia_chip(device_id)
    if chip is None:
        return {"compute_capability": CAPABILITIES.get(architecture or "")}
    return {
        # Of these no card can be cut; of the others some can.
        "mig.enabled": False if float(chip.compute_capability) < 8 or chip.compute_capability in WITHOUT_MIG else None,
        "architecture": chip.architecture,
        "compute_capability": chip.compute_capability,
        "memory.unified": chip.unified,
    }


def merge_slices(known_slices: List[MigSlice], more: List[MigSlice]) -> List[MigSlice]:
    """Return a card's MIG devices out of two outputs: the XML has their memory, ``-L`` their profiles and ids."""
    for one in more:
        same = next((other for other in known_slices if other.index == one.index), None)
        if same is None:
            known_slices.append(one)
            continue
        for name, value in vars(one).items():
            if getattr(same, name) is None:
                setattr(same, name, value)
    return known_slices
