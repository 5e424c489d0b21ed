"""safetensors, one file or a sharded index.

    header length u64, little-endian | JSON header, padded with spaces | tensor data without holes

The header is read entry by entry, so that a hostile one is refused where it goes wrong, not after it was built.
Source: safetensors' README and tensor.rs; stricter where a rule bounds the reader's own work.
"""

import codecs
import json
import os
import re
import struct
import unicodedata
from typing import Any, Dict, List, NoReturn, Optional, Set, Tuple

from ..errors import FormatError
from .auxiliary import parse_json, plain_name
from .model import ModelFile, Tensor
from .source import FileSource, Source, shown

MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 1_000_000
# An empty tensor costs the file nothing; a mass of them is an attack on the reader.
MAX_EMPTY_TENSORS = 4096
MAX_NAME_BYTES = 1024
MAX_ENTRY_CHARACTERS = 64 * 1024
MAX_METADATA_CHARACTERS = 2 * 1024 * 1024
MAX_INDEX_BYTES = 32 * 1024 * 1024
MAX_SHARDS = 10_000
WINDOW_BYTES = 256 * 1024
DTYPE_BITS: Dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}
_INTEGER = re.compile(r"0|[1-9][0-9]{0,19}")
_SPACE = re.compile(r"[ \t\r\n]*")
# An entry as the library and most others write it, up to the comma. What does not match is read entry by entry.
_PLAIN_ENTRY = re.compile(
    r'[ \t\r\n]*"([ !#-\[\]-~]{1,1024})"[ ]?:[ ]?\{"dtype"[ ]?:[ ]?"([A-Z0-9_]{1,16})", ?'
    r'"shape"[ ]?:[ ]?\[((?:[1-9][0-9]{0,11}(?:, ?[1-9][0-9]{0,11}){0,3})?)\], ?'
    r'"data_offsets"[ ]?:[ ]?\[(0|[1-9][0-9]{0,18}), ?([1-9][0-9]{0,18})\]\},',
    re.ASCII,
)
_PLAIN_ELEMENTS = 2**55
_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class _Object(Dict[str, Any]):
    """A JSON object whose keys are known to be unique."""


def read_safetensors(source: Source) -> ModelFile:
    """Judge the header of one file and return what it says. Raises FormatError at the first violation."""
    if source.size < 8:
        raise source.refuse("size", f"{source.size} bytes", "at least 8 bytes")
    (length,) = struct.unpack("<Q", source.read(0, 8))
    allowed = min(MAX_HEADER_BYTES, source.size - 8)
    if not 2 <= length <= allowed:
        raise source.refuse("header length", length, f"2 to {allowed}")
    header = _Header(source, 8, length)
    model = ModelFile("safetensors", source.size)
    tensors = header.read(model)
    model.tensors = _in_order(source, tensors, 8 + length)
    model.data_offset = 8 + length
    return model


