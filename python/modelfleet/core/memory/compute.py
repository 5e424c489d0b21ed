"""The compute buffer, modelled: llama.cpp's graph of a few layers, laid out as ggml's allocator lays it out.

The layers of a model repeat, so the first, the last and one of each kind stand for all. Which tensors a layer computes,
and in which order, is read from llama.cpp's graph builders (src/llama-graph.cpp, src/models/*.cpp of llama-cpp-python
0.3.36); ``FAMILIES`` tells how architectures differ.
"""

from operator import attrgetter
from typing import Any, Dict, List, NamedTuple, Tuple

from .allocator import Graph
from .kv_cache import CACHE_TYPES, Cells, widest_values
from .shape import ModelShape

CPU_ALIGNMENT = 32
ACCELERATOR_ALIGNMENT = 128
# A rotation of keys and values spreads what quantizing them loses; its matrix is an input of the graph.
ROTATION = 64


class Run(NamedTuple):
    """What decides the sizes of a graph beside the model.

    A micro batch has ``tokens``, of which ``outputs`` have logits; then the cache's cells and types.
    """

    tokens: int
    outputs: int
    held: Cells
    flash: bool
    kind_k: str
    kind_v: str
    parallel: int


# Attention and feed-forward read the same norm, and their results are added at the end.
_PARALLEL = frozenset(("falcon", "phi2", "command-r", "cohere2", "cohere2moe", "gptj", "plamo"))
# Keys and queries are not rotated: positions are in the embeddings, or in the attention's bias.
_NO_ROTATION = frozenset(
    ("gpt2", "bloom", "mpt", "starcoder", "refact", "jamba", "granitehybrid", "nemotron_h", "jais")
)
# What goes around a block is the first operand where both are added, and so gives its place to the sum.
_RESIDUAL_FIRST = frozenset(("jamba", "lfm2", "lfm2moe", "mamba"))
# The tokens whose logits are wanted are picked after the last layer, not inside it.
_OUTPUTS_LAST = frozenset(
    (
        "bailingmoe3",
        "cohere2moe",
        "gemma4",
        "glm4moe",
        "gpt-oss",
        "hy_v3",
        "mimo2",
        "nemotron_h",
        "nemotron_h_moe",
        "qwen35",
        "qwen35moe",
        "qwen3next",
        "step35",
    )
)


# What of a shape decides the graph: the quantizations of one model share it, and so an answer once reckoned.
_outline = attrgetter(
    "architecture",
    "vocabulary_size",
    "embedding_length",
    "layers",
    "heads",
    "heads_kv",
    "key_length",
    "value_length",
    "feed_forward_length",
    "feed_forward_gated",
    "feed_forward_fused",
    "expert_feed_forward_length",
    "expert_layers",
    "experts_gated",
    "shared_feed_forward_length",
    "experts",
    "experts_used",
    "key_length_sliding",
    "value_length_sliding",
    "sliding_layers",
    "recurrent_layers",
    "recurrent_bytes",
    "recurrent_input",
    "recurrent_channels",
    "recurrent_width",
    "latent_key_length",
    "latent_value_length",
    "cached_layers",
    "fused_query",
    "layer_norm",
)
_reckoned: Dict[Tuple[Any, ...], int] = {}
_MOST_RECKONED = 65_536


def compute_bytes(
    shape: ModelShape, run: Run, first: int, end: int, output: bool, accelerator: bool, copies: int = 1
) -> int:
    """Return the bytes of the compute buffer of a device that runs the layers from ``first`` to before ``end``.

    ``output``: it computes the logits, too. ``accelerator``: the inputs come to it as copies from the CPU's buffer.
    ``copies``: so many batches are under way at once, each with inputs of its own.
    """
    key = (_outline(shape), run, first, end, output, accelerator, copies)
    answer = _reckoned.get(key)
    if answer is None:
        if len(_reckoned) >= _MOST_RECKONED:
            _reckoned.clear()
        answer = _Builder(shape, run, accelerator, copies).build(_of_each_kind(shape, first, end), output)
        _reckoned[key] = answer
    return answer


