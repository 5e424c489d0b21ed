"""The judgement of a file, or of all files of a model, before they are published or described.

A file is what its content says, and must be what its name says. Pickle is refused by any name unless it is asked for.
"""

import os
import re
import stat
from typing import Dict, List, Optional, Set, Tuple

from ..errors import FormatError
from .auxiliary import ALLOWED_SUFFIXES, judge_auxiliary, judge_names, parse_json
from .gguf import read_gguf, split_position
from .legacy_ggml import read_legacy_ggml
from .model import ModelFile
from .onnx import read_onnx
from .recognise import NAMES, recognise
from .safetensors import read_safetensors, read_sharded
from .source import FileSource, Source, shown

INDEX_SUFFIX = ".safetensors.index.json"
MAX_FILES = 10_000
MAX_CONFIG_BYTES = 4 * 1024 * 1024
# Suffix -> what the content must be. Without a suffix of this table the content alone decides.
_BY_SUFFIX = {
    ".gguf": ("gguf",),
    ".safetensors": ("safetensors",),
    ".onnx": ("onnx",),
    ".bin": ("legacy ggml",),
}
_WEIGHTS = ("gguf", "safetensors", "onnx", "legacy ggml")
_PICKLES = ("pickle", "zip", "tar")
_SHARD = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf")
# config.json's keys for what a header of safetensors does not say.
_CONFIG = {
    "context_length": ("max_position_embeddings", "n_positions", "n_ctx"),
    "layers": ("num_hidden_layers", "n_layer"),
    "embedding_length": ("hidden_size", "n_embd"),
    "heads": ("num_attention_heads", "n_head"),
    "heads_kv": ("num_key_value_heads",),
    "key_length": ("head_dim",),
    "vocabulary_size": ("vocab_size",),
    "sliding_window": ("sliding_window",),
}


def judge(path: str, name: str, allow_pickle: bool = False, folder: Optional[str] = None) -> List[str]:
    """Judge the file at ``path`` that is to be published as ``name``, and return warnings for the report.

    ``allow_pickle`` is the catalog entry's; whoever gives it has compared the pinned sha256. External data of ONNX is
    looked for in ``folder``, where the files lie as they will be published; None leaves it to a later judgement.
    Raises FormatError at the first violation, OSError where the file cannot be read.
    """
    with FileSource(path, name) as source:
        kind = recognise(source)
        suffix = os.path.splitext(name)[1].lower()
        if kind in _PICKLES and suffix not in _BY_SUFFIX.keys() - {".bin"} and allow_pickle:
            return [f"{shown(name)}: {NAMES[kind]}; load it with weights_only=True only"]
        if suffix in ALLOWED_SUFFIXES and kind not in _WEIGHTS and kind not in _PICKLES:
            judge_auxiliary(source, name)
            return []
        return _read(source, kind, suffix, folder).warnings


def describe(path: str) -> ModelFile:
    """Judge and describe a file, a split or sharded model by any of its files, or a model's folder.

    Raises FormatError at the first violation, OSError where something cannot be read.
    """
    if os.path.isdir(path):
        return _folder(path)
    if path.endswith(INDEX_SUFFIX):
        return read_sharded(path)
    with FileSource(path) as source:
        kind = recognise(source)
        model = _read(source, kind, os.path.splitext(path)[1].lower(), os.path.dirname(path) or ".")
    if model.format == "gguf" and split_position(model):
        return _split(path, model)
    return model


def describe_source(source: Source) -> ModelFile:
    """Judge and describe one file that only ``source`` can read; other files that it names are not looked at."""
    model = _read(source, recognise(source), os.path.splitext(source.name)[1].lower(), None)
    position = split_position(model) if model.format == "gguf" else None
    if position:
        model.warnings.append(f"file {position[0] + 1} of {position[1]}; the others were not looked at")
    elif model.files:
        model.warnings.append(f"its {len(model.files)} files of external data were not looked at")
    return model


def _read(source: Source, kind: str, suffix: str, folder: Optional[str]) -> ModelFile:
    allowed = _BY_SUFFIX.get(suffix, _WEIGHTS)
    # A header that is too damaged to be recognised is judged by the reader of its name, which says what is wrong.
    if kind in ("unknown", "empty", "text") and suffix in (".gguf", ".safetensors", ".onnx"):
        kind = allowed[0]
    if kind not in allowed:
        raise source.refuse("content", NAMES[kind], " or ".join(NAMES[one] for one in allowed))
    if kind == "gguf":
        return read_gguf(source)
    if kind == "safetensors":
        return read_safetensors(source)
    if kind == "onnx":
        return read_onnx(source, folder)
    return read_legacy_ggml(source)


