"""ONNX: a bounded walk over the protobuf of a ModelProto, and the files that its tensors name.

The walk knows every message that can hold a tensor, checks each length against what is left of its parent, and passes
over the weights without reading them. Sources: onnx.proto; onnx's docs/Security.md and external_data_helper.py (the
library itself refuses external data behind a symlink or with more than one hard link).
"""

import os
import re
import stat
from typing import Any, Dict, List, Optional, Tuple

from .model import ModelFile, Tensor
from .onnx_schema import DATA_TYPES, MESSAGES
from .source import Source, Window, shown

MAX_BYTES = 2 * 1024**3 - 1
MAX_DEPTH = 100
MAX_VARINT_BYTES = 10
MAX_FIELDS = 10_000_000
MAX_STRING_BYTES = 16 * 1024 * 1024
EXTERNAL_KEYS = frozenset(("location", "offset", "length", "checksum", "basepath"))
EXTERNAL = 1
_WIRE = {"varint": 0, "fixed64": 1, "fixed32": 5}
_FIXED_BYTES = {"fixed32": 4, "fixed64": 8}
_DIGITS = re.compile(r"[0-9]{1,19}")
_LONG_VARINT = re.compile(b"[\x80-\xff]{10}")
MAX_TENSORS = 200_000
# Message -> the fields that are kept -> how often each may come. Protobuf would merge a second graph into the first.
_KEPT: Dict[str, Dict[int, int]] = {
    "Model": {1: 1, 2: 1, 3: 1, 4: 1, 7: 1, 8: 4096},
    "Tensor": {1: 4096, 2: 1, 8: 1, 13: 5, 14: 1},
    "Entry": {1: 1, 2: 1},
    "OperatorSet": {1: 1, 2: 1},
}

# What is kept of a message: field number -> values in the file's order.
_Fields = Dict[int, List[Any]]


def read_onnx(source: Source, folder: Optional[str] = None) -> ModelFile:
    """Judge a model and, where ``folder`` is given, the files of external data in it. Raises FormatError, OSError."""
    if source.size > MAX_BYTES:
        raise source.refuse("size", f"{source.size} bytes", "less than 2 GiB")
    model = ModelFile("onnx", source.size)
    walk = _Walk(source, model, folder)
    fields = walk.message("Model", source.size, 0)
    for number, name in ((1, "ir_version"), (8, "opset_import"), (7, "graph")):
        if not fields.get(number):
            raise source.refuse(name, "none", "a model with ir_version, opset_import and graph")
    model.version = fields[1][-1]
    for number, key in ((2, "producer_name"), (3, "producer_version"), (4, "domain")):
        if fields.get(number):
            model.metadata[key] = fields[number][-1]
    model.metadata["opset_import"] = {
        (one.get(1) or [""])[-1] or "ai.onnx": (one.get(2) or [0])[-1] for one in fields[8]
    }
    return model


class _Walk:
    def __init__(self, source: Source, model: ModelFile, folder: Optional[str]) -> None:
        self.source = source
        self.model = model
        self.folder = folder
        self.window = Window(source)
        self.fields = 0

    def message(self, name: str, end: int, depth: int) -> _Fields:
        """Walk one message up to the file's offset ``end`` and return what is kept of it."""
        if depth > MAX_DEPTH:
            raise self.source.refuse(name, f"messages nested {depth} deep", f"at most {MAX_DEPTH}")
        kinds = MESSAGES[name]
        wanted = _KEPT.get(name, {})
        kept: _Fields = {}
        while self.window.position < end:
            self.fields += 1
            if self.fields > MAX_FIELDS:
                raise self.source.refuse(name, "one field more", f"at most {MAX_FIELDS} fields in a file")
            tag = self._varint(name, end)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 2**29:
                raise self.source.refuse(name, f"field number {number}", "1 to 536870911")
            kind = kinds.get(number)
            if kind is None:
                self._pass(name, wire, end)
                continue
            value = self._field(f"{name} field {number}", kind, wire, end, depth)
            if number not in wanted or value is None:
                continue
            values = kept.setdefault(number, [])
            values.extend(value if isinstance(value, list) else [value])
            if len(values) > wanted[number]:
                raise self.source.refuse(f"{name} field {number}", len(values), f"at most {wanted[number]}")
        if name == "Tensor":
            _judge_tensor(self.source, self.model, kept, self.folder)
        return kept

    def _field(self, field: str, kind: str, wire: int, end: int, depth: int) -> Any:
        if kind in _WIRE:
            if wire == 2:
                return self._packed(field, kind, self._length(field, end))
            if wire != _WIRE[kind]:
                raise self.source.refuse(field, f"wire type {wire}", f"{_WIRE[kind]} or 2")
            if kind == "varint":
                return self._varint(field, end)
            self._skip(field, _FIXED_BYTES[kind], end)
            return None
        if wire != 2:
            raise self.source.refuse(field, f"wire type {wire}", "2")
        length = self._length(field, end)
        if kind == "bytes":
            self.window.skip(length, field)
            return None
        if kind == "string":
            return self._string(field, length)
        found = self.message(kind, self.window.position + length, depth + 1)
        return found if kind in ("Entry", "OperatorSet", "Graph") else None

    def _string(self, field: str, length: int) -> str:
        if length > MAX_STRING_BYTES:
            raise self.source.refuse(field, f"a string of {length} bytes", f"at most {MAX_STRING_BYTES} bytes")
        raw = self.window.take(length, field)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.source.refuse(field, raw[:64], "UTF-8") from None

    def _packed(self, field: str, kind: str, length: int) -> Optional[List[int]]:
        if kind != "varint":
            if length % _FIXED_BYTES[kind]:
                raise self.source.refuse(field, f"{length} bytes", f"a multiple of {_FIXED_BYTES[kind]}")
            self.window.skip(length, field)
            return None
        end = self.window.position + length
        if field == "Tensor field 1":
            values = []
            while self.window.position < end:
                values.append(self._varint(field, end))
                if len(values) > 4096:
                    raise self.source.refuse(field, "one dimension more", "at most 4096")
            return values
        before = b""
        while self.window.position < end:
            part = before + self.window.take(min(end - self.window.position, 65_536), field)
            if _LONG_VARINT.search(part):
                raise self.source.refuse(field, "a longer number", f"numbers of at most {MAX_VARINT_BYTES} bytes")
            before = part[-9:]
        if before[-1:] >= b"\x80":
            raise self.source.refuse(field, "a number cut off", "whole numbers")
        return None

    def _varint(self, field: str, end: int) -> int:
        window = self.window
        value = shift = 0
        for _ in range(MAX_VARINT_BYTES):
            if window.position >= end:
                raise self.source.refuse(field, "a number cut off", "whole numbers")
            if window.cursor >= len(window.buffer):
                window.load(1, field)
            byte = window.buffer[window.cursor]
            window.cursor += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF
            shift += 7
        raise self.source.refuse(field, "a longer number", f"numbers of at most {MAX_VARINT_BYTES} bytes")

    def _length(self, field: str, end: int) -> int:
        length = self._varint(field, end)
        left = end - self.window.position
        if length > left:
            raise self.source.refuse(field, f"a length of {length}", f"at most the {left} bytes that are left")
        return length

    def _skip(self, field: str, count: int, end: int) -> None:
        left = end - self.window.position
        if count > left:
            raise self.source.refuse(field, f"{left} bytes left", f"at least {count} bytes")
        self.window.skip(count, field)

    def _pass(self, field: str, wire: int, end: int) -> None:
        if wire == 0:
            self._varint(field, end)
        elif wire == 1:
            self._skip(field, 8, end)
        elif wire == 2:
            self.window.skip(self._length(field, end), field)
        elif wire == 5:
            self._skip(field, 4, end)
        else:
            raise self.source.refuse(field, f"wire type {wire}", "0, 1, 2 or 5")


