"""GGUF: what is read, what is refused, within which bounds; the package gguf is the oracle both ways."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz.seeds import (
    ARCHITECTURE,
    ARRAY,
    BOOL,
    F32,
    I8,
    INT32,
    STRING,
    UINT32,
    array,
    gguf,
    gguf_seed,
    pair,
    string,
    tensor,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfleet.core.errors import FormatError
from modelfleet.core.formats.gguf import read_gguf
from modelfleet.core.formats.gguf_types import TENSOR_TYPES
from modelfleet.core.formats.model import ModelFile
from modelfleet.core.formats.source import FileSource, Source

# Far above what is measured (see docs/formats.md): a machine under load must not fail a sound reader.
SECONDS = 5.0
MEMORY_BYTES = 64 * 1024 * 1024
BIG = 0x7FFFFFFFFFFFFFC0
REAL = Path("/opt/ashley-ai/models/chat/specialized/smollm2-135m-instruct.q4_1.gguf")


def source(raw: bytes, size: int | None = None, name: str = "x.gguf") -> Source:
    """Return ``raw`` as a source; up to ``size`` it goes on with zeros that are made when they are read."""
    total = len(raw) if size is None else size

    def read(offset: int, length: int) -> bytes:
        part = raw[offset : offset + length]
        return part + bytes(length - len(part))

    return Source(name, total, read)


def refused(read: Callable[[Source], ModelFile], what: Source, most_read: int = 48 * 1024 * 1024) -> FormatError:
    """Return the error that refuses ``what``; hold the reader to its bounds of work, memory and time."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(FormatError) as caught:
            read(what)
        assert time.process_time() - start < SECONDS
        assert tracemalloc.get_traced_memory()[1] < MEMORY_BYTES
    finally:
        tracemalloc.stop()
    error = caught.value
    assert what.bytes_read <= most_read
    assert error.file == what.name and error.field and error.found and error.allowed
    assert str(error).isascii() and str(error).isprintable() and len(str(error)) < 600
    return error


def number(key: str, value: int, layout: str = "<I", kind: int = UINT32) -> bytes:
    return pair(key, kind, struct.pack(layout, value))


def alignment(value: int) -> bytes:
    return gguf([ARCHITECTURE, number("general.alignment", value)], [tensor("a", [4])], bytes(32))


