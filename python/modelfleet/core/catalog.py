"""Models by name: the catalog that users edit, and the lock that pins its bytes.

A catalog entry (YAML)::

    - id: small-7b-instruct
      category: chat/7b                     # the directory in the store
      tasks: [general, coding]              # what it is good for; a wish may name a task instead of a model
      preferred_for: [general]              # the tasks that mean this model where several would do
      licence: apache-2.0
      parameters: 7615616512
      context_length: 32768                 # tokens
      shape: {architecture: qwen2, layers: 28, …}     # what memory depends on (core.memory)
      default_quantization: q4_k_m
      allow_pickle: false                   # whether a pickle, which can run code, may be published
      variants:                             # by quantization
        q4_k_m:
          files:                            # more than one: in a folder of their own, published whole
            - name: small-7b-instruct.q4_k_m.gguf
              source: hf://OWNER/NAME@REVISION/FILE     # or a list of them, the preferred first
              size: 4683074240              # bytes; where known, as is the sha256
              sha256: …
      check: {prompt: "The capital of France is", expected: " Paris"}     # by kind, see core.model_checks

What is known of a model's bytes is in the lock (core.pins).
"""

from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from .errors import CatalogError, ConfigurationError
from .fetch.sources import HubSource, WheelSource, parse_source
from .formats.auxiliary import ALLOWED_SUFFIXES
from .model_checks import Check, read_check
from .pins import (
    CURE,
    SHA256,
    PinnedFile,
    WheelPin,
    locked_models,
    pinned_commit,
    pinned_sha256,
    pinned_size,
    pins_of,
    wheel_pin,
)
from .reading import NAME, Section, nearest
from .store.layout import CATEGORIES

__all__ = ["Catalog", "Check", "Entry", "PinnedFile", "Variant", "WheelPin", "read_catalog", "refuse_collisions"]

KINDS = {
    "chat": "chat",
    "image/stable-diffusion": "diffusion",
    "image/controlnet": "controlnet",
    "voice/tts": "tts",
    "voice/stt": "stt",
    "embeddings": "embedding",
}
"""What a model does, by the category that it is in or below."""
FORMATS = {
    ".gguf": "gguf",
    ".safetensors": "safetensors",
    ".onnx": "onnx",
    ".bin": "ggml",
    ".pt": "pickle",
    ".pth": "pickle",
    ".ckpt": "pickle",
}
"""The format of weights by the suffix of their file; a ``.bin`` that is a pickle needs ``format: pickle``."""
QUALITY = (
    *("fp32", "fp16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_1", "q5_k_s", "q5_0", "q4_k_m", "q4_1", "q4_k_s", "q4_0"),
    *("q3_k_l", "q3_k_m", "q3_k_s", "q2_k"),
)
"""Quantizations from the best to the smallest (perplexity, llama.cpp's tools/quantize)."""

_ENTRY_KEYS = (
    *("id", "category", "tasks", "task", "preferred_for", "licence", "parameters", "context_length", "shape"),
    *("default_quantization", "variants", "check", "allow_pickle"),
)
_REQUIRED_SHAPE = (
    *("architecture", "layers", "embedding_length", "feed_forward_length", "heads", "heads_kv", "key_length"),
    *("value_length", "vocabulary_size", "context_length"),
)
_SHAPE_KEYS = {
    **dict.fromkeys((*_REQUIRED_SHAPE, "sliding_window", "experts", "experts_used"), int),
    "architecture": str,
    "tied_embeddings": bool,
    "rope_factors": bool,
}


class Variant(NamedTuple):
    """One model in one quantization, with all its files; ``unit`` is the folder that is published whole, if any."""

    model: str
    quantization: str
    category: str
    licence: Optional[str]
    files: Tuple[PinnedFile, ...]
    check: Optional[Check]
    format: str = "gguf"
    shape: Optional[Dict[str, Any]] = None
    allow_pickle: bool = False
    unit: Optional[str] = None

    @property
    def locked(self) -> bool:
        """Whether the lock pins every file."""
        return all(file.locked for file in self.files)


