"""Fuzz the readers of model files with atheris: nothing but FormatError may come out of them.

    pip install -e '.[test]'
    python tests/fuzz/fuzz_formats.py -max_total_time=60

The first byte of an input picks the reader. Without a corpus folder among the arguments a temporary one is filled with
the seeds. Arguments are libFuzzer's; --formats=gguf,onnx limits the readers.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests")]

with atheris.instrument_imports(include=["modelfleet.core.formats"]):
    from modelfleet.core.errors import FormatError
    from modelfleet.core.formats.auxiliary import judge_auxiliary
    from modelfleet.core.formats.gguf import read_gguf
    from modelfleet.core.formats.judge import describe_source
    from modelfleet.core.formats.legacy_ggml import read_legacy_ggml
    from modelfleet.core.formats.onnx import read_onnx
    from modelfleet.core.formats.safetensors import read_safetensors
    from modelfleet.core.formats.source import Source

from fuzz import seeds  # noqa: E402

READERS: dict[str, tuple[Callable[[Source], object], bytes]] = {
    "gguf": (read_gguf, seeds.gguf_seed()),
    "safetensors": (read_safetensors, seeds.safetensors_seed()),
    "onnx": (read_onnx, seeds.onnx_seed()),
    "legacy": (read_legacy_ggml, seeds.legacy_seed()),
    "any": (describe_source, seeds.gguf_seed()),
    "json": (lambda source: judge_auxiliary(source, "config.json"), b'{"model_type": "llama", "a": [1, {"b": null}]}'),
}
chosen = list(READERS)


def one_input(data: bytes) -> None:
    """Give one input to the reader that its first byte picks."""
    if not data:
        return
    read, _ = READERS[chosen[data[0] % len(chosen)]]
    raw = data[1:]
    source = Source("fuzz", len(raw), lambda offset, length: raw[offset : offset + length])
    try:
        read(source)
    except FormatError as error:
        # The line must be fit for a terminal, whatever is in the file.
        assert str(error).isprintable() and str(error).isascii()


def main() -> None:
    """Fuzz until libFuzzer's arguments say stop."""
    arguments = []
    for argument in sys.argv:
        if argument.startswith("--formats="):
            chosen[:] = argument.split("=", 1)[1].split(",")
        else:
            arguments.append(argument)
    with tempfile.TemporaryDirectory() as folder:
        if all(argument.startswith("-") for argument in arguments[1:]):
            for number, name in enumerate(chosen):
                (Path(folder) / name).write_bytes(bytes([number]) + READERS[name][1])
            arguments.append(folder)
        atheris.Setup(arguments, one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
