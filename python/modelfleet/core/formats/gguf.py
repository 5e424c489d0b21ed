"""GGUF, version 2 and 3: magic, counts, key-value pairs, tensor infos, padding, tensor data.

    "GGUF" | version u32 | tensor count u64 | pair count u64
    pair:   key string | value type u32 | value        (string: length u64, bytes; array: type u32, count u64, elements)
    tensor: name string | dimensions u32 | each u64 | type u32 | offset u64
    padding to the alignment | data, each tensor padded to the alignment

All numbers are little-endian. Judged by the rules of ggml's gguf.cpp, and by what the package gguf's reader needs;
stricter where a rule bounds the reader's own work. Sources: ggml/docs/gguf.md, ggml/src/gguf.cpp; CVE-2026-7482 (a
tensor past the end of the file), CVE-2024-34359 (a chat template that leaves Jinja's sandbox).
"""

import functools
import hashlib
import re
import struct
from typing import Any, Dict, List, Optional, Set, Tuple

from .gguf_types import ARRAY, BOOL, FILE_TYPES, NUMBERS, STRING, TENSOR_TYPES, UINT32, VALUE_TYPE_NAMES
from .model import ChatTemplate, ModelFile, Tensor
from .source import Source, Window

MAGIC = b"GGUF"
MAX_PAIRS = 65_536
MAX_TENSORS = 1_000_000
MAX_KEY_BYTES = 65_535
MAX_STRING_BYTES = 16 * 1024 * 1024
MAX_ARRAY_COUNT = 2**30
MAX_ALIGNMENT = 1024 * 1024
MAX_NAME_BYTES = 63
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
# The reader's own bounds. Strings of arrays can only be found one after the other; real vocabularies with their merges
# stay under a million. An empty one costs its reader as much as a word, so a mass of them is an attack.
MAX_ARRAY_STRINGS = 2_000_000
MAX_EMPTY_STRINGS = 65_536
MAX_BOOL_COUNT = 16 * 1024 * 1024
MAX_ALL_KEY_BYTES = 8 * 1024 * 1024
# What is kept for the description, of one value and of all; the rest is only judged.
KEPT_NUMBERS = 4096
KEPT_STRING_BYTES = 4096
KEPT_ALL_NUMBERS = 262_144
KEPT_ALL_STRING_BYTES = 4 * 1024 * 1024
MAX_TEMPLATES = 64
# Marks of the known ways out of Jinja's sandbox.
TEMPLATE_MARKS = ("__", "lipsum", "cycler", "attr(")
# Names under which the package gguf's reader keeps the file's own counts: a pair of that name stops it.
RESERVED_KEYS = frozenset(("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"))

_HEAD = struct.Struct("<4sIQQ")
_LENGTH = struct.Struct("<Q")
_TYPE = struct.Struct("<I")
_ARRAY_HEAD = struct.Struct("<IQ")
_DIMENSIONS = tuple(struct.Struct(f"<{'Q' * count}IQ") for count in range(MAX_DIMENSIONS + 1))
_SCALARS = {kind: struct.Struct("<" + letter) for kind, letter in NUMBERS.items()}
# What a pair with a short key and a number takes at most, and a tensor info.
_NEAR_KEY_BYTES = 128
_NEAR_BYTES = 8 + _NEAR_KEY_BYTES + 4 + 8
# Far below every bound that the product of dimensions and the bytes have, whatever the type.
_PLAIN_ELEMENTS = 2**55
_NO_TYPE = ("", 0, 0)
# Sixty-four strings at once: walking them one by one takes Python four times as long. Longer and empty ones do not
# match and are walked with their batch.
_BATCH = 64
_BATCH_STRING_BYTES = 127


@functools.lru_cache(maxsize=1)
def _batch() -> "re.Pattern[bytes]":
    """Return the pattern of a batch; compiled when it is first needed, since that takes as long as a small header."""
    # Alternatives are tried in order, so the usual lengths come first; up to a few dozen bytes, spelling them out is
    # passed faster than a repetition.
    alternatives = (
        b"\\x%02x" % length + b"\\x00" * 7 + (b"." * length if length < 32 else b".{%d}" % length)
        for length in sorted(range(1, _BATCH_STRING_BYTES + 1), key=lambda length: abs(length - 8))
    )
    return re.compile(b"(?:" + b"|".join(alternatives) + b"){%d}" % _BATCH, re.DOTALL)


