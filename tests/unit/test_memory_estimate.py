"""The header tier: stated numbers to the byte, rules that hold for any options, and inputs that cannot be meant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfleet.core.errors import ConfigurationError, FormatError
from modelfleet.core.formats.model import ModelFile, Tensor
from modelfleet.core.memory.catalog_tier import BITS_PER_WEIGHT, TUTORIAL, TUTORIAL_GIGABYTES, estimate_parameters
from modelfleet.core.memory.estimate import DeviceShare, EstimateOptions, estimate, shares_for, split_layers
from modelfleet.core.memory.kv_cache import CACHE_TYPES, cells
from modelfleet.core.memory.plain import KINDS, WHISPER, estimate_weights
from modelfleet.core.memory.shape import ModelShape, shape_of
from modelfleet.core.memory.synthesis import shape_from_catalog
from support.planning import SHAPE_8B

MIB = 1024 * 1024
CPU = (DeviceShare("CPU", "cpu"),)


def hyper(**changed: Any) -> dict[str, Any]:
    """Return Llama-3.1-8B's hyperparameters, changed."""
    return {**SHAPE_8B, **changed}


GEMMA = hyper(
    architecture="gemma3",
    layers=34,
    embedding_length=2560,
    feed_forward_length=10240,
    heads=8,
    heads_kv=4,
    key_length=256,
    value_length=256,
    vocabulary_size=262208,
    sliding_window=1024,
    rope_factors=False,
    tied_embeddings=True,
)
MIXTRAL = hyper(vocabulary_size=32000, experts=8, experts_used=2, rope_factors=False)
LLAMA_8B = shape_from_catalog(hyper(), "q4_k_m")


def on_cpu(shape: ModelShape, **options: Any) -> Any:
    """Return what ``shape`` needs on the CPU alone."""
    return estimate(shape, EstimateOptions(**options), CPU).devices[0]


def test_llama_8b_is_what_llama_cpp_logs() -> None:
    # llama-cpp-python 0.3.36, n_ctx 8192, n_ubatch 512 (benchmarks/memory_accuracy.py).
    told = on_cpu(LLAMA_8B, context=8192)
    assert told.weights == 4_912_898_304
    assert told.kv_cache == 1024 * MIB
    assert round(told.compute / MIB, 2) == 266.50
    assert told.output == 128256 * 4
    assert round(on_cpu(LLAMA_8B, flash_attention="off").compute / MIB, 2) == 572.01


@pytest.mark.parametrize(
    ("kind", "bits"), [("f16", 16), ("q8_0", 8.5), ("q5_1", 6), ("q4_0", 4.5), ("f32", 32), ("iq4_nl", 4.5)]
)
def test_quantized_caches(kind: str, bits: float) -> None:
    # 32 layers x (8 x 128 keys + 8 x 128 values) x 8192 cells.
    assert on_cpu(LLAMA_8B, kv_type_k=kind, kv_type_v=kind).kv_cache == 32 * 2048 * 8192 * bits / 8


