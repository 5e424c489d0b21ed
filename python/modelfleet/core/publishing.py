"""Carrying out the models' part of a plan: fetch what is missing, prove it, publish it."""

import contextlib
import os
from typing import Any, Dict, List

from .catalog import PinnedFile
from .errors import ModelfleetError, UnsafePathError
from .fetch.package_index import PackageIndexSettings
from .fetch.transfer import fetch, hash_file, sweep
from .formats.judge import judge
from .jobs import Progress
from .planning import HostPlan, ModelPlan, disk_bytes
from .privilege import acting_as
from .store.layout import TEMPORARY
from .store.manifest import Manifest, locked, read_manifest
from .store.publish import publish, record, refuse_irregular
from .store.tree import store_owner
from .units import format_bytes


def carry_out(plan: HostPlan, settings: PackageIndexSettings, progress: Progress) -> List[str]:
    """Publish all that ``plan`` fetches and return the paths published, relative to the store.

    A model that fails stops the run; what was published before stays. Raises
    ModelfleetError (its kinds say why) and OSError where the system refuses.
    """
    owner = store_owner(plan.store_path)
    published: List[str] = []
    with acting_as(owner), locked(
        plan.store_path, lambda: progress.update("waiting for another run to release the store")
    ):
        temporary = os.path.join(plan.store_path, TEMPORARY)
        sweep(temporary)
        # Another run may have published while we waited.
        manifest = read_manifest(plan.store_path)
        pending = [
            (model, file)
            for model in plan.models
            for file in model.missing
            if not _proved_meanwhile(plan.store_path, file, manifest)
        ]
        _require_space(plan.store_path, [file for _, file in pending])
        for model, file in pending:
            _publish_one(plan.store_path, model, file, manifest, settings, progress)
            published.append(file.path)
    return published


def _require_space(store_path: str, files: List[PinnedFile]) -> None:
    # A file of the pinned size is most likely the pinned one, only its record is missing.
    needed = disk_bytes([file for file in files if _size(os.path.join(store_path, file.path)) != file.size])
    free = os.statvfs(store_path)
    available = free.f_bavail * free.f_frsize
    if available < needed:
        raise ModelfleetError(
            f"{store_path}: {format_bytes(needed)} are needed, {format_bytes(available)} are free",
            "free some space, or set model_store_path to another file system",
        )


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return -1


def _proved_meanwhile(store_path: str, file: PinnedFile, manifest: Manifest) -> bool:
    known = manifest.get(file.path)
    if known is None or known.sha256 != file.sha256:
        return False
    try:
        return known.matches(os.lstat(os.path.join(store_path, file.path)))
    except FileNotFoundError:
        return False


def _publish_one(
    store_path: str,
    model: ModelPlan,
    file: PinnedFile,
    manifest: Manifest,
    settings: PackageIndexSettings,
    progress: Progress,
) -> None:
    final = os.path.join(store_path, file.path)
    about: Dict[str, Any] = {
        "model": model.variant.model,
        "sha256": file.sha256,
        "source": file.source,
        "licence": model.variant.licence,
    }
    refuse_irregular(final)
    if os.path.lexists(final):
        if hash_file(final, file, progress) == file.sha256:
            record(store_path, manifest, file.path, **about)
            return
        if file.path not in manifest:
            raise UnsafePathError(
                final,
                "is there with other bytes than the lock pins, and modelfleet did not put it there",
                "move it away",
            )
    temporary = fetch(file, os.path.join(store_path, TEMPORARY), settings, progress)
    progress.update(f"publishing {os.path.basename(final)}")
    try:
        judge(temporary, file.path)
        publish(store_path, manifest, temporary, file.path, **about)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
