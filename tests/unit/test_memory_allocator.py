"""The model of ggml's allocator: never less than what is alive, and the places it takes are ggml's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from modelfleet.core.memory.allocator import Graph


def test_a_hole_is_left_where_nothing_fits() -> None:
    graph = Graph(1)
    first = graph.new(10)
    second = graph.new(10, first)
    # The first ten bytes are free, and eleven do not fit there.
    graph.new(11, second)
    assert graph.peak() == 31


def test_the_smallest_hole_that_fits_is_taken() -> None:
    graph = Graph(1)
    large, kept, small, also_kept = graph.input(20), graph.input(5), graph.input(10), graph.input(5)
    graph.new(0, large, small)
    tight = graph.new(10)
    loose = graph.new(20)
    graph.new(0, tight, loose, kept, also_kept)
    assert graph.peak() == 40


def test_a_result_takes_a_place_that_nothing_else_needs() -> None:
    graph = Graph(1)
    first = graph.new(10)
    assert graph.over(10, first) and graph.peak() == 10
    needed = Graph(1)
    first = needed.new(10)
    second = needed.over(10, first)
    needed.new(0, first, second)
    assert needed.peak() == 20


def test_sizes_are_aligned() -> None:
    graph = Graph(32)
    graph.keep(graph.new(33))
    assert graph.peak() == 64


def test_what_is_kept_is_kept() -> None:
    graph = Graph(1)
    first = graph.new(10)
    graph.keep(first)
    second = graph.new(10, first)
    graph.new(10, second)
    assert graph.peak() == 30


@given(data=st.data(), sizes=st.lists(st.integers(0, 1000), min_size=1, max_size=40))
def test_the_peak_holds_what_is_alive_and_not_more_than_all(data: st.DataObject, sizes: list[int]) -> None:
    graph = Graph(1)
    sources: list[list[int]] = []
    for number, size in enumerate(sizes):
        chosen = data.draw(st.lists(st.integers(0, number - 1), max_size=3, unique=True)) if number else []
        graph.new(size, *chosen)
        sources.append(chosen)
    last = {number: number for number in range(len(sizes))}
    for number, chosen in enumerate(sources):
        for source in chosen:
            last[source] = number
    # What nothing reads is never freed.
    for number in range(len(sizes)):
        if not any(number in chosen for chosen in sources):
            last[number] = len(sizes)
    alive = max(
        sum(size for one, size in enumerate(sizes) if one <= moment <= last[one]) for moment in range(len(sizes))
    )
    assert alive <= graph.peak() <= sum(sizes)