def test_keys_and_values_may_differ() -> None:
    assert on_cpu(LLAMA_8B, kv_type_k="q8_0").kv_cache == 32 * 8192 * (1024 * 34 // 32 + 1024 * 2)


def test_declared_lengths_count_and_not_the_share_of_the_embedding() -> None:
    # Mistral-Nemo: 5120 / 32 is 160, and its heads have 128.
    shape = shape_from_catalog(hyper(layers=40, embedding_length=5120, key_length=128, value_length=128), "q4_0")
    assert on_cpu(shape).kv_cache == 40 * 2 * 8 * 128 * 2 * 8192


@pytest.mark.parametrize(
    ("context", "micro", "parallel", "unified", "expected"),
    [
        (8192, 512, 1, False, (8192, 1536, 1)),
        (1000, 512, 1, False, (1024, 1024, 1)),
        (8192, 512, 4, False, (2048, 1536, 4)),
        (8192, 512, 4, True, (8192, 4608, 1)),
        (8192, 1, 1, False, (8192, 1280, 1)),
        (8192, 512, 3, False, (2816, 1536, 3)),
    ],
)
def test_cells(context: int, micro: int, parallel: int, unified: bool, expected: tuple[int, int, int]) -> None:
    assert cells(context, micro, parallel, unified, 1024) == expected


def test_a_sliding_window_keeps_only_its_tokens() -> None:
    # Gemma 3: every sixth of 34 layers keeps all; the others 1024 + 512 cells.
    told = on_cpu(shape_from_catalog(GEMMA, "q4_0"), context=32768)
    assert told.kv_cache == (5 * 32768 + 29 * 1536) * 4 * 2 * 256 * 2


def test_a_window_that_is_kept_full_saves_nothing() -> None:
    told = on_cpu(shape_from_catalog(GEMMA, "q4_0"), context=32768, full_window=True)
    assert told.kv_cache == 34 * 32768 * 4 * 2 * 256 * 2


def test_a_window_that_llama_cpp_ignores_is_ignored() -> None:
    # Mistral's files name a window, and the architecture llama has none in llama.cpp.
    assert on_cpu(shape_from_catalog(hyper(sliding_window=4096), "q4_0"), context=32768).kv_cache == 4096 * MIB


def test_embeddings_used_twice_are_copied_where_the_output_is() -> None:
    shape = shape_from_catalog(GEMMA, "q4_0")
    embeddings = 262208 * 2560 // 256 * 210
    assert shape.tied_bytes == embeddings
    alone = on_cpu(shape)
    assert alone.weights == shape.weight_bytes
    card, host = estimate(shape, EstimateOptions(), shares_for(34, 35, [("CUDA0", "cuda", 1.0)])).devices
    assert host.weights == embeddings
    assert card.weights == shape.weight_bytes


def test_an_accelerator_in_the_process_keeps_the_cpu_from_repacking() -> None:
    assert on_cpu(LLAMA_8B).repack == 3_359_637_504
    assert on_cpu(LLAMA_8B, repack=False).repack == 0
    for backend, repacks in (("cuda", False), ("vulkan", False), ("metal", True)):
        shares = shares_for(32, 10, [("GPU0", backend, 1.0)])
        assert bool(estimate(LLAMA_8B, EstimateOptions(), shares).devices[-1].repack) == repacks


def test_layers_are_split_as_llama_cpp_splits_them() -> None:
    assert split_layers(32, 33, [1, 1]) == [(17, False), (15, True)]
    assert split_layers(32, 99, [3, 1]) == [(25, False), (7, True)]
    assert split_layers(32, 1, [1]) == [(0, True)]
    assert split_layers(32, 0, [1, 1]) == [(0, False), (0, False)]


@given(
    gpu_layers=st.integers(0, 40),
    parts=st.lists(st.floats(0.1, 10), min_size=1, max_size=4),
    options=st.builds(
        EstimateOptions,
        context=st.integers(1, 100_000),
        batch=st.integers(1, 4096),
        micro_batch=st.integers(1, 4096),
        kv_type_k=st.sampled_from(sorted(CACHE_TYPES)),
        kv_type_v=st.sampled_from(sorted(CACHE_TYPES)),
    ),
    base=st.sampled_from([hyper(), GEMMA, MIXTRAL]),
)
@settings(deadline=None, max_examples=60)
def test_nothing_is_lost_or_held_twice(
    gpu_layers: int, parts: list[float], options: EstimateOptions, base: dict[str, Any]
) -> None:
    shape = shape_from_catalog(base, "q4_k_m")
    devices = [(f"CUDA{number}", "cuda", part) for number, part in enumerate(parts)]
    answer = estimate(shape, options, shares_for(shape.layers, gpu_layers, devices))
    alone = estimate(shape, options, CPU).devices[0]
    assert sum(one.kv_cache for one in answer.devices) == alone.kv_cache
    holders = sum(bool(one.kv_cache) for one in answer.devices)
    held = sum(one.weights for one in answer.devices)
    copied = shape.tied_bytes if gpu_layers else 0
    assert held == shape.weight_bytes + copied + shape.shared_bytes * (holders - 1)
    assert all(size >= 0 for one in answer.devices for size in one[1:])
    assert answer.total == sum(one.total for one in answer.devices)


@given(first=st.integers(1, 60_000), more=st.integers(0, 60_000), flash=st.sampled_from(["on", "off"]))
@settings(deadline=None, max_examples=60)
def test_more_context_never_keeps_less(first: int, more: int, flash: str) -> None:
    small = on_cpu(LLAMA_8B, context=first, flash_attention=flash)
    large = on_cpu(LLAMA_8B, context=first + more, flash_attention=flash)
    assert small.kv_cache <= large.kv_cache
    assert small.weights == large.weights


@pytest.mark.parametrize(
    "options",
    [
        {"context": 0},
        {"context": 2**40},
        {"batch": 0},
        {"micro_batch": -1},
        {"parallel": 0},
        {"parallel": 257},
        {"context": 3, "parallel": 4},
        {"kv_type_k": "q3_k"},
        {"flash_attention": "maybe"},
        {"kv_type_v": "q8_0", "flash_attention": "off"},
    ],
)
def test_options_that_llama_cpp_would_refuse(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        on_cpu(LLAMA_8B, **options)
    assert "\n" not in str(caught.value)


def test_blocks_of_a_quantized_cache_do_not_cross_heads() -> None:
    shape = shape_from_catalog(hyper(embedding_length=2560, key_length=80, value_length=80), "q4_0")
    with pytest.raises(ConfigurationError, match="blocks of 32"):
        on_cpu(shape, kv_type_k="q8_0")


@pytest.mark.parametrize(
    "shares",
    [
        (),
        (DeviceShare("CUDA0", "cuda", 33, True),),
        (DeviceShare("CUDA0", "cuda", 33, True), *CPU),
        (DeviceShare("CUDA0", "cuda", -1), *CPU),
        (DeviceShare("X", "tpu", 1), *CPU),
    ],
)
def test_shares_that_do_not_add_up(shares: tuple[DeviceShare, ...]) -> None:
    with pytest.raises(ConfigurationError):
        estimate(LLAMA_8B, EstimateOptions(), shares)


def test_an_architecture_that_was_not_compared_is_said() -> None:
    assert not estimate(LLAMA_8B, EstimateOptions(), CPU).warnings
    (warning,) = estimate(replace(LLAMA_8B, architecture="unheard-of"), EstimateOptions(), CPU).warnings
    assert "unheard-of" in warning


def header(**changed: Any) -> ModelFile:
    """Return a small GGUF header, its metadata changed."""
    metadata = {
        "x.block_count": 2,
        "x.embedding_length": 64,
        "x.attention.head_count": 4,
        "x.context_length": 512,
        **{key.replace("__", "."): value for key, value in changed.items()},
    }
    tensors = [Tensor("token_embd.weight", "F32", (64, 100), 0, 25600), Tensor("blk.0.x.weight", "F32", (64,), 0, 256)]
    return ModelFile("gguf", 0, architecture="x", metadata=metadata, tensors=tensors)


@pytest.mark.parametrize(
    "changed",
    [
        {"x__block_count": 10**9},
        {"x__block_count": 0},
        {"x__block_count": -1},
        {"x__block_count": "32"},
        {"x__embedding_length": 2**63},
        {"x__attention__head_count": [4]},
        {"x__attention__head_count": 2**40},
        {"x__attention__head_count": [4, "4"]},
        {"x__attention__key_length": -5},
        {"x__context_length": 2**64},
        {"x__expert_count": 10**6},
        {"x__attention__value_length": 1.5},
    ],
)
def test_absurd_hyperparameters_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as caught:
        shape_of(header(**changed))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["blk.2.x.weight", "blk.-1.x", "blk.x.y", "blk.99999999999999999999.x"])
def test_a_tensor_of_a_layer_that_is_not_there_is_refused(name: str) -> None:
    model = header()
    model.tensors.append(Tensor(name, "F32", (64,), 0, 256))
    with pytest.raises(FormatError):
        shape_of(model)


def test_the_small_header_is_accepted() -> None:
    shape = shape_of(header())
    assert (shape.layers, shape.vocabulary_size, shape.heads_kv, shape.key_length) == (2, 100, (4, 4), 16)


@given(values=st.dictionaries(st.text(max_size=20), st.one_of(st.integers(), st.lists(st.integers(), max_size=4))))
@settings(deadline=None, max_examples=60)
def test_any_metadata_is_a_shape_or_a_typed_error(values: dict[str, Any]) -> None:
    keys = ("block_count", "attention.head_count", "attention.head_count_kv", "expert_count", "nextn_predict_layers")
    model = header()
    model.metadata.update({f"x.{key}": value for key, value in zip(keys, values.values())})
    try:
        shape = shape_of(model)
        estimate(shape, EstimateOptions(), CPU)
    except (FormatError, ConfigurationError):
        pass


# How far the tutorial's table of VRAM is from the truth: it counts weights only, in round numbers.
@pytest.mark.parametrize(
    ("size", "base", "least", "most"),
    [
        ("7B", hyper(feed_forward_length=11008, heads_kv=32, vocabulary_size=32000, rope_factors=False), 0.205, 0.509),
        ("8B", hyper(), 0.022, 0.211),
        (
            "13B",
            hyper(
                layers=40, embedding_length=5120, feed_forward_length=13824, heads=40, heads_kv=40,
                vocabulary_size=32000, rope_factors=False,
            ),
            0.201,
            0.504,
        ),
    ],
)  # fmt: skip
def test_how_far_the_tutorials_table_is_off(size: str, base: dict[str, Any], least: float, most: float) -> None:
    off = []
    for quantization, gigabytes in TUTORIAL_GIGABYTES[size].items():
        shape = shape_from_catalog(base, quantization)
        card, _ = estimate(
            shape, EstimateOptions(context=8192), shares_for(shape.layers, shape.layers + 1, [("CUDA0", "cuda", 1.0)])
        ).devices
        needed = card.total - card.overhead
        off.append(1 - gigabytes * 1e9 / needed)
    # Every figure is too low, by these shares of what is needed at 8192 tokens.
    assert min(off) == pytest.approx(least, abs=0.001)
    assert max(off) == pytest.approx(most, abs=0.001)


def test_the_tutorials_savings_are_those_of_ideal_numbers() -> None:
    for name, (_, _, percent) in TUTORIAL.items():
        measured = 100 * BITS_PER_WEIGHT[name] / BITS_PER_WEIGHT["fp16"]
        assert percent <= measured + 0.1


@pytest.mark.parametrize("quantization", BITS_PER_WEIGHT)
def test_the_catalog_tier_is_near_for_a_known_model_and_an_upper_bound_of_its_cache(quantization: str) -> None:
    shape = shape_from_catalog(hyper(), quantization)
    told = estimate_parameters(shape.parameters, quantization).devices[0]
    assert told.weights == pytest.approx(shape.weight_bytes, rel=0.002)
    assert told.kv_cache > on_cpu(shape).kv_cache


@pytest.mark.parametrize(("parameters", "quantization"), [(0, "q8_0"), (10**20, "q8_0"), (10**9, "q9_0")])
def test_the_catalog_tier_refuses_nonsense(parameters: int, quantization: str) -> None:
    with pytest.raises(ConfigurationError):
        estimate_parameters(parameters, quantization)


@pytest.mark.parametrize("kind", KINDS)
def test_other_formats_say_by_which_rule(kind: str) -> None:
    answer = estimate_weights(2_000_000_000, kind)
    (device,) = answer.devices
    assert device.weights == 2_000_000_000
    assert device.compute > 0
    assert answer.warnings


def test_whisper_is_what_its_table_says() -> None:
    for disk, memory in WHISPER:
        device = estimate_weights(int(disk), "speech").devices[0]
        assert device.weights + device.compute == pytest.approx(memory, abs=2)


def test_a_larger_picture_model_takes_a_larger_picture() -> None:
    small, large = (estimate_weights(size, "diffusion").devices[0].compute for size in (4_265_146_304, 6_938_078_334))
    assert large == 4 * small == 4 * 4 * 256 * 512 * 512 * 2


@pytest.mark.parametrize(
    ("size", "kind", "backend"), [(-1, "tts", "cpu"), (1, "holograms", "cpu"), (1, "tts", "abacus")]
)
def test_other_formats_refuse_nonsense(size: int, kind: str, backend: str) -> None:
    with pytest.raises(ConfigurationError):
        estimate_weights(size, kind, backend=backend)
