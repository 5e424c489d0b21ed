"""Shapes: from hyperparameters to the byte, through JSON and back, and never from a header that lies."""

from __future__ import annotations

import json
from typing import Any

import pytest
from modelfleet.core.errors import ConfigurationError
from modelfleet.core.memory.shape import shape_from_dict, shape_to_dict
from modelfleet.core.memory.synthesis import QUANTIZATIONS, shape_from_catalog
from support.planning import SHAPE_8B as LLAMA_8B

QWEN_7B = {
    **LLAMA_8B,
    "architecture": "qwen2",
    "layers": 28,
    "embedding_length": 3584,
    "feed_forward_length": 18944,
    "heads": 28,
    "heads_kv": 4,
    "vocabulary_size": 152064,
    "rope_factors": False,
}
LLAMA_13B = {
    **LLAMA_8B,
    "layers": 40,
    "embedding_length": 5120,
    "feed_forward_length": 13824,
    "heads": 40,
    "heads_kv": 40,
    "vocabulary_size": 32000,
    "rope_factors": False,
}

# llama.cpp's quantize README: bits per weight of Llama-3.1-8B.
BITS_PER_WEIGHT = {
    "fp16": 16.0005,
    "q8_0": 8.5008,
    "q6_k": 6.5633,
    "q5_k_m": 5.7036,
    "q4_k_m": 4.8944,
    "q3_k_m": 3.9960,
}


@pytest.mark.parametrize("quantization", BITS_PER_WEIGHT)
def test_bits_per_weight_are_the_published_ones(quantization: str) -> None:
    shape = shape_from_catalog(LLAMA_8B, quantization)
    assert shape.parameters == 8_030_261_312
    assert round(shape.weight_bytes * 8 / shape.parameters, 4) == BITS_PER_WEIGHT[quantization]


# The files' sizes on the Hub less the tensors leave the header: metadata and vocabulary.
@pytest.mark.parametrize(
    ("hyper", "file_bytes", "tensor_bytes"),
    [
        (LLAMA_8B, 4_920_739_232, 4_912_898_304),
        (QWEN_7B, 4_683_074_240, 4_677_120_000),
        (LLAMA_13B, 7_865_956_224, 7_865_210_880),
    ],
)
def test_real_files_hold_these_tensors_and_a_header(hyper: dict[str, Any], file_bytes: int, tensor_bytes: int) -> None:
    shape = shape_from_catalog(hyper, "q4_k_m")
    assert shape.weight_bytes == tensor_bytes
    header = file_bytes - tensor_bytes
    # A token takes its text, its type and its score or merges; measured over these files, 20 to 65 bytes.
    assert 20 < header / shape.vocabulary_size < 65


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("hyper", [LLAMA_8B, QWEN_7B, LLAMA_13B])
def test_a_shape_survives_the_lock(hyper: dict[str, Any], quantization: str) -> None:
    shape = shape_from_catalog(hyper, quantization)
    assert shape_from_dict(json.loads(json.dumps(shape_to_dict(shape)))) == shape


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 0},
        {"layers": 513},
        {"heads": 2**40},
        {"layers": True},
        {"vocabulary_size": "128256"},
        {"architecture": "unheard-of"},
        {"experts": 8},
        {"tied_embeddings": 1},
        {"hidden_size": 4096},
    ],
)
def test_hyperparameters_that_cannot_be_meant_are_named(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        shape_from_catalog({**LLAMA_8B, **change}, "q4_k_m")
    assert next(iter(change)) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 10**9},
        {"layers": None},
        {"schema_version": 2},
        {"layer_bytes": [1, 2]},
        {"heads": [1.5] * 32},
        {"input_bytes": -1},
        {"type_bytes": [1]},
        {"unknown": 1},
        {"architecture": None},
    ],
)
def test_a_malformed_shape_is_refused_in_one_line(change: dict[str, Any]) -> None:
    document = {**shape_to_dict(shape_from_catalog(LLAMA_8B, "q4_k_m")), **change}
    with pytest.raises(ConfigurationError) as caught:
        shape_from_dict(document)
    assert "\n" not in str(caught.value)
