"""Auditing: every published file hashed again, and held against the manifest's record and what the lock pins.

``audit`` looks, and changes nothing but what a given repair (``repair.put_right``) does.
"""

import contextlib
import errno
import os
import stat
from collections import Counter
from typing import Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from ..jobs import Progress
from ..pins import PinnedFile
from ..privilege import Account, acting_as
from .hashing import Look, look_at, same_stat
from .layout import CATEGORIES, STATE, STORE_DIRECTORIES
from .manifest import FileRecord, Manifest, locked, read_manifest
from .publish import FILE_MODE

MISSING = "missing"
CHANGED = "changed"
IRREGULAR = "irregular"
UNREADABLE = "unreadable"
OUTDATED = "outdated"
UNRECORDED = "unrecorded"
MODE = "mode"
GROUP = "group"
OWNER = "owner"
EXTRA = "extra"
BROKEN = (MISSING, CHANGED, IRREGULAR, UNREADABLE, OUTDATED, UNRECORDED)
"""The kinds of findings that tell that a model is not what it should be, byte for byte."""

FOUND = "found"
REPAIRED = "repaired"
TO_FETCH = "to fetch"

# Below it others keep things of theirs (HF_HOME is cache/tokenizers), and what is in flight lies there.
_NOT_OURS = ("cache", STATE)


class Finding(NamedTuple):
    """One thing that is not as it should be: ``path`` is relative to the store; ``state`` says what became of it."""

    kind: str
    path: str
    model: Optional[str]
    detail: str
    state: str = FOUND


class Audit(NamedTuple):
    """What an audit came to.

    Attributes:
        findings: By path.
        files: How many files the manifest records.
        hashed_bytes: How much of them was read.
        touched: Paths whose stat is not the recorded one, though their bytes are right.
        changed: Whether a repair did anything.
    """

    findings: Tuple[Finding, ...]
    files: int
    hashed_bytes: int
    touched: Tuple[str, ...]
    changed: bool = False


class Dress(NamedTuple):
    """Mode and group of the store's folders."""

    mode: int
    gid: int


class View(NamedTuple):
    """What is known of a store at one moment."""

    store: str
    owner: Account
    wished: Mapping[str, PinnedFile]
    manifest: Manifest
    looks: Dict[str, Look]

    def usual(self) -> Dress:
        """Return mode and group of the store's folders: all have one (the role's), so one that was changed stands out.

        Raises OSError where the store is not there.
        """
        found: Counter[Dress] = Counter()
        for name in (".", *STORE_DIRECTORIES):
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(self.store, name))
                if stat.S_ISDIR(status.st_mode):
                    found[Dress(stat.S_IMODE(status.st_mode), status.st_gid)] += 1
        if not found:
            os.lstat(self.store)
        # Not most_common: it imports heapq when it is called, which the store's owner may not be able to read.
        return max(found, key=lambda one: found[one])

    def findings(self) -> List[Finding]:
        """Return all that is wrong, by path."""
        found: List[Finding] = []
        usual = self.usual()
        for path, record in self.manifest.items():
            found += self._of_file(path, record, Dress(FILE_MODE, usual.gid))
        for path, pin in self.wished.items():
            if path not in self.manifest:
                found += self._of_wish(path, pin)
        found += self._of_folders(usual)
        found += self._extra()
        return sorted(found, key=lambda one: (one.path, one.kind))

    def touched(self) -> List[str]:
        """Return the files with the right bytes whose stat is not the recorded one."""
        return sorted(
            path
            for path, record in self.manifest.items()
            if self.is_right(path) and not record.resembles(self.status(path))
        )

    def is_right(self, path: str) -> bool:
        """Tell whether the bytes of a recorded file are the recorded ones."""
        return self.looks[path].sha256 == self.manifest[path].sha256

    def status(self, path: str) -> os.stat_result:
        """Return the stat of a file that was read."""
        status = self.looks[path].status
        assert status is not None
        return status

    def _of_file(self, path: str, record: FileRecord, dress: Dress) -> Iterator[Finding]:
        look, status = self.looks[path], self.looks[path].status

        def finding(kind: str, detail: str) -> Finding:
            return Finding(kind, path, record.model, detail)

        if look.irregular:
            yield finding(IRREGULAR, f"is {look.irregular}")
            return
        if status is None:
            kind, detail = (UNREADABLE, f"cannot be read: {look.error}") if look.error else (MISSING, "is not there")
            yield finding(kind, detail)
            return
        if look.error:
            yield finding(UNREADABLE, f"cannot be read: {look.error}")
        elif look.moving:
            yield finding(CHANGED, "is written to while it is read")
        elif look.sha256 is None:
            yield finding(CHANGED, f"has {status.st_size} bytes, {record.size} were published")
        elif look.sha256 != record.sha256:
            yield finding(CHANGED, f"has sha256 {_short(look.sha256)}, {_short(record.sha256)} was published")
        pin = self.wished.get(path)
        if pin is not None and pin.sha256 is not None and pin.sha256 != record.sha256:
            yield finding(OUTDATED, f"has sha256 {_short(record.sha256)}, the lock pins {_short(pin.sha256)}")
        yield from self._of_stat(path, record.model, status, dress)

    def _of_stat(self, path: str, model: Optional[str], status: os.stat_result, dress: Dress) -> Iterator[Finding]:
        found = stat.S_IMODE(status.st_mode)
        if found != dress.mode:
            yield Finding(MODE, path, model, f"has mode {found:04o}, not {dress.mode:04o}")
        # An owner who is no member of the store's group cannot give it to his files.
        if status.st_gid != dress.gid and dress.gid in (os.getegid(), *os.getgroups()):
            yield Finding(GROUP, path, model, f"belongs to group {status.st_gid}, not to {dress.gid}")
        if status.st_uid != self.owner.uid:
            yield Finding(OWNER, path, model, f"belongs to uid {status.st_uid}, not to {self.owner.name}")

    def _of_wish(self, path: str, pin: PinnedFile) -> Iterator[Finding]:
        look = self.looks[path]
        if look == Look():
            yield Finding(MISSING, path, None, "is wished, and was not published yet")
        elif look.sha256 is not None and look.sha256 == pin.sha256:
            yield Finding(UNRECORDED, path, None, "lies there with the pinned bytes, and is not recorded yet")
        else:
            yield Finding(EXTRA, path, None, "lies there with other bytes than the lock pins, and is not modelfleet's")

    def _of_folders(self, usual: Dress) -> Iterator[Finding]:
        """Yield what is wrong with the store's own folders, and those between a category and its files."""
        folders: Dict[str, Optional[str]] = dict.fromkeys((".", *STORE_DIRECTORIES))
        for path, record in self.manifest.items():
            category = next((one for one in CATEGORIES if path.startswith(f"{one}/")), None)
            folder = os.path.dirname(path)
            while category and folder != category:
                folders[folder] = record.model
                folder = os.path.dirname(folder)
        for folder, model in folders.items():
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(self.store, folder))
                # A missing one, or a symlink, is found with its files.
                if stat.S_ISDIR(status.st_mode):
                    yield from self._of_stat(folder, model, status, usual)

    def _extra(self) -> Iterator[Finding]:
        for below, folders, names in os.walk(self.store):
            relative = os.path.relpath(below, self.store)
            prefix = "" if relative == "." else f"{relative}/"
            if not prefix:
                folders[:] = [name for name in folders if name not in _NOT_OURS]
            links = [name for name in folders if os.path.islink(os.path.join(below, name))]
            for name in (*names, *links):
                path = prefix + name
                if path not in self.manifest and path not in self.wished:
                    yield Finding(EXTRA, path, None, "lies there, and modelfleet did not put it there")


