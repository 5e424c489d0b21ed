"""The compute buffer, modelled: the largest of the moments that llama.cpp's graph goes through."""

from typing import NamedTuple

from .kv_cache import Cells
from .shape import ModelShape


class Graph(NamedTuple):
    """What decides the graph's sizes: tokens of a micro batch, the cache's cells, flash attention."""

    tokens: int
    held: Cells
    flash: bool


def input_bytes(shape: ModelShape, graph: Graph) -> int:
    """Return the bytes of the graph's inputs: embeddings, positions, cache indices, attention masks."""
    tokens, held = graph.tokens, graph.held
    size = 4 * shape.embedding_length * tokens + 12 * tokens
    width = max(shape.heads_kv, default=0) * shape.value_length
    mask = 2 if graph.flash else 4
    for count in (held.full, held.window):
        if count and shape.cached_layers:
            size += count * tokens * mask + 8 * tokens + (8 * tokens if graph.flash else 8 * tokens * width)
    return size


def layer_bytes(shape: ModelShape, graph: Graph) -> int:
    """Return the bytes that the widest layer needs at once, beside the inputs."""
    tokens = graph.tokens
    heads = max(shape.heads, default=0)
    residual = 4 * shape.embedding_length * tokens
    query = 4 * tokens * heads * shape.key_length
    if graph.flash:
        attention = query + 4 * tokens * heads * shape.value_length
    else:
        cells = graph.held.full or graph.held.window
        attention = query + 4 * tokens * heads * cells
    feed_forward = (3 if shape.feed_forward_gated else 2) * 4 * tokens * shape.feed_forward_length
    experts = 0
    if shape.experts:
        experts = 4 * tokens * shape.experts_used * (3 * shape.expert_feed_forward_length)
    return 2 * residual + max(attention, feed_forward, experts)


def logits_bytes(shape: ModelShape, graph: Graph) -> int:
    """Return the bytes of the output's moment, beside the inputs."""
    return 4 * shape.vocabulary_size * graph.tokens
