"""whisper.cpp's model files (``.bin``), the format before GGUF.

    "lmgg" | 11 numbers i32 | filter rows, columns i32 | that many f32 | words i32 | each: length u32, bytes | tensors

The header is judged; the tensors have no table, so the whole is trusted by its pinned sha256 only. Source: whisper.cpp,
whisper_model_load.
"""

import struct

from .model import ModelFile
from .source import Source, Window

MAGIC = b"lmgg"
_NUMBERS = struct.Struct("<11i")
_PAIR = struct.Struct("<2i")
_COUNT = struct.Struct("<i")
_LENGTH = struct.Struct("<I")
# The largest whisper model has a vocabulary of 51,866, a state of 1,280, 32 layers and 128 mel bands.
LIMITS = (
    ("n_vocab", 1_000_000),
    ("n_audio_ctx", 100_000),
    ("n_audio_state", 65_536),
    ("n_audio_head", 1024),
    ("n_audio_layer", 1024),
    ("n_text_ctx", 100_000),
    ("n_text_state", 65_536),
    ("n_text_head", 1024),
    ("n_text_layer", 1024),
    ("n_mels", 1024),
)
MAX_FTYPE = 10_000
MAX_WORD_BYTES = 65_536


def read_legacy_ggml(source: Source) -> ModelFile:
    """Judge the header of a whisper.cpp model and return what it says. Raises FormatError."""
    window = Window(source)
    magic = window.take(min(4, source.size), "magic")
    if magic != MAGIC:
        raise source.refuse("magic", magic, "lmgg")
    numbers = window.unpack(_NUMBERS, "hyperparameters")
    for (name, limit), value in zip(LIMITS, numbers):
        if not 1 <= value <= limit:
            raise source.refuse(name, value, f"1 to {limit}")
    if not 0 <= numbers[10] <= MAX_FTYPE:
        raise source.refuse("ftype", numbers[10], f"0 to {MAX_FTYPE}")
    rows, columns = window.unpack(_PAIR, "mel filters")
    if rows != numbers[9] or not 1 <= columns <= 65_536:
        raise source.refuse("mel filters", f"{rows} x {columns}", f"{numbers[9]} rows of 1 to 65536")
    window.skip(rows * columns * 4, "mel filters")
    (words,) = window.unpack(_COUNT, "vocabulary")
    if not 1 <= words <= numbers[0] or words * 4 > window.remaining:
        raise source.refuse("vocabulary", f"{words} words", f"1 to {min(numbers[0], window.remaining // 4)}")
    for _ in range(words):
        (length,) = window.unpack(_LENGTH, "vocabulary")
        if length > min(MAX_WORD_BYTES, window.remaining):
            raise source.refuse("vocabulary", f"a word of {length} bytes", f"at most {MAX_WORD_BYTES} bytes")
        window.skip(length, "vocabulary")
    model = ModelFile("legacy ggml", source.size, architecture="whisper", vocabulary_size=numbers[0])
    model.context_length, model.layers, model.data_offset = numbers[5], numbers[8], window.position
    model.metadata = {name: value for (name, _), value in zip(LIMITS, numbers)}
    model.warnings.append("the tensors of this old format cannot be judged; trust it by its sha256 only")
    return model
