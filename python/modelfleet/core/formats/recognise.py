"""What a file is, by its content; never by its name."""

import re

from .source import Source

HEAD_BYTES = 512
_PICKLE_HEAD = re.compile(rb"\x80[\x02-\x05]|[(\]})]|c[A-Za-z_][\w.]*\n[A-Za-z_][\w.]*\n")
_PICKLE_STOP = b"."
_HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|head|body|\?xml|!--)", re.IGNORECASE)
# ir_version comes first in what protobuf's writers serialise, followed by another field of ModelProto.
_ONNX = re.compile(rb"\x08[\x01-\x7f][\x12\x1a\x22\x28\x32\x3a\x42\x72\xa2\xca\xd2]")
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]*\Z")

NAMES = {
    "gguf": "GGUF",
    "safetensors": "safetensors",
    "onnx": "ONNX",
    "legacy ggml": "legacy ggml",
    "pickle": "a pickle, which runs code when it is loaded",
    "zip": "a zip archive (PyTorch's form of pickle)",
    "tar": "a tar archive",
    "gzip": "a gzip archive",
    "program": "a program",
    "html": "a web page (of an error or a login, instead of the file)",
    "git lfs pointer": "a Git LFS pointer, not the file it points to",
    "text": "text",
    "empty": "nothing",
    "unknown": "unknown content",
}


def recognise(source: Source) -> str:
    """Return the format of ``source``: a key of NAMES. At most HEAD_BYTES and the last byte are read."""
    if not source.size:
        return "empty"
    head = source.read(0, min(HEAD_BYTES, source.size))
    found = _by_magic(head)
    if found:
        return found
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= min(100_000_000, source.size - 8):
        return "safetensors"
    if _ONNX.match(head):
        return "onnx"
    if _HTML.match(head):
        return "html"
    if _PICKLE_HEAD.match(head) and (
        head[0] == 0x80 or source.read(source.size - 1, 1) == _PICKLE_STOP or head[0] == ord("c")
    ):
        return "pickle"
    return "text" if _TEXT.match(head) else "unknown"


def _by_magic(head: bytes) -> str:
    for magic, name in (
        (b"GGUF", "gguf"),
        (b"lmgg", "legacy ggml"),
        (b"PK\x03\x04", "zip"),
        (b"PK\x05\x06", "zip"),
        (b"\x1f\x8b", "gzip"),
        (b"\x7fELF", "program"),
        (b"MZ", "program"),
        (b"#!", "program"),
        (b"\xcf\xfa\xed\xfe", "program"),
        (b"version https://git-lfs", "git lfs pointer"),
    ):
        if head.startswith(magic):
            return name
    return "tar" if head[257:262] == b"ustar" else ""
