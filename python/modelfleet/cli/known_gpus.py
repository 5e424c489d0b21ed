"""GPUs by name, for plans of machines that are not there: memory, compute capability or gfx target, MIG profiles.

Memory is what the driver reports (memory.total of nvidia-smi, VRAM total of
amdgpu), in MiB, which is less than the box says on most cards. Sources: outputs
of these tools; https://developer.nvidia.com/cuda-gpus for compute capabilities;
https://llvm.org/docs/AMDGPUUsage.html#processors for gfx targets; the table
``nvidia-smi mig -lgip`` of the NVIDIA MIG User Guide for slices.
"""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

from ..core.errors import ConfigurationError


class KnownGpu(NamedTuple):
    """A card: its name, its memory as sold (GB) and as reported (MiB), and what code runs on it."""

    name: str
    vendor: str
    gigabytes: int
    mebibytes: int
    target: str
    unified: bool = False
    slices: tuple[tuple[str, int], ...] = ()


def _nvidia(capability: str, *cards: tuple[str, int, int]) -> list[KnownGpu]:
    return [KnownGpu(name, "nvidia", size, reported, capability) for name, size, reported in cards]


def _amd(target: str, *cards: tuple[str, int]) -> list[KnownGpu]:
    # amdgpu keeps 16 MiB for itself.
    return [KnownGpu(name, "amd", size, size * 1024 - 16, target) for name, size in cards]


_A100_40 = (("1g.5gb", 4864), ("2g.10gb", 9984), ("3g.20gb", 20096), ("4g.20gb", 20096), ("7g.40gb", 40192))
_A100_80 = (("1g.10gb", 9728), ("2g.20gb", 19968), ("3g.40gb", 40192), ("4g.40gb", 40192), ("7g.80gb", 80640))
_H100_80 = (("1g.10gb", 9984), ("2g.20gb", 20096), ("3g.40gb", 40448))

KNOWN_GPUS: tuple[KnownGpu, ...] = (
    *_nvidia("6.1", ("GTX 1060", 6, 6144), ("GTX 1070", 8, 8192), ("GTX 1080", 8, 8192), ("GTX 1080 Ti", 11, 11264)),
    *_nvidia("6.1", ("P40", 24, 24576)),
    *_nvidia("6.0", ("P100", 16, 16384)),
    *_nvidia("7.0", ("V100", 16, 16384), ("V100", 32, 32768)),
    *_nvidia("7.5", ("GTX 1660 Ti", 6, 6144), ("RTX 2060", 6, 6144), ("RTX 2070", 8, 8192), ("RTX 2080", 8, 8192)),
    *_nvidia("7.5", ("RTX 2080 Super", 8, 8192), ("RTX 2080 Ti", 11, 11264), ("T4", 16, 15360)),
    KnownGpu("A100", "nvidia", 40, 40960, "8.0", slices=_A100_40),
    KnownGpu("A100", "nvidia", 80, 81920, "8.0", slices=_A100_80),
    *_nvidia("8.0", ("A30", 24, 24576)),
    *_nvidia("8.6", ("RTX 3050", 8, 8192), ("RTX 3060", 8, 8192), ("RTX 3060", 12, 12288), ("RTX 3060 Ti", 8, 8192)),
    *_nvidia("8.6", ("RTX 3070", 8, 8192), ("RTX 3070 Ti", 8, 8192), ("RTX 3080", 10, 10240), ("RTX 3080", 12, 12288)),
    *_nvidia("8.6", ("RTX 3080 Ti", 12, 12288), ("RTX 3090", 24, 24576), ("RTX 3090 Ti", 24, 24564)),
    *_nvidia("8.6", ("RTX A4000", 16, 16376), ("RTX A5000", 24, 24564), ("RTX A6000", 48, 49140)),
    *_nvidia("8.6", ("A10", 24, 23028), ("A40", 48, 46068)),
    *_nvidia("8.9", ("RTX 4060", 8, 8188), ("RTX 4060 Ti", 8, 8188), ("RTX 4060 Ti", 16, 16380)),
    *_nvidia("8.9", ("RTX 4070", 12, 12282), ("RTX 4070 Super", 12, 12282), ("RTX 4070 Ti", 12, 12282)),
    *_nvidia("8.9", ("RTX 4070 Ti Super", 16, 16376), ("RTX 4080", 16, 16376), ("RTX 4080 Super", 16, 16376)),
    *_nvidia("8.9", ("RTX 4090", 24, 24564), ("RTX 6000 Ada", 48, 49140), ("L4", 24, 23034), ("L40S", 48, 46068)),
    KnownGpu("H100", "nvidia", 80, 81559, "9.0", slices=_H100_80),
    *_nvidia("9.0", ("H200", 141, 143771)),
    *_nvidia("12.0", ("RTX 5060 Ti", 8, 8151), ("RTX 5060 Ti", 16, 16311), ("RTX 5070", 12, 12227)),
    *_nvidia("12.0", ("RTX 5070 Ti", 16, 16303), ("RTX 5080", 16, 16303), ("RTX 5090", 32, 32607)),
    *_nvidia("12.0", ("RTX PRO 6000 Blackwell", 96, 97887)),
    KnownGpu("GB10", "nvidia", 128, 0, "12.1", unified=True),
    *_amd("gfx906", ("MI50", 16), ("MI60", 32)),
    *_amd("gfx908", ("MI100", 32)),
    *_amd("gfx90a", ("MI210", 64)),
    *_amd("gfx942", ("MI300X", 192)),
    *_amd("gfx1030", ("RX 6800", 16), ("RX 6800 XT", 16), ("RX 6900 XT", 16)),
    *_amd("gfx1031", ("RX 6700 XT", 12)),
    *_amd("gfx1100", ("RX 7900 XT", 20), ("RX 7900 XTX", 24)),
    *_amd("gfx1101", ("RX 7800 XT", 16)),
    *_amd("gfx1201", ("RX 9070", 16), ("RX 9070 XT", 16)),
)
_MAKERS = re.compile(r"\b(nvidia|geforce|tesla|quadro|amd|radeon|instinct|laptop|gpu)\b")


