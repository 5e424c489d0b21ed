"""The GPUs of a profile, and which of them one environment can serve: by vendor, with the reason for the others.

ROCm's rules: gfx1031 and gfx1032 run gfx1030's code under HSA_OVERRIDE_GFX_VERSION=10.3.0, which holds for the whole
process (ROCm documentation, "System requirements"); ROCm is for x86-64 (the same). NVIDIA's: nvidia_cards.py.
"""

import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ...hardware.chips import amd_target, nvidia_chip
from ...hardware.driver_rules import GFX_OVERRIDES
from ...hardware.facts_view import Facts, line, version_numbers
from ...hardware.nvidia_cards import (
    LAST_BRANCH_PROPRIETARY_ONLY,
    OLDER,
    OPEN_ONLY,
    PROPRIETARY_ONLY,
    flavour_of_capability,
    flavour_of_card,
)
from . import cuda
from .releases import ROCM_TARGETS

GIVEN_AWAY = "vfio-pci"
OVERRIDE_TARGET = "gfx1030"
# The branch that the role accelerator installs; what is not here gets the default. roles/accelerator/vars/platforms.
PLANNED_BRANCHES = {"debian-12": 535, "debian-13": 550}
DEFAULT_BRANCH = 580


class Card(NamedTuple):
    """A GPU: bytes of its own memory (0: unknown, or none), and what code is compiled for it."""

    name: str
    vendor: str
    memory: int
    integrated: bool
    driver: Optional[str]
    driver_version: Optional[str]
    capability: Optional[cuda.Capability]
    target: Optional[str]
    older: bool = False
    number: int = 0
    """Its place among the profile's accelerators."""
    """An NVIDIA card from before Maxwell, told by its capability or its device id."""


class Served(NamedTuple):
    """Cards that one backend serves, those it leaves out (with the reason), and what goes with it."""

    cards: Tuple[Card, ...]
    left_out: Tuple[str, ...]
    targets: Tuple[str, ...] = ()
    environment: Tuple[Tuple[str, str], ...] = ()


def read_cards(facts: Facts) -> List[Card]:
    """Return the GPUs of a profile; nothing in it is trusted."""
    return [_read_card(number, one) for number, one in enumerate(facts.accelerators)]


def _read_card(number: int, accelerator: Mapping[str, Any]) -> Card:
    own = Facts(accelerator)
    vendor, device = own.text("vendor") or "other", own.text("pci.device_id")
    chip = nvidia_chip(device) if vendor == "nvidia" else None
    told = own.text("compute_capability") or (chip.compute_capability if chip else None)
    match = re.fullmatch(r"(\d{1,2})\.(\d{1,2})", told or "", re.ASCII)
    target = own.text("gfx_target") or amd_target(device)
    return Card(
        name=own.text("name") or (f"{vendor} device {device}" if device else f"a GPU of {vendor}"),
        vendor=vendor,
        memory=int(own.number("memory.total_bytes") or 0),
        # An NVIDIA GPU with unified memory is the whole machine's, not a processor's small one.
        integrated=own.flag("memory.unified") is True and vendor != "nvidia",
        driver=own.text("driver"),
        driver_version=own.text("driver_version"),
        capability=(int(match.group(1)), int(match.group(2))) if match else None,
        target=target if target is not None and re.fullmatch(r"gfx[0-9a-f]{3,5}", target) else None,
        older=vendor == "nvidia" and flavour_of_card({**accelerator, "compute_capability": told}) == OLDER,
        number=number,
    )


def usable(cards: Sequence[Card], vendor: str) -> Tuple[List[Card], List[str]]:
    """Return a vendor's cards that this system may use, and why not the others."""
    own = [one for one in cards if one.vendor == vendor]
    away = [f"{one.name}: given to a virtual machine" for one in own if one.driver == GIVEN_AWAY]
    return [one for one in own if one.driver != GIVEN_AWAY], away


