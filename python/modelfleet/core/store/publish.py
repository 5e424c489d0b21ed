"""Publishing: a proved file appears under its name whole, durable and recorded, or not at all."""

import os
import stat

from ..errors import UnsafePathError
from .manifest import FileRecord, Manifest, now, sync_directory, write_manifest

FILE_MODE = 0o644


def publish(
    store_path: str,
    manifest: Manifest,
    temporary: str,
    name: str,
    *,
    model: str,
    sha256: str,
    source: str,
    licence: "str | None",
) -> None:
    """Move the proved file ``temporary`` (on the store's file system) to ``name`` and record it.

    To be called with the owner's rights and the store's lock held. The rename
    comes before the record: a crash in between leaves a whole file that the
    next run proves by its hash. Raises UnsafePathError where something that is
    no regular file is in the way.
    """
    final = os.path.join(store_path, name)
    refuse_irregular(final)
    descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, FILE_MODE)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, final)
    sync_directory(os.path.dirname(final))
    record(store_path, manifest, name, model=model, sha256=sha256, source=source, licence=licence)


def record(
    store_path: str, manifest: Manifest, name: str, *, model: str, sha256: str, source: str, licence: "str | None"
) -> None:
    """Write into the manifest that the file ``name`` is there and was proved to have ``sha256``."""
    status = os.lstat(os.path.join(store_path, name))
    manifest[name] = FileRecord(
        model=model,
        size=status.st_size,
        sha256=sha256,
        device=status.st_dev,
        inode=status.st_ino,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        source=source,
        licence=licence,
        published_at=now(),
    )
    write_manifest(store_path, manifest)


def refuse_irregular(path: str) -> None:
    """Raise UnsafePathError where ``path`` is there but no regular file."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise UnsafePathError(path, "is not a regular file", "move it away")
