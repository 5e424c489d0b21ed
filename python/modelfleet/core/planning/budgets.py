"""What models may take of a machine's memories: capacity minus headroom, by device. Reads a profile, decides nothing.

Capacity never depends on what happens to be free: a served model or an open desktop changes no plan.
"""

from typing import Any, Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Tuple

from ..errors import StackError
from ..hardware.facts_view import Facts
from ..hardware.nvidia_cards import OLDER, flavour_of_card
from ..runtime.resolver.backend import choose, read_host
from ..runtime.resolver.settings import StackSettings
from ..units import GIB
from .document import Budget

CPU = "CPU"
BACKENDS = {"nvidia": "cuda", "amd": "rocm", "apple": "metal", "intel": "vulkan"}
"""llama.cpp's backend for each vendor's GPUs. Graphics in a processor of AMD's or Intel's are left out: too slow."""
_LAST_RESORT = "vulkan"
# Metal's recommendedMaxWorkingSetSize where iogpu.wired_limit_mb is not set, as llama.cpp logs it (ggml-metal): 2/3 of
# main memory up to 32 GiB (11453.25 MB of 16 GiB, 22906.50 MB of 32 GiB), 3/4 above (51539.61 MB of 64 GiB).
APPLE_SMALL_BYTES = 32 * GIB


class Machine(NamedTuple):
    """The memories of a machine.

    ``accelerators`` are of one backend, so that one process can split a model
    over them. ``free`` has what was free by device when it was read: for
    warnings only. ``provisional``: the memory of a GPU is not known yet.
    """

    accelerators: Tuple[Budget, ...]
    cpu: Budget
    free: Dict[str, int]
    warnings: Tuple[str, ...]
    provisional: bool