class Entry(NamedTuple):
    """A model of the catalog. ``variants`` are by quantization, the best quality first; contexts are in tokens."""

    id: str
    category: str
    tasks: Tuple[str, ...]
    preferred_for: Tuple[str, ...]
    kind: str
    licence: Optional[str]
    parameters: Optional[int]
    context_length: Optional[int]
    shape: Optional[Dict[str, Any]]
    default_quantization: str
    variants: Dict[str, Variant]
    check: Optional[Check]
    allow_pickle: bool


class Catalog(NamedTuple):
    """All models that are known, by id, in the catalog's order."""

    entries: Dict[str, Entry]


def read_catalog(entries: Sequence[Mapping[str, Any]], lock: Mapping[str, Any]) -> Catalog:
    """Return the catalog with what the lock pins.

    A later entry wins over an earlier one of the same id. Everything is
    validated: raises CatalogError naming the entry and key that are wrong,
    ConfigurationError where the lock is not what it must be.
    """
    locked = locked_models(lock)
    if not isinstance(entries, (list, tuple)):
        raise CatalogError("the catalog is not a list", "write each model as an entry beginning with '- id: …'")
    # The lock pins what the last entry of an id says: to one that it wins over it can be a contradiction.
    last = {str(raw.get("id")): number for number, raw in enumerate(entries) if isinstance(raw, Mapping)}
    pinned_entries = set(last.values())
    known: Dict[str, Entry] = {}
    for number, raw in enumerate(entries):
        pinned = locked if number in pinned_entries else {}
        entry = _entry(Section(raw, "catalog", (number,), f"catalog entry {number + 1}", "id"), pinned)
        known[entry.id] = entry
    return Catalog(known)


def refuse_collisions(variants: Iterable[Variant]) -> None:
    """Raise ConfigurationError where two variants claim one path, or one claims a path in the other's folder.

    Names that differ in case only are one file on some systems. Two may share the same bytes.
    """
    claimed: Dict[str, Tuple[Variant, PinnedFile]] = {}
    units: Dict[str, Variant] = {}
    for variant in variants:
        name = _called(variant)
        for file in variant.files:
            other, first = claimed.setdefault(file.path.lower(), (variant, file))
            if first is not file and (other is variant or (first.path, first.sha256) != (file.path, file.sha256)):
                raise _both(_called(other), name, file.path)
        # Only the first three parts can be a folder that is published whole: the category has one or two.
        for path in {variant.unit} if variant.unit else {file.path for file in variant.files}:
            holder = units.setdefault(path.lower(), variant)
            if holder is not variant and holder.files != variant.files:
                raise _both(_called(holder), name, path)


def _called(variant: Variant) -> str:
    return f"{variant.model} ({variant.quantization})"


def _both(one: str, other: str, path: str) -> ConfigurationError:
    return ConfigurationError(
        f"{one} and {other} both publish {path}", "give one of the files another name in the catalog"
    )


