"""The lock as a file: read, merged, compared, and written so that the same content is always the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .core.errors import ConfigurationError
from .core.pins import SCHEMA_VERSION

LOCK_FILE = "models.lock.json"
_FILE_KEYS = ("name", "source", "commit", "size", "sha256", "wheel")
_COMPARED = ("source", "commit", "size", "sha256", "wheel")


class Change(NamedTuple):
    """One difference between two entries of a lock: in which file, of what, and both values (None: not there)."""

    file: str
    what: str
    before: Any
    after: Any


def empty() -> dict[str, Any]:
    """Return a lock that pins nothing."""
    return {"schema_version": SCHEMA_VERSION, "models": {}}


def read_lock(path: Path) -> dict[str, Any]:
    """Return the lock at ``path``, an empty one where there is no file. Raises ConfigurationError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return empty()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}", "name another file with --lock-file") from None
    except ValueError as error:
        raise ConfigurationError(f"{path} is no JSON: {error}", "restore it, or remove it and lock anew") from None
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path} is no lock", "restore it, or remove it and lock anew")
    return document


def entry_of(document: Mapping[str, Any], model: str, quantization: str) -> dict[str, Any] | None:
    """Return what a lock says of one variant, None where it says nothing."""
    found = document["models"].get(model, {}).get(quantization)
    return found if isinstance(found, dict) else None


def with_entry(document: Mapping[str, Any], model: str, quantization: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a lock with one variant's entry replaced and everything else as it was."""
    models = {**document["models"], model: {**document["models"].get(model, {}), quantization: dict(entry)}}
    return {**document, "models": models}


def changes(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> Iterator[Change]:
    """Yield what differs between two entries of one variant."""
    old = {file["name"]: file for file in (before or {}).get("files", [])}
    new = {file["name"]: file for file in after.get("files", [])}
    for name in sorted(old.keys() | new.keys()):
        if name not in new or name not in old:
            yield Change(name, "file", name if name in old else None, name if name in new else None)
            continue
        for what in _COMPARED:
            if old[name].get(what) != new[name].get(what):
                yield Change(name, what, old[name].get(what), new[name].get(what))


def render(document: Mapping[str, Any]) -> str:
    """Return a lock as text: sorted, each shape in one line."""
    shapes: list[str] = []
    models: dict[str, Any] = {}
    for model in sorted(document["models"]):
        for quantization in sorted(document["models"][model]):
            entry = document["models"][model][quantization]
            files = [_ordered(file) for file in sorted(entry["files"], key=lambda file: str(file["name"]))]
            models.setdefault(model, {})[quantization] = {"files": files}
            if entry.get("shape") is not None:
                models[model][quantization]["shape"] = len(shapes)
                shapes.append(json.dumps(entry["shape"], sort_keys=True))
    text = json.dumps({"schema_version": SCHEMA_VERSION, "models": models}, indent=1)
    for number, shape in enumerate(shapes):
        text = text.replace(f'"shape": {number}\n', f'"shape": {shape}\n', 1)
    return text + "\n"


def _ordered(file: Mapping[str, Any]) -> dict[str, Any]:
    return {key: file[key] for key in _FILE_KEYS if file.get(key) is not None}


def write_lock(path: Path, document: Mapping[str, Any]) -> bool:
    """Write a lock where its text differs from what is there, whole or not at all; return whether it did.

    Raises ConfigurationError where the file cannot be written.
    """
    text = render(document).encode()
    try:
        if path.is_file() and path.read_bytes() == text:
            return False
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as target:
                target.write(text)
                target.flush()
                os.fsync(descriptor)
            os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o644)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written: {error.strerror}", "name another file with --lock-file"
        ) from None
    return True