class _Header:
    """The JSON header, decoded window by window and parsed entry by entry."""

    def __init__(self, source: Source, start: int, length: int) -> None:
        self.source = source
        self.offset = start
        self.end = start + length
        self.text = ""
        self.at = 0
        self.utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self.json = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_int=self._integer,
            parse_float=self._number,
            parse_constant=self._number,
        )

    def read(self, model: ModelFile) -> List[Tensor]:
        """Return the tensors in the header's order and put ``__metadata__`` into ``model``."""
        self._more()
        if self.text[:1] != "{":
            raise self._refuse("header", self.text[:1], "a JSON object, from the first byte on")
        self.at += 1
        tensors: List[Tensor] = []
        names: Set[str] = set()
        empty = 0
        while True:
            self._plain_entries(names, tensors)
            if self._peek() == "}" and not names:
                break
            name = self._value("name")
            if type(name) is not str:
                raise self._refuse("header", name, "a name in quotes")
            if name in names:
                raise self._refuse("header", f"{shown(name)} twice", "each name once")
            names.add(name)
            self._expect(":")
            value = self._value(name)
            if name == "__metadata__":
                self._metadata(model, value)
            else:
                self._require_name(name)
                tensors.append(self._tensor(name, value))
                empty += tensors[-1].size == 0
                if len(tensors) > MAX_TENSORS:
                    raise self._refuse("header", "one tensor more", f"at most {MAX_TENSORS} tensors")
                if empty > MAX_EMPTY_TENSORS:
                    raise self._refuse("header", f"{empty} empty tensors", f"at most {MAX_EMPTY_TENSORS}")
            if self._peek() != ",":
                break
            self.at += 1
        self._expect("}")
        if self._peek():
            raise self._refuse("header", self.text[self.at : self.at + 16], "spaces only after the JSON object")
        return tensors

    def _plain_entries(self, names: Set[str], tensors: List[Tensor]) -> None:
        """Pass over the entries that are plain, as far as they are: a tenth of the work for nearly all of them."""
        match, text, at = _PLAIN_ENTRY.match, self.text, self.at
        while len(tensors) < MAX_TENSORS:
            found = match(text, at)
            if found is None:
                break
            name, dtype, shape_text, begin, end = found.groups()
            bits = DTYPE_BITS.get(dtype)
            if bits is None or name in names or name == "__metadata__":
                break
            shape = tuple(map(int, shape_text.split(","))) if shape_text else ()
            elements = 1
            for length in shape:
                elements *= length
            first = int(begin)
            size = int(end) - first
            if elements >= _PLAIN_ELEMENTS or elements * bits != size * 8:
                break
            names.add(name)
            tensors.append(Tensor(name, dtype, shape, first, size))
            at = found.end()
        self.at = at

    def _refuse(self, field: str, found: object, allowed: str) -> FormatError:
        return self.source.refuse(field, found, allowed)

    def _more(self) -> bool:
        """Decode one window more; False where the header ends."""
        left = self.end - self.offset
        if left <= 0:
            return False
        # What was parsed is let go; what waits for the rest of its entry doubles, so that retries stay few.
        kept = self.text[self.at :]
        size = min(max(WINDOW_BYTES, len(kept)), left)
        raw = self.source.read(self.offset, size)
        self.offset += size
        try:
            self.text = kept + self.utf8.decode(raw, self.offset == self.end)
        except UnicodeDecodeError as error:
            found = raw[error.start : error.start + 8]
            raise self._refuse("header", found, "UTF-8") from None
        self.at = 0
        return True

    def _peek(self) -> str:
        """Return the next character that is no space; empty at the header's end."""
        while True:
            match = _SPACE.match(self.text, self.at)
            assert match is not None
            self.at = match.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            raise self._refuse("header", self.text[self.at : self.at + 16] or "its end", f"{character!r} here")
        self.at += 1

    def _value(self, field: str) -> Any:
        limit = MAX_METADATA_CHARACTERS if field == "__metadata__" else MAX_ENTRY_CHARACTERS
        self._peek()
        while True:
            try:
                value, end = self.json.raw_decode(self.text, self.at)
            except RecursionError:
                raise self._refuse(field, "JSON nested too deep", "a depth of at most 4") from None
            except json.JSONDecodeError as error:
                waiting = len(self.text) - self.at
                if waiting <= limit and self._more():
                    continue
                raise self._refuse(field, error.msg, "JSON as safetensors writes it") from None
            # A value that reaches the window's end may go on in the next one.
            if end == len(self.text) and self._more():
                continue
            self.at = end
            return value

    def _object(self, pairs: List[Tuple[str, Any]]) -> _Object:
        found = _Object(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise self._refuse("header", f"{shown(twice)} twice", "each name once")
        return found

    def _integer(self, text: str) -> int:
        if not _INTEGER.fullmatch(text):
            raise self._refuse("header", text, "integers that are not negative, below 2^64")
        return int(text)

    def _number(self, text: str) -> NoReturn:
        raise self._refuse("header", text, "integers only")

    def _metadata(self, model: ModelFile, value: Any) -> None:
        if type(value) is not _Object or any(type(one) is not str for one in value.values()):
            raise self._refuse("__metadata__", type(value).__name__, "an object of strings")
        for key, text in value.items():
            if _surrogates(key) or _surrogates(text):
                raise self._refuse("__metadata__", key, "Unicode text")
        model.metadata.update(value)

    def _require_name(self, name: str) -> None:
        if _surrogates(name) or len(name.encode("utf-8")) > MAX_NAME_BYTES:
            raise self._refuse("tensor name", name, f"at most {MAX_NAME_BYTES} bytes of Unicode text")
        if not name.isprintable() and any(
            character in _BIDIRECTIONAL or unicodedata.category(character) == "Cc" for character in name
        ):
            raise self._refuse("tensor name", name, "no control or bidirectional characters")

    def _tensor(self, name: str, value: Any) -> Tensor:
        if type(value) is not _Object or value.keys() != {"dtype", "shape", "data_offsets"}:
            found = sorted(value) if type(value) is _Object else type(value).__name__
            raise self._refuse(name, found, "an object of dtype, shape and data_offsets")
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if type(dtype) is not str or dtype not in DTYPE_BITS:
            raise self._refuse(f"{name}: dtype", dtype, "a dtype of safetensors")
        if type(shape) is not list or any(type(one) is not int or one >= 2**64 for one in shape):
            raise self._refuse(f"{name}: shape", shape, "a list of integers below 2^64")
        if (
            type(offsets) is not list
            or len(offsets) != 2
            or any(type(one) is not int for one in offsets)
            or offsets[0] > offsets[1]
        ):
            raise self._refuse(f"{name}: data_offsets", offsets, "two integers, begin and end")
        product = 1
        for length in shape:
            product *= length
            # As safetensors multiplies: an overflow before a zero is one.
            if product >= 2**64:
                raise self._refuse(f"{name}: shape", shape, "fewer than 2^64 elements")
        bits = product * DTYPE_BITS[dtype]
        if bits >= 2**64 or bits % 8:
            raise self._refuse(f"{name}: shape", shape, "a whole number of bytes below 2^61")
        if offsets[1] - offsets[0] != bits // 8:
            raise self._refuse(f"{name}: data_offsets", offsets, f"{bits // 8} bytes, as dtype and shape need")
        return Tensor(name, dtype, tuple(shape), offsets[0], bits // 8)


def _surrogates(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def _in_order(source: Source, tensors: List[Tensor], start: int) -> List[Tensor]:
    ordered = sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size))
    end = 0
    for tensor in ordered:
        if tensor.offset != end:
            raise source.refuse(
                f"{tensor.name}: data_offsets", tensor.offset, f"{end}, where the tensor before it ends"
            )
        end += tensor.size
    if start + end != source.size:
        raise source.refuse("size", f"{source.size} bytes", f"exactly {start + end}, where the last tensor ends")
    return ordered


def read_sharded(index: str, name: Optional[str] = None) -> ModelFile:
    """Judge a sharded model by its index file and return it as one. Raises FormatError, OSError.

    Every shard is judged, holds exactly the tensors that the index places in it, and no other shard lies beside it.
    """
    with FileSource(index, name or index) as source:
        places = _index(source)
        folder = os.path.dirname(index)
        shards: Dict[str, Set[str]] = {}
        for tensor, shard in places.items():
            shards.setdefault(shard, set()).add(tensor)
        if len(shards) > MAX_SHARDS:
            raise source.refuse("weight_map", f"{len(shards)} shards", f"at most {MAX_SHARDS}")
        present = set(os.listdir(folder or "."))
        for shard in sorted(shards):
            if shard not in present:
                raise source.refuse("weight_map", f"{shown(shard)}, which is not there", "shards that are there")
        prefix = os.path.basename(index).split(".safetensors.index.json")[0] + "-"
        extra = sorted(
            one for one in present if one.startswith(prefix) and one.endswith(".safetensors") and one not in shards
        )
        if extra:
            raise source.refuse("weight_map", f"an extra shard {shown(extra[0])}", "only the shards of the index")
        model = ModelFile("safetensors", 0, files=sorted(shards))
        for shard in model.files:
            with FileSource(os.path.join(folder, shard), os.path.join(os.path.dirname(source.name), shard)) as part:
                read = read_safetensors(part)
            wrong = {tensor.name for tensor in read.tensors} ^ shards[shard]
            if wrong:
                raise source.refuse(shard, f"a difference in {shown(min(wrong))}", "the tensors that the index names")
            model.size += read.size
            model.tensors += read.tensors
            model.metadata.update(read.metadata)
    return model


def _index(source: Source) -> Dict[str, str]:
    if source.size > MAX_INDEX_BYTES:
        raise source.refuse("size", f"{source.size} bytes", f"at most {MAX_INDEX_BYTES} for an index")
    found = parse_json(source)
    places = found.get("weight_map") if type(found) is dict else None
    if type(places) is not dict or not places:
        raise source.refuse("weight_map", type(places).__name__, "an object that names a shard for each tensor")
    for shard in {one if type(one) is str else "" for one in places.values()}:
        if not plain_name(shard) or not shard.endswith(".safetensors"):
            raise source.refuse("weight_map", shard or "no name", "plain names of .safetensors files")
    return places
