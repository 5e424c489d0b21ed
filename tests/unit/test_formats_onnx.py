"""ONNX: the walk, the files of external data, and the refusals; the package onnx is the oracle both ways."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest
from fuzz.seeds import field, onnx, onnx_seed, onnx_tensor, varint
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfleet.core.errors import FormatError
from modelfleet.core.formats.model import ModelFile
from modelfleet.core.formats.onnx import read_onnx
from modelfleet.core.formats.source import FileSource, Source
from test_formats_gguf import refused, source


def read(what: Source) -> ModelFile:
    return read_onnx(what)


def nested(depth: int) -> bytes:
    graph = field(2, "g")
    for _ in range(depth):
        graph = field(1, field(4, "If") + field(5, field(1, "then_branch") + field(6, graph)))
    return onnx(graph)


def initializer(raw: bytes) -> bytes:
    return onnx(field(5, raw))


ATTACKS = {
    "empty": (b"", "ir_version"),
    "no graph": (field(1, 8) + field(8, field(2, 17)), "graph"),
    "no opset": (field(1, 8) + field(7, b""), "opset_import"),
    "no ir_version": (field(7, b"") + field(8, field(2, 17)), "ir_version"),
    "two graphs": (onnx() + field(7, b""), "Model field 7"),
    "length past the end": (field(1, 8) + b"\x3a\xff\xff\xff\xff\x07", "Model field 7"),
    "length past the parent": (onnx(varint(5 << 3 | 2) + varint(1000)) + bytes(2000), "Graph field 5"),
    "varint of 11 bytes": (b"\x08" + b"\xff" * 10 + b"\x01", "Model field 1"),
    "varint cut off": (b"\x08\xff", "Model field 1"),
    "a group": (onnx() + varint(99 << 3 | 3), "Model"),
    "field number 0": (onnx() + b"\x02\x00", "Model"),
    "101 deep": (nested(50), "Attribute"),
    "wrong wire type": (field(1, 8) + field(7, 8), "Model field 7"),
    "text not UTF-8": (onnx() + field(2, b"\xff"), "Model field 2"),
    "fixed cut off": (onnx() + varint(99 << 3 | 1) + b"1234", "Model"),
    "packed floats cut off": (initializer(onnx_tensor([1]) + field(4, b"12345")), "Tensor field 4"),
    "packed numbers cut off": (initializer(onnx_tensor([1]) + field(7, b"\x80")), "Tensor field 7"),
    "packed number too long": (initializer(onnx_tensor([1]) + field(7, b"\x80" * 12 + b"\x01")), "Tensor field 7"),
    "unknown type": (initializer(onnx_tensor([1], kind=99)), "tensor w: data_type"),
    "negative dims": (initializer(onnx_tensor([2**64 - 1])), "tensor w: dims"),
    "dims that overflow": (initializer(onnx_tensor([2**40, 2**40])), "tensor w: dims"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_within_bounds(name: str) -> None:
    raw, where = ATTACKS[name]
    error = refused(read, source(raw, name="x.onnx"))
    assert error.field == where or name == "101 deep"


def test_more_than_2_gib_is_refused_unread() -> None:
    what = source(onnx_seed(), 2**31, "x.onnx")
    assert refused(read, what, most_read=0).field == "size"


@pytest.mark.parametrize("depth", [1, 32])
def test_nested_graphs_are_read(depth: int) -> None:
    read(source(nested(depth)))


def test_the_seed_is_described_and_weights_are_not_read() -> None:
    model = read(source(onnx_seed()))
    assert model.version == 8
    assert model.metadata["opset_import"] == {"ai.onnx": 17}
    assert [(one.name, one.type, one.shape, one.size) for one in model.tensors] == [("w", "FLOAT", (1,), 4)] * 2
    big = initializer(field(1, 25_000_000) + field(2, 1) + field(9, bytes(100_000_000)))
    what = source(big)
    read(what)
    assert what.bytes_read < 4 * 1024 * 1024


def external(folder: Path, *entries: tuple[str, str], shape: tuple[int, ...] = (4,)) -> ModelFile:
    path = folder / "model.onnx"
    path.write_bytes(initializer(onnx_tensor(shape, entries)))
    with FileSource(str(path)) as opened:
        return read_onnx(opened, str(folder))


@pytest.mark.parametrize(
    "location",
    [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "one.bin\0x",
        "",
        "C:\\x",
        "C:x",
        "\\\\host\\s",
        "a\\b",
        "./x",
        "a//b",
        "x/",
        "n" * 300,
        "absent",
    ],
)
def test_a_location_stays_in_the_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "one.bin").write_bytes(bytes(16))
    with pytest.raises(FormatError) as caught:
        external(tmp_path, ("location", location))
    assert caught.value.field == "tensor w: location"


def test_external_data_is_a_plain_file_with_one_name(tmp_path: Path) -> None:
    (tmp_path / "one.bin").write_bytes(bytes(16))
    assert external(tmp_path, ("location", "one.bin")).files == ["one.bin"]
    (tmp_path / "link.bin").symlink_to("one.bin")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "two.bin").write_bytes(bytes(16))
    (tmp_path / "way").symlink_to("folder")
    assert external(tmp_path, ("location", "folder/two.bin")).files == ["folder/two.bin"]
    for location in ("link.bin", "way/two.bin", "folder"):
        with pytest.raises(FormatError):
            external(tmp_path, ("location", location))
    os.link(tmp_path / "one.bin", tmp_path / "hard.bin")
    with pytest.raises(FormatError, match="one hard link"):
        external(tmp_path, ("location", "hard.bin"))


@pytest.mark.parametrize(
    ("entries", "where"),
    [
        ([("length", str(2**40))], "length"),
        ([("length", "15")], "length"),
        ([("length", "-16")], "length"),
        ([("length", "16"), ("offset", "1")], "end of external data"),
        ([("length", "16"), ("offset", str(2**62))], "end of external data"),
        ([("offset", "+0")], "offset"),
        ([("offset", "0"), ("offset", "0")], "external_data"),
        ([("__class__", "x")], "external_data"),
    ],
)
def test_external_data_lies_in_its_file(tmp_path: Path, entries: list[tuple[str, str]], where: str) -> None:
    (tmp_path / "one.bin").write_bytes(bytes(16))
    external(tmp_path, ("location", "one.bin"), ("offset", "0"), ("length", "16"), ("checksum", "x"))
    with pytest.raises(FormatError) as caught:
        external(tmp_path, ("location", "one.bin"), *entries)
    assert caught.value.field == f"tensor w: {where}"


def test_external_data_without_a_length_is_the_rest_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "one.bin").write_bytes(bytes(20))
    with pytest.raises(FormatError):
        external(tmp_path, ("location", "one.bin"))
    assert external(tmp_path, ("location", "one.bin"), ("offset", "4"))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_what_is_accepted_the_package_onnx_loads(data: st.DataObject) -> None:
    theirs = pytest.importorskip("onnx")
    raw = bytearray(onnx_seed())
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        model = read(source(bytes(raw)))
    except FormatError:
        return
    loaded = theirs.load_from_string(bytes(raw))
    assert loaded.ir_version == struct.unpack("<q", struct.pack("<Q", model.version or 0))[0]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_what_the_package_onnx_writes_is_accepted(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    theirs: Any = pytest.importorskip("onnx")
    numpy = pytest.importorskip("numpy")
    folder = tmp_path_factory.mktemp("onnx")
    tensors = []
    for one, shape in enumerate(data.draw(st.lists(st.lists(st.integers(1, 6), max_size=3), max_size=4))):
        dtype = data.draw(st.sampled_from(["f4", "f2", "i8", "u1", "?", "f8"]))
        tensors.append(theirs.numpy_helper.from_array(numpy.zeros(shape, dtype), f"t{one}"))
    value = theirs.helper.make_tensor_value_info("x", theirs.TensorProto.FLOAT, ["n", 3])
    constant = theirs.helper.make_node(
        "Constant", [], ["y"], value_ints=data.draw(st.lists(st.integers(-9, 2**40), min_size=1))
    )
    graph = theirs.helper.make_graph([constant], "g", [value], [value], tensors, doc_string=data.draw(st.text()))
    model = theirs.helper.make_model(graph, producer_name=data.draw(st.text()))
    path = folder / "x.onnx"
    outside = data.draw(st.booleans())
    theirs.save(model, path, save_as_external_data=outside, location="x.bin", size_threshold=0)
    with FileSource(str(path)) as opened:
        ours = read_onnx(opened, str(folder))
    assert [one.name for one in ours.tensors] == [one.name for one in tensors]
    assert [list(one.shape) for one in ours.tensors] == [list(one.dims) for one in tensors]
    assert [one.size for one in ours.tensors] == [len(one.raw_data) for one in tensors]
    theirs.load(path)
