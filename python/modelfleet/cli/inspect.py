"""``modelfleet inspect``: describe a model file, or refuse it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import click

from ..core.errors import ModelfleetError
from ..core.fetch.remote import is_url, open_url
from ..core.formats.judge import describe, describe_source
from ..core.formats.model import ModelFile
from ..core.units import format_bytes
from .text import clean, count, say, say_json, table

SCHEMA_VERSION = 1


@click.command()
@click.argument("file", metavar="FILE|FOLDER|URL")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--json", "as_json", is_flag=True, help="Answer with one JSON document.")
def command(file: str, tensors: bool, as_json: bool) -> int:
    """Judge a model file by its format's rules and describe it, or refuse it with exit code 1.

    Reads the header only: GGUF, safetensors, ONNX and whisper.cpp's older format. A split or sharded model is judged
    whole, by one of its files, its index or its folder. Nothing in a file is ever run. Of an address (https://… or
    hf://OWNER/NAME@REVISION/FILE) only the header is fetched, and that one file is judged.
    """
    try:
        model = describe_source(open_url(file)) if is_url(file) else describe(file)
    except OSError as error:
        raise ModelfleetError(f"{clean(file)}: {error.strerror or error}") from None
    if is_url(file):
        # What follows may be a signature, which is a secret.
        file = file.split("?")[0]
    if as_json:
        say_json(document(file, model, tensors))
        return 0
    for line in table(list(rows(file, model))):
        say(line)
    if tensors:
        say()
        for line in table(list(tensor_rows(model))):
            say(line)
    return 0


def rows(file: str, model: ModelFile) -> Iterator[list[str]]:
    """Yield what is known as two columns."""
    version = f" version {model.version}" if model.version is not None else ""
    known: list[tuple[str, object]] = [
        ("file", f"{os.path.basename(file.rstrip('/')) or file}, {format_bytes(model.size)}"),
        ("format", model.format + version),
        ("files", len(model.files) or None),
        ("name", model.name),
        ("architecture", model.architecture),
        ("parameters", f"{model.parameters:,} in {count(len(model.tensors), 'tensor')}"),
        ("quantization", model.quantization),
        ("context length", model.context_length),
        ("layers", model.layers),
        ("embedding length", model.embedding_length),
        ("heads", model.heads if model.heads_kv in (None, model.heads) else f"{model.heads}, {model.heads_kv} for KV"),
        ("key, value length", model.key_length and f"{model.key_length}, {model.value_length or '?'}"),
        ("sliding window", model.sliding_window),
        ("vocabulary", model.vocabulary_size),
        ("tokenizer", model.tokenizer),
    ]
    for name, value in known:
        if value is not None:
            yield [click.style(name, bold=True), clean(value)]
    for kind, total in model.by_type().items():
        share = f" ({total.bytes / model.tensor_bytes:.1%})" if model.tensor_bytes else ""
        yield [f"  {clean(kind)}", f"{count(total.tensors, 'tensor')}, {format_bytes(total.bytes)}{share}"]
    for key, template in model.chat_templates.items():
        yield [clean(key.replace("tokenizer.", "")), f"{template.length} bytes, sha256 {template.sha256}"]
    for warning in model.warnings:
        yield [click.style("warning", fg="yellow"), clean(warning)]


def tensor_rows(model: ModelFile) -> Iterator[list[str]]:
    """Yield the table of tensors."""
    yield [click.style(name, bold=True) for name in ("TENSOR", "TYPE", "SHAPE", "BYTES")]
    for tensor in model.tensors:
        yield [clean(tensor.name), clean(tensor.type), " x ".join(map(str, tensor.shape)), str(tensor.size)]


def document(file: str, model: ModelFile, tensors: bool) -> dict[str, Any]:
    """Return the JSON answer; sizes are bytes."""
    answer: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "verb": "inspect", "file": file}
    for name in ModelFile.__dataclass_fields__:
        if name not in ("tensors", "chat_templates"):
            answer[name] = getattr(model, name)
    answer["metadata"] = {key: _plain(value) for key, value in model.metadata.items()}
    answer["parameters"] = model.parameters
    answer["tensor_bytes"] = model.tensor_bytes
    answer["tensor_count"] = len(model.tensors)
    answer["types"] = {kind: vars(total) for kind, total in model.by_type().items()}
    answer["chat_templates"] = {
        key: {**vars(template), "suspicious": list(template.suspicious)}
        for key, template in model.chat_templates.items()
    }
    if tensors:
        answer["tensors"] = [tensor._asdict() for tensor in model.tensors]
    return answer


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON can say it: it has no word for numbers that are not finite."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
