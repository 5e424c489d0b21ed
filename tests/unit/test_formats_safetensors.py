"""safetensors, whole and sharded: what is read and what is refused; the package safetensors is the oracle both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fuzz.seeds import safetensors, safetensors_entry, safetensors_seed
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from modelfleet.core.errors import FormatError
from modelfleet.core.formats.safetensors import DTYPE_BITS, read_safetensors, read_sharded
from test_formats_gguf import refused, source

ENTRY = safetensors_entry
A = '"a":' + json.dumps(ENTRY(0, 4, [1]))


def header(text: str, data: bytes = b"") -> bytes:
    return safetensors(text.encode("utf-8", "surrogatepass"), data)


def many(count: int, shape: list[int], size: int) -> bytes:
    entries = {f"t{one}": ENTRY(one * size, one * size + size, shape) for one in range(count)}
    return safetensors(entries, bytes(count * size))


ATTACKS = {
    "too short": (b"1234567", "size"),
    "N = 2^63": (safetensors({}, length=2**63), "header length"),
    "N = 100,000,001": (safetensors({}, length=100_000_001), "header length"),
    "N = 0": (safetensors(b""), "header length"),
    "N past the end": (safetensors({}, length=3), "header length"),
    "a space first": (header(" {}"), "header"),
    "an array": (header("[1]"), "header"),
    "no end": (header('{"a":1'), "a"),
    "text behind": (header("{} x"), "header"),
    "not UTF-8": (safetensors(b'{"\xff":1}'), "header"),
    "UTF-8 cut off": (safetensors(b'{"a\xc3'), "header"),
    "a comma too many": (header("{" + A + ",}", bytes(4)), "name"),
    "a key twice": (header("{" + A + "," + A + "}", bytes(4)), "header"),
    "a key twice in a tensor": (
        header('{"a":{"dtype":"F32","dtype":"F32","shape":[0],"data_offsets":[0,0]}}'),
        "header",
    ),
    "a key twice in the metadata": (header('{"__metadata__":{"a":"","a":""}}'), "header"),
    "a key twice, escaped": (header("{" + A + "," + A.replace("a", "\\u0061", 1) + "}", bytes(4)), "header"),
    "metadata a number": (header('{"__metadata__":{"a":1}}'), "__metadata__"),
    "metadata a list": (header('{"__metadata__":[]}'), "__metadata__"),
    "metadata half a character": (header('{"__metadata__":{"a":"\\ud800"}}'), "__metadata__"),
    "a key missing": (safetensors({"a": {"dtype": "F32", "shape": [0]}}), "a"),
    "a key too many": (safetensors({"a": {**ENTRY(0, 0, [0]), "x": "y"}}), "a"),
    "a tensor that is a list": (safetensors({"a": [1]}), "a"),
    "unknown dtype": (safetensors({"a": ENTRY(0, 0, [0], "F128")}), "a: dtype"),
    "dtype a list": (safetensors({"a": {**ENTRY(0, 0, [0]), "dtype": []}}), "a: dtype"),
    "shape of text": (safetensors({"a": {**ENTRY(0, 0, [0]), "shape": ["1"]}}), "a: shape"),
    "shape of true": (safetensors({"a": {**ENTRY(0, 4, [1]), "shape": [True]}}, bytes(4)), "a: shape"),
    "shape nested": (safetensors({"a": {**ENTRY(0, 0, [0]), "shape": [[0]]}}), "a: shape"),
    "negative": (safetensors({"a": ENTRY(0, 0, [-1])}), "header"),
    "a fraction": (header('{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}', bytes(4)), "header"),
    "not a number": (header('{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)), "header"),
    "a number of 5,000 digits": (header('{"a":{"dtype":"F32","shape":[' + "1" * 5000 + "]}}"), "header"),
    "dims that overflow": (safetensors({"a": ENTRY(0, 0, [2**63, 2])}), "a: shape"),
    "bytes that overflow": (safetensors({"a": ENTRY(0, 0, [2**62])}), "a: shape"),
    "half a byte": (safetensors({"a": ENTRY(0, 1, [1], "F4")}, bytes(1)), "a: shape"),
    "offsets backwards": (safetensors({"a": ENTRY(4, 0, [1])}, bytes(4)), "a: data_offsets"),
    "offsets three": (safetensors({"a": {**ENTRY(0, 4, [1]), "data_offsets": [0, 2, 4]}}, bytes(4)), "a: data_offsets"),
    "size and shape differ": (safetensors({"a": ENTRY(0, 8, [1])}, bytes(8)), "a: data_offsets"),
    "overlap": (safetensors({"a": ENTRY(0, 8, [2]), "b": ENTRY(4, 12, [2])}, bytes(12)), "b: data_offsets"),
    "hole": (safetensors({"a": ENTRY(0, 4, [1]), "b": ENTRY(8, 12, [1])}, bytes(12)), "b: data_offsets"),
    "hole in front": (safetensors({"a": ENTRY(4, 8, [1])}, bytes(8)), "a: data_offsets"),
    "a byte behind": (safetensors({"a": ENTRY(0, 4, [1])}, bytes(5)), "size"),
    "a byte missing": (safetensors({"a": ENTRY(0, 4, [1])}, bytes(3)), "size"),
    "300,000 empty tensors": (many(300_000, [0], 0), "header"),
    "a mistake after 20,000 tensors": (
        safetensors({**{f"t{one}": ENTRY(one, one + 1, [1], "U8") for one in range(20_000)}, "x": 1}, bytes(20_000)),
        "x",
    ),
    "200,000 deep": (header('{"a":' + "[" * 200_000), "a"),
    "200,000 objects deep": (header('{"a":' * 200_000), "a"),
    "name of 2 KiB": (safetensors({"n" * 2048: ENTRY(0, 0, [0])}), "tensor name"),
    "name with a control character": (safetensors({"a\n": ENTRY(0, 0, [0])}), "tensor name"),
    "name that changes direction": (safetensors({"a\u202eb": ENTRY(0, 0, [0])}), "tensor name"),
    "name half a character": (header('{"\\ud800":' + json.dumps(ENTRY(0, 0, [0])) + "}"), "tensor name"),
    "a name without end": (header('{"' + "a" * 5_000_000), "name"),
    "metadata without end": (header('{"__metadata__":{"a":"' + "a" * 9_000_000), "__metadata__"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_within_bounds(name: str) -> None:
    raw, field = ATTACKS[name]
    assert refused(read_safetensors, source(raw), most_read=8 * 1024 * 1024).field == field


def test_the_seed_is_described() -> None:
    model = read_safetensors(source(safetensors_seed()))
    assert [(one.name, one.type, one.shape, one.offset, one.size) for one in model.tensors] == [
        ("a", "F32", (2,), 0, 8),
        ("b", "F16", (3, 1), 8, 6),
        ("empty", "I64", (0,), 14, 0),
    ]
    assert model.metadata == {"format": "pt"}
    assert model.parameters == 5


def test_a_header_of_several_windows_is_read_whole() -> None:
    raw = safetensors({**{f"t{one}": ENTRY(one, one + 1, [1], "U8") for one in range(9000)}}, bytes(9000))
    model = read_safetensors(source(raw))
    assert [one.name for one in model.tensors] == [f"t{one}" for one in range(9000)]


def test_a_long_text_in_the_metadata_is_no_attack() -> None:
    assert read_safetensors(source(safetensors({"__metadata__": {"a": "\u00e9" * 300_000}}))).metadata


@pytest.mark.parametrize(
    "text", ["{}", "{}      ", '{"__metadata__":{}}', '{ "a" : ' + json.dumps(ENTRY(0, 0, [0])) + " }"]
)
def test_a_small_header_is_read(text: str) -> None:
    read_safetensors(source(header(text)))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_what_is_accepted_the_package_safetensors_loads(data: st.DataObject) -> None:
    theirs = pytest.importorskip("safetensors")
    raw = bytearray(safetensors_seed())
    for _ in range(data.draw(st.integers(0, 2))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        model = read_safetensors(source(bytes(raw)))
    except FormatError:
        return
    _compare(model.tensors, theirs.deserialize(bytes(raw)))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_the_package_safetensors_writes_is_accepted(data: st.DataObject) -> None:
    theirs = pytest.importorskip("safetensors")
    numpy = pytest.importorskip("numpy")
    names = ["bool", "uint8", "int8", "int16", "float16", "float32", "int32", "int64", "float64", "uint64"]
    letters = st.characters(exclude_categories=("Cc", "Cf", "Cs"))
    tensors = data.draw(
        st.dictionaries(
            st.text(letters, max_size=20).filter(lambda name: name != "__metadata__"),
            st.tuples(st.sampled_from(names), st.lists(st.integers(0, 4), max_size=4)),
            max_size=6,
        )
    )
    wanted = {name: numpy.zeros(shape, dtype) for name, (dtype, shape) in tensors.items()}
    metadata = data.draw(st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3))
    raw = pytest.importorskip("safetensors.numpy").save(wanted, metadata)
    try:
        loaded = theirs.deserialize(raw)
    except theirs.SafetensorError:
        # With no tensor but metadata, safetensors 0.8 writes what it cannot read.
        reject()
    model = read_safetensors(source(raw))
    assert model.metadata == (metadata or {})
    _compare(model.tensors, loaded)


def _compare(ours: Any, theirs: Any) -> None:
    assert {one.name: (one.type, list(one.shape), one.size) for one in ours} == {
        name: (one["dtype"], list(one["shape"]), len(one["data"])) for name, one in theirs
    }


@pytest.mark.parametrize("dtype", sorted(DTYPE_BITS))
def test_a_dtype_is_one_of_the_package_safetensors(dtype: str) -> None:
    theirs = pytest.importorskip("safetensors")
    raw = safetensors({"a": ENTRY(0, DTYPE_BITS[dtype], [8], dtype)}, bytes(DTYPE_BITS[dtype]))
    read_safetensors(source(raw))
    theirs.deserialize(raw)


def shards(folder: Path, places: dict[str, str] | None = None) -> Path:
    """Write a model of two shards and its index."""
    for one, name in enumerate("ab"):
        raw = safetensors({name: ENTRY(0, 4, [1])}, bytes(4))
        (folder / f"model-0000{one + 1}-of-00002.safetensors").write_bytes(raw)
    index = folder / "model.safetensors.index.json"
    wanted = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index.write_text(json.dumps({"metadata": {"total_size": 8}, "weight_map": wanted if places is None else places}))
    return index


def test_a_sharded_model_is_one_unit(tmp_path: Path) -> None:
    model = read_sharded(str(shards(tmp_path)))
    assert [one.name for one in model.tensors] == ["a", "b"]
    assert len(model.files) == 2


@pytest.mark.parametrize(
    "shard",
    [
        "../a.safetensors",
        "/etc/passwd",
        "a\\b.safetensors",
        "",
        "x/y.safetensors",
        "a\n.safetensors",
        5,
        "a.bin",
        "no.safetensors",
    ],
)
def test_an_index_names_plain_files_that_are_there(tmp_path: Path, shard: Any) -> None:
    with pytest.raises(FormatError) as caught:
        read_sharded(str(shards(tmp_path, {"a": shard})))
    assert caught.value.field == "weight_map"


def test_shards_and_index_agree(tmp_path: Path) -> None:
    index = shards(tmp_path)
    extra = tmp_path / "model-00003-of-00002.safetensors"
    extra.write_bytes(safetensors({}))
    with pytest.raises(FormatError, match="extra shard"):
        read_sharded(str(index))
    extra.unlink()
    places = json.loads(index.read_text())["weight_map"]
    shards(tmp_path, {**places, "c": places["b"]})
    with pytest.raises(FormatError, match="a difference in c"):
        read_sharded(str(index))
    index.write_text('{"weight_map": ' + "[" * 5000)
    with pytest.raises(FormatError, match="depth"):
        read_sharded(str(index))
    index.write_text('{"weight_map": {}, "weight_map": {}}')
    with pytest.raises(FormatError, match="twice"):
        read_sharded(str(index))
