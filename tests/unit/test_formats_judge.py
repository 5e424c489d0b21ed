"""The judgement of files by content and name, of whole models, and what inspect says of them."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fuzz.seeds import (
    ARCHITECTURE,
    F32,
    INT32,
    STRING,
    gguf,
    gguf_seed,
    legacy_seed,
    onnx_seed,
    pair,
    safetensors,
    safetensors_entry,
    safetensors_seed,
    string,
    tensor,
)
from modelfleet.cli import main
from modelfleet.core.errors import FormatError
from modelfleet.core.formats.auxiliary import judge_names
from modelfleet.core.formats.gguf import read_gguf
from modelfleet.core.formats.judge import describe, judge
from modelfleet.core.formats.legacy_ggml import read_legacy_ggml
from modelfleet.core.formats.recognise import recognise
from modelfleet.core.formats.source import FileSource
from test_formats_gguf import source

UINT16 = 2
SEEDS = {
    "model.gguf": gguf_seed(),
    "model.safetensors": safetensors_seed(),
    "model.onnx": onnx_seed(),
    "ggml-base.bin": legacy_seed(),
}
PICKLES = {f"protocol {one}": pickle.dumps({"a": [1]}, protocol=one) for one in range(6)}
PICKLES["os.system"] = b"cos\nsystem\n(S'true'\ntR."


def put(folder: Path, name: str, raw: bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return str(path)


def inspect(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["inspect", *arguments])


@pytest.mark.parametrize("name", SEEDS)
def test_a_model_is_recognised_judged_and_described(tmp_path: Path, name: str) -> None:
    path = put(tmp_path, name, SEEDS[name])
    judge(path, name)
    assert describe(path).size == len(SEEDS[name])
    # Without a suffix the content alone decides.
    assert describe(put(tmp_path, "blob", SEEDS[name])).format == describe(path).format


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"", "empty"),
        (b"PK\x03\x04", "zip"),
        (b"\x7fELF", "program"),
        (b"#!/bin/sh\n", "program"),
        (b"\x1f\x8b\x08", "gzip"),
        (bytes(257) + b"ustar", "tar"),
        (b"\n <!DOCTYPE html><html>", "html"),
        (b"\xef\xbb\xbf<HTML>", "html"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pointer"),
        (b"plain words\n", "text"),
        (b"\x00\x01\x02\x03", "unknown"),
        *((raw, "pickle") for raw in PICKLES.values()),
    ],
)
def test_content_is_recognised(raw: bytes, kind: str) -> None:
    assert recognise(source(raw)) == kind


@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors", "model.onnx", "model.bin", "model.pt", "model"])
@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_is_refused_by_any_name(tmp_path: Path, name: str, kind: str) -> None:
    path = put(tmp_path, name, PICKLES[kind])
    with pytest.raises(FormatError, match="pickle"):
        judge(path, name)
    with pytest.raises(FormatError, match="pickle"):
        describe(path)


def test_a_pickle_that_the_catalog_allows_brings_a_warning(tmp_path: Path) -> None:
    path = str(tmp_path / "x.pth")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", PICKLES["protocol 2"])
    assert "weights_only=True" in judge(path, "x.pth", allow_pickle=True)[0]
    with pytest.raises(FormatError):
        judge(path, "x.gguf", allow_pickle=True)


@pytest.mark.parametrize(("name", "other"), [("model.gguf", "model.safetensors"), ("model.onnx", "ggml-base.bin")])
def test_a_file_is_what_its_name_says(tmp_path: Path, name: str, other: str) -> None:
    with pytest.raises(FormatError) as caught:
        judge(put(tmp_path, "x", SEEDS[other]), name)
    assert caught.value.field == "content"


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("config.json", b'{"model_type": "llama", "x": [{"y": 1.5}]}'),
        ("vocab.txt", "\u00e9\n".encode()),
        ("README.md", b"# words"),
        ("tokenizer.model", b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00"),
        ("chat_template.jinja", b"{{ x }}"),
        ("tokenizer.json", b'{"vocab": {' + b",".join(b'"t%d": 1' % one for one in range(500_000)) + b"}}"),
    ],
)
def test_an_auxiliary_file_is_accepted(tmp_path: Path, name: str, raw: bytes) -> None:
    assert judge(put(tmp_path, name, raw), name) == []


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("modeling.py", b"import os"),
        ("run.sh", b"#!/bin/sh"),
        ("README.md", b"\x7fELF\x02\x01"),
        ("config.json", b'{"auto_map": {"AutoModel": "x.py"}}'),
        ("config.json", b'{"a": [{"auto_map": {}}]}'),
        ("config.json", b'{"a": 1, "a": 2}'),
        ("config.json", b'{"a": '),
        ("config.json", b"[" * 200_000),
        ("config.json", b'{"a": "\xff"}'),
        ("tokenizer.json", b" " * 5_000_000 + b'{"auto_map": {}}'),
        ("vocab.txt", b"\xff\xfe"),
        ("vocab.txt", PICKLES["protocol 4"]),
        ("vocab.txt", b"PK\x03\x04"),
    ],
)
def test_an_auxiliary_file_is_refused(tmp_path: Path, name: str, raw: bytes) -> None:
    with pytest.raises(FormatError):
        judge(put(tmp_path, name, raw), name)


@pytest.mark.parametrize(
    "names",
    [
        ["../../.ssh/authorized_keys"],
        ["/etc/cron.d/x"],
        ["C:\\x"],
        ["\\\\host\\s"],
        ["A", "a"],
        ["\u00e9.json", "e\u0301.json"],
        ["a\nb"],
        ["x" * 300],
        ["a//b"],
        ["a/./b"],
        [""],
        ["a\u202eb"],
    ],
)
def test_a_name_of_a_repository_is_refused(names: list[str]) -> None:
    with pytest.raises(FormatError) as caught:
        judge_names(names, "someone/model")
    assert caught.value.field == "file name"
    judge_names(["a/b.json", "a/c.json", "d.gguf"], "someone/model")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda raw: b"ggml" + raw[4:], "magic"),
        (lambda raw: raw[:4] + struct.pack("<i", -1) + raw[8:], "n_vocab"),
        (lambda raw: raw[:44] + struct.pack("<i", -5) + raw[48:], "ftype"),
        (lambda raw: raw[:48] + struct.pack("<i", 2**30) + raw[52:], "mel filters"),
        (lambda raw: raw[:200], "mel filters"),
        (lambda raw: raw[:-2], "vocabulary"),
        (lambda raw: raw[: 56 + 640] + struct.pack("<i", 2**30), "vocabulary"),
        (lambda raw: raw[: 60 + 640] + b"\xff" * 20, "vocabulary"),
    ],
)
def test_an_old_model_is_refused(change: object, field: str) -> None:
    assert callable(change)
    with pytest.raises(FormatError) as caught:
        read_legacy_ggml(source(change(legacy_seed()), name="x.bin"))
    assert caught.value.field == field


def split(folder: Path, count: int = 2, tensors: int = 2) -> list[str]:
    """Write a split GGUF, one tensor in each file."""
    paths = []
    for one in range(count):
        pairs = [
            pair("split.no", UINT16, struct.pack("<H", one)),
            pair("split.count", UINT16, struct.pack("<H", count)),
            pair("split.tensors.count", INT32, struct.pack("<i", tensors)),
        ]
        raw = gguf([ARCHITECTURE, *pairs] if one == 0 else pairs, [tensor(f"t{one}", [8], F32)], bytes(32))
        paths.append(put(folder, f"big-{one + 1:05d}-of-{count:05d}.gguf", raw))
    return paths


def test_a_split_model_is_one_unit(tmp_path: Path) -> None:
    paths = split(tmp_path)
    for path in (*paths, str(tmp_path)):
        model = describe(path)
        assert (model.architecture, len(model.tensors), len(model.files)) == ("llama", 2, 2)
    judge(paths[1], "big-00002-of-00002.gguf")
    Path(paths[1]).unlink()
    with pytest.raises(FormatError, match="all 2 files"):
        describe(paths[0])


def test_the_files_of_a_split_model_agree(tmp_path: Path) -> None:
    first, second = split(tmp_path, tensors=3)
    with pytest.raises(FormatError, match=re.escape("split.tensors.count")):
        describe(first)
    Path(second).write_bytes(Path(first).read_bytes())
    with pytest.raises(FormatError, match=re.escape("split.no")):
        describe(first)
    with pytest.raises(FormatError, match=re.escape("split.no")):
        describe(put(tmp_path, "other.gguf", Path(first).read_bytes()))


def test_a_folder_is_judged_whole(tmp_path: Path) -> None:
    put(tmp_path, "model.safetensors", safetensors({"a": safetensors_entry(0, 4, [1])}, bytes(4)))
    put(tmp_path, "onnx/model.onnx", onnx_seed())
    config = {"model_type": "bert", "max_position_embeddings": 512, "num_hidden_layers": 6}
    put(tmp_path, "config.json", json.dumps(config).encode())
    put(tmp_path, ".gitattributes", b"x")
    model = describe(str(tmp_path))
    assert (model.format, model.architecture, model.context_length, model.layers) == ("safetensors", "bert", 512, 6)
    put(tmp_path, "pytorch_model.bin", PICKLES["protocol 2"])
    with pytest.raises(FormatError, match="pickle"):
        describe(str(tmp_path))


def test_only_a_regular_file_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(FormatError, match="a regular file"):
        describe(str(tmp_path / "pipe.gguf"))
    with pytest.raises(FormatError, match="a regular file"):
        judge("/dev/zero", "zero.gguf")


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, "m.gguf", gguf_seed())
    with FileSource(path) as opened:
        os.truncate(path, 100)
        with pytest.raises(FormatError) as caught:
            read_gguf(opened)
    assert caught.value.field == "size"


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "config.json", b"{}")
    with pytest.raises(FormatError, match="no model"):
        describe(str(tmp_path))


@pytest.mark.parametrize("name", SEEDS)
def test_inspect_describes(tmp_path: Path, name: str) -> None:
    path = put(tmp_path, name, SEEDS[name])
    said = inspect(path, "--tensors")
    assert said.exit_code == 0, said.output
    assert name in said.output
    answer = json.loads(inspect(path, "--tensors", "--json").stdout)
    assert answer["schema_version"] == 1
    assert answer["size"] == len(SEEDS[name])
    assert len(answer["tensors"]) == answer["tensor_count"]


def test_inspect_tells_what_it_found(tmp_path: Path) -> None:
    said = inspect(put(tmp_path, "m.gguf", gguf_seed())).stdout
    for line in ("llama", "Q4_0", "2048", "4, 2 for KV", "68 in 2 tensors"):
        assert line in said


@pytest.mark.parametrize("raw", [b"<html>", PICKLES["protocol 4"], b"GGUF\x03", gguf([b"x"])])
def test_inspect_refuses_in_one_line(tmp_path: Path, raw: bytes) -> None:
    said = inspect(put(tmp_path, "evil\x1b[2J.gguf", raw))
    assert (said.exit_code, said.stdout) == (1, "")
    assert said.stderr.count("\n") == 1
    assert "\x1b" not in said.stderr


def test_inspect_names_a_file_that_is_not_there(tmp_path: Path) -> None:
    said = inspect(str(tmp_path / "absent"))
    assert said.exit_code == 1
    assert "No such file" in said.stderr


def test_inspect_shows_no_control_characters(tmp_path: Path) -> None:
    name = pair("general.name", STRING, string("\x1b]0;owned\x07\u202e"))
    said = inspect(put(tmp_path, "m.gguf", gguf([ARCHITECTURE, name])))
    assert said.exit_code == 0
    assert "\x1b" not in said.output and "\u202e" not in said.output
