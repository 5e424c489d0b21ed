"""Fuzz the readers of model files with atheris: nothing but FormatError may come out of them.

    pip install -e '.[test]'
    python tests/fuzz/fuzz_formats.py -max_total_time=60

The first byte of an input picks the reader, the second whether its bounds are those of a small world, in which a few
kilobytes can be too many of anything. Without a corpus folder among the arguments a temporary one is filled with the
seeds. Arguments are libFuzzer's; --formats=gguf,onnx limits the readers, --write-seeds=FOLDER only writes the seeds.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests")]

with atheris.instrument_imports(include=["modelfleet.core.formats"]):
    from modelfleet.core.errors import FormatError
    from modelfleet.core.formats import auxiliary, gguf, judge, onnx, safetensors
    from modelfleet.core.formats.legacy_ggml import read_legacy_ggml
    from modelfleet.core.formats.source import Source

from fuzz import seeds  # noqa: E402

AUXILIARY = ("config.json", "vocab.txt", "tokenizer.model", "run.py")
# Bounds that only megabytes reach, and what they are in a small world.
SMALL = {
    (gguf, "MAX_KEY_BYTES"): 48,
    (gguf, "MAX_STRING_BYTES"): 256,
    (gguf, "MAX_ARRAY_STRINGS"): 60,
    (gguf, "MAX_EMPTY_STRINGS"): 4,
    (gguf, "MAX_BOOL_COUNT"): 8,
    (gguf, "MAX_ALL_KEY_BYTES"): 320,
    (gguf, "KEPT_NUMBERS"): 4,
    (gguf, "KEPT_STRING_BYTES"): 16,
    (gguf, "KEPT_ALL_STRING_BYTES"): 32,
    (gguf, "MAX_TEMPLATES"): 1,
    (gguf, "_NEAR_BYTES"): 2**62,
    (safetensors, "MAX_TENSORS"): 4,
    (safetensors, "MAX_EMPTY_TENSORS"): 1,
    (safetensors, "MAX_NAME_BYTES"): 16,
    (safetensors, "MAX_ENTRY_CHARACTERS"): 64,
    (safetensors, "MAX_METADATA_CHARACTERS"): 64,
    (safetensors, "MAX_INDEX_BYTES"): 256,
    (safetensors, "MAX_SHARDS"): 2,
    (safetensors, "WINDOW_BYTES"): 48,
    (auxiliary, "MAX_BYTES"): 256,
    (auxiliary, "MAX_PARSED_BYTES"): 40,
    (auxiliary, "MAX_DEPTH"): 3,
    (judge, "MAX_FILES"): 3,
    (judge, "MAX_CONFIG_BYTES"): 64,
}
TRUE = {(module, name): getattr(module, name) for module, name in SMALL}


def read_auxiliary(source: Source) -> object:
    """Judge a file beside the weights; its first byte picks the name."""
    kind = source.read(0, 1)[0] if source.size else 0
    rest = Source("fuzz", max(source.size - 1, 0), lambda offset, length: source.read(offset + 1, length))
    return auxiliary.judge_auxiliary(rest, AUXILIARY[kind % len(AUXILIARY)])


FILES = (
    *("config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"),
    *("model-00002-of-00002.safetensors", "model.onnx", "w.bin", "a-00001-of-00002.gguf", "a-00002-of-00002.gguf"),
    *("vocab.txt", "pytorch_model.bin"),
)


def pack(*files: tuple[str, bytes]) -> bytes:
    """Return an input for ``read_folder``: for each file its name's number, its length, its content."""
    return b"".join(bytes([FILES.index(name), *len(raw).to_bytes(2, "little")]) + raw for name, raw in files)


def read_folder(source: Source) -> object:
    """Judge and describe a folder of files; see ``pack``."""
    raw = source.read(0, source.size)
    folder = os.path.join(scratch, "model")
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder)
    while len(raw) > 3:
        length = int.from_bytes(raw[1:3], "little")
        with open(os.path.join(folder, FILES[raw[0] % len(FILES)]), "wb") as target:
            target.write(raw[3 : 3 + length])
        raw = raw[3 + length :]
    judge.judge_folder(folder, True)
    return judge.describe(folder)


READERS: dict[str, tuple[Callable[[Source], object], list[bytes]]] = {
    "gguf": (gguf.read_gguf, [seeds.gguf_seed(), seeds.plain_gguf_seed()]),
    "safetensors": (safetensors.read_safetensors, [seeds.safetensors_seed(), seeds.plain_safetensors_seed()]),
    "onnx": (onnx.read_onnx, [seeds.onnx_seed()]),
    "legacy": (read_legacy_ggml, [seeds.legacy_seed()]),
    "any": (judge.describe_source, [seeds.gguf_seed()]),
    "json": (
        read_auxiliary,
        [b'\0{"model_type": "llama", "a": [1, {"b": null}]}', b"\1words\n", b"\2\x0a\x03abc"],
    ),
    "folder": (read_folder, [pack(*files.items()) for files in seeds.folder_seeds()]),
}
chosen = list(READERS)
scratch = ""


def one_input(data: bytes) -> None:
    """Give one input to the reader that its first byte picks."""
    if len(data) < 2:
        return
    read, _ = READERS[chosen[data[0] % len(chosen)]]
    for (module, name), value in (SMALL if data[1] % 2 else TRUE).items():
        setattr(module, name, value)
    raw = data[2:]
    source = Source("fuzz", len(raw), lambda offset, length: raw[offset : offset + length])
    try:
        read(source)
    except FormatError as error:
        # The line must be fit for a terminal, whatever is in the file.
        assert str(error).isprintable() and str(error).isascii()


def write_seeds(folder: str) -> None:
    """Write the seeds of the chosen readers, each for the true and for the small bounds."""
    for number, name in enumerate(chosen):
        for count, seed in enumerate(READERS[name][1]):
            for small in (0, 1):
                (Path(folder) / f"{name}-{count}-{small}").write_bytes(bytes([number, small]) + seed)


def main() -> None:
    """Fuzz until libFuzzer's arguments say stop."""
    global scratch
    arguments = []
    for argument in sys.argv:
        if argument.startswith("--formats="):
            chosen[:] = argument.split("=", 1)[1].split(",")
        elif argument.startswith("--write-seeds="):
            write_seeds(argument.split("=", 1)[1])
            return
        else:
            arguments.append(argument)
    shared_memory = "/dev/shm"
    place = shared_memory if os.access(shared_memory, os.W_OK) else None
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=place) as scratch:
        if all(argument.startswith("-") for argument in arguments[1:]):
            write_seeds(folder)
            arguments.append(folder)
        atheris.Setup(arguments, one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
