"""Model files that the readers of formats accept, of any size and without weights."""

from __future__ import annotations

import struct


def gguf(note: bytes) -> bytes:
    """Return a GGUF file without tensors that carries ``note``: other notes make other files."""

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    def entry(key: bytes, value: bytes) -> bytes:
        return text(key) + struct.pack("<I", 8) + text(value)

    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
    content = header + entry(b"general.architecture", b"llama") + entry(b"general.description", note)
    return content + bytes(-len(content) % 32)
