"""The exact size of llama.cpp's KV cache, by its own rules.

Source: llama.cpp as llama-cpp-python 0.3.36 carries it: llama-context.cpp (padding of the context), llama-kv-cache.cpp,
llama-kv-cache-iswa.cpp (windows), llama-memory-recurrent.cpp (states).
"""

from typing import Dict, NamedTuple, Tuple

from ..errors import ConfigurationError
from .architectures import HYBRID_BOTH
from .shape import ModelShape

# Elements and bytes of a block, of the types that a cache can have (llama.cpp's --cache-type-k).
CACHE_TYPES: Dict[str, Tuple[int, int]] = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q5_1": (32, 24),
    "q5_0": (32, 22),
    "q4_1": (32, 20),
    "q4_0": (32, 18),
    "iq4_nl": (32, 18),
}
CELLS = 256


class Cells(NamedTuple):
    """How many tokens a cache holds: ``full`` and ``window`` cells in each of ``streams`` streams."""

    full: int
    window: int
    streams: int


def cells(
    context: int, micro_batch: int, parallel: int, unified: bool, sliding_window: int, full_window: bool = False
) -> Cells:
    """Return the cells that llama.cpp makes for ``context`` tokens, shared by ``parallel`` sequences.

    ``full_window``: sliding-window layers keep all of it, too (llama.cpp's ``swa_full``).
    """
    padded = padded_to(context, CELLS)
    full = padded if unified else padded_to(padded // parallel, CELLS)
    window = 0
    if sliding_window:
        least = padded_to(min(full, sliding_window * (parallel if unified else 1) + micro_batch), CELLS)
        window = full if full_window else least
    return Cells(full, window, 1 if unified else parallel)


def padded_to(number: int, step: int) -> int:
    """Return ``number`` rounded up to a multiple of ``step``."""
    return -(-number // step) * step


def row_bytes(kind: str, elements: int) -> int:
    """Return the bytes of one token's ``elements`` in a cache of type ``kind``. Raises ConfigurationError."""
    block, size = CACHE_TYPES[kind]
    if elements % block:
        raise ConfigurationError(
            f"a KV cache of type {kind} holds blocks of {block}, and this model's rows have {elements} elements",
            "use f16",
        )
    return elements // block * size


def cache_bytes(
    shape: ModelShape, held: Cells, kind_k: str, kind_v: str, flash: bool, parallel: int
) -> Tuple[int, ...]:
    """Return the bytes that each layer keeps: keys and values, or a state of fixed size for each sequence."""
    none = (False,) * shape.layers
    sliding, recurrent = shape.sliding_layers or none, shape.recurrent_layers or none
    last = min(shape.cached_layers, shape.layers - shape.prediction_layers)
    both = shape.architecture in HYBRID_BOTH
    state = shape.recurrent_bytes * parallel
    known: Dict[Tuple[int, bool], int] = {}
    answer = []
    for layer, kind in enumerate(zip(shape.heads_kv, sliding)):
        size = 0
        recurs = recurrent[layer]
        if kind[0] and layer < last and (both or not recurs):
            found = known.get(kind)
            if found is None:
                cells_held = (held.window if kind[1] else held.full) * held.streams
                found = known[kind] = _token_bytes(shape, *kind, kind_k, kind_v, flash) * cells_held
            size = found
        answer.append(size + state if recurs else size)
    return tuple(answer)


def _token_bytes(shape: ModelShape, heads: int, sliding: bool, kind_k: str, kind_v: str, flash: bool) -> int:
    """Return the bytes that a layer with so many KV heads keeps of one token. Raises ConfigurationError."""
    k_length = shape.key_length_sliding if sliding else shape.key_length
    v_length = shape.value_length_sliding if sliding else shape.value_length
    if flash:
        # Flash attention reads a head at a time, so blocks must not cross heads.
        row_bytes(kind_k, k_length)
        row_bytes(kind_v, v_length)
    row = row_bytes(kind_k, heads * k_length)
    if shape.latent_value_length:
        return row
    return row + row_bytes(kind_v, heads * v_length if flash else widest_values(shape))


def widest_values(shape: ModelShape) -> int:
    """Return the elements of a token's values in the widest layer.

    Without flash attention values lie transposed, and all layers are padded to that.
    """
    sliding = shape.sliding_layers or (False,) * shape.layers
    lengths = (shape.value_length, shape.value_length_sliding)
    return max(heads * lengths[slides] for heads, slides in zip(shape.heads_kv, sliding))
