"""Pruning: what modelfleet published and no wish keeps goes, and what is in flight for nobody.

Only what the manifest records is ever removed, and only while its bytes are
the ones that were published. A file goes before its record: a run that is
killed in between leaves a record of nothing, and the next one drops it. The
other way round it would leave a file that nobody owns.
"""

import contextlib
import os
import re
import shutil
import stat
from typing import Dict, FrozenSet, List, NamedTuple, Optional, Tuple

from ..jobs import Progress
from ..privilege import Account, acting_as
from .folders import opened
from .hashing import look_at
from .layout import CATEGORIES, TEMPORARY
from .manifest import Manifest, locked, read_manifest
from .publish import list_unit, record, take_away_files, take_away_folder

REMOVED = "removed"
LEFT = "left"
GONE = "gone"

# What we leave in flight: parts and their journals, whole files, staging folders and those on their way out.
_OURS = re.compile(r"([0-9a-f]{64}\.part(\.journal)?|modelfleet-.+)\Z")
_FIRST = re.compile(r".*-00001-of-[0-9]+\.[a-z]+\Z|.*\.index\.json\Z")
_GRAVE = "modelfleet-unit-pruned"


class Keep(NamedTuple):
    """What stays: paths of the store, all files of some models, and names in ``cache/temp``."""

    paths: FrozenSet[str] = frozenset()
    models: FrozenSet[str] = frozenset()
    in_flight: FrozenSet[str] = frozenset()


class Unwished(NamedTuple):
    """A file that no wish keeps.

    ``state`` is ``removed``, ``left`` (it was changed since it was published,
    so it is the user's now) or ``gone`` (it was not there any more);
    ``freed_bytes`` is what the disk gets back.
    """

    path: str
    model: str
    state: str
    freed_bytes: int


class Pruned(NamedTuple):
    """What a prune removes, or would: published files, and names in ``cache/temp`` with what the disk gets back."""

    files: Tuple[Unwished, ...]
    in_flight: Tuple[Tuple[str, int], ...]

    @property
    def freed_bytes(self) -> int:
        """Bytes that the disk gets back."""
        return sum(file.freed_bytes for file in self.files) + sum(size for _, size in self.in_flight)


def foresee(store_path: str, owner: Account, keep: Keep, progress: Progress) -> Pruned:
    """Return what ``prune`` would remove now; changes nothing."""
    with acting_as(owner):
        return _find(store_path, read_manifest(store_path), keep, progress)


def prune(store_path: str, owner: Account, keep: Keep, progress: Progress) -> Pruned:
    """Remove what ``keep`` does not name, and return it.

    Raises ModelfleetError where the manifest is damaged, OSError where the
    system refuses; what was removed before is recorded as removed.
    """
    with acting_as(owner), locked(store_path, lambda: progress.update("waiting for another run")):
        manifest = read_manifest(store_path)
        found = _find(store_path, manifest, keep, progress)
        units: Dict[str, List[Unwished]] = {}
        for file in found.files:
            units.setdefault(_unit_of(file.path), []).append(file)
        for unit, files in units.items():
            progress.update(f"removing {files[0].model}")
            _remove(store_path, unit, [file.path for file in files if file.state == REMOVED])
            record(store_path, manifest, {}, [file.path for file in files])
        for name, _ in found.in_flight:
            path = os.path.join(store_path, TEMPORARY, name)
            with contextlib.suppress(FileNotFoundError):
                is_folder = os.path.isdir(path) and not os.path.islink(path)
                (shutil.rmtree if is_folder else os.unlink)(path)
    return found


def _find(store_path: str, manifest: Manifest, keep: Keep, progress: Progress) -> Pruned:
    unwished = {
        path: known
        for path, known in sorted(manifest.items())
        if path not in keep.paths and known.model not in keep.models
    }
    statuses = {path: _lstat(os.path.join(store_path, path)) for path in unwished}
    # What a stat does not prove is proved by its bytes, or is not ours any more.
    doubtful = []
    for path, known in unwished.items():
        status = statuses[path]
        if status is not None and not known.matches(status):
            doubtful.append((path, known.size))
    looks = look_at(store_path, doubtful, progress, "proving what was touched")
    files = []
    for path, known in unwished.items():
        status = statuses[path]
        state = REMOVED
        if status is None:
            state = GONE
        elif path in looks and looks[path].sha256 != known.sha256:
            state = LEFT
        files.append(Unwished(path, known.model, state, _frees(status) if state == REMOVED else 0))
    return Pruned(tuple(files), tuple(_in_flight(os.path.join(store_path, TEMPORARY), keep)))


def _in_flight(folder: str, keep: Keep) -> List[Tuple[str, int]]:
    found = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            if not _OURS.match(entry.name) or entry.name in keep.in_flight:
                continue
            size = _frees(entry.stat(follow_symlinks=False))
            if entry.is_dir(follow_symlinks=False):
                size = sum(
                    _frees(_lstat(os.path.join(below, name)))
                    for below, _, names in os.walk(entry.path)
                    for name in names
                )
            found.append((entry.name, size))
    return found


def _remove(store_path: str, unit: str, paths: List[str]) -> None:
    """Remove files of one unit, the one that readers open first before the others; then the folders that are empty."""
    if not paths:
        return
    if unit not in CATEGORIES and set(list_unit(store_path, unit)) == set(paths):
        take_away_folder(store_path, unit, _GRAVE)
        return
    folders: Dict[str, List[str]] = {}
    for path in paths:
        folders.setdefault(os.path.dirname(path), []).append(os.path.basename(path))
    for folder in sorted(folders):
        names = sorted(folders[folder], key=lambda name: (not _FIRST.match(name), name))
        with contextlib.suppress(FileNotFoundError):
            take_away_files(store_path, folder, names[::-1])
    for folder in sorted(folders, reverse=True):
        while folder.startswith(f"{unit}/") or (folder == unit and unit not in CATEGORIES):
            parent, name = os.path.split(folder)
            try:
                with opened(store_path, parent) as above:
                    os.rmdir(name, dir_fd=above)
            except OSError:
                break
            folder = parent


def _unit_of(path: str) -> str:
    """Return the folder whose files go together: a unit's, else the category."""
    category = next((one for one in CATEGORIES if path.startswith(f"{one}/")), None)
    if category is None:
        return os.path.dirname(path)
    name, below, _ = path[len(category) + 1 :].partition("/")
    return f"{category}/{name}" if below else category


def _lstat(path: str) -> Optional[os.stat_result]:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _frees(status: Optional[os.stat_result]) -> int:
    """Return what the disk gets back where this goes: nothing while it has another name."""
    if status is None or (stat.S_ISREG(status.st_mode) and status.st_nlink > 1):
        return 0
    return status.st_blocks * 512
