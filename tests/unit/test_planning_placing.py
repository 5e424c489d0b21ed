"""Where a variant fits, with models whose needs are simple enough to try every way of dealing them out."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from modelfleet.core.memory.estimate import DeviceMemory, Estimate
from modelfleet.core.planning.document import Budget
from modelfleet.core.planning.needs import Share, Subject
from modelfleet.core.planning.placing import Rooms, try_full, try_partial, try_processor

OVERHEAD = 5


class Plain(Subject):
    """A model whose layers are all alike; each device that is used costs something beside."""

    def __init__(self, layers: int, layer: int, output: int) -> None:
        super().__init__(layers)
        self.layer, self.output = layer, output

    def on(self, layers: int, output: bool) -> int:
        """Return what a device needs."""
        return layers * self.layer + (self.output if output else 0) + OVERHEAD

    def _estimate(self, shares: tuple[Share, ...]) -> Estimate:
        held = sum(share.layers for share in shares[:-1])
        assert all(share.layers >= 0 for share in shares) and held <= self.layers
        assert shares[-1].backend == "cpu" and held + shares[-1].layers == self.layers
        assert sum(share.output for share in shares) == 1 or not shares[:-1]
        return Estimate(
            "header",
            tuple(DeviceMemory(one.device, self.on(one.layers, one.output), 0, 0, 0, 0, 0) for one in shares),
        )


def rooms_of(cards: list[int], main: int | None, alone: bool = False) -> Rooms:
    budgets = [Budget(f"GPU{place}", "", "cuda", room, 0, room, alone=alone) for place, room in enumerate(cards)]
    return Rooms(tuple(zip(budgets, cards)), main)


def fits_somehow(model: Plain, cards: list[int], units: int, main: int) -> bool:
    """Tell whether any way of dealing ``units`` (the last is the output) out to all of ``cards`` fits."""
    if model.on(model.layers - units + 1, False) > main:
        return False
    for counts in itertools.product(range(1, units + 1), repeat=len(cards)):
        if sum(counts) == units:
            last = len(cards) - 1
            needs = [model.on(count - (place == last), place == last) for place, count in enumerate(counts)]
            if all(need <= room for need, room in zip(needs, cards)):
                return True
    return False


MODELS = st.builds(Plain, st.integers(1, 9), st.integers(1, 20), st.integers(0, 25))
CARDS = st.lists(st.integers(6, 150), min_size=1, max_size=3)


@settings(deadline=None, max_examples=400)
@given(MODELS, CARDS, st.integers(0, 300))
def test_all_on_accelerators_if_there_is_a_way(model: Plain, cards: list[int], main: int) -> None:
    tried = try_full(model, rooms_of(cards, main))
    assert tried is not None
    units = model.layers + 1
    largest = sorted(range(len(cards)), key=lambda place: -cards[place])
    possible = [
        fits_somehow(model, [cards[place] for place in sorted(largest[:number])], units, main)
        for number in range(1, min(len(cards), units) + 1)
    ]
    assert tried.fits == any(possible)
    if tried.fits:
        used = tried.placement.device.split("+")
        assert len(used) == 1 + possible.index(True), "on as few as hold it"
        assert used == sorted(used) and tried.placement.gpu_layers == units and tried.placement.on_accelerator
        assert tried.placement.split == () or sum(tried.placement.split) == units
        assert tried.need_bytes <= (tried.budget_bytes or 0) and tried.reason == ""
    else:
        assert tried.reason.startswith("needs ")


@settings(deadline=None, max_examples=300)
@given(MODELS, st.integers(6, 150), st.integers(0, 300))
def test_in_part_it_is_as_much_as_fits(model: Plain, card: int, main: int) -> None:
    tried = try_partial(model, rooms_of([card], main))
    # The output and one layer at least, and not all of it: that would be no part.
    possible = [units for units in range(2, model.layers + 1) if fits_somehow(model, [card], units, main)]
    assert (tried is not None and tried.fits) == bool(possible)
    if tried is not None and tried.fits:
        assert tried.placement.gpu_layers == max(possible) and tried.placement.partial
        assert tried.need.main <= main


@given(MODELS, CARDS, st.integers(0, 300))
def test_slices_are_used_one_at_a_time(model: Plain, cards: list[int], main: int) -> None:
    for tried in (try_full(model, rooms_of(cards, main, alone=True)), try_partial(model, rooms_of(cards, main, True))):
        assert tried is None or "+" not in tried.placement.device


@given(MODELS, CARDS, st.integers(0, 300))
def test_what_is_left_beside_a_model(model: Plain, cards: list[int], main: int) -> None:
    rooms = rooms_of(cards, main)
    tried = try_full(model, rooms)
    assert tried is not None
    left = rooms.without(tried.placement, tried.need)
    taken = sum(before - after for (_, before), (_, after) in zip(rooms.accelerators, left.accelerators))
    assert taken == tried.need_bytes and left.main == main - tried.need.main
    shared = Rooms(tuple((budget._replace(shared=True), room) for budget, room in rooms.accelerators), main)
    assert shared.without(tried.placement, tried.need).main == main - tried.need.main - tried.need_bytes


def test_on_the_processor() -> None:
    model = Plain(4, 10, 5)
    assert try_processor(model, rooms_of([], 50)).fits
    tried = try_processor(model, rooms_of([], 49))
    assert not tried.fits and tried.reason == "needs 50 B, the budget of main memory is 49 B"
    assert try_processor(model, rooms_of([], None)).reason == (
        "needs 50 B, and how much main memory there is is not known"
    )
    assert try_full(model, rooms_of([], 50)) is None and try_partial(model, rooms_of([100], None)) is None