def _entry(section: Section, locked: Mapping[str, Any]) -> Entry:
    name = section.text("id")
    if not NAME.match(name):
        raise section.wrong("id", f": the id {name!r} is no name", "use letters, digits, '.', '_' and '-'")
    section.where = f"catalog entry {name}"
    section.only(_ENTRY_KEYS)
    category = section.text("category")
    if category not in CATEGORIES:
        message = f": category {category!r} is no directory of the store{nearest(category, CATEGORIES)}"
        raise section.wrong("category", message, f"use one of {', '.join(CATEGORIES)}")
    tasks = section.words("tasks") + section.words("task")
    preferred_for = section.words("preferred_for")
    licence = section.text("licence") if section.value.get("licence") is not None else None
    allow_pickle = section.flag("allow_pickle")
    check = read_check(section, kind_of(category))
    about = (name, category, licence, check, allow_pickle)
    offered = section.value.get("variants")
    if not isinstance(offered, Mapping) or not offered:
        place = "variants" if "variants" in section.value else None
        raise section.wrong(place, ": variants is missing or empty", "list at least one quantization with its files")
    variants = {}
    for quantization in _by_quality(offered):
        if not isinstance(quantization, str) or not NAME.match(quantization):
            cure = "use letters, digits, '.', '_' and '-', in quotes where YAML takes them for a number"
            raise section.wrong("variants", f": the quantization {quantization!r} is no name", cure)
        path = (*section.path, "variants", quantization)
        listing = Section(offered[quantization], "catalog", path, f"{section.where}, {quantization}", "files")
        variants[quantization] = _variant(listing, quantization, about, locked.get(name, {}).get(quantization, {}))
    default = section.value.get("default_quantization", next(iter(offered)))
    if not isinstance(default, str) or default not in variants:
        raise section.wrong(
            "default_quantization",
            f" has no quantization {default!r}{nearest(str(default), variants)}",
            f"use one of {', '.join(variants)}",
        )
    return Entry(
        id=name,
        category=category,
        tasks=tuple(dict.fromkeys(tasks + preferred_for)),
        preferred_for=preferred_for,
        kind=kind_of(category),
        licence=licence,
        parameters=section.number("parameters", "weights"),
        context_length=section.number("context_length", "tokens"),
        shape=_shape(section),
        default_quantization=default,
        variants=variants,
        check=check,
        allow_pickle=allow_pickle,
    )


def _shape(section: Section) -> Optional[Dict[str, Any]]:
    if section.value.get("shape") is None:
        return None
    shape = section.inside("shape", "shape", "architecture")
    shape.only(_SHAPE_KEYS)
    for key in _REQUIRED_SHAPE:
        if shape.value.get(key) is None:
            raise shape.wrong(None, f": {key!r} is missing", "take it from the model's config.json")
    for key in shape.value:
        kind = _SHAPE_KEYS[key]
        if kind is int:
            shape.number(key, "what it counts")
        elif kind is bool:
            shape.flag(key)
        else:
            shape.text(key)
    return dict(shape.value)


def _variant(
    section: Section,
    quantization: str,
    about: Tuple[str, str, Optional[str], Optional[Check], bool],
    locked: Mapping[str, Any],
) -> Variant:
    model, category, licence, check, allow_pickle = about
    section.only(("files", "format"))
    listing = section.value.get("files")
    if not isinstance(listing, (list, tuple)) or not listing:
        raise section.wrong(
            "files" if "files" in section.value else None, " lists no files", "list each with its name and source"
        )
    pins = pins_of(locked, f"{model} ({quantization})")
    files: List[PinnedFile] = []
    for number, one in enumerate(listing):
        reader = Section(
            one, "catalog", (*section.path, "files", number), f"{section.where}, file {number + 1}", "name"
        )
        file = _file(reader, category, pins)
        if any(file.path.lower() == other.path.lower() for other in files):
            raise reader.wrong("name", f": {file.path} is listed twice", "leave one out")
        files.append(file)
    variant = Variant(
        *(model, quantization, category, licence, tuple(files), check),
        format=_format(section, files),
        shape=None,
        allow_pickle=allow_pickle,
        unit=_unit(section, category, files),
    )
    # A shape belongs to the bytes that it was read from.
    return variant._replace(shape=locked.get("shape")) if variant.locked else variant


def _format(section: Section, files: Sequence[PinnedFile]) -> str:
    suffixes = [_suffix(file.path) for file in files]
    found = {FORMATS[suffix] for suffix in suffixes if suffix in FORMATS}
    stated = section.value.get("format")
    if stated is not None:
        # Only a pickle can look like something else.
        if stated not in FORMATS.values() or (found != {stated} and stated != "pickle"):
            raise section.wrong("format", f": the files are no {stated!r}", "leave format out, or write pickle")
        return str(stated)
    if len(found) != 1:
        what = f"of {' and '.join(sorted(found))}" if found else "without weights"
        raise section.wrong("files", f": a variant {what}", f"list weights of one format ({', '.join(FORMATS)})")
    return found.pop()


