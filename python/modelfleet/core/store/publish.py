"""Publishing: proved files appear under their names whole, durable and recorded, or not at all.

Everything here is to be called with the owner's rights and the store's lock
held. What is published lies in a staging folder in ``cache/temp``, on the same
file system; each step is one rename. The rename comes before the record: a
crash in between leaves whole files that the next run proves by their hash.
"""

import contextlib
import os
import shutil
import stat
from typing import Iterable, List, Mapping, NamedTuple, Optional, Sequence

from ..errors import UnsafePathError
from .folders import exchange, files_below, opened, seal, seal_file
from .layout import TEMPORARY
from .manifest import FileRecord, Manifest, clock_ns, now, write_manifest

FILE_MODE = 0o644
OLD = "-old"
"""Behind the name of a staging folder: the folder that was moved away for it."""


class Proof(NamedTuple):
    """What is known of a file that is proved: ``status`` is its stat while that was done."""

    model: str
    sha256: str
    source: str
    licence: Optional[str]
    status: os.stat_result


def publish_files(store_path: str, staging: str, folder: str, names: Sequence[str]) -> None:
    """Move the files ``names`` from the folder ``staging`` in ``cache/temp`` to ``folder``; the last is the entry.

    The entry is what readers open first (a split model's first file, an index):
    it appears when all others are there. Where several take the place of older
    ones, the old entry goes first: a reader finds the old model, for a moment
    none, or the new one, but never a mixture.
    """
    with opened(store_path, f"{TEMPORARY}/{staging}") as source, opened(store_path, folder) as target:
        there = [name for name in names if _is_there(target, name, f"{store_path}/{folder}/{name}")]
        if len(names) > 1 and there:
            entry = names[-1]
            if not _is_there(source, entry, entry):
                # It stays what it is, and comes back when all others are the ones that belong to it.
                os.replace(entry, entry, src_dir_fd=target, dst_dir_fd=source)
            elif entry in there:
                os.unlink(entry, dir_fd=target)
            os.fsync(target)
        gid = os.fstat(target).st_gid
        for name in names:
            seal_file(source, name, FILE_MODE, gid)
        for name in names:
            os.replace(name, name, src_dir_fd=source, dst_dir_fd=target)
        os.fsync(target)
        os.fsync(source)


def publish_folder(store_path: str, staging: str, unit: str) -> None:
    """Make the folder ``staging`` in ``cache/temp`` the folder ``unit`` of the store, in one step.

    An older one is exchanged with it, and lies where the new one was. Where
    the system cannot exchange (macOS before 10.12, some network file systems)
    the old one is moved away first: for a moment there is none, and a run that
    is killed then is completed by the next.
    """
    parent, name = os.path.split(unit)
    with opened(store_path, TEMPORARY) as source, opened(store_path, parent) as target:
        status = os.fstat(target)
        with opened(store_path, f"{TEMPORARY}/{staging}") as folder:
            seal(folder, stat.S_IMODE(status.st_mode), FILE_MODE, status.st_gid)
        try:
            there = stat.S_ISDIR(os.lstat(name, dir_fd=target).st_mode)
        except FileNotFoundError:
            os.rename(staging, name, src_dir_fd=source, dst_dir_fd=target)
        else:
            if not there:
                raise UnsafePathError(f"{store_path}/{unit}", "is not a folder", "move it away")
            if not exchange(source, staging, target, name):
                os.rename(name, f"{staging}{OLD}", src_dir_fd=target, dst_dir_fd=source)
                os.rename(staging, name, src_dir_fd=source, dst_dir_fd=target)
        os.fsync(target)
        os.fsync(source)


def record(store_path: str, manifest: Manifest, proofs: Mapping[str, Proof], gone: Iterable[str] = ()) -> None:
    """Write into the manifest, in one step, that the files of ``proofs`` are there, and those ``gone`` no more.

    Raises UnsafePathError where one is not the file that was proved.
    """
    recorded = clock_ns(store_path)
    for name in gone:
        manifest.pop(name, None)
    for name, proof in proofs.items():
        path = os.path.join(store_path, name)
        status = os.lstat(path)
        if _identity(status) != _identity(proof.status):
            raise UnsafePathError(path, "was changed while it was published", "run again")
        manifest[name] = FileRecord(
            model=proof.model,
            size=status.st_size,
            sha256=proof.sha256,
            device=status.st_dev,
            inode=status.st_ino,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
            source=proof.source,
            licence=proof.licence,
            published_at=now(),
            recorded_ns=recorded,
        )
    write_manifest(store_path, manifest)


def _identity(status: os.stat_result) -> "tuple[int, ...]":
    # Not the ctime: modes and renames change it.
    kind = stat.S_IFMT(status.st_mode)
    return (kind, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def take_away_files(store_path: str, folder: str, names: Sequence[str]) -> None:
    """Remove files from ``folder``, the entry, which is the last, first."""
    with opened(store_path, folder) as target:
        for name in reversed(names):
            with contextlib.suppress(FileNotFoundError):
                if _is_there(target, name, f"{store_path}/{folder}/{name}"):
                    os.unlink(name, dir_fd=target)
        os.fsync(target)


def take_away_folder(store_path: str, unit: str, grave: str) -> None:
    """Move the folder ``unit`` in one step to ``grave`` in ``cache/temp``, and remove it there."""
    parent, name = os.path.split(unit)
    with opened(store_path, TEMPORARY) as target, opened(store_path, parent) as source:
        os.rename(name, grave, src_dir_fd=source, dst_dir_fd=target)
        os.fsync(source)
    remove_tree(os.path.join(store_path, TEMPORARY, grave))


def remove_tree(path: str) -> None:
    """Remove a folder in ``cache/temp``, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def list_unit(store_path: str, unit: str) -> List[str]:
    """Return the files in the folder ``unit``, relative to the store; empty where there is none."""
    try:
        with opened(store_path, unit) as folder:
            return [f"{unit}/{name}" for name in files_below(folder)]
    except FileNotFoundError:
        return []


def refuse_irregular(path: str) -> None:
    """Raise UnsafePathError where ``path`` is there but no regular file."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    _require_regular(status, path)


def _is_there(folder: int, name: str, path: str) -> bool:
    try:
        status = os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    _require_regular(status, path)
    return True


def _require_regular(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnsafePathError(path, "is not a regular file", "move it away")