def _plain(name: str) -> str:
    """Return a name without its maker and spelled one way: ``GeForce RTX3090`` is ``rtx 3090``."""
    text = re.sub(r"[-_\s]+", " ", _MAKERS.sub(" ", name.lower()))
    text = re.sub(r"\b(gtx|rtx|rx)(?=\d)", r"\1 ", text)
    text = re.sub(r"(?<=\d)(ti|super|xtx|xt)\b", r" \1", text)
    return text.strip()


def find_gpu(name: str, gigabytes: float | None = None) -> KnownGpu:
    """Return the card of a name, and of a memory size (GB) where there are several.

    Raises ConfigurationError with the nearest names, or the sizes that there are.
    """
    wanted = _plain(name)
    found = [gpu for gpu in KNOWN_GPUS if _plain(gpu.name) == wanted]
    if not found and wanted[:1].isdigit():
        found = [gpu for gpu in KNOWN_GPUS if _plain(gpu.name).partition(" ")[2] == wanted]
    if not found:
        names = {_plain(gpu.name): gpu.name for gpu in KNOWN_GPUS}
        near = [names[one] for one in difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)]
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ConfigurationError(
            f"no GPU {name!r} is known{hint}", "correct the name, or plan from a capture: plan --replay FILE"
        )
    sized = [gpu for gpu in found if gigabytes is None or gpu.gigabytes == gigabytes or gpu.unified]
    sizes = " or ".join(f"{gpu.gigabytes} GB" for gpu in found)
    if not sized:
        raise ConfigurationError(f"there is no {found[0].name} with {gigabytes:g} GB", f"it has {sizes}")
    if len(sized) > 1:
        raise ConfigurationError(
            f"the {found[0].name} has {sizes}", f"say which: '{found[0].name} {sizes[:5].strip()}'"
        )
    return sized[0]


def find_slice(name: str, gigabytes: float | None, profile: str) -> tuple[KnownGpu, int]:
    """Return the card that has a MIG profile, and the slice's memory in MiB. Raises ConfigurationError."""
    wanted = _plain(name)
    cards = [gpu for gpu in KNOWN_GPUS if _plain(gpu.name) == wanted and gpu.slices]
    cards = [gpu for gpu in cards if gigabytes is None or gpu.gigabytes == gigabytes]
    for gpu in cards:
        for known, size in gpu.slices:
            if known == profile.lower():
                return gpu, size
    if not cards:
        find_gpu(name, gigabytes)
        raise ConfigurationError(f"of {name!r} no MIG profile is known", "leave MIG out, or use plan --replay FILE")
    profiles = ", ".join(known for gpu in cards for known, _ in gpu.slices)
    raise ConfigurationError(f"the {cards[0].name} has no MIG profile {profile!r}", f"it has {profiles}")