def _unit(section: Section, category: str, files: Sequence[PinnedFile]) -> Optional[str]:
    names = [file.path[len(category) + 1 :] for file in files]
    folders = {name.split("/")[0] for name in names if "/" in name}
    if len(files) > 1 and (len(folders) > 1 or not all("/" in name for name in names)):
        raise section.wrong(
            "files",
            ": several files that are not in one folder",
            "name them FOLDER/NAME, so that they are published whole",
        )
    return f"{category}/{folders.pop()}" if folders else None


def _file(section: Section, category: str, pins: Mapping[str, Mapping[str, Any]]) -> PinnedFile:
    name = section.text("name")
    section.only(("name", "source", "size", "sha256"))
    if len(name) > 1000 or not all(NAME.match(part) for part in name.split("/")):
        raise section.wrong(
            "name",
            f": the file name {name!r} is not a plain name",
            "use letters, digits, '.', '_' and '-', and '/' below a folder of its own",
        )
    if _suffix(name) not in FORMATS and _suffix(name) not in ALLOWED_SUFFIXES:
        allowed = " ".join((*FORMATS, *ALLOWED_SUFFIXES))
        raise section.wrong("name", f": {name!r} is no kind of file that is published", f"allowed are {allowed}")
    given = section.value.get("source")
    sources = [section.text("source")] if not isinstance(given, (list, tuple)) else list(given)
    if not sources or not all(isinstance(one, str) for one in sources):
        raise section.wrong("source", ": 'source' is no list of texts", "write 'source: …' or a list of them")
    parsed = []
    for source in sources:
        try:
            parsed.append(parse_source(source))
        except ConfigurationError as error:
            raise section.wrong("source", f", {name}: {error.message}", error.cure or "") from None
    size, sha256 = section.number("size", "bytes"), section.value.get("sha256")
    if sha256 is not None and not (isinstance(sha256, str) and SHA256.match(sha256)):
        raise section.wrong("sha256", f": 'sha256' is {sha256!r}", "write 64 hexadecimal digits in lower case")
    file = PinnedFile(f"{category}/{name}", sources[0], size, sha256, None, tuple(sources[1:]), in_lock=False)
    pin = pins.get(name)
    if pin is None:
        return file
    return _pinned(section, file, pin, parsed)


def _pinned(section: Section, file: PinnedFile, pin: Mapping[str, Any], parsed: Sequence[Any]) -> PinnedFile:
    """Return ``file`` with what the lock says of it; unchanged where the lock pins another source."""
    texts = [file.source, *file.alternatives]
    if pin.get("source") not in texts:
        return file
    size, sha256 = pinned_size(pin, file.path), pinned_sha256(pin, file.path)
    for key, stated, found in (("size", file.size, size), ("sha256", file.sha256, sha256)):
        if stated is not None and stated != found:
            raise section.wrong(key, f": {key} is {stated}, the lock pins {found}", f"correct one of them, or {CURE}")
    commit, wheel = pinned_commit(pin, file.path), wheel_pin(pin, file.path)
    sources = []
    for text, source in zip(texts, parsed):
        if isinstance(source, HubSource) and commit is not None and text == pin["source"]:
            sources.append(source.at(commit))
        elif wheel is not None or not isinstance(source, WheelSource):
            sources.append(text)
    return PinnedFile(file.path, sources[0], size, sha256, wheel, tuple(sources[1:]))


def rank(quantization: str) -> Optional[int]:
    """Return a quantization's place from the best (0) to the smallest, None where it is not known."""
    return QUALITY.index(quantization) if quantization in QUALITY else None


def kind_of(category: str) -> str:
    """Return what the models of a category do."""
    return KINDS.get(category) or KINDS[category.split("/")[0]]


def _suffix(name: str) -> str:
    dot = name.rfind(".")
    return name[dot:].lower() if dot > name.rfind("/") else ""


def _by_quality(names: Iterable[Any]) -> List[Any]:
    """Return quantizations with the best first; where one is not known, in the order in which they are listed."""
    listed = list(names)
    return sorted(listed, key=QUALITY.index) if all(name in QUALITY for name in listed) else listed
