"""The exact size of llama.cpp's KV cache, by its own rules.

Source: llama.cpp as llama-cpp-python 0.3.36 carries it: llama-context.cpp (padding of the context), llama-kv-cache.cpp,
llama-kv-cache-iswa.cpp (windows), llama-memory-recurrent.cpp (states).
"""

from typing import Dict, NamedTuple, Tuple

from ..errors import ConfigurationError
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


def cells(context: int, micro_batch: int, parallel: int, unified: bool, sliding_window: int) -> Cells:
    """Return the cells that llama.cpp makes for ``context`` tokens, shared by ``parallel`` sequences."""
    padded = padded_to(context, CELLS)
    full = padded if unified else padded_to(padded // parallel, CELLS)
    window = 0
    if sliding_window:
        window = padded_to(min(full, sliding_window * (parallel if unified else 1) + micro_batch), CELLS)
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


def kept(shape: ModelShape, layer: int) -> bool:
    """Return whether ``layer`` has keys and values of its own."""
    if layer >= shape.cached_layers or layer >= shape.layers - shape.prediction_layers or not shape.heads_kv[layer]:
        return False
    return not (shape.recurrent_layers and shape.recurrent_layers[layer]) or shape.architecture == "falcon-h1"


def cache_bytes(
    shape: ModelShape, held: Cells, kind_k: str, kind_v: str, flash: bool, parallel: int
) -> Tuple[int, ...]:
    """Return the bytes that each layer keeps: keys and values, or a state of fixed size for each sequence."""
    rows: Dict[Tuple[int, bool], int] = {}
    widest = 0
    if not flash:
        # Without flash attention values lie transposed, padded to the widest layer.
        widest = max(
            heads
            * (
                shape.value_length_sliding
                if shape.sliding_layers and shape.sliding_layers[layer]
                else shape.value_length
            )
            for layer, heads in enumerate(shape.heads_kv)
        )
    answer = []
    for layer, heads in enumerate(shape.heads_kv):
        size = 0
        if kept(shape, layer):
            sliding = bool(shape.sliding_layers) and shape.sliding_layers[layer]
            key = (heads, sliding)
            if key not in rows:
                k_length = shape.key_length_sliding if sliding else shape.key_length
                v_length = shape.value_length_sliding if sliding else shape.value_length
                # Flash attention reads a head at a time, so blocks must not cross heads.
                for kind, length in ((kind_k, k_length), (kind_v, v_length)):
                    row_bytes(kind, length if flash else heads * length)
                row = row_bytes(kind_k, heads * k_length)
                if not shape.latent_value_length:
                    row += row_bytes(kind_v, heads * v_length if flash else widest)
                rows[key] = row * (held.window if sliding else held.full) * held.streams
            size = rows[key]
        if shape.recurrent_layers and shape.recurrent_layers[layer]:
            size += shape.recurrent_bytes * max(1, parallel)
        answer.append(size)
    return tuple(answer)