Repair = Callable[[View, List[Finding], Progress], Tuple[List[Finding], bool]]
"""Called with the store's lock held; returns the findings with their states, and whether it did anything."""


def audit(
    store_path: str,
    owner: Account,
    wished: Mapping[str, PinnedFile],
    progress: Progress,
    repair: Optional[Repair] = None,
) -> Audit:
    """Return what is wrong in the store.

    Args:
        store_path: Absolute path of the store.
        owner: Whose it is (``store_owner``); all is done with his rights.
        wished: What the plan keeps, by path; nothing where there is no plan.
        repair: What puts findings right (``repair.put_right``), if that is wished.

    A run that publishes meanwhile does no harm: what looks wrong is looked at
    again while nobody may write. Raises ModelfleetError where the manifest is
    damaged, OSError where the system refuses.
    """
    with acting_as(owner):
        manifest = read_manifest(store_path)
        sizes = _sizes(manifest, wished)
        step = f"hashing {len(sizes)} file" + ("" if len(sizes) == 1 else "s")
        view = View(store_path, owner, wished, manifest, look_at(store_path, sizes, progress, step))
        findings, touched = view.findings(), view.touched()
        changed = False
        if findings or (repair and touched):
            with _quiet(store_path, progress):
                view = _again(view, progress)
                findings, touched = view.findings(), view.touched()
                if repair and (findings or touched):
                    findings, changed = repair(view, findings, progress)
    hashed = sum(look.status.st_size for look in view.looks.values() if look.sha256 and look.status)
    return Audit(tuple(findings), len(view.manifest), hashed, tuple(touched), changed)


def _short(sha256: str) -> str:
    """Return what people compare of a digest."""
    return f"{sha256[:16]}..."


def _sizes(manifest: Manifest, wished: Mapping[str, PinnedFile]) -> List[Tuple[str, int]]:
    """Return what is to be read: what is recorded, and what is wished and may lie there unrecorded."""
    recorded = [(path, record.size) for path, record in manifest.items()]
    return recorded + [(path, pin.size or 0) for path, pin in wished.items() if path not in manifest]


def _again(view: View, progress: Progress) -> View:
    """Return what is known with the store's lock held, looking again only at what may have been in motion."""
    manifest = read_manifest(view.store)
    kept: Dict[str, Look] = {}
    for path, look in view.looks.items():
        if look.moving or look.error or manifest.get(path) != view.manifest.get(path):
            continue
        with contextlib.suppress(OSError):
            if same_stat(look.status, os.lstat(os.path.join(view.store, path))):
                kept[path] = look
    again = [(path, size) for path, size in _sizes(manifest, view.wished) if path not in kept]
    looks = {**kept, **look_at(view.store, again, progress, "looking again at what seems wrong")}
    return view._replace(manifest=manifest, looks=looks)


@contextlib.contextmanager
def _quiet(store_path: str, progress: Progress) -> Iterator[None]:
    """Hold the store's lock; do without where the file system is read-only: nobody writes there."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(store_path, lambda: progress.update("waiting for another run")))
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
        yield