def serve_nvidia(cards: Sequence[Card], flavour: Optional[str]) -> Served:
    """Return the NVIDIA cards that one driver and CUDA serve.

    Cards before Turing need the proprietary kernel modules, Blackwell the open ones: where both are in a machine, the
    ``flavour`` that is loaded decides, and without one the newer cards do (open-gpu-kernel-modules, README).
    """
    own, left_out = usable(cards, "nvidia")
    needs: Dict[Optional[str], List[Card]] = {}
    for one in own:
        told = one.capability
        if one.older:
            left_out.append(f"{one.name}: from before Maxwell, which no CUDA in use serves")
        elif told is None:
            left_out.append(f"{one.name}: its compute capability is not known; bring its driver to work, then probe")
        elif told not in cuda.KNOWN:
            left_out.append(f"{one.name}: compute capability {told[0]}.{told[1]} is not known to this release")
        else:
            needs.setdefault(flavour_of_capability(f"{told[0]}.{told[1]}"), []).append(one)
    if PROPRIETARY_ONLY in needs and OPEN_ONLY in needs:
        dropped = OPEN_ONLY if flavour == "proprietary" else PROPRIETARY_ONLY
        reason = "needs other kernel modules than the rest: no one driver serves both"
        left_out.extend(f"{one.name}: {reason}" for one in needs.pop(dropped))
    served = {id(one) for group in needs.values() for one in group}
    return Served(tuple(one for one in own if id(one) in served), tuple(left_out))


def serve_amd(cards: Sequence[Card], machine: str) -> Served:
    """Return the AMD cards that one ROCm environment serves, the targets to compile for, and what it must set."""
    own, left_out = usable(cards, "amd")
    if machine != "x86_64":
        return Served((), (*left_out, *(f"{one.name}: ROCm is for x86-64 only" for one in own)))
    plain = [one for one in own if one.target in ROCM_TARGETS]
    overridden = [one for one in own if one.target in GFX_OVERRIDES]
    known = {id(one) for one in (*plain, *overridden)}
    left_out += [f"{one.name}: ROCm has no code for {one.target or 'it'}" for one in own if id(one) not in known]
    if overridden and any(one.target != OVERRIDE_TARGET for one in plain):
        left_out += [f"{one.name}: the override that it needs would break the other cards" for one in overridden]
        overridden = []
    served = tuple(one for one in own if one in plain or one in overridden)
    targets = {OVERRIDE_TARGET if one.target in GFX_OVERRIDES else str(one.target) for one in served}
    override = (("HSA_OVERRIDE_GFX_VERSION", GFX_OVERRIDES[str(overridden[0].target)]),) if overridden else ()
    return Served(served, tuple(left_out), tuple(sorted(targets)), override)


def largest(served: Served) -> Tuple[bool, int]:
    """Return what vendors are compared by: a card of its own before graphics in a processor, then most memory."""
    return max(((not one.integrated, one.memory) for one in served.cards), default=(False, -1))


def driver_of(facts: Facts, cards: Sequence[Card]) -> Optional[str]:
    """Return the version of NVIDIA's driver as it is, or as it will be after the next boot; None where there is none.

    A card that nouveau drives tells no version of NVIDIA's.
    """
    if facts.text("accelerator_driver.vendor") == "nvidia":
        for name in ("loaded_version", "installed_version", "library_version"):
            told = facts.text(f"accelerator_driver.{name}")
            if version_numbers(told):
                return told
    told_by_cards = (one.driver_version for one in cards if one.driver in (None, "nvidia"))
    return next((told for told in told_by_cards if version_numbers(told)), None)


def planned_branch(facts: Facts, cards: Sequence[Card], named: int) -> int:
    """Return the branch that the role accelerator will install, where there is no driver yet."""
    if named:
        return named
    distribution, version = line(facts.get("os.distribution")), line(facts.get("os.version"))
    branch = PLANNED_BRANCHES.get(f"{distribution}-{(version or '').split('.')[0]}", DEFAULT_BRANCH)
    older = any(one.capability is not None and one.capability <= cuda.LAST_BEFORE_13 for one in cards)
    return min(branch, LAST_BRANCH_PROPRIETARY_ONLY) if older else branch
