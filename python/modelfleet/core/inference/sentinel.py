"""Whether something changed that a proof rests on, and what: only that is proved again.

The grounds are facts by name: kernel, driver, the environment's key and packages, modelfleet; of a model also its
files (pinned hash, and which file on disk it is), what it is asked and where it runs. Their hash is the fingerprint.
"""

import hashlib
import json
import os
import platform
from typing import Any, Dict, Iterator, List, Mapping, Optional

from ... import __version__
from ..runtime.environment import installed_distributions, read_state
from ..store.manifest import Manifest
from .records import Record
from .subjects import Subject

Grounds = Dict[str, Any]
_NAMED = 3
"""So many packages are named that changed; the others are counted."""


def host_grounds(runtime_path: str, environment_key: str) -> Grounds:
    """Return what every proof of a host rests on; reads the names of the installed packages, runs nothing."""
    current = os.path.join(runtime_path, "current")
    split = (one.rpartition("-") for one in installed_distributions(current))
    return {
        "kernel": platform.release(),
        "driver": driver_version(),
        "environment": environment_key,
        "packages": {name: version for name, _, version in split},
        "modelfleet": __version__,
    }


def proof_grounds(host: Grounds, subject: Subject, manifest: Manifest) -> Grounds:
    """Return what the proof of ``subject`` rests on."""
    return {
        **host,
        "files": {path: _file(sha256, path, manifest) for path, sha256 in subject.files.items()},
        "check": subject.check,
        "placement": subject.placement,
    }


def installation_grounds(host: Grounds, hardware: Mapping[str, Any]) -> Grounds:
    """Return what the proof of the installation rests on: of the hardware the GPUs, by what makes them what they are.

    The profile may have been read before a driver was installed: the driver's own word is in ``host``.
    """
    stable = ("vendor", "name", "compute_capability", "gfx_target")
    found = hardware.get("accelerators") or []
    accelerators = [{name: one.get(name) for name in stable} for one in found if isinstance(one, Mapping)]
    return {**host, "accelerators": accelerators}


def fingerprint(grounds: Grounds) -> str:
    """Return the hash of the grounds."""
    return hashlib.sha256(json.dumps(grounds, sort_keys=True).encode()).hexdigest()


def why_due(record: Optional[Record], grounds: Grounds) -> List[str]:
    """Return why a proof has to run, one line each; empty where it stands."""
    if record is None:
        return ["never proved"]
    if not (record.get("passed") or record.get("unproved")):
        return ["it did not pass the last time"]
    if record.get("fingerprint") == fingerprint(grounds):
        return []
    earlier = record.get("grounds")
    found = list(_changes(earlier, grounds)) if isinstance(earlier, dict) else []
    return found or ["it was proved by another release"]


def changed_file(store_path: str, manifest: Manifest, subject: Subject) -> str:
    """Return what is wrong with the first file that is not the published one, '' where all are.

    By the rule of the audit's quick look: stat, held against the manifest's
    record; nothing is read.
    """
    for path in subject.files:
        try:
            status = os.lstat(os.path.join(store_path, path))
        except OSError:
            return f"{path} is not in the store"
        record = manifest.get(path)
        if record is None:
            return f"{path} is there, not proved by its hash yet"
        if not record.matches(status):
            return f"{path} was changed since it was published"
        if subject.files[path] and record.sha256 != subject.files[path]:
            return f"{path} is another version than the lock pins"
    return ""


def installed_key(runtime_path: str) -> str:
    """Return the key of the environment in use; '' where there is none."""
    state = read_state(os.path.join(runtime_path, "current")) or {}
    return str(state.get("key", ""))


def driver_version() -> Optional[str]:
    """Return the version of the GPU driver's kernel module; None where none is loaded, or it is the kernel's own."""
    for module in ("nvidia", "amdgpu"):
        try:
            with open(f"/sys/module/{module}/version", encoding="utf-8") as source:
                return f"{module} {source.readline().strip()}"
        except OSError:
            continue
    return None


def _file(sha256: str, path: str, manifest: Manifest) -> Dict[str, Any]:
    record = manifest.get(path)
    if record is None:
        return {"sha256": sha256}
    return {"sha256": sha256 or record.sha256, "inode": record.inode, "mtime_ns": record.mtime_ns}


def _changes(earlier: Grounds, grounds: Grounds) -> Iterator[str]:
    for name in grounds:
        before, after = earlier.get(name), grounds[name]
        if before == after:
            continue
        if name == "packages" and isinstance(before, dict):
            yield from _packages(before, after)
        elif name == "files" and isinstance(before, dict):
            yield from _files(before, after)
        elif name == "check":
            yield "the check is another"
        else:
            yield f"{name} {_told(before)} → {_told(after)}"


def _packages(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    for name in changed[:_NAMED]:
        yield f"package {name} {before.get(name, 'none')} → {after.get(name, 'none')}"
    if len(changed) > _NAMED:
        yield f"{len(changed) - _NAMED} more packages"


def _files(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for path in sorted({*before, *after}):
        one, other = before.get(path), after.get(path)
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict) and one.get("sha256") == other.get("sha256"):
            yield f"{path} was published again"
        else:
            yield f"{path} is another version"


def _told(value: Any) -> str:
    if isinstance(value, dict) and "device" in value:
        layers = f", {value['gpu_layers']} layers" if value.get("gpu_layers") else ""
        return f"{value['device']}{layers}"
    if value is None or value == "":
        return "none"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
