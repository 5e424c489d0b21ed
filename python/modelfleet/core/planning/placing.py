"""Where one variant of a model fits: on an accelerator whole, in part, or on the processor. Decides, does nothing.

llama.cpp counts the output as one layer more and offloads from the end: with
n_gpu_layers = n the last n of (layers + output) are on the accelerators, dealt
out in their order by tensor_split (llama-model.cpp, ``get_layer_buft_list``).
"""

from typing import List, NamedTuple, Optional, Sequence, Set, Tuple

from ..units import format_bytes
from .budgets import CPU
from .document import Budget, Placement
from .needs import Need, Share, Subject

FULL, PARTIAL, PROCESSOR = "full", "partial", "processor"
_MOVES = 12


class Rooms(NamedTuple):
    """What is left of each budget (bytes) when the models before have had theirs; of main memory None: not known."""

    accelerators: Tuple[Tuple[Budget, int], ...]
    main: Optional[int]

    def without(self, placement: Placement, need: Need) -> "Rooms":
        """Return what is left beside a model that stays loaded."""
        taken = dict(zip(placement.device.split("+"), need.accelerators))
        shared = sum(taken.get(budget.device, 0) for budget, _ in self.accelerators if budget.shared)
        left = tuple((budget, room - taken.get(budget.device, 0)) for budget, room in self.accelerators)
        return Rooms(left, None if self.main is None else self.main - need.main - shared)


class Tried(NamedTuple):
    """A placement that was tried: what it needs of what there is (bytes), and why it does not fit."""

    placement: Placement
    need: Need
    need_bytes: int
    budget_bytes: Optional[int]
    fits: bool
    reason: str


def try_full(subject: Subject, rooms: Rooms) -> Optional[Tried]:
    """All on accelerators: on one where it fits, else split over as few as do. None where there is no accelerator.

    Of several the one with most room is taken.
    """
    ordered = sorted(rooms.accelerators, key=lambda item: -item[1])
    if not ordered:
        return None
    units = subject.layers + 1
    tried = _deal(subject, ordered[:1], units, rooms.main)
    together = [item for item in ordered if not item[0].alone]
    if tried.fits or not subject.layers or len(together) < 2:
        return tried
    for number in range(2, min(len(together), units) + 1):
        chosen = together[:number]
        # The same bytes on more cards are never fewer: where even their sum is too small there is nothing to deal.
        if tried.need_bytes <= sum(room for _, room in chosen) or number == min(len(together), units):
            split = _deal(subject, _in_order(chosen, rooms), units, rooms.main)
            if split.fits:
                return split
            tried = split
    return tried


def try_partial(subject: Subject, rooms: Rooms) -> Optional[Tried]:
    """As many layers on accelerators as fit, the rest on the processor. None where that cannot be, or not be known."""
    if not subject.layers or not rooms.accelerators or rooms.main is None:
        return None
    ordered = sorted(rooms.accelerators, key=lambda item: -item[1])
    together = [item for item in ordered if not item[0].alone]
    chosen = _in_order(together, rooms) if together and together[0] == ordered[0] else ordered[:1]
    # The output and one repeating layer for each device: fewer are no help.
    least, most = len(chosen) + 1, subject.layers
    if least > most or not _deal(subject, chosen, least, None).fits:
        return try_partial(subject, Rooms(tuple(ordered[:1]), rooms.main)) if len(chosen) > 1 else None
    while least < most:
        middle = (least + most + 1) // 2
        if _deal(subject, chosen, middle, None).fits:
            least = middle
        else:
            most = middle - 1
    # The more is on accelerators, the less is left for main memory: only now is it asked.
    return _deal(subject, chosen, least, rooms.main)


def try_processor(subject: Subject, rooms: Rooms) -> Tried:
    """All on the processor."""
    need = subject.need((Share(CPU, "cpu", subject.layers, True),))
    fits = rooms.main is not None and need.main <= rooms.main
    reason = "" if fits else _too_much(need.main, rooms.main, "main memory")
    return Tried(Placement(CPU, "cpu", 0, subject.layers), need, need.main, rooms.main, fits, reason)


def _in_order(chosen: Sequence[Tuple[Budget, int]], rooms: Rooms) -> List[Tuple[Budget, int]]:
    """Return the chosen devices as the driver numbers them: llama.cpp deals layers out in that order."""
    return [item for item in rooms.accelerators if item in chosen]


def _deal(subject: Subject, chosen: Sequence[Tuple[Budget, int]], units: int, main: Optional[int]) -> Tried:
    """Deal ``units`` (layers, the output one of them) out to the devices, by their room, so that each has enough."""
    rooms = [room for _, room in chosen]
    counts = _shares(units, rooms)
    seen: Set[Tuple[int, ...]] = set()
    while True:
        tried = _judge(subject, chosen, counts, main)
        over = [need - room for need, room in zip(tried.need.accelerators, rooms)]
        worst, best = over.index(max(over)), over.index(min(over))
        if tried.fits or len(counts) == 1 or over[worst] <= 0 or over[best] >= 0 or len(seen) == _MOVES:
            return tried
        layer = max(1, tried.need.accelerators[worst] // counts[worst])
        moved = max(1, min(-(-over[worst] // layer), -over[best] // layer))
        seen.add(tuple(counts))
        counts = list(counts)
        counts[worst] -= moved
        counts[best] += moved
        if counts[worst] < 1 or tuple(counts) in seen:
            return tried


def _shares(units: int, rooms: Sequence[int]) -> List[int]:
    """Return ``units`` in whole parts proportional to ``rooms``, each at least one."""
    total = max(1, sum(max(0, room) for room in rooms))
    counts = [max(1, units * max(0, room) // total) for room in rooms]
    order = sorted(range(len(rooms)), key=lambda place: -rooms[place])
    turn = 0
    while sum(counts) < units:
        counts[order[turn % len(order)]] += 1
        turn += 1
    while sum(counts) > units and max(counts) > 1:
        counts[counts.index(max(counts))] -= 1
    return counts


def _judge(subject: Subject, chosen: Sequence[Tuple[Budget, int]], counts: Sequence[int], main: Optional[int]) -> Tried:
    last = len(chosen) - 1
    shares = [
        Share(budget.device, budget.backend, count - (place == last), place == last)
        for place, ((budget, _), count) in enumerate(zip(chosen, counts))
    ]
    held = sum(share.layers for share in shares)
    need = subject.need((*shares, Share(CPU, "cpu", subject.layers - held, False)))
    placement = Placement(
        "+".join(budget.device for budget, _ in chosen),
        chosen[0][0].backend,
        sum(counts),
        subject.layers,
        tuple(counts) if len(counts) > 1 else (),
    )
    needed, room = sum(need.accelerators), sum(left for _, left in chosen)
    reason = ""
    for (budget, left), bytes_needed in zip(chosen, need.accelerators):
        if bytes_needed > left and not reason:
            reason = _too_much(bytes_needed, left, budget.device)
    beside = need.main + sum(part for (budget, _), part in zip(chosen, need.accelerators) if budget.shared)
    if not reason and main is not None and beside > main:
        reason = _too_much(beside, main, "main memory")
    return Tried(placement, need, needed, room, not reason, reason)


def _too_much(need: int, room: Optional[int], where: str) -> str:
    if room is None:
        return f"needs {format_bytes(need)}, and how much {where} there is is not known"
    return f"needs {format_bytes(need)}, the budget of {where} is {format_bytes(max(0, room))}"