def read_gguf(source: Source, window_bytes: Optional[int] = None) -> ModelFile:
    """Judge the header of ``source`` and return what it says. Raises FormatError at the first violation.

    One file is judged: whether a split model is complete is its folder's matter (see ``judge``).
    """
    window = Window(source) if window_bytes is None else Window(source, window_bytes=window_bytes)
    return _Reader(source, window).read()


class _Reader:
    def __init__(self, source: Source, window: Window) -> None:
        self.source = source
        self.window = window
        self.model = ModelFile("gguf", source.size)
        self.kinds: Dict[str, int] = {}
        self.array_strings = 0
        self.empty_strings = 0
        self.key_bytes = 0
        self.numbers_left = KEPT_ALL_NUMBERS
        self.string_bytes_left = KEPT_ALL_STRING_BYTES

    def read(self) -> ModelFile:
        window, source, model = self.window, self.source, self.model
        window.load(min(_HEAD.size, source.size), "magic")
        if window.buffer[:4] != MAGIC:
            raise source.refuse("magic", window.buffer[:4], "GGUF")
        _, version, tensor_count, pair_count = window.unpack(_HEAD, "header")
        if version & 0xFFFF == 0:
            raise source.refuse("version", f"{version:#010x}, another byte order", "2 or 3, little-endian")
        if version not in (2, 3):
            raise source.refuse("version", version, "2 or 3")
        self._require_count("pair count", pair_count, 14, MAX_PAIRS)
        self._require_count("tensor count", tensor_count, 24, MAX_TENSORS)
        model.version = version
        self._pairs(pair_count)
        model.alignment = self._alignment()
        self._tensors(tensor_count, model.alignment)
        self._describe()
        return model

    def _require_count(self, field: str, count: int, least_bytes: int, cap: int) -> None:
        allowed = min(self.window.remaining // least_bytes, cap)
        if count > allowed:
            raise self.source.refuse(field, count, f"at most {allowed} in a file of this size")

    def _string(self, field: str, limit: int) -> bytes:
        """Return the next string's bytes; its length is judged before a byte of it is read."""
        (length,) = self.window.unpack(_LENGTH, field)
        if length > min(limit, self.window.remaining):
            raise self.source.refuse(
                field, f"a length of {length} bytes", f"at most {min(limit, self.window.remaining)} bytes"
            )
        return self.window.take(length, field)

    def _text(self, field: str, limit: int) -> str:
        raw = self._string(field, limit)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.source.refuse(field, raw[:64], "UTF-8") from None

    def _pairs(self, count: int) -> None:
        """Judge ``count`` pairs; a mass of short ones is passed without a call for each part."""
        window, kinds, metadata = self.window, self.kinds, self.model.metadata
        length_of, head_of = _LENGTH.unpack_from, _TYPE.unpack_from
        for _ in range(count):
            if len(window.buffer) - window.cursor < _NEAR_BYTES:
                window.load(min(_NEAR_BYTES, window.remaining), "key")
            buffer, at = window.buffer, window.cursor + 8
            if len(buffer) - at >= _NEAR_BYTES - 8:
                (length,) = length_of(buffer, at - 8)
                if 0 < length <= _NEAR_KEY_BYTES:
                    raw = buffer[at : at + length]
                    at += length
                    (kind,) = head_of(buffer, at)
                    # Whatever is not plain is judged below, from its beginning.
                    if kind in _SCALARS and raw.isascii():
                        key = raw.decode("ascii")
                        scalar = _SCALARS[kind]
                        (value,) = scalar.unpack_from(buffer, at + 4)
                        if key not in kinds and key not in RESERVED_KEYS and (kind != BOOL or value <= 1):
                            kinds[key] = kind
                            self.key_bytes += length
                            metadata[key] = value == 1 if kind == BOOL else value
                            window.cursor = at + 4 + scalar.size
                            continue
            self._pair()

    def _pair(self) -> None:
        key = self._text("key", MAX_KEY_BYTES)
        if not key or key in self.kinds or key in RESERVED_KEYS:
            raise self.source.refuse("key", key or "an empty one", "keys that are not empty, unique, and not reserved")
        self.key_bytes += len(key)
        if self.key_bytes > MAX_ALL_KEY_BYTES:
            raise self.source.refuse("key", f"{self.key_bytes} bytes of keys", f"at most {MAX_ALL_KEY_BYTES} bytes")
        (kind,) = self.window.unpack(_TYPE, key)
        if kind >= len(VALUE_TYPE_NAMES):
            raise self.source.refuse(key, f"value type {kind}", "0 to 12")
        self.kinds[key] = kind
        if kind == STRING:
            self._string_value(key)
        elif kind == ARRAY:
            self._array(key)
        else:
            (value,) = self.window.unpack(_SCALARS[kind], key)
            if kind == BOOL and value > 1:
                raise self.source.refuse(key, f"a bool of {value}", "0 or 1")
            self.model.metadata[key] = bool(value) if kind == BOOL else value

    def _string_value(self, key: str) -> None:
        raw = self._string(key, MAX_STRING_BYTES)
        if key == "tokenizer.chat_template" or key.startswith("tokenizer.chat_template."):
            if len(self.model.chat_templates) == MAX_TEMPLATES:
                raise self.source.refuse(key, "one template more", f"at most {MAX_TEMPLATES} chat templates")
            self.model.chat_templates[key] = judge_template(raw)
        elif len(raw) <= min(KEPT_STRING_BYTES, self.string_bytes_left) or key == "general.architecture":
            self.string_bytes_left -= len(raw)
            self.model.metadata[key] = raw.decode("utf-8", "replace")

    def _array(self, key: str) -> None:
        kind, count = self.window.unpack(_ARRAY_HEAD, key)
        if kind >= len(VALUE_TYPE_NAMES):
            raise self.source.refuse(key, f"array of value type {kind}", "0 to 12")
        if kind == ARRAY:
            raise self.source.refuse(key, "an array of arrays", "arrays of numbers, bools or strings")
        size = 8 if kind == STRING else _SCALARS[kind].size
        allowed = min(MAX_ARRAY_COUNT, self.window.remaining // size)
        if count > allowed:
            raise self.source.refuse(key, f"an array of {count}", f"at most {allowed} in a file of this size")
        self.model.array_lengths[key] = count
        if kind == STRING:
            self._skip_strings(key, count)
        elif kind == BOOL:
            self._bools(key, count)
        elif count <= min(KEPT_NUMBERS, self.numbers_left):
            self.numbers_left -= count
            layout = struct.Struct(f"<{count}{NUMBERS[kind]}")
            self.model.metadata[key] = list(self.window.unpack(layout, key))
        else:
            self.window.skip(count * size, key)

    def _bools(self, key: str, count: int) -> None:
        if count > MAX_BOOL_COUNT:
            raise self.source.refuse(key, f"an array of {count} bools", f"at most {MAX_BOOL_COUNT}")
        left = count
        while left:
            part = self.window.take(min(left, 65_536), key)
            wrong = part.translate(None, b"\x00\x01")
            if wrong:
                raise self.source.refuse(key, f"a bool of {wrong[0]}", "0 or 1")
            if count <= min(KEPT_NUMBERS, self.numbers_left):
                self.numbers_left -= count
                self.model.metadata[key] = [value == 1 for value in part]
            left -= len(part)

    def _skip_strings(self, key: str, count: int) -> None:
        """Pass over ``count`` strings; their lengths are judged, their bytes are not looked at."""
        self.array_strings += count
        if self.array_strings > MAX_ARRAY_STRINGS:
            raise self.source.refuse(key, f"{self.array_strings} strings", f"at most {MAX_ARRAY_STRINGS} in all arrays")
        window, match, unpack = self.window, _batch().match, _LENGTH.unpack_from
        left = count
        while left:
            if left >= _BATCH:
                found = match(window.buffer, window.cursor)
                if found:
                    window.cursor = found.end()
                    left -= _BATCH
                    continue
            for _ in range(min(left, _BATCH)):
                if len(window.buffer) - window.cursor < 8:
                    window.load(8, key)
                (length,) = unpack(window.buffer, window.cursor)
                window.cursor += 8
                if length > MAX_STRING_BYTES:
                    raise self.source.refuse(
                        key, f"a string of {length} bytes", f"at most {min(MAX_STRING_BYTES, window.remaining)} bytes"
                    )
                if not length:
                    self.empty_strings += 1
                    if self.empty_strings > MAX_EMPTY_STRINGS:
                        raise self.source.refuse(
                            key, f"{self.empty_strings} empty strings", f"at most {MAX_EMPTY_STRINGS} in all arrays"
                        )
                if length <= len(window.buffer) - window.cursor:
                    window.cursor += length
                else:
                    window.skip(length, key)
            left -= min(left, _BATCH)

    def _alignment(self) -> int:
        key = "general.alignment"
        if key not in self.kinds:
            return DEFAULT_ALIGNMENT
        value, kind = self.model.metadata.get(key), self.kinds[key]
        if kind != UINT32:
            raise self.source.refuse(key, VALUE_TYPE_NAMES[kind], "a UINT32")
        assert isinstance(value, int)
        if not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
            raise self.source.refuse(key, value, f"a power of two up to {MAX_ALIGNMENT}")
        return value

    def _tensors(self, count: int, alignment: int) -> None:
        window, source = self.window, self.source
        names: Set[str] = set()
        tensors: List[Tensor] = []
        end = 0
        unpadded = 0
        for number in range(count):
            tensor = self._tensor(number)
            if tensor.name in names:
                raise source.refuse("tensor name", tensor.name, "each name once")
            names.add(tensor.name)
            if tensor.offset != end:
                raise source.refuse(f"{tensor.name}: offset", tensor.offset, f"{end}, where the tensor before it ends")
            unpadded = end + tensor.size
            end = unpadded + -unpadded % alignment
            # Checked at once, so that no size can add up to an overflow in another reader.
            if unpadded > source.size:
                raise source.refuse(f"{tensor.name}: end of data", unpadded, f"at most the file's {source.size} bytes")
            tensors.append(tensor)
        start = _aligned(window.position, alignment)
        if count and start + unpadded > source.size:
            raise source.refuse("size", f"{source.size} bytes", f"the {start + unpadded} bytes that the tensors need")
        if source.size > start + end:
            raise source.refuse("size", f"{source.size} bytes", f"{start + end}, where the last tensor's padding ends")
        self.model.tensors = tensors
        self.model.data_offset = start

    def _tensor(self, number: int) -> Tensor:
        window = self.window
        if len(window.buffer) - window.cursor < _NEAR_BYTES:
            window.load(min(_NEAR_BYTES, window.remaining), f"name of tensor {number}")
        buffer, at = window.buffer, window.cursor + 8
        if len(buffer) - at >= _NEAR_BYTES - 8:
            (length,) = _LENGTH.unpack_from(buffer, at - 8)
            if length <= MAX_NAME_BYTES:
                raw = buffer[at : at + length]
                at += length
                (dimensions,) = _TYPE.unpack_from(buffer, at)
                # Whatever is not plain is judged below, from its beginning.
                if dimensions <= MAX_DIMENSIONS and raw.isascii():
                    layout = _DIMENSIONS[dimensions]
                    values = layout.unpack_from(buffer, at + 4)
                    shape = values[:-2]
                    type_name, block, block_bytes = TENSOR_TYPES.get(values[-2], _NO_TYPE)
                    elements = 1
                    for one in shape:
                        elements *= one
                    if 0 < elements < _PLAIN_ELEMENTS and block and not (shape[0] if shape else 1) % block:
                        window.cursor = at + 4 + layout.size
                        size = elements // block * block_bytes
                        return Tensor(raw.decode("ascii"), type_name, shape, values[-1], size)
        return self._judged_tensor(number)

    def _judged_tensor(self, number: int) -> Tensor:
        window, source = self.window, self.source
        name = self._text(f"name of tensor {number}", MAX_NAME_BYTES)
        (dimensions,) = window.unpack(_TYPE, name)
        if dimensions > MAX_DIMENSIONS:
            raise source.refuse(f"{name}: dimensions", dimensions, f"at most {MAX_DIMENSIONS}")
        values = window.unpack(_DIMENSIONS[dimensions], name)
        shape, kind, offset = values[:-2], values[-2], values[-1]
        elements, product = 1, 1
        for length in shape:
            if length >= 2**63:
                raise source.refuse(f"{name}: shape", shape, "dimensions below 2^63")
            elements *= length
            # An empty dimension must not hide an overflow of the others.
            product *= length or 1
        if product >= 2**63:
            raise source.refuse(f"{name}: shape", shape, "fewer than 2^63 elements")
        if kind not in TENSOR_TYPES:
            raise source.refuse(f"{name}: type", kind, "a tensor type of ggml")
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        first = shape[0] if shape else 1
        if first % block:
            raise source.refuse(f"{name}: first dimension", first, f"a multiple of {block}, the block of {type_name}")
        if product // block * block_bytes >= 2**63:
            raise source.refuse(f"{name}: shape", shape, "fewer than 2^63 bytes")
        return Tensor(name, type_name, shape, offset, elements // block * block_bytes)

    def _describe(self) -> None:
        model, data = self.model, self.model.metadata
        split = data.get("split.no")
        architecture = data.get("general.architecture")
        # The further files of a split model carry tensors only.
        if "general.architecture" in self.kinds or not split:
            if self.kinds.get("general.architecture") != STRING or not architecture:
                kind = self.kinds.get("general.architecture")
                found = "none" if kind is None else VALUE_TYPE_NAMES[kind]
                raise self.source.refuse("general.architecture", found, "a string that is not empty")
            if len(str(architecture)) > KEPT_STRING_BYTES:
                raise self.source.refuse(
                    "general.architecture", architecture, f"at most {KEPT_STRING_BYTES} characters"
                )
            model.architecture = str(architecture)
        name, tokenizer = data.get("general.name"), data.get("tokenizer.ggml.model")
        model.name = name if isinstance(name, str) else None
        model.tokenizer = tokenizer if isinstance(tokenizer, str) else None
        file_type = data.get("general.file_type")
        model.quantization = FILE_TYPES.get(file_type) if type(file_type) is int else None
        model.context_length = self._largest("context_length")
        model.layers = self._largest("block_count")
        model.embedding_length = self._largest("embedding_length")
        model.heads = self._largest("attention.head_count")
        model.heads_kv = self._largest("attention.head_count_kv")
        if model.heads_kv is None:
            model.heads_kv = model.heads
        model.key_length = self._largest("attention.key_length")
        model.value_length = self._largest("attention.value_length")
        # Where the lengths are not given, llama.cpp takes the embedding's share of one head.
        if model.heads and model.embedding_length:
            share = model.embedding_length // model.heads
            model.key_length = share if model.key_length is None else model.key_length
            model.value_length = share if model.value_length is None else model.value_length
        model.sliding_window = self._largest("attention.sliding_window")
        model.vocabulary_size = self.model.array_lengths.get("tokenizer.ggml.tokens") or self._largest("vocab_size")
        for key, template in model.chat_templates.items():
            if template.suspicious:
                model.warnings.append(f"{key} holds {', '.join(template.suspicious)}: look before you use it")

    def _largest(self, name: str) -> Optional[int]:
        value = self.model.metadata.get(f"{self.model.architecture}.{name}")
        numbers = value if isinstance(value, list) else [value]
        whole = [one for one in numbers if type(one) is int]
        return max(whole) if whole else None


def judge_template(raw: bytes) -> ChatTemplate:
    """Return the hash of a chat template and the marks found in it. It is never run."""
    marks = tuple(mark for mark in TEMPLATE_MARKS if mark.encode() in raw)
    return ChatTemplate(hashlib.sha256(raw).hexdigest(), len(raw), marks)


def split_position(model: ModelFile) -> Optional[Tuple[int, int]]:
    """Return which file of how many ``model`` is, counted from 0; None where it is whole."""
    number, count = (_whole(model.metadata.get(key)) for key in ("split.no", "split.count"))
    return None if count is None or count < 2 else (number or 0, count)


def _whole(value: Any) -> Optional[int]:
    return value if type(value) is int else None


def _aligned(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) // alignment * alignment
