"""What a PCI device id tells of a GPU before any driver does: the chip, and so what can be compiled for it.

NVIDIA gives each chip a range of device ids (https://pci-ids.ucw.cz/read/PC/10de);
a chip has one compute capability (https://developer.nvidia.com/cuda-gpus).
AMD: https://pci-ids.ucw.cz/read/PC/1002 and https://llvm.org/docs/AMDGPUUsage.html#processors.
"""

from typing import NamedTuple, Optional


class NvidiaChip(NamedTuple):
    """An architecture's name as nvidia-smi has it, its compute capability, and whether it has main memory only."""

    architecture: str
    compute_capability: str
    unified: bool = False


NVIDIA_CHIPS = (
    (0x0FC0, 0x0FFF, NvidiaChip("Kepler", "3.0")),
    (0x1000, 0x102C, NvidiaChip("Kepler", "3.5")),
    (0x102D, 0x102D, NvidiaChip("Kepler", "3.7")),
    (0x1180, 0x11FF, NvidiaChip("Kepler", "3.0")),
    (0x1280, 0x12BF, NvidiaChip("Kepler", "3.5")),
    (0x1340, 0x13BF, NvidiaChip("Maxwell", "5.0")),
    (0x13C0, 0x143F, NvidiaChip("Maxwell", "5.2")),
    (0x15F0, 0x15FF, NvidiaChip("Pascal", "6.0")),
    (0x1617, 0x1667, NvidiaChip("Maxwell", "5.2")),
    (0x174D, 0x179C, NvidiaChip("Maxwell", "5.0")),
    (0x17C2, 0x17FD, NvidiaChip("Maxwell", "5.2")),
    (0x1B00, 0x1D7F, NvidiaChip("Pascal", "6.1")),
    (0x1D80, 0x1DFF, NvidiaChip("Volta", "7.0")),
    (0x1E00, 0x1FFF, NvidiaChip("Turing", "7.5")),
    (0x2080, 0x20FF, NvidiaChip("Ampere", "8.0")),
    (0x2180, 0x21FF, NvidiaChip("Turing", "7.5")),
    (0x2200, 0x227F, NvidiaChip("Ampere", "8.6")),
    (0x2300, 0x237F, NvidiaChip("Hopper", "9.0")),
    (0x2400, 0x25FF, NvidiaChip("Ampere", "8.6")),
    (0x2680, 0x28FF, NvidiaChip("Ada Lovelace", "8.9")),
    (0x2900, 0x297F, NvidiaChip("Blackwell", "10.0")),
    (0x2B80, 0x2DFF, NvidiaChip("Blackwell", "12.0")),
    (0x2E00, 0x2E7F, NvidiaChip("Blackwell", "12.1", unified=True)),
    (0x2F00, 0x2F7F, NvidiaChip("Blackwell", "12.0")),
    (0x3180, 0x31FF, NvidiaChip("Blackwell", "10.3")),
)
# Architectures whose chips all have one; Ampere and Blackwell have several.
CAPABILITIES = {"Volta": "7.0", "Turing": "7.5", "Ada Lovelace": "8.9", "Hopper": "9.0"}
AMD_CHIPS = (
    (0x1114, 0x1114, "gfx1152"),
    (0x13C0, 0x13C0, "gfx1036"),
    (0x150E, 0x150E, "gfx1150"),
    (0x1586, 0x1586, "gfx1151"),
    (0x15BF, 0x15BF, "gfx1103"),
    (0x15C8, 0x15C8, "gfx1103"),
    (0x15E7, 0x15E7, "gfx90c"),
    (0x1636, 0x1636, "gfx90c"),
    (0x1638, 0x1638, "gfx90c"),
    (0x163F, 0x163F, "gfx1033"),
    (0x164C, 0x164C, "gfx90c"),
    (0x164D, 0x164D, "gfx1035"),
    (0x164E, 0x164E, "gfx1036"),
    (0x1681, 0x1681, "gfx1035"),
    (0x1900, 0x1901, "gfx1103"),
    (0x66A0, 0x66AF, "gfx906"),
    (0x6860, 0x687F, "gfx900"),
    (0x7310, 0x731F, "gfx1010"),
    (0x7340, 0x734F, "gfx1012"),
    (0x7360, 0x7362, "gfx1011"),
    (0x7388, 0x738E, "gfx908"),
    (0x7408, 0x7410, "gfx90a"),
    (0x73A0, 0x73BF, "gfx1030"),
    (0x73C0, 0x73DF, "gfx1031"),
    (0x73E0, 0x73FF, "gfx1032"),
    (0x7420, 0x743F, "gfx1034"),
    (0x7440, 0x745F, "gfx1100"),
    (0x7460, 0x747F, "gfx1101"),
    (0x7480, 0x749F, "gfx1102"),
    (0x74A0, 0x74BF, "gfx942"),
    (0x7550, 0x7551, "gfx1201"),
    (0x7590, 0x7590, "gfx1200"),
    (0x75A0, 0x75A3, "gfx950"),
)
# AMD's processors with graphics; MI300A shares its target with cards and is told by its device id.
AMD_PROCESSOR_TARGETS = (
    *("gfx902", "gfx909", "gfx90c", "gfx1013", "gfx1033", "gfx1035", "gfx1036", "gfx1037"),
    *("gfx1103", "gfx1150", "gfx1151", "gfx1152", "gfx1153"),
)
AMD_PROCESSOR_DEVICES = ("74a0",)


def _number(device_id: Optional[str]) -> int:
    try:
        return int(device_id or "", 16)
    except ValueError:
        return -1


def nvidia_chip(device_id: Optional[str]) -> Optional[NvidiaChip]:
    """Return the chip of a device id of NVIDIA's (four hexadecimal digits), None where it is not known here."""
    number = _number(device_id)
    return next((chip for first, last, chip in NVIDIA_CHIPS if first <= number <= last), None)


def amd_target(device_id: Optional[str]) -> Optional[str]:
    """Return the gfx target of a device id of AMD's, None where it is not known here."""
    number = _number(device_id)
    return next((target for first, last, target in AMD_CHIPS if first <= number <= last), None)


def amd_unified(target: Optional[str], device_id: Optional[str]) -> Optional[bool]:
    """Return whether an AMD GPU is part of a processor and shares its memory, None where the target is not known."""
    if device_id in AMD_PROCESSOR_DEVICES:
        return True
    return None if target is None else target in AMD_PROCESSOR_TARGETS
