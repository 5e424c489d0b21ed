"""Small valid model files, written without the libraries that read them: the start of tests and of fuzzing."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence

UINT32, INT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 7, 8, 9, 10
F32, Q4_0, I8 = 0, 2, 24


def string(text: str | bytes) -> bytes:
    """Return a GGUF string."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    """Return a GGUF key-value pair of a value that is already encoded."""
    return string(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, elements: bytes) -> bytes:
    """Return the value of a GGUF array."""
    return struct.pack("<IQ", kind, count) + elements


def tensor(name: str | bytes, shape: Sequence[int], kind: int = F32, offset: int = 0) -> bytes:
    """Return a GGUF tensor info."""
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ARCHITECTURE = pair("general.architecture", STRING, string("llama"))


def gguf(
    pairs: Sequence[bytes] = (ARCHITECTURE,),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    alignment: int = 32,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """Return a GGUF file; ``counts`` are the numbers of tensors and pairs that it claims."""
    claimed = counts or (len(tensors), len(pairs))
    head = struct.pack("<4sIQQ", b"GGUF", version, *claimed) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data if tensors else head


def gguf_seed() -> bytes:
    """Return a GGUF file with every kind of pair and two tensors."""
    pairs = [
        ARCHITECTURE,
        pair("general.alignment", UINT32, struct.pack("<I", 64)),
        pair("general.file_type", UINT32, struct.pack("<I", 2)),
        pair("llama.context_length", UINT32, struct.pack("<I", 2048)),
        pair("llama.attention.head_count", UINT32, struct.pack("<I", 4)),
        pair("llama.attention.head_count_kv", ARRAY, array(INT32, 2, struct.pack("<2i", 2, 1))),
        pair("llama.embedding_length", UINT64, struct.pack("<Q", 64)),
        pair("tokenizer.ggml.add_bos_token", BOOL, b"\x01"),
        pair("tokenizer.ggml.flags", ARRAY, array(BOOL, 3, b"\x01\x00\x01")),
        pair("tokenizer.ggml.tokens", ARRAY, array(STRING, 40, b"".join(string(f"t{one}") for one in range(40)))),
        pair("tokenizer.chat_template", STRING, string("{{ messages[0]['content'] }}")),
    ]
    tensors = [tensor("a", [32, 2], Q4_0, 0), tensor("b", [4], F32, 64)]
    return gguf(pairs, tensors, bytes(64 + 64), alignment=64)


def safetensors(header: Mapping[str, object] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file; ``length`` is the header's length that it claims."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def safetensors_entry(begin: int, end: int, shape: Sequence[int], dtype: str = "F32") -> dict[str, object]:
    """Return the header's entry of a tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def safetensors_seed() -> bytes:
    """Return a safetensors file with metadata, two tensors and an empty one."""
    header = {
        "__metadata__": {"format": "pt"},
        "a": safetensors_entry(0, 8, [2]),
        "b": safetensors_entry(8, 14, [3, 1], "F16"),
        "empty": safetensors_entry(14, 14, [0], "I64"),
    }
    return safetensors(header, bytes(14))


def varint(number: int) -> bytes:
    """Return a protobuf varint."""
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number: int, value: int | str | bytes) -> bytes:
    """Return a protobuf field: a number as varint, text and bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def onnx_tensor(shape: Sequence[int], external: Sequence[tuple[str, str]] = (), kind: int = 1) -> bytes:
    """Return a TensorProto called ``w``, with external data where there are entries of it."""
    raw = b"".join(field(1, one) for one in shape) + field(2, kind) + field(8, "w")
    raw += b"".join(field(13, field(1, key) + field(2, value)) for key, value in external)
    return raw + (field(14, 1) if external else field(9, bytes(4)))


def onnx(graph: bytes = b"") -> bytes:
    """Return an ONNX model with the fields of ``graph``."""
    return field(1, 8) + field(2, "seeds") + field(7, field(2, "g") + graph) + field(8, field(1, "") + field(2, 17))


def onnx_seed() -> bytes:
    """Return an ONNX model with a node that has a tensor, an initializer, and typed values."""
    shape = field(2, field(1, field(1, 1)) + field(1, field(2, "n")))
    value = field(1, "x") + field(2, field(1, field(1, 1) + shape))
    attribute = field(1, "value") + field(5, onnx_tensor([1])) + field(20, 4) + field(8, b"\x01\x02")
    node = field(2, "y") + field(4, "Constant") + field(5, attribute)
    return onnx(field(1, node) + field(5, onnx_tensor([1])) + field(11, value) + field(12, value))


def legacy_seed() -> bytes:
    """Return a whisper.cpp model's header with a small vocabulary."""
    numbers = (3, 1500, 384, 6, 4, 448, 384, 6, 4, 80, 1)
    words = b"".join(struct.pack("<I", len(word)) + word for word in (b"a", b"bc", b""))
    return b"lmgg" + struct.pack("<11i2i", *numbers, 80, 2) + bytes(80 * 2 * 4) + struct.pack("<i", 3) + words


def plain_gguf_seed() -> bytes:
    """Return a GGUF file of short keys with numbers and plain tensors, more than a batch of them."""
    numbers = [(BOOL, bytes(1)), (UINT64, bytes(8)), (UINT32, bytes(4)), (INT32, bytes(4))]
    pairs = [pair(f"n{one}", *kind) for one, kind in enumerate(numbers * 8)]
    words = pair("words", ARRAY, array(STRING, 70, b"".join(string(f"w{one}") for one in range(70))))
    tensors = [tensor(f"t{one}", [8, 1], F32, 32 * one) for one in range(20)]
    return gguf([ARCHITECTURE, *pairs, words], tensors, bytes(32 * 20))


def plain_safetensors_seed() -> bytes:
    """Return a safetensors file as most are written."""
    entries = {f"layer.{one}": safetensors_entry(one * 8, one * 8 + 8, [2, 1]) for one in range(12)}
    return safetensors({"__metadata__": {"format": "pt"}, **entries}, bytes(12 * 8))


def folder_seeds() -> list[dict[str, bytes]]:
    """Return models as folders: a sharded one, a split one, one with external data, a pickle with its configuration."""
    shards = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
    index = {"weight_map": dict(zip("ab", shards))}
    sharded = {shard: safetensors({name: safetensors_entry(0, 4, [1])}, bytes(4)) for name, shard in zip("ab", shards)}
    config = b'{"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2}'
    split = {}
    for number in range(2):
        place = {"split.no": number, "split.count": 2, "split.tensors.count": 2}
        pairs = [pair(key, UINT32, struct.pack("<I", value)) for key, value in place.items()]
        split[f"a-{number + 1:05d}-of-00002.gguf"] = gguf(
            [ARCHITECTURE, *pairs], [tensor(f"t{number}", [8])], bytes(32)
        )
    outside = onnx_tensor([2], [("location", "w.bin"), ("offset", "4"), ("length", "8")])
    return [
        {"config.json": config, "model.safetensors.index.json": json.dumps(index).encode(), **sharded},
        split,
        {"model.onnx": onnx(field(5, outside)), "w.bin": bytes(12)},
        {"config.json": config, "pytorch_model.bin": b"\x80\x04K\x01.", "vocab.txt": b"words"},
    ]