def _judge_tensor(source: Source, model: ModelFile, fields: _Fields, folder: Optional[str]) -> None:
    name = (fields.get(8) or [""])[-1]
    shown_name = f"tensor {shown(name)}"
    shape: Tuple[int, ...] = tuple(fields.get(1) or ())
    kind = (fields.get(2) or [0])[-1]
    if kind not in DATA_TYPES:
        raise source.refuse(f"{shown_name}: data_type", kind, "a data type of ONNX")
    elements = 1
    for length in shape:
        elements *= length
        if length >= 2**63 or elements >= 2**63:
            raise source.refuse(f"{shown_name}: dims", shape, "dimensions that are not negative, below 2^63 elements")
    type_name, bits = DATA_TYPES[kind]
    size = (elements * bits + 7) // 8
    entries: Dict[str, str] = {}
    for entry in fields.get(13) or ():
        key, value = (entry.get(1) or [""])[-1], (entry.get(2) or [""])[-1]
        if key not in EXTERNAL_KEYS or key in entries:
            raise source.refuse(f"{shown_name}: external_data", key, f"each of {' '.join(sorted(EXTERNAL_KEYS))} once")
        entries[key] = value
    if entries or (fields.get(14) or [0])[-1] == EXTERNAL:
        if not bits:
            raise source.refuse(f"{shown_name}: external_data", type_name, "types of a fixed size")
        _judge_external(source, shown_name, entries, size, folder)
        if entries["location"] not in model.files:
            model.files.append(entries["location"])
    if len(model.tensors) == MAX_TENSORS:
        raise source.refuse("tensors", "one tensor more", f"at most {MAX_TENSORS}")
    model.tensors.append(Tensor(name, type_name, shape, 0, size))


def _judge_external(source: Source, name: str, entries: Dict[str, str], size: int, folder: Optional[str]) -> None:
    location = entries.get("location", "")
    parts = location.split("/")
    if (
        not location
        or len(location) > 4096
        or not location.isprintable()
        or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts)
        or "\\" in location
        or re.match("[A-Za-z]:", location)
    ):
        raise source.refuse(f"{name}: location", location or "none", "a plain relative path without ..")
    numbers = {}
    for key in ("offset", "length"):
        text = entries.get(key, "0" if key == "offset" else str(size))
        if not _DIGITS.fullmatch(text):
            raise source.refuse(f"{name}: {key}", text, "a whole number")
        numbers[key] = int(text)
    if numbers["length"] != size:
        raise source.refuse(f"{name}: length", numbers["length"], f"{size}, as dims and data_type need")
    if folder is None:
        return
    path = folder
    for part in parts:
        path = os.path.join(path, part)
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            raise source.refuse(f"{name}: location", location, "a file that is there") from None
        if stat.S_ISLNK(status.st_mode):
            raise source.refuse(f"{name}: location", f"{shown(location)}, a symlink", "no symlink in any part")
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise source.refuse(f"{name}: location", location, "a regular file with one hard link")
    end = numbers["offset"] + size
    if end > status.st_size or ("length" not in entries and end != status.st_size):
        raise source.refuse(f"{name}: end of external data", end, f"the {status.st_size} bytes of {shown(location)}")