ATTACKS = {
    "empty": (b"", "magic"),
    "magic": (b"GGUX" + gguf()[4:], "magic"),
    "cut in the header": (gguf()[:20], "header"),
    "version 1": (gguf(version=1), "version"),
    "version 4": (gguf(version=4), "version"),
    "other byte order": (gguf(version=0x03000000), "version"),
    "pairs claimed": (gguf(counts=(0, 2**63)), "pair count"),
    "tensors claimed": (gguf(counts=(2**64 - 1, 1)), "tensor count"),
    "key without end": (gguf([struct.pack("<Q", 2**63) + bytes(10)]), "key"),
    "key too long": (gguf([pair("k" * 65_536, BOOL, b"\x01")]), "key"),
    "key empty": (gguf([pair("", BOOL, b"\x01"), ARCHITECTURE]), "key"),
    "key twice": (gguf([ARCHITECTURE, ARCHITECTURE]), "key"),
    "key not UTF-8": (gguf([pair(b"\xff\xfe", BOOL, b"\x01")]), "key"),
    "key that stops the package gguf": (gguf([ARCHITECTURE, pair("GGUF.version", BOOL, b"\x01")]), "key"),
    "value type": (gguf([pair("k", 13, b"\x01")]), "k"),
    "bool of 2": (gguf([pair("k", BOOL, b"\x02")]), "k"),
    "bool of 2 in an array": (gguf([pair("k", ARRAY, array(BOOL, 2, b"\x01\x02"))]), "k"),
    "array count 2^61": (gguf([pair("k", ARRAY, array(STRING, 2**61, b""))])[:49], "k"),
    "array of unknown type": (gguf([pair("k", ARRAY, array(99, 0, b""))]), "k"),
    "a million empty strings": (gguf([pair("k", ARRAY, array(STRING, 10**6, bytes(8 * 10**6)))]), "k"),
    "a million empty strings claimed": (gguf([pair("k", ARRAY, array(STRING, 10**6, bytes(80)))]), "k"),
    "arrays nested": (gguf([pair("k", ARRAY, array(ARRAY, 1, b"") * 2000)]), "k"),
    "string in an array past the end": (gguf([pair("k", ARRAY, array(STRING, 1, struct.pack("<Q", 99)))]), "k"),
    "string in an array too long": (gguf([pair("k", ARRAY, array(STRING, 1, struct.pack("<Q", 2**40)))]), "k"),
    "alignment 0": (alignment(0), "general.alignment"),
    "alignment 13": (alignment(13), "general.alignment"),
    "alignment 0x80000000": (alignment(0x80000000), "general.alignment"),
    "alignment INT32": (gguf([ARCHITECTURE, number("general.alignment", 32, "<i", INT32)]), "general.alignment"),
    "no architecture": (gguf([number("x", 1)]), "general.architecture"),
    "architecture a number": (gguf([number("general.architecture", 1)]), "general.architecture"),
    "name too long": (gguf(tensors=[tensor("n" * 64, [1])], data=bytes(32)), "name of tensor 0"),
    "name twice": (gguf(tensors=[tensor("a", [8]), tensor("a", [8], F32, 32)], data=bytes(64)), "tensor name"),
    "five dimensions": (gguf(tensors=[tensor("a", [1] * 5)], data=bytes(32)), "a: dimensions"),
    "dimension 2^63": (gguf(tensors=[tensor("a", [2**63])]), "a: shape"),
    "dimension 2^42+1": (gguf(tensors=[tensor("a", [2**42 + 1, 2**42 + 1])]), "a: shape"),
    "dimension 2^42+1 alone": (gguf(tensors=[tensor("a", [2**42 + 1])]), "a: end of data"),
    "an empty dimension hides others": (gguf(tensors=[tensor("a", [0, 2**42, 2**42])]), "a: shape"),
    "two tensors that wrap": (
        gguf(tensors=[tensor("a", [BIG], I8), tensor("b", [BIG], I8, BIG)], data=bytes(64)),
        "a: end of data",
    ),
    "unknown tensor type": (gguf(tensors=[tensor("a", [32], 4)], data=bytes(32)), "a: type"),
    "not a whole block": (gguf(tensors=[tensor("a", [33], 2)], data=bytes(64)), "a: first dimension"),
    "past the end": (gguf(tensors=[tensor("a", [16])], data=bytes(32)), "size"),
    "offset 2^64-32": (gguf(tensors=[tensor("a", [4], F32, 2**64 - 32)], data=bytes(32)), "a: offset"),
    "overlap": (gguf(tensors=[tensor("a", [8]), tensor("b", [8])], data=bytes(64)), "b: offset"),
    "hole": (gguf(tensors=[tensor("a", [8]), tensor("b", [8], F32, 64)], data=bytes(96)), "b: offset"),
    "a mistake after 20,000 tensors": (
        gguf(tensors=[*(tensor(f"t{one}", [8], F32, 32 * one) for one in range(20_000)), tensor("x", [8], F32, 1)]),
        "x: offset",
    ),
    "a mistake after 65,000 pairs": (
        gguf([*(pair(f"k{one}", BOOL, b"\x01") for one in range(65_000)), pair("x", BOOL, b"\x02")]),
        "x",
    ),
    "bytes behind": (gguf(tensors=[tensor("a", [8])], data=bytes(33)), "size"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_within_bounds(name: str) -> None:
    raw, field = ATTACKS[name]
    assert refused(read_gguf, source(raw)).field == field


@pytest.mark.parametrize("field", ["pair", "tensor"])
def test_a_claimed_count_costs_nothing(field: str) -> None:
    counts = (0, 2**40) if field == "pair" else (2**40, 0)
    what = source(gguf([], counts=counts), 2**45)
    assert refused(read_gguf, what, most_read=4 * 1024 * 1024).field == f"{field} count"


def test_a_string_of_many_gigabytes_is_not_read() -> None:
    what = source(gguf([string("k") + struct.pack("<IQ", STRING, 2**40)]), 2**45)
    assert refused(read_gguf, what, most_read=4 * 1024 * 1024).field == "k"


@pytest.mark.parametrize(
    "many",
    [
        [pair(f"k{one}", STRING, string(bytes(4096))) for one in range(9000)],
        [pair(f"k{one}", ARRAY, array(INT32, 4096, b"\xff" * 16_384)) for one in range(2500)],
        [pair(f"{one:05d}" * 13_000, BOOL, b"\x01") for one in range(700)],
    ],
    ids=["strings", "numbers", "keys"],
)
def test_what_is_kept_is_bounded(many: list[bytes]) -> None:
    refused(read_gguf, source(gguf([*many, pair("last", BOOL, b"\x02")])))


def test_what_an_attacker_wrote_comes_out_harmless() -> None:
    evil = pair("\x1b]0;owned\x07\u202e", BOOL, b"\x02")
    error = refused(read_gguf, source(gguf([evil]), name="x"))
    assert "\\x1b" in str(error)


def test_the_seed_is_described() -> None:
    model = read_gguf(source(gguf_seed()))
    assert (model.version, model.architecture, model.quantization, model.alignment) == (3, "llama", "Q4_0", 64)
    assert (model.context_length, model.heads, model.heads_kv, model.key_length) == (2048, 4, 2, 16)
    assert model.vocabulary_size == 40
    assert model.metadata["llama.attention.head_count_kv"] == [2, 1]
    assert model.metadata["tokenizer.ggml.flags"] == [True, False, True]
    assert [(one.name, one.type, one.shape, one.offset, one.size) for one in model.tensors] == [
        ("a", "Q4_0", (32, 2), 0, 36),
        ("b", "F32", (4,), 64, 16),
    ]
    assert model.data_offset is not None and model.data_offset % 64 == 0
    assert model.by_type()["Q4_0"].bytes == 36
    assert not model.warnings


@pytest.mark.parametrize("mark", ["__", "lipsum", "cycler", "attr("])
def test_a_suspicious_chat_template_is_told_and_never_run(mark: str) -> None:
    template = "{{ x." + mark + " }}"
    model = read_gguf(source(gguf([ARCHITECTURE, pair("tokenizer.chat_template", STRING, string(template))])))
    assert model.chat_templates["tokenizer.chat_template"].suspicious == (mark,)
    assert mark in model.warnings[0]


@pytest.mark.parametrize("window", [24, 40, 97, 4096])
def test_any_window_reads_the_same(window: int) -> None:
    whole = read_gguf(source(gguf_seed()))
    assert read_gguf(source(gguf_seed()), window) == whole


def test_every_cut_is_refused() -> None:
    raw = gguf_seed()
    end = len(raw) - 48
    for length in range(end):
        with pytest.raises(FormatError):
            read_gguf(source(raw[:length]))
    # The last tensor's padding may be missing.
    read_gguf(source(raw[:end]))


def test_the_padding_is_what_it_should_be() -> None:
    raw = gguf(tensors=[tensor("a", [4])], data=bytes(32))
    for left in range(17):
        read_gguf(source(raw[: len(raw) - left]))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_changed_byte_is_refused_or_read(data: st.DataObject) -> None:
    raw = bytearray(gguf_seed())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        model = read_gguf(source(bytes(raw)))
    except FormatError:
        return
    assert model.tensor_bytes <= len(raw)


STRINGS = st.lists(st.binary(max_size=70), max_size=80)


@settings(max_examples=100, deadline=None)
@given(STRINGS, st.integers(24, 400))
def test_strings_are_passed_over_exactly(strings: list[bytes], window: int) -> None:
    tokens = pair("tokenizer.ggml.tokens", ARRAY, array(STRING, len(strings), b"".join(map(string, strings))))
    model = read_gguf(source(gguf([tokens, ARCHITECTURE])), window)
    assert model.array_lengths["tokenizer.ggml.tokens"] == len(strings)
    assert model.architecture == "llama"


def test_the_tables_are_those_of_the_package_gguf() -> None:
    constants = pytest.importorskip("gguf.constants")
    theirs = {one.value: (one.name, *constants.GGML_QUANT_SIZES[one]) for one in constants.GGMLQuantizationType}
    assert {number: one for number, one in TENSOR_TYPES.items() if number in theirs} == theirs


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_what_the_package_gguf_writes_is_accepted(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    theirs = pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    writer = theirs.GGUFWriter(path, "llama")
    if data.draw(st.booleans()):
        writer.add_custom_alignment(2 ** data.draw(st.integers(3, 12)))
    writer.add_context_length(data.draw(st.integers(0, 2**32 - 1)))
    tokens = data.draw(st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=60))
    writer.add_token_list(tokens)
    writer.add_chat_template(data.draw(st.text(min_size=1)))
    numpy = pytest.importorskip("numpy")
    shapes = data.draw(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), max_size=5))
    for one, shape in enumerate(shapes):
        writer.add_tensor(f"t{one}", numpy.zeros(shape, data.draw(st.sampled_from(["f4", "f2", "i1", "i4", "f8"]))))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with FileSource(str(path)) as opened:
        model = read_gguf(opened)
    assert model.vocabulary_size == len(tokens)
    assert [list(reversed(one.shape)) for one in model.tensors] == shapes
    _compare(model, path)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_is_accepted_the_package_gguf_loads(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    pytest.importorskip("gguf")
    raw = bytearray(gguf_seed())
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.sampled_from([0, 1, 2, 8, 16, 32, 64, 128, 255]))
    try:
        model = read_gguf(source(bytes(raw)))
    except FormatError:
        return
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    path.write_bytes(raw)
    _compare(model, path)


def test_a_real_model_is_described_as_the_package_gguf_does() -> None:
    if not os.access(REAL, os.R_OK):
        pytest.skip(f"no model at {REAL}; ./modelfleet apply brings it")
    with FileSource(str(REAL)) as opened:
        model = read_gguf(opened)
        assert opened.bytes_read <= 4 * 1024 * 1024
    assert (model.architecture, model.quantization, model.layers, model.parameters) == ("llama", "Q4_1", 30, 134515008)
    pytest.importorskip("gguf")
    _compare(model, REAL)


def _compare(model: ModelFile, path: Path) -> None:
    theirs = pytest.importorskip("gguf").GGUFReader(path)
    assert model.data_offset == theirs.data_offset
    ours = [(one.name, one.type, list(one.shape), one.size, one.offset) for one in model.tensors]
    assert ours == [
        (one.name, one.tensor_type.name, one.shape.tolist(), one.n_bytes, one.data_offset - theirs.data_offset)
        for one in theirs.tensors
    ]
    for key, value in model.metadata.items():
        if isinstance(value, int):
            assert theirs.fields[key].contents() == value
    assert {*model.metadata, *model.array_lengths, *model.chat_templates} <= set(theirs.fields)
