"""The tensor table that llama.cpp's quantizer would write, from a model's hyperparameters: a shape without a file.

So every quantization of a catalog's model can be planned without a network. The types follow llama.cpp's
``llama_tensor_get_type_impl`` (src/llama-quant.cpp) for the file types that the catalog knows, without an importance
matrix's exceptions; the tensors are those of its ``load_arch_tensors``. Files on the Hub that were made so have these
tensors to the byte; some publishers give embeddings or output another type, which the lock then tells.
"""

from typing import Any, Dict, Iterator, List, Mapping, Tuple

from ..errors import ConfigurationError
from ..formats.gguf import DEFAULT_ALIGNMENT
from ..formats.gguf_types import TENSOR_TYPES
from ..formats.model import ModelFile, Tensor
from .shape import MAX_EXPERTS, MAX_LAYERS, MAX_TOKENS, MAX_WIDTH, ModelShape, shape_of

# The catalog's names -> the type of most tensors.
QUANTIZATIONS: Dict[str, str] = {
    "fp16": "F16",
    "q8_0": "Q8_0",
    "q6_k": "Q6_K",
    "q5_k_m": "Q5_K",
    "q4_k_m": "Q4_K",
    "q4_0": "Q4_0",
    "q3_k_m": "Q3_K",
}
_BLOCKS = {name: (block, size) for name, block, size in TENSOR_TYPES.values()}
# What takes the place of a type whose blocks do not divide a row.
_FALLBACK = {"Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
# Architectures whose tensors are known here, and what each layer has beside the usual nine.
_EXTRAS: Dict[str, Tuple[str, ...]] = {
    "llama": (),
    "qwen2": ("bias",),
    "qwen3": ("head_norms",),
    "qwen3moe": ("head_norms",),
    "gemma2": ("post_norms",),
    "gemma3": ("head_norms", "post_norms"),
    "phi3": ("fused",),
}
_HYPERPARAMETERS: Dict[str, int] = {
    "layers": MAX_LAYERS,
    "embedding_length": MAX_WIDTH,
    "feed_forward_length": MAX_WIDTH,
    "heads": 2**16,
    "heads_kv": 2**16,
    "key_length": 2**16,
    "value_length": 2**16,
    "vocabulary_size": MAX_WIDTH,
    "context_length": MAX_TOKENS,
}
_OPTIONAL: Dict[str, int] = {"sliding_window": MAX_TOKENS, "experts": MAX_EXPERTS, "experts_used": MAX_EXPERTS}
_FLAGS = ("tied_embeddings", "rope_factors")


def shape_from_catalog(hyper: Mapping[str, Any], quantization: str) -> ModelShape:
    """Return the shape of a model with the catalog's hyperparameters, quantized so. Raises ConfigurationError."""
    values = _checked(hyper)
    architecture = str(hyper["architecture"])
    tensors = tensors_of(hyper, quantization)
    keys = {
        "block_count": values["layers"],
        "embedding_length": values["embedding_length"],
        "feed_forward_length": values["feed_forward_length"],
        "attention.head_count": values["heads"],
        "attention.head_count_kv": values["heads_kv"],
        "attention.key_length": values["key_length"],
        "attention.value_length": values["value_length"],
        "attention.sliding_window": values["sliding_window"],
        "context_length": values["context_length"],
        "expert_count": values["experts"],
        "expert_used_count": values["experts_used"],
    }
    metadata = {f"{architecture}.{key}": value for key, value in keys.items() if value}
    return shape_of(
        ModelFile(
            "gguf",
            0,
            architecture=architecture,
            vocabulary_size=values["vocabulary_size"],
            tensors=tensors,
            metadata=metadata,
        )
    )


def tensors_of(hyper: Mapping[str, Any], quantization: str) -> List[Tensor]:
    """Return the tensor table of such a model, in the file's order. Raises ConfigurationError."""
    values = _checked(hyper)
    if quantization not in QUANTIZATIONS:
        raise ConfigurationError(f"quantization {quantization!r}", f"use one of {', '.join(QUANTIZATIONS)}")
    tensors: List[Tensor] = []
    offset = 0
    for name, shape, kind in _typed(str(hyper["architecture"]), values, quantization):
        elements = 1
        for length in shape:
            elements *= length
        block, size = _BLOCKS[kind]
        tensors.append(Tensor(name, kind, shape, offset, elements // block * size))
        offset += -(-tensors[-1].size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT
    return tensors


def _checked(hyper: Mapping[str, Any]) -> Dict[str, int]:
    values: Dict[str, int] = {}
    architecture = hyper.get("architecture")
    if architecture not in _EXTRAS:
        raise ConfigurationError(
            f"shape.architecture is {architecture!r}", f"it must be one of {', '.join(sorted(_EXTRAS))}"
        )
    for name, most in {**_HYPERPARAMETERS, **_OPTIONAL}.items():
        value = hyper.get(name, 0 if name in _OPTIONAL else None)
        if type(value) is not int or not (0 if name in _OPTIONAL else 1) <= value <= most:
            raise ConfigurationError(f"shape.{name} is {str(value)[:64]}", f"it must be a whole number up to {most}")
        values[name] = value
    for name in _FLAGS:
        if not isinstance(hyper.get(name, False), bool):
            raise ConfigurationError(f"shape.{name} is {str(hyper[name])[:64]}", "it must be true or false")
        values[name] = int(hyper.get(name, False))
    unknown = sorted(set(hyper) - set(values) - {"architecture"})
    if unknown:
        raise ConfigurationError(f"shape.{str(unknown[0])[:64]} is not known", f"known: {', '.join(sorted(values))}")
    if bool(values["experts"]) != bool(values["experts_used"]) or values["experts_used"] > values["experts"]:
        raise ConfigurationError(
            f"shape.experts_used is {values['experts_used']} of {values['experts']}", "name both, or neither"
        )
    return values


def _tensors(architecture: str, values: Mapping[str, int]) -> Iterator[Tuple[str, Tuple[int, ...]]]:
    """Yield each tensor's name and dimensions, in the quantizer's order."""
    extras = _EXTRAS[architecture]
    width, inner = values["embedding_length"], values["feed_forward_length"]
    query = values["heads"] * values["key_length"]
    key, value = values["heads_kv"] * values["key_length"], values["heads_kv"] * values["value_length"]
    mixed = values["heads"] * values["value_length"]
    vocabulary, experts = values["vocabulary_size"], values["experts"]
    if not values["tied_embeddings"]:
        yield "output.weight", (width, vocabulary)
    yield "output_norm.weight", (width,)
    if values["rope_factors"] and architecture == "phi3":
        yield "rope_factors_long.weight", (values["key_length"] // 2,)
        yield "rope_factors_short.weight", (values["key_length"] // 2,)
    elif values["rope_factors"]:
        yield "rope_freqs.weight", (values["key_length"] // 2,)
    yield "token_embd.weight", (width, vocabulary)
    for number in range(values["layers"]):
        layer = f"blk.{number}."
        yield layer + "attn_norm.weight", (width,)
        if "fused" in extras:
            yield layer + "attn_qkv.weight", (width, query + key + value)
        else:
            for part, rows in (("q", query), ("k", key), ("v", value)):
                yield f"{layer}attn_{part}.weight", (width, rows)
                if "bias" in extras:
                    yield f"{layer}attn_{part}.bias", (rows,)
        yield layer + "attn_output.weight", (mixed, width)
        if "head_norms" in extras:
            yield layer + "attn_q_norm.weight", (values["key_length"],)
            yield layer + "attn_k_norm.weight", (values["key_length"],)
        if "post_norms" in extras:
            yield layer + "post_attention_norm.weight", (width,)
            yield layer + "post_ffw_norm.weight", (width,)
        yield layer + "ffn_norm.weight", (width,)
        if experts:
            yield layer + "ffn_gate_inp.weight", (width, experts)
            yield layer + "ffn_down_exps.weight", (inner, width, experts)
            yield layer + "ffn_gate_exps.weight", (width, inner, experts)
            yield layer + "ffn_up_exps.weight", (width, inner, experts)
        else:
            yield layer + "ffn_down.weight", (inner, width)
            if "fused" not in extras:
                yield layer + "ffn_gate.weight", (width, inner)
            yield layer + "ffn_up.weight", (width, 2 * inner if "fused" in extras else inner)


def _typed(
    architecture: str, values: Mapping[str, int], quantization: str
) -> Iterator[Tuple[str, Tuple[int, ...], str]]:
    """Yield name, dimensions and type of each tensor."""
    most = QUANTIZATIONS[quantization]
    tied, experts, layers = bool(values["tied_embeddings"]), values["experts"], values["layers"]
    number = 0
    for name, shape in _tensors(architecture, values):
        part = name
        if name.startswith("blk."):
            _, digits, part = name.split(".", 2)
            number = int(digits)
        if len(shape) < 2 or part == "ffn_gate_inp.weight":
            yield name, shape, "F32"
            continue
        kind = most
        if most != "F16":
            kind = _kind(part, number, layers, experts, tied, quantization, most)
            if shape[0] % _BLOCKS[kind][0]:
                kind = _FALLBACK.get(kind, "F16")
            if shape[0] % _BLOCKS[kind][0]:
                kind = "F16"
        yield name, shape, kind


def _kind(part: str, layer: int, layers: int, experts: int, tied: bool, quantization: str, most: str) -> str:
    """Return the type of one tensor: the quantizer's rules, for the quantizations that the catalog knows."""
    medium = quantization in ("q4_k_m", "q5_k_m")
    if part == "output.weight" or (tied and part == "token_embd.weight"):
        return "Q8_0" if most == "Q8_0" else "Q6_K"
    if part in ("attn_v.weight", "attn_qkv.weight"):
        kind = most
        if quantization == "q3_k_m":
            kind = "Q5_K" if layer < 2 else "Q4_K"
        elif medium and _more_bits(layer, layers):
            kind = "Q6_K"
        return "Q8_0" if experts == 8 else kind
    if part == "attn_k.weight" and experts == 8:
        return "Q8_0"
    if part in ("ffn_down.weight", "ffn_down_exps.weight"):
        if quantization == "q3_k_m":
            return "Q5_K" if layer < layers // 16 else "Q4_K"
        return "Q6_K" if medium and _more_bits(layer, layers) else most
    if part == "attn_output.weight":
        if experts == 8:
            return "Q5_K" if quantization in ("q3_k_m", "q4_k_m") else most
        return "Q4_K" if quantization == "q3_k_m" else most
    return most


def _more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers, and every third between, get more bits."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
