"""What a store holds, as far as a plan needs to know: read once, one stat a file."""

import os
import stat
from typing import Dict, Iterable, Mapping, NamedTuple, Optional

from ..catalog import PinnedFile
from ..store.manifest import Manifest, read_manifest


class FoundFile(NamedTuple):
    """A file that is there: its bytes, and whether it is, untouched, the one of the manifest's record."""

    size: int
    proved: bool


class StoreState(NamedTuple):
    """A store, or the place of one to come. ``free_bytes`` and ``free_inodes`` of None are not known, not counted."""

    path: str
    manifest: Manifest
    found: Dict[str, FoundFile]
    free_bytes: Optional[int] = None
    free_inodes: Optional[int] = None


def read_state(path: str, files: Iterable[PinnedFile]) -> StoreState:
    """Return the state of the store at ``path`` as far as ``files`` go. Raises ModelfleetError of its manifest."""
    manifest = read_manifest(path)
    found: Dict[str, FoundFile] = {}
    for file in files:
        try:
            status = os.lstat(os.path.join(path, file.path))
        except (FileNotFoundError, NotADirectoryError):
            continue
        record = manifest.get(file.path)
        found[file.path] = FoundFile(
            status.st_size if stat.S_ISREG(status.st_mode) else -1, record is not None and record.matches(status)
        )
    place = path
    while not os.path.isdir(place) and place != os.path.dirname(place):
        place = os.path.dirname(place)
    system = os.statvfs(place)
    # Some file systems have no inodes to run out of, and say 0 of 0.
    inodes = system.f_favail if system.f_files else None
    return StoreState(path, manifest, found, system.f_bavail * system.f_frsize, inodes)


def empty_state(path: str, profile: Mapping[str, object]) -> StoreState:
    """Return the state of a store that nobody has filled, on the storage that ``profile`` tells of."""
    storage = profile.get("storage")
    known = storage if isinstance(storage, dict) else {}
    return StoreState(path, {}, {}, known.get("free_bytes"), known.get("inodes_free"))


def why_missing(state: StoreState, file: PinnedFile) -> str:
    """Return why ``file`` is not there as it should be, '' where it is."""
    found, record = state.found.get(file.path), state.manifest.get(file.path)
    if found is None:
        return "is not there"
    if record is None:
        return "is there, not proved yet"
    if not found.proved:
        return "was changed since it was published"
    if file.sha256 is not None and record.sha256 != file.sha256:
        return "is another version than the lock pins"
    return ""


def has_its_bytes(state: StoreState, file: PinnedFile) -> bool:
    """Tell whether what is there is most likely the pinned file, only its record is missing: it is hashed, not fetched.

    Its size is right, and no record says that it is something else.
    """
    found, record = state.found.get(file.path), state.manifest.get(file.path)
    other = record is not None and file.sha256 is not None and record.sha256 != file.sha256
    return found is not None and found.size == file.size and not other


def was_chosen(state: StoreState, files: Iterable[PinnedFile]) -> bool:
    """Tell whether an earlier plan chose these ``files``: all are on record, damaged or newly pinned as they may be."""
    return all(file.path in state.manifest for file in files)
