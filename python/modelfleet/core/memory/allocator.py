"""How ggml lays a graph's tensors into one buffer: best fit, in the order of computation, freed with the last use.

The size of the buffer is the highest address reached, holes included, so it cannot be had by adding up what is alive.
Source: ggml-alloc.c (``ggml_gallocr_alloc_graph_impl``, ``ggml_dyn_tallocr_alloc``) of llama-cpp-python 0.3.36.
"""

from typing import Dict, List, Tuple

_ENDLESS = 1 << 62


class Graph:
    """A graph under construction: inputs first, then one node after the other. A tensor is its number.

    Sizes are bytes. A view is its source with ``view``, since it takes no memory; only that no result may take its
    place (``over``) tells them apart.
    """

    def __init__(self, alignment: int) -> None:
        self._alignment = alignment
        self._sizes: List[int] = []
        self._sources: List[Tuple[int, ...]] = []
        self._over: List[int] = []
        self._uses: List[int] = []
        self._inputs = 0

    def input(self, size: int) -> int:
        """Add an input; all inputs come before all nodes."""
        number = self.new(size)
        self._inputs = number + 1
        return number

    def new(self, size: int, *sources: int) -> int:
        """Add a node that computes ``size`` bytes from ``sources``; -1 stands for a source outside the buffer."""
        return self._add(size, sources, -1)

    def over(self, size: int, target: int, *sources: int) -> int:
        """Add a node that may be computed in ``target``'s place, where nothing else needs that any more."""
        return self._add(size, (target, *sources), target)

    def keep(self, tensor: int) -> None:
        """Keep ``tensor`` to the end."""
        self._uses[tensor] += 1

    def _add(self, size: int, sources: Tuple[int, ...], over: int) -> int:
        alignment = self._alignment
        self._sizes.append(-(-size // alignment) * alignment)
        self._sources.append(sources)
        self._over.append(over)
        self._uses.append(0)
        for source in sources:
            if source >= 0:
                self._uses[source] += 1
        return len(self._sizes) - 1

    def peak(self) -> int:
        """Return the size of the buffer that holds this graph."""
        sizes, sources, uses = self._sizes, self._sources, list(self._uses)
        where: Dict[int, int] = {}
        # Free blocks by address: [offset, size]; the last has no end.
        free: List[List[int]] = [[0, _ENDLESS]]
        peak = 0
        for number, size in enumerate(sizes):
            target = self._over[number]
            if target >= 0 and uses[target] == 1 and sizes[target] == size and target in where:
                where[number] = where.pop(target)
            elif size:
                offset = _take(free, size)
                where[number] = offset
                if offset + size > peak:
                    peak = offset + size
            for source in sources[number]:
                if source >= 0:
                    uses[source] -= 1
                    if not uses[source] and source in where:
                        _give(free, where.pop(source), sizes[source])
        return peak


def _take(free: List[List[int]], size: int) -> int:
    """Take ``size`` bytes from the smallest free block that holds them, the last only where no other does."""
    best, least = len(free) - 1, _ENDLESS
    for index in range(len(free) - 1):
        room = free[index][1]
        if size <= room <= least:
            best, least = index, room
    block = free[best]
    offset = block[0]
    block[0] += size
    block[1] -= size
    if not block[1]:
        del free[best]
    return offset


def _give(free: List[List[int]], offset: int, size: int) -> None:
    """Give a block back, merged with what is free beside it."""
    end = offset + size
    for index, block in enumerate(free):
        if block[0] + block[1] == offset:
            block[1] += size
            if index + 1 < len(free) and free[index + 1][0] == end:
                block[1] += free.pop(index + 1)[1]
            return
        if block[0] == end:
            block[0] = offset
            block[1] += size
            return
        if block[0] > end:
            free.insert(index, [offset, size])
            return
    free.append([offset, size])
