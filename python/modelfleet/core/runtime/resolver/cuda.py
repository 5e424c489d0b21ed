"""Which CUDA serves NVIDIA cards, with which driver, and what llama-cpp-python is compiled for.

Sources: CUDA Toolkit Release Notes, "CUDA Toolkit and Corresponding Driver Versions" and "Deprecated Architectures"
(CUDA 13 begins at compute capability 7.5); https://docs.nvidia.com/deploy/cuda-compatibility/ (the floor of each
major version; it holds for compiled code, not for PTX, which an older driver cannot translate: so only ``-real``
architectures are compiled); llama.cpp's ggml/src/ggml-cuda/CMakeLists.txt (``120a`` and ``121a``: the FP4
instructions of Blackwell are in no other code; CUDA 12.8 and 12.9).
"""

from typing import Dict, NamedTuple, Optional, Sequence, Tuple

from ...hardware.nvidia_cards import LAST_BRANCH_PROPRIETARY_ONLY
from .releases import CODE_FOR, CUDA_12, CUDA_13

Capability = Tuple[int, int]
DRIVER_FLOORS = {CUDA_13: 580, CUDA_12: 525}
MAJORS = {CUDA_13: 13, CUDA_12: 12}
NEWEST_DRIVER = 9999
"""A branch that no CUDA here is too new for."""
# The first toolkit that knows a card. All from Maxwell on are known to 12.0 but these.
FIRST_TOOLKIT: Dict[Capability, Tuple[int, int]] = {
    (10, 0): (12, 8),
    (10, 3): (12, 9),
    (11, 0): (13, 0),
    (12, 0): (12, 8),
    (12, 1): (12, 9),
}
# The driver of that toolkit: older ones do not know the card at all.
FIRST_DRIVER = {(12, 8): 570, (12, 9): 575, (13, 0): 580}
KNOWN: Tuple[Capability, ...] = (
    *((5, 0), (5, 2), (5, 3), (6, 0), (6, 1), (6, 2), (7, 0), (7, 2), (7, 5)),
    *((8, 0), (8, 6), (8, 7), (8, 9), (9, 0)),
    *FIRST_TOOLKIT,
)
LAST_BEFORE_13: Capability = (7, 2)
# Upstream's wheels for these CUDA versions, and the driver that can translate the PTX in them: a toolkit's own.
WHEEL_TAGS = (
    *(("cu132", 13, 595), ("cu130", 13, 580), ("cu125", 12, 555), ("cu124", 12, 550)),
    *(("cu123", 12, 545), ("cu122", 12, 535), ("cu121", 12, 530)),
)


class Line(NamedTuple):
    """A major version of CUDA that serves all the cards: the toolkits to compile with (from, and below), and torch."""

    kind: str
    toolkit: Tuple[int, int]
    torch_serves: bool

    @property
    def below(self) -> int:
        """Return the major version that is too new."""
        return MAJORS[self.kind] + 1


def architecture(capability: Capability) -> str:
    """Return a card's entry in CMAKE_CUDA_ARCHITECTURES: its own code, no PTX."""
    number = f"{capability[0]}{capability[1]}"
    return f"{number}{'a' if capability[0] == 12 else ''}-real"


def least_driver(capabilities: Sequence[Capability]) -> int:
    """Return the branch below which a driver knows not all of these cards, or no CUDA that is served."""
    own = [FIRST_DRIVER[FIRST_TOOLKIT[one]] for one in capabilities if one in FIRST_TOOLKIT]
    return max([DRIVER_FLOORS[CUDA_12], *own])


def wanted_branch(capabilities: Sequence[Capability]) -> int:
    """Return the branch to install: that of the newest CUDA, and the last one that takes cards before Turing."""
    return max(LAST_BRANCH_PROPRIETARY_ONLY, least_driver(capabilities))


def torch_serves(kind: str, capability: Capability) -> bool:
    """Tell whether PyTorch's wheels of a CUDA have code that runs on a card."""
    return any(code[0] == capability[0] and code[1] <= capability[1] for code in CODE_FOR[kind])


def lines(capabilities: Sequence[Capability], driver: int) -> Tuple[Line, ...]:
    """Return the CUDA versions that serve all these cards under a driver's branch, the newest first."""
    found = []
    for kind in (CUDA_13, CUDA_12):
        major = MAJORS[kind]
        toolkit = max([(major, 0), *(FIRST_TOOLKIT[one] for one in capabilities if one in FIRST_TOOLKIT)])
        too_old = kind == CUDA_13 and min(capabilities) <= LAST_BEFORE_13
        if driver < max(DRIVER_FLOORS[kind], least_driver(capabilities)) or too_old or toolkit[0] > major:
            continue
        found.append(Line(kind, toolkit, all(torch_serves(kind, one) for one in capabilities)))
    return tuple(found)


def wheel_tag(line: Line, capabilities: Sequence[Capability], driver: int) -> Optional[str]:
    """Return the tag of upstream's newest wheel that runs under a driver.

    None for Blackwell, for which no wheel has code but PTX, and for cards before Turing, for which it is not known.
    """
    if max(capabilities) >= (10, 0) or min(capabilities) <= LAST_BEFORE_13:
        return None
    return next((tag for tag, major, floor in WHEEL_TAGS if major == MAJORS[line.kind] and driver >= floor), None)
