"""The shape of a model: everything about it that decides how much memory it needs, and nothing else.

A shape comes from a GGUF header, from the lock (which carries it as JSON, so that planning needs no network), or from
a catalog entry's hyperparameters (see ``synthesis``). All sizes are bytes.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ..errors import ConfigurationError, FormatError
from ..formats.model import ModelFile, Tensor
from .architectures import (
    HYBRID_BOTH,
    HYBRID_BY_HEADS,
    HYBRID_BY_INTERVAL,
    RECURRENT,
    WINDOWS,
    WITHOUT_CACHE,
)

SCHEMA_VERSION = 1
# What llama.cpp takes at most (llama-hparams.h), and what keeps a lying header from being reckoned with.
MAX_LAYERS = 512
MAX_EXPERTS = 1024
MAX_WIDTH = 2**24
MAX_TOKENS = 2**31 - 1
# CUDA and ROCm align every tensor so, and lengthen rows of quantized tensors to a multiple of 512 elements
# (ggml-cuda.cu, get_alloc_size), because their kernels read that far.
ACCELERATOR_ALIGNMENT = 128
ACCELERATOR_ROW = 512
# What x86 with AVX2 and Arm with dot products lay out anew for their kernels, in 8 rows at once
# (ggml-cpu/repack.cpp, ggml_repack_get_optimal_repack_type). Q2_K on AVX-512 and Q5_K, Q6_K, Q8_0 on Arm are not here.
REPACKED_TYPES = frozenset(("Q4_0", "Q4_K", "IQ4_NL", "MXFP4"))
REPACKED_ROWS = 8
# Tensors that belong to no layer: read by row on the CPU, copied to each device with a layer, or with the output.
_INPUT = ("token_embd", "position_embd", "token_types", "per_layer_token_embd")
# Of these types CUDA reads no further than a row is long.
_PLAIN_TYPES = frozenset(("F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"))
_SHARED = ("rope_freqs", "rope_factors_long", "rope_factors_short")


@dataclass(frozen=True)
class ModelShape:
    """A model's shape. Tuples have one value a layer.

    ``heads_kv`` is 0 for a layer without keys and values. ``sliding_layers`` are those that keep only the
    ``sliding_window`` tokens; their keys and values may have lengths of their own. ``recurrent_layers`` keep
    ``recurrent_bytes`` a sequence, and compute ``recurrent_input``, ``_channels`` and ``_width`` elements a token.
    ``latent_key_length`` and ``latent_value_length`` are those of a head where the cache keeps what both are expanded
    from (MLA), else 0. ``cached_layers``: so many first layers keep keys and values, the rest reuse them;
    ``prediction_layers`` at the end are loaded but not run. ``expert_layers`` have experts.
    ``input_bytes`` stay on the CPU; ``shared_bytes`` are copied to every device that holds a layer; ``output_bytes``
    lie with the output. ``tied_bytes`` of them are a copy of the embeddings, which the file does not hold twice.
    ``layer_norm``: norms take the mean off, too, which is not computed in place.
    ``*_padding`` is what alignment adds on CUDA and ROCm; ``*_repack_bytes`` what the CPU would lay out anew.
    """

    architecture: str
    parameters: int
    context_length: int
    vocabulary_size: int
    embedding_length: int
    layers: int
    heads: Tuple[int, ...]
    heads_kv: Tuple[int, ...]
    key_length: int
    value_length: int
    layer_bytes: Tuple[int, ...]
    input_bytes: int
    output_bytes: int
    feed_forward_length: int = 0
    feed_forward_gated: bool = False
    feed_forward_fused: bool = False
    expert_feed_forward_length: int = 0
    expert_layers: Tuple[bool, ...] = ()
    experts_gated: bool = False
    shared_feed_forward_length: int = 0
    experts: int = 0
    experts_used: int = 0
    key_length_sliding: int = 0
    value_length_sliding: int = 0
    sliding_window: int = 0
    sliding_layers: Tuple[bool, ...] = ()
    recurrent_layers: Tuple[bool, ...] = ()
    recurrent_bytes: int = 0
    recurrent_input: int = 0
    recurrent_channels: int = 0
    recurrent_width: int = 0
    latent_key_length: int = 0
    latent_value_length: int = 0
    widest_tensor_bytes: int = 0
    cached_layers: int = 0
    prediction_layers: int = 0
    fused_query: bool = False
    layer_norm: bool = False
    tied_bytes: int = 0
    shared_bytes: int = 0
    layer_padding: Tuple[int, ...] = ()
    output_padding: int = 0
    layer_repack_bytes: Tuple[int, ...] = ()
    output_repack_bytes: int = 0
    type_bytes: Dict[str, int] = field(default_factory=dict, hash=False)

    @property
    def weight_bytes(self) -> int:
        """The bytes of all tensors of the file, which llama.cpp calls the model size."""
        return self.input_bytes + sum(self.layer_bytes) + self.shared_bytes + self.output_bytes - self.tied_bytes


def shape_of(model: ModelFile) -> ModelShape:
    """Return the shape of a GGUF file from its header. Raises FormatError where the header cannot be meant."""
    return _Reader(model).read()


class _Reader:
    def __init__(self, model: ModelFile) -> None:
        self.model = model
        self.name = model.name or "the model"
        self.architecture = model.architecture or ""

    def refuse(self, key: str, found: object, allowed: str) -> FormatError:
        return FormatError(self.name, f"{self.architecture}.{key}", str(found)[:64], allowed)

    def number(self, key: str, default: int = 0, most: int = MAX_WIDTH) -> int:
        """Return a whole number from the metadata; the largest where it has one a layer."""
        value = self.model.metadata.get(f"{self.architecture}.{key}", default)
        numbers = value if isinstance(value, list) else [value]
        if not numbers or any(type(one) is not int or not 0 <= one <= most for one in numbers):
            raise self.refuse(key, value, f"0 to {most}")
        return int(max(numbers))

    def by_layer(self, key: str, layers: int, default: Sequence[int], most: int = MAX_WIDTH) -> Tuple[int, ...]:
        """Return one whole number a layer; a single one holds for all."""
        value = self.model.metadata.get(f"{self.architecture}.{key}")
        if value is None:
            return tuple(default)
        if isinstance(value, list):
            if len(value) < layers or any(type(one) not in (int, bool) or not 0 <= one <= most for one in value):
                raise self.refuse(key, value, f"{layers} numbers from 0 to {most}")
            return tuple(int(one) for one in value[:layers])
        return (self.number(key, most=most),) * layers

    def read(self) -> ModelShape:
        model = self.model
        if model.format != "gguf" or not self.architecture:
            raise FormatError(self.name, "format", model.format, "a GGUF model with general.architecture")
        layers = self.number("block_count", most=MAX_LAYERS)
        embedding = self.number("embedding_length")
        if not layers or not embedding:
            raise self.refuse("block_count", layers, f"1 to {MAX_LAYERS} layers and an embedding length")
        heads = self.by_layer("attention.head_count", layers, (0,) * layers)
        heads_kv = self.by_layer("attention.head_count_kv", layers, heads)
        share = embedding // heads[0] if heads[0] else 0
        key_length = self.number("attention.key_length", share)
        value_length = self.number("attention.value_length", share)
        window, sliding = self._window(layers)
        recurrent = self._recurrent(layers, heads_kv)
        experts = self.number("expert_count", most=MAX_EXPERTS)
        tensors = _Tensors(model.tensors, layers)
        if tensors.outside is not None:
            raise self.refuse("block_count", f"{layers} layers and the tensor {tensors.outside}", "tensors of a layer")
        vocabulary = model.vocabulary_size or tensors.vocabulary
        if not 0 <= vocabulary <= MAX_WIDTH:
            raise self.refuse("vocab_size", vocabulary, f"0 to {MAX_WIDTH}")
        return ModelShape(
            architecture=self.architecture,
            parameters=model.parameters,
            context_length=self.number("context_length", most=MAX_TOKENS),
            vocabulary_size=vocabulary,
            embedding_length=embedding,
            layers=layers,
            heads=heads,
            heads_kv=heads_kv,
            key_length=key_length,
            value_length=value_length,
            experts=experts,
            experts_used=self.number("expert_used_count", most=MAX_EXPERTS) if experts else 0,
            key_length_sliding=self.number("attention.key_length_swa", key_length),
            value_length_sliding=self.number("attention.value_length_swa", value_length),
            sliding_window=window,
            sliding_layers=sliding,
            recurrent_layers=recurrent,
            recurrent_bytes=self._recurrent_bytes(embedding, heads) if any(recurrent) else 0,
            recurrent_width=(self.number("ssm.inner_size") or embedding) if any(recurrent) else 0,
            latent_key_length=self.number("attention.key_length_mla"),
            latent_value_length=self.number("attention.value_length_mla"),
            cached_layers=self._cached(layers),
            prediction_layers=min(self.number("nextn_predict_layers", most=MAX_LAYERS), layers),
            layer_norm=f"{self.architecture}.attention.layer_norm_epsilon" in model.metadata,
            **tensors.widths(),
            **tensors.bytes(),
        )

    def _window(self, layers: int) -> Tuple[int, Tuple[bool, ...]]:
        rule = WINDOWS.get(self.architecture)
        if rule is None or (self.architecture == "exaone4" and layers != 64):
            return 0, ()
        window = self.number("attention.sliding_window", rule.default or 0, most=MAX_TOKENS)
        if not window:
            return 0, ()
        key = "attention.sliding_window_pattern"
        pattern = self.model.metadata.get(f"{self.architecture}.{key}")
        if isinstance(pattern, list):
            sliding = tuple(bool(one) for one in self.by_layer(key, layers, ()))
        else:
            sliding = sliding_pattern(self.number(key, rule.period), rule.full_first, layers)
        return (rule.fixed or window), sliding if any(sliding) else ()

    def _recurrent(self, layers: int, heads_kv: Tuple[int, ...]) -> Tuple[bool, ...]:
        name = self.architecture
        if name in RECURRENT or name in HYBRID_BOTH:
            return (True,) * layers
        if name in HYBRID_BY_HEADS:
            feed_forward = self.by_layer("feed_forward_length", layers, (0,) * layers)
            attention_only = name.startswith("nemotron_h")
            return tuple(not kv and not (attention_only and ff) for kv, ff in zip(heads_kv, feed_forward))
        if name in HYBRID_BY_INTERVAL:
            key = "attention.recurrent_layers"
            if f"{name}.{key}" in self.model.metadata:
                return tuple(bool(one) for one in self.by_layer(key, layers, ()))
            every = self.number("full_attention_interval", HYBRID_BY_INTERVAL[name]) or 1
            trunk = layers - min(self.number("nextn_predict_layers", most=MAX_LAYERS), layers)
            return tuple(layer < trunk and (layer + 1) % every != 0 for layer in range(layers))
        return ()

    def _recurrent_bytes(self, embedding: int, heads: Tuple[int, ...]) -> int:
        """Return the bytes that a layer keeps of one sequence, in F32 (llama-hparams.cpp, n_embd_r and n_embd_s)."""
        wkv = self.number("wkv.head_size")
        if wkv:
            return 4 * (self.number("token_shift_count", 2) * embedding + embedding * wkv)
        short = self.number("shortconv.l_cache")
        inner, state = self.number("ssm.inner_size"), self.number("ssm.state_size")
        kernel = self.number("ssm.conv_kernel")
        if short:
            return 4 * (embedding * (short - 1) + state * inner)
        delta = self.number("kda.head_dim")
        if delta:
            return 4 * (3 * max(kernel - 1, 0 if kernel else 3) * heads[0] * delta + delta * delta * heads[0])
        return 4 * (max(kernel - 1, 0) * (inner + 2 * self.number("ssm.group_count") * state) + state * inner)

    def _cached(self, layers: int) -> int:
        if self.architecture in WITHOUT_CACHE:
            return 0
        if self.architecture == "gemma3n":
            return min(20, layers)
        if self.architecture == "gemma4":
            return max(layers - self.number("attention.shared_kv_layers", most=MAX_LAYERS), 0)
        return layers


class _Tensors:
    """The tensor table, added up by where its tensors go."""

    def __init__(self, tensors: Sequence[Tensor], layers: int) -> None:
        self.outside: Optional[str] = None
        self.layers = [0] * layers
        self.padding = [0] * layers
        self.repack = [0] * layers
        self.input = self.shared = self.output = self.output_padding = self.output_repack = 0
        self.types: Dict[str, int] = {}
        self.vocabulary = self.widest = 0
        self.experts = [False] * layers
        # Rows and columns of the layers' matrices by their part's name, the largest of all layers.
        self.rows: Dict[str, int] = {}
        self.columns: Dict[str, int] = {}
        embeddings: Optional[Tensor] = None
        own_output = False
        for tensor in tensors:
            self.types[tensor.type] = self.types.get(tensor.type, 0) + tensor.size
            first, _, rest = tensor.name.partition(".")
            if first == "blk":
                self._layer(tensor, rest)
            elif first in _SHARED:
                self.shared += tensor.size
            elif first.startswith(_INPUT):
                self.input += tensor.size
                if tensor.name == "token_embd.weight":
                    embeddings = tensor
                    self.vocabulary = tensor.shape[1] if len(tensor.shape) > 1 else 0
            else:
                own_output = own_output or tensor.name == "output.weight"
                self._output(tensor)
        # Without an output tensor llama.cpp makes a second one of the embeddings, where the output runs.
        self.tied = 0
        if embeddings is not None and not own_output:
            self.tied = embeddings.size
            self._output(embeddings)

    def _output(self, tensor: Tensor) -> None:
        self.output += tensor.size
        self.output_padding += padding(tensor)
        self.output_repack += repacked(tensor)

    def _layer(self, tensor: Tensor, rest: str) -> None:
        number, _, part = rest.partition(".")
        layer = int(number) if number.isdigit() and len(number) < 5 else -1
        if not 0 <= layer < len(self.layers):
            self.outside = self.outside or tensor.name
            return
        self.layers[layer] += tensor.size
        self.padding[layer] += padding(tensor)
        self.repack[layer] += repacked(tensor)
        if len(tensor.shape) > 1:
            self.rows[part] = max(self.rows.get(part, 0), tensor.shape[1])
            self.columns[part] = max(self.columns.get(part, 0), tensor.shape[0])
            self.widest = max(self.widest, tensor.size)
        if part == "ffn_down_exps.weight":
            self.experts[layer] = True

    def widths(self) -> Dict[str, Any]:
        """Return what the matrices tell of the graph: how wide its tensors are, and how many."""
        rows, columns = self.rows, self.columns
        inner = columns.get("ffn_down.weight", 0)
        return {
            "feed_forward_length": inner,
            "feed_forward_gated": "ffn_gate.weight" in rows,
            "feed_forward_fused": rows.get("ffn_up.weight", 0) == 2 * inner > 0,
            "expert_feed_forward_length": columns.get("ffn_down_exps.weight", 0),
            "expert_layers": tuple(self.experts) if any(self.experts) else (),
            "experts_gated": "ffn_gate_exps.weight" in rows or "ffn_gate_up_exps.weight" in rows,
            "shared_feed_forward_length": columns.get("ffn_down_shexp.weight", 0),
            "fused_query": "attn_qkv.weight" in rows and "attn_q.weight" not in rows,
            "recurrent_input": rows.get("ssm_in.weight", 0) or rows.get("shortconv.in_proj.weight", 0),
            "recurrent_channels": rows.get("ssm_conv1d.weight", 0) or rows.get("shortconv.conv.weight", 0),
            "widest_tensor_bytes": self.widest,
        }

    def bytes(self) -> Dict[str, Any]:
        return {
            "layer_bytes": tuple(self.layers),
            "input_bytes": self.input,
            "output_bytes": self.output,
            "tied_bytes": self.tied,
            "shared_bytes": self.shared,
            "layer_padding": tuple(self.padding) if any(self.padding) else (),
            "output_padding": self.output_padding,
            "layer_repack_bytes": tuple(self.repack) if any(self.repack) else (),
            "output_repack_bytes": self.output_repack,
            "type_bytes": self.types,
        }


def sliding_pattern(period: int, full_first: bool, layers: int) -> Tuple[bool, ...]:
    """Return which layers look at a window only: all but every ``period``-th (llama.cpp's set_swa_pattern)."""
    if not period:
        return (True,) * layers
    full = 0 if full_first else period - 1
    return tuple(layer % period != full for layer in range(layers))


def padding(tensor: Tensor) -> int:
    """Return the bytes that alignment adds to ``tensor`` on CUDA and ROCm."""
    size = tensor.size
    row = tensor.shape[0] if tensor.shape else 1
    if tensor.type not in _PLAIN_TYPES and row % ACCELERATOR_ROW:
        # As many bytes as the missing elements take.
        missing = ACCELERATOR_ROW - row % ACCELERATOR_ROW
        size += tensor.size * missing // max(tensor.elements, 1)
    return -(-size // ACCELERATOR_ALIGNMENT) * ACCELERATOR_ALIGNMENT - tensor.size


def repacked(tensor: Tensor) -> int:
    """Return the bytes of ``tensor`` that the CPU lays out anew; 0 where it does not."""
    if tensor.type not in REPACKED_TYPES or not tensor.name.endswith(".weight") or len(tensor.shape) < 2:
        return 0
    return tensor.size if tensor.shape[1] % REPACKED_ROWS == 0 else 0


def shape_to_dict(shape: ModelShape) -> Dict[str, Any]:
    """Return ``shape`` as JSON can say it: defaults left out, and one value where all layers have the same."""
    document: Dict[str, Any] = {"schema_version": SCHEMA_VERSION}
    for one in fields(shape):
        value = getattr(shape, one.name)
        if value == one.default:
            continue
        if isinstance(value, tuple):
            value = value[0] if len(set(value)) == 1 else list(value)
        document[one.name] = value
    return document


def shape_from_dict(document: Mapping[str, Any]) -> ModelShape:
    """Return the shape that ``shape_to_dict`` wrote. Raises ConfigurationError where it is none."""
    if not isinstance(document, Mapping) or document.get("schema_version") != SCHEMA_VERSION:
        raise ConfigurationError("a model's shape is not of this version", "make the lock anew: modelfleet lock")
    values: Dict[str, Any] = {}
    layers = document.get("layers")
    if type(layers) is not int or not 0 < layers <= MAX_LAYERS:
        raise _malformed("layers", layers)
    for one in fields(ModelShape):
        if one.name not in document:
            continue
        value = document[one.name]
        wanted = str(one.type)
        if wanted.startswith("typing.Tuple") or wanted.startswith("Tuple"):
            value = _tuple(one.name, value, layers)
        elif one.name == "type_bytes":
            if not isinstance(value, Mapping) or not all(_whole(size) for size in value.values()):
                raise _malformed(one.name, value)
            value = dict(value)
        elif one.name == "architecture":
            if not isinstance(value, str):
                raise _malformed(one.name, value)
        elif type(value) is not bool and not _whole(value):
            raise _malformed(one.name, value)
        values[one.name] = value
    unknown = sorted(set(document) - set(values) - {"schema_version"})
    if unknown:
        raise _malformed(unknown[0], document[unknown[0]])
    try:
        return ModelShape(**values)
    except TypeError:
        required = [one.name for one in fields(ModelShape)][:13]
        missing = next((name for name in required if name not in values), "architecture")
        raise _malformed(missing, None) from None


def _tuple(name: str, value: Any, layers: int) -> Tuple[Any, ...]:
    listed: List[Any] = list(value) if isinstance(value, (list, tuple)) else [value] * layers
    if len(listed) != layers or any(type(one) is not bool and not _whole(one) for one in listed):
        raise _malformed(name, value)
    return tuple(listed)


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _malformed(name: str, value: Any) -> ConfigurationError:
    return ConfigurationError(
        f"a model's shape: {name} is {str(value)[:64]}", "make the lock anew: modelfleet lock, or correct the shape"
    )