def _split(path: str, model: ModelFile) -> ModelFile:
    """Judge all files of a split GGUF and return them as one. ``model`` is the file at ``path``."""
    position = split_position(model)
    assert position is not None
    number, count = position
    name = os.path.basename(path)
    match = _SHARD.fullmatch(name)
    if match is None or (int(match[2]), int(match[3])) != (number + 1, count):
        raise FormatError(shown(path), "split.no", f"file {number + 1} of {count}", "the name NAME-00001-of-0000N.gguf")
    folder = os.path.dirname(path)
    whole: Optional[ModelFile] = None
    seen = set()
    for one in range(count):
        file = f"{match[1]}-{one + 1:05d}-of-{count:05d}.gguf"
        try:
            with FileSource(os.path.join(folder, file)) as source:
                part = read_gguf(source)
        except FileNotFoundError:
            raise FormatError(shown(path), "split.count", f"no {shown(file)}", f"all {count} files there") from None
        if split_position(part) != (one, count):
            raise FormatError(shown(file), "split.no", shown(split_position(part)), f"file {one + 1} of {count}")
        for tensor in part.tensors:
            if tensor.name in seen:
                raise FormatError(shown(file), "tensor name", shown(tensor.name), "each name in one file only")
            seen.add(tensor.name)
        if whole is None:
            whole = part
        else:
            whole.tensors += part.tensors
            whole.size += part.size
            whole.warnings += part.warnings
        whole.files.append(file)
    assert whole is not None
    total = whole.metadata.get("split.tensors.count")
    if isinstance(total, int) and total != len(whole.tensors):
        raise FormatError(shown(path), "split.tensors.count", f"{len(whole.tensors)} tensors", f"{total} tensors")
    return whole


def judge_folder(path: str, allow_pickle: bool = False) -> List[str]:
    """Judge every file of a folder that is to be published as one model, and return warnings for the report.

    As ``describe`` does, but pickles pass, with a warning, where the catalog entry allows them. Raises FormatError,
    OSError.
    """
    models, pickles = _models(path, _names(path), allow_pickle)
    if not models and not pickles:
        raise _no_model(path)
    return pickles + [f"{shown(name)}: {one}" for name, model in sorted(models.items()) for one in model.warnings]


def _folder(path: str) -> ModelFile:
    """Judge every file of a model's folder and return the model in it."""
    names = _names(path)
    models, _ = _models(path, names, False)
    whole = [model for name, model in sorted(models.items())]
    if not whole:
        raise _no_model(path)
    # One of several forms of the same model; the others were judged.
    model = max(whole, key=lambda one: (one.format == "safetensors", one.tensor_bytes))
    model.files = names
    _from_config(model, os.path.join(path, "config.json"))
    return model


def _no_model(path: str) -> FormatError:
    return FormatError(shown(path), "files", "no model", "GGUF, safetensors, ONNX or legacy ggml")


def _models(path: str, names: List[str], allow_pickle: bool) -> Tuple[Dict[str, ModelFile], List[str]]:
    """Judge all files of a folder; returns the models in it by name, and a warning for each pickle."""
    judge_names(names, path)
    external: Set[str] = set()
    models: Dict[str, ModelFile] = {}
    pickles: List[str] = []
    for name in names:
        file = os.path.join(path, name)
        if name.endswith((INDEX_SUFFIX, ".onnx", ".gguf")) and name not in external:
            models[name] = describe(file)
            external.update(os.path.join(os.path.dirname(name), one) for one in models[name].files)
    for name in names:
        if name in models or name in external:
            continue
        file = os.path.join(path, name)
        if os.path.splitext(name)[1].lower() in ALLOWED_SUFFIXES:
            judge(file, name)
        elif allow_pickle and _is_pickle(file):
            pickles += judge(file, name, True)
        else:
            models[name] = describe(file)
    return models, pickles


def _is_pickle(path: str) -> bool:
    with FileSource(path) as source:
        return recognise(source) in _PICKLES


def _names(path: str) -> List[str]:
    names: List[str] = []
    for folder, folders, files in os.walk(path):
        # Version control's own files are no part of the model.
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        for file in sorted(files):
            if not file.startswith("."):
                names.append(os.path.relpath(os.path.join(folder, file), path))
        if len(names) > MAX_FILES:
            raise FormatError(shown(path), "files", f"more than {MAX_FILES}", f"at most {MAX_FILES}")
    return names


def _from_config(model: ModelFile, path: str) -> None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_CONFIG_BYTES:
        return
    with FileSource(path) as source:
        config = parse_json(source)
    if not isinstance(config, dict):
        return
    if model.architecture is None and isinstance(config.get("model_type"), str):
        model.architecture = config["model_type"]
    for field, keys in _CONFIG.items():
        for key in keys:
            if getattr(model, field) is None and type(config.get(key)) is int:
                setattr(model, field, config[key])