def read_machine(
    profile: Mapping[str, Any], headroom_bytes: int, memory_headroom_bytes: int, backend: str = ""
) -> Machine:
    """Return the budgets of the machine that ``profile`` (a HardwareProfile) describes.

    ``headroom_bytes`` stay free on each accelerator, ``memory_headroom_bytes``
    of main memory, but never more than half of it. ``backend`` is
    what computes; empty: what the resolver chooses.
    """
    memory = _part(profile, "memory")
    total, limit = _bytes(memory, "total_bytes"), _bytes(memory, "limit_bytes")
    main = min((size for size in (total, limit) if size is not None), default=None)
    kept = min(memory_headroom_bytes, main // 2) if main is not None else memory_headroom_bytes
    cpu = Budget(CPU, str(_part(profile, "cpu").get("model") or ""), "cpu", main, kept, _minus(main, kept))
    free: Dict[str, int] = {}
    available = _bytes(memory, "available_bytes")
    if available is not None:
        free[CPU] = available
    found: List[Tuple[int, Budget]] = []
    warnings: List[str] = []
    listed = profile.get("accelerators")
    for number, card in enumerate(listed if isinstance(listed, (list, tuple)) else ()):
        if isinstance(card, Mapping) and card.get("vendor") in BACKENDS:
            budgets = _budgets(f"GPU{number}", card, cpu, headroom_bytes, free, warnings)
            found += [(number, budget) for budget in budgets]
    unknown = [budget for _, budget in found if budget.budget_bytes is None]
    for budget in unknown:
        warnings.append(
            f"{budget.device} ({budget.name}): its memory is not known before its driver works; "
            "nothing is planned on it, plan again afterwards"
        )
    usable = [(number, budget) for number, budget in found if budget.budget_bytes]
    return Machine(_of_stack(profile, backend, usable, warnings), cpu, free, tuple(warnings), bool(unknown))


def _of_stack(
    profile: Mapping[str, Any], wished: str, usable: List[Tuple[int, Budget]], warnings: List[str]
) -> Tuple[Budget, ...]:
    """Return the budgets of the cards that the stack of the host serves, by the backend that it has for them."""
    served = _served(profile, wished)
    if served is None:
        return _one_backend([budget for _, budget in usable])
    backend, numbers = served
    for number, budget in usable:
        if number not in numbers:
            warnings.append(
                f"{budget.device} ({budget.name}): the runtime of this host ({backend}) does not serve it; "
                "nothing is planned on it"
            )
    return tuple(budget._replace(backend=backend) for number, budget in usable if number in numbers)


def _served(profile: Mapping[str, Any], wished: str) -> Optional[Tuple[str, FrozenSet[int]]]:
    """Return the backend of the host's stack and the numbers of the cards that it serves.

    None where the stack is not to be had as things are (no card or driver that is known well enough): installing it
    tells why, with the cure, and what is planned here is for then.
    """
    if wished == "cpu":
        return wished, frozenset()
    settings = StackSettings(backend=wished)
    try:
        choice = choose(read_host(Facts(profile), settings), settings)
    except StackError:
        return None
    return choice.backend, frozenset(card.number for card in choice.served.cards)


def _budgets(
    device: str, card: Mapping[str, Any], cpu: Budget, headroom: int, free: Dict[str, int], warnings: List[str]
) -> List[Budget]:
    backend, name = BACKENDS[str(card["vendor"])], str(card.get("name") or card["vendor"])
    if card.get("driver") == "vfio-pci":
        warnings.append(f"{device} ({name}) is given to a virtual machine")
        return []
    mig = _part(card, "mig")
    if mig.get("enabled") is True:
        return _slices(device, name, backend, mig, headroom, warnings)
    if backend == "cuda" and flavour_of_card(card) == OLDER:
        warnings.append(f"{device} ({name}) is from before Maxwell, which no CUDA in use serves")
        return []
    memory = _part(card, "memory")
    integrated = backend in ("rocm", _LAST_RESORT) and memory.get("unified") is True
    if integrated or (backend == _LAST_RESORT and _bytes(memory, "total_bytes") is None):
        return []
    free_now = _bytes(memory, "free_bytes")
    if free_now is not None:
        free[device] = free_now
    own = _bytes(memory, "budget_bytes") or _bytes(memory, "total_bytes")
    if memory.get("unified") is True or backend == "metal":
        return [_unified(device, name, backend, own, cpu, headroom)]
    return [Budget(device, name, backend, own, headroom, _minus(own, headroom))]


def _unified(device: str, name: str, backend: str, own: Optional[int], cpu: Budget, headroom: int) -> Budget:
    """A GPU that has main memory: what the system lets it wire down, and never what main memory must keep free."""
    main = cpu.capacity_bytes
    if own is None and main is not None:
        own = main if backend != "metal" else main * 2 // 3 if main <= APPLE_SMALL_BYTES else main * 3 // 4
    if own is None or main is None or cpu.budget_bytes is None:
        return Budget(device, name, backend, own, headroom, None, shared=True)
    budget = max(0, min(own - headroom if own < main else own, cpu.budget_bytes))
    return Budget(device, name, backend, own, own - budget, budget, shared=True)


def _slices(
    device: str, name: str, backend: str, mig: Mapping[str, Any], headroom: int, warnings: List[str]
) -> List[Budget]:
    """Each slice is a device of its own: a process sees one (NVIDIA MIG User Guide, "CUDA visible devices").

    Compute instances of one GPU instance share its memory: they count once.
    """
    budgets: List[Budget] = []
    instances = set()
    for number, one in enumerate(mig.get("slices") or ()):
        instance = one.get("gpu_instance_id")
        if instance is not None and instance in instances:
            continue
        instances.add(instance)
        capacity = _bytes(one, "memory_total_bytes")
        about = f"{name} MIG {one.get('profile') or ''}".rstrip()
        label = f"{device}/MIG{one.get('index') if one.get('index') is not None else number}"
        budgets.append(Budget(label, about, backend, capacity, headroom, _minus(capacity, headroom), alone=True))
    if not budgets:
        warnings.append(
            f"{device} ({name}) is in MIG mode and has no slice; make one with nvidia-smi mig -cgi PROFILE -C"
        )
    return budgets


def _one_backend(budgets: List[Budget]) -> Tuple[Budget, ...]:
    """Where the stack is not known: a build of llama.cpp serves one backend, that of the largest card.

    Vulkan where there is no other.
    """
    usual = [budget for budget in budgets if budget.backend != _LAST_RESORT] or budgets
    largest = max(usual, key=lambda budget: budget.budget_bytes or 0, default=None)
    return tuple(budget for budget in budgets if largest is not None and budget.backend == largest.backend)


def _minus(capacity: Optional[int], headroom: int) -> Optional[int]:
    return None if capacity is None else max(0, capacity - headroom)


def _part(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = mapping.get(key)
    return value if isinstance(value, Mapping) else {}


def _bytes(mapping: Mapping[str, Any], key: str) -> Optional[int]:
    value = mapping.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