def _of_each_kind(shape: ModelShape, first: int, end: int) -> List[int]:
    """Return the layers that stand for all from ``first`` to before ``end``: the ends, and the first two of a kind."""
    seen: Dict[Tuple[Any, ...], int] = {}
    chosen = []
    for layer in range(first, end):
        kind = (
            shape.heads[layer],
            shape.heads_kv[layer],
            bool(shape.sliding_layers) and shape.sliding_layers[layer],
            bool(shape.recurrent_layers) and shape.recurrent_layers[layer],
            bool(shape.expert_layers) and shape.expert_layers[layer],
        )
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] <= 2 or layer >= end - 2:
            chosen.append(layer)
    return chosen


class _Builder:
    def __init__(self, shape: ModelShape, run: Run, accelerator: bool, copies: int) -> None:
        self.shape = shape
        self.run = run
        self.graph = Graph(ACCELERATOR_ALIGNMENT if accelerator else CPU_ALIGNMENT)
        self.accelerator = accelerator
        self.copies = copies
        self.row = 4 * run.tokens
        self.width = self.row * shape.embedding_length
        self.architecture = shape.architecture

    def build(self, layers: List[int], output: bool) -> int:
        graph, shape, run = self.graph, self.shape, self.run
        tokens = -1
        if not self.accelerator:
            tokens = self._input(self.row)
            # Embeddings may come in place of tokens; room for them is kept whether they do or not.
            self._input(self.width)
        rotated_k, rotated_v = self._rotations()
        self.rotation_k = self._input(4 * rotated_k * rotated_k) if rotated_k else -1
        self.rotation_v = self._input(4 * ROTATION * ROTATION) if rotated_v else -1
        positions = self._input(self.row)
        self.masks: Dict[bool, int] = {}
        self.indices: Dict[bool, Tuple[int, int]] = {}
        for sliding, cells in ((True, run.held.window), (False, run.held.full)):
            # An accelerator gets copies of what it reads, and the output reads no mask.
            if (
                cells
                and (layers or not self.accelerator)
                and any(self._keeps(layer) and self._slides(layer) == sliding for layer in range(shape.layers))
            ):
                count = 1 if run.flash else widest_values(shape)
                self.indices[sliding] = (self._input(8 * run.tokens), self._input(8 * run.tokens * count))
                self.masks[sliding] = self._input(cells * run.tokens * (2 if run.flash else 4))
        outputs = self._input(self.row)
        current = self._input(self.width) if self.copies > 1 and self.accelerator else graph.new(self.width, tokens)
        for layer in layers:
            last = layer == shape.layers - 1
            picked = last and self.architecture not in _OUTPUTS_LAST
            current = self._layer(layer, current, positions, outputs if picked else -1)
        if output:
            if self.architecture in _OUTPUTS_LAST:
                graph.keep(current)
                self._only_outputs()
                current = graph.new(self.width, current, outputs)
            normed = graph.new(self.width, current) if shape.layer_norm else graph.over(self.width, current)
            graph.new(self.row * shape.vocabulary_size, normed)
        return graph.peak()

    def _input(self, size: int) -> int:
        number = self.graph.input(size * self.copies)
        if self.copies > 1:
            # A batch that is under way elsewhere still reads them.
            self.graph.keep(number)
        return number

    def _rotations(self) -> Tuple[int, bool]:
        """Return the size of the keys' rotation, and whether the values are rotated (llama-kv-cache.cpp)."""
        shape, run = self.shape, self.run
        rotated = 0
        same_k = not shape.sliding_layers or shape.key_length == shape.key_length_sliding
        if CACHE_TYPES[run.kind_k][0] > 1 and shape.key_length and shape.key_length % ROTATION == 0 and same_k:
            rotated = ROTATION
            while shape.key_length % (2 * rotated) == 0:
                rotated *= 2
        values = CACHE_TYPES[run.kind_v][0] > 1 and shape.value_length > 0 and shape.value_length % ROTATION == 0
        return rotated, values

    def _slides(self, layer: int) -> bool:
        return bool(self.shape.sliding_layers) and self.shape.sliding_layers[layer]

    def _keeps(self, layer: int) -> bool:
        return bool(self.shape.heads_kv[layer]) and self.shape.cached_layers > 0

    def _key_length(self, layer: int) -> int:
        return self.shape.key_length_sliding if self._slides(layer) else self.shape.key_length

    def _value_length(self, layer: int) -> int:
        return self.shape.value_length_sliding if self._slides(layer) else self.shape.value_length

    def _layer(self, layer: int, current: int, positions: int, outputs: int) -> int:
        graph, shape = self.graph, self.shape
        normed = graph.new(self.width, current)
        mixed = self._recurrence(normed) if shape.recurrent_layers and shape.recurrent_layers[layer] else -1
        if self.architecture in _PARALLEL:
            attended = self._attention(layer, normed, positions)
            if outputs >= 0:
                self._only_outputs()
                normed = graph.new(self.width, normed, outputs)
            result = self._feed_forward(layer, normed)
            mixed = graph.new(4 * self.run.tokens * shape.embedding_length, attended)
            if outputs >= 0:
                mixed = graph.new(self.width, mixed, outputs)
            result = graph.over(self.width, result, mixed)
            if outputs >= 0:
                current = graph.new(self.width, current, outputs)
            return graph.over(self.width, result, current)
        if shape.heads_kv[layer]:
            attended = graph.new(self.width, self._attention(layer, normed, positions))
            mixed = attended if mixed < 0 else graph.over(self.width, attended, mixed)
        if mixed < 0:
            mixed = normed
        if outputs >= 0:
            self._only_outputs()
            mixed = graph.new(self.width, mixed, outputs)
            current = graph.new(self.width, current, outputs)
        first = self.architecture in _RESIDUAL_FIRST
        inner = graph.over(self.width, current, mixed) if first else graph.over(self.width, mixed, current)
        if not shape.feed_forward_length and not shape.experts:
            return inner
        normed = graph.new(self.width, inner)
        result = self._feed_forward(layer, normed)
        if first or self.architecture == "phi3":
            return graph.over(self.width, inner, result)
        return graph.over(self.width, result, inner)

    def _only_outputs(self) -> None:
        """From here on only the tokens whose logits are wanted are computed."""
        self.row = 4 * self.run.outputs
        self.width = self.row * self.shape.embedding_length

    def _recurrence(self, normed: int) -> int:
        """Return the result of a state-space or short-convolution mixer (src/models/mamba-base.cpp, lfm2.cpp)."""
        graph, shape, row = self.graph, self.shape, self.row
        inner, channels = row * shape.recurrent_width, row * (shape.recurrent_channels or shape.recurrent_width)
        state = shape.recurrent_bytes * self.run.parallel
        # What the convolution remembers: three tokens of each channel, as all known models have it.
        kept = graph.new(3 * channels // self.run.tokens * self.run.parallel)
        gates = graph.new(row * (shape.recurrent_input or 2 * shape.recurrent_width), normed)
        window = graph.new(channels, gates, kept)
        convolved = graph.new(channels, window)
        steps = graph.new(inner, convolved)
        scanned = graph.new(inner + state, convolved, steps)
        result = graph.new(inner, scanned, gates)
        return graph.new(self.width, result)

    def _attention(self, layer: int, normed: int, positions: int) -> int:
        graph, shape, run, row = self.graph, self.shape, self.run, self.row
        heads, heads_kv = shape.heads[layer], shape.heads_kv[layer]
        key_length, value_length = self._key_length(layer), self._value_length(layer)
        if shape.latent_value_length:
            return self._latent_attention(layer, normed, positions)
        sizes = (row * heads * key_length, row * heads_kv * key_length, row * heads_kv * value_length)
        rotated = self.architecture not in _NO_ROTATION
        sliding = self._slides(layer)
        fused = graph.new(sum(sizes), normed) if shape.fused_query else -1

        def projected(size: int, rotate: bool, rotation: int) -> int:
            tensor = fused if fused >= 0 else graph.new(size, normed)
            if rotate and rotated:
                tensor = graph.new(size, tensor, positions)
            return graph.new(size, tensor, rotation) if rotation >= 0 else tensor

        query = projected(sizes[0], True, self.rotation_k)
        if run.held.window and shape.sliding_layers:
            key = projected(sizes[1], True, self.rotation_k)
            value = projected(sizes[2], False, self.rotation_v)
        else:
            value = projected(sizes[2], False, self.rotation_v)
            key = projected(sizes[1], True, self.rotation_k)
        index_k, index_v = self.indices[sliding]
        graph.new(0, key, index_k)
        graph.new(0, value, index_v)
        mixed_size = row * heads * value_length
        mask = self.masks[sliding]
        if run.flash:
            mixed = graph.new(mixed_size, query, mask)
        else:
            cells = run.held.window if sliding else run.held.full
            scores = graph.new(row * heads * cells, query)
            scores = graph.over(row * heads * cells, scores, mask)
            mixed = graph.new(mixed_size, scores)
            mixed = graph.new(mixed_size, mixed)
        if self.rotation_v >= 0:
            mixed = graph.new(mixed_size, mixed, self.rotation_v)
        return mixed

    def _latent_attention(self, layer: int, normed: int, positions: int) -> int:
        """Return attention over what keys and values are expanded from (src/models/deepseek2.cpp)."""
        graph, shape, run, row = self.graph, self.shape, self.run, self.row
        heads, cells = row * shape.heads[layer], run.held.full
        rotated = shape.key_length - shape.value_length
        projected = graph.new(heads * shape.latent_key_length, normed)
        absorbed = graph.new(heads * shape.value_length, projected)
        turned = graph.new(heads * rotated, projected, positions)
        query = graph.new(heads * shape.key_length, absorbed, turned)
        kept = graph.new(row * shape.key_length, normed)
        compressed = graph.new(row * shape.value_length, kept)
        key_turned = graph.new(row * rotated, kept, positions)
        key = graph.new(row * shape.key_length, compressed, key_turned)
        graph.new(0, key, *self.indices[False])
        if run.flash:
            mixed = graph.new(heads * shape.value_length, query, self.masks[False])
        else:
            scores = graph.new(heads * cells, query)
            scores = graph.over(heads * cells, scores, self.masks[False])
            spread = graph.new(2 * cells * shape.value_length)
            mixed = graph.new(heads * shape.value_length, scores, spread)
        mixed = graph.new(heads * shape.latent_value_length, mixed)
        return graph.new(heads * shape.latent_value_length, mixed)

    def _feed_forward(self, layer: int, normed: int) -> int:
        shape = self.shape
        if not shape.expert_layers or not shape.expert_layers[layer]:
            return self._dense(normed, shape.feed_forward_length, shape.feed_forward_gated, shape.feed_forward_fused)
        result = self._experts(normed)
        if shape.shared_feed_forward_length:
            shared = self._dense(normed, shape.shared_feed_forward_length, shape.experts_gated, False)
            result = self.graph.over(self.width, result, shared)
        return result

    def _dense(self, normed: int, length: int, gated: bool, fused: bool) -> int:
        graph, inner = self.graph, self.row * length
        if gated:
            gate = graph.new(inner, normed)
            up = graph.new(inner, normed)
            product = graph.new(inner, gate, up)
        elif fused:
            product = graph.new(inner, graph.new(2 * inner, normed))
        else:
            product = graph.new(inner, normed)
        return graph.new(self.width, product)

    def _experts(self, normed: int) -> int:
        """Return the mixture of the experts that a router chose (llama-graph.cpp, build_moe_ffn)."""
        graph, shape, row = self.graph, self.shape, self.row
        used = shape.experts_used
        inner = row * shape.expert_feed_forward_length * used
        scores = graph.new(row * shape.experts, normed)
        order = graph.new(row * shape.experts, scores)
        weights = graph.new(row * used, scores, order)
        if shape.experts_gated:
            gate = graph.new(inner, normed, order)
            up = graph.new(inner, normed, order)
            product = graph.new(inner, gate, up)
        else:
            product = graph.new(inner, normed, order)
        down = graph.new(self.width * used, product, order)
        mixed = graph.over(self.width * used, down, weights)
        return graph.new(self.width, mixed)
