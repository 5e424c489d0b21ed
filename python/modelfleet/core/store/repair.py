"""Putting right what an audit found, as far as that needs no download.

A mode is set again. A file of another owner is published again from its own
bytes, proved while they are copied: root never gives anything away here.
What is no regular file is taken out of the way of the one that belongs there.
What has other bytes stays until the right ones are proved: its record only
loses its trust, so that a run of ``core.publishing`` fetches and replaces it.

To be called with the owner's rights and the store's lock held.
"""

import contextlib
import hashlib
import os
import stat
from typing import Dict, List, Optional, Tuple

from ..errors import UnsafePathError
from ..jobs import Progress
from .audit import (
    BROKEN,
    CHANGED,
    EXTRA,
    FOUND,
    GROUP,
    IRREGULAR,
    MODE,
    OWNER,
    REPAIRED,
    TO_FETCH,
    UNREADABLE,
    Finding,
    View,
)
from .folders import opened
from .hashing import Look, look_at, same_stat
from .layout import CATEGORIES, TEMPORARY
from .manifest import settle, write_manifest
from .publish import FILE_MODE, Proof, publish_files, record, remove_tree

# A run of core.publishing sweeps it, should we be killed.
_STAGING = "modelfleet-unit-repair"
_READ_BYTES = 1024 * 1024


def put_right(view: View, findings: List[Finding], progress: Progress) -> Tuple[List[Finding], bool]:
    """Put right what can be, and return the findings with what became of each, and whether anything was done."""
    progress.update("repairing")
    return _Repair(view, progress).run(findings)


class _Repair:
    def __init__(self, view: View, progress: Progress) -> None:
        self.view = view
        self.progress = progress
        # Before the first is put right: it is told by comparing them.
        self.usual = view.usual()
        self.looks: Dict[str, Look] = dict(view.looks)
        self.proofs: Dict[str, Proof] = {}

    def run(self, findings: List[Finding]) -> Tuple[List[Finding], bool]:
        view, manifest = self.view, self.view.manifest
        # A folder is replaced whole, and never with something of the user's in it.
        blocked = {_unit_of(one.path) for one in findings if one.kind == EXTRA} - {None}
        # Modes first: a file may be unreadable for its mode alone.
        states = {one: self._dress(one) for one in findings if one.kind in (MODE, GROUP)}
        distrusted = False
        for one in findings:
            if one.kind == OWNER:
                states[one] = self._own(one)
            elif one.kind in BROKEN:
                if one.kind == UNREADABLE and self._is_right_now(one.path):
                    states[one] = REPAIRED
                    continue
                fetchable = one.path in view.wished and _unit_of(one.path) not in blocked
                if fetchable and one.kind in (IRREGULAR, UNREADABLE):
                    fetchable = self._make_way(one.path)
                states[one] = TO_FETCH if fetchable else FOUND
                if fetchable and one.kind == CHANGED and manifest[one.path].recorded_ns:
                    manifest[one.path] = manifest[one.path]._replace(recorded_ns=0)
                    distrusted = True
        coming = {one.path for one, state in states.items() if state == TO_FETCH}
        for one, state in list(states.items()):
            # A file that comes anew is the owner's, with the right mode.
            if state == FOUND and one.path in coming:
                states[one] = TO_FETCH
            elif state == FOUND and one.kind in (MODE, GROUP) and one.path in self.proofs:
                states[one] = REPAIRED
        for path in view.touched():
            self._refresh(path)
        if self.proofs:
            record(view.store, manifest, self.proofs)
            settle(view.store, manifest, self.proofs)
        elif distrusted:
            write_manifest(view.store, manifest)
        done = [one._replace(state=states.get(one, FOUND)) for one in findings]
        changed = bool(self.proofs) or distrusted or any(one.state != FOUND for one in done)
        return done, changed

    def _dress(self, one: Finding) -> str:
        """Set mode or group of a file or folder."""
        path = os.path.join(self.view.store, one.path)
        is_file = one.path in self.view.manifest
        try:
            # With the owner's own rights: what he might swap in here meanwhile is his to change.
            if one.kind == GROUP:
                os.chown(path, -1, self.usual.gid)
            else:
                os.chmod(path, FILE_MODE if is_file else self.usual.mode)
        except PermissionError:
            return FOUND
        if is_file:
            self._refresh(one.path)
        return REPAIRED

    def _refresh(self, path: str) -> None:
        """Record the stat that a file has now, where nothing but its mode changed since its bytes were proved."""
        look = self.looks[path]
        if path in self.proofs or look.sha256 is None or not self.view.is_right(path):
            return
        assert look.status is not None
        status = os.lstat(os.path.join(self.view.store, path))
        if (status.st_ino, status.st_size, status.st_mtime_ns) == (
            look.status.st_ino,
            look.status.st_size,
            look.status.st_mtime_ns,
        ):
            self._prove(path, status)

    def _is_right_now(self, path: str) -> bool:
        known = self.view.manifest[path]
        look = look_at(self.view.store, [(path, known.size)], self.progress, "repairing")[path]
        if look.sha256 != known.sha256 or look.status is None:
            return False
        self._prove(path, look.status)
        return True

    def _prove(self, path: str, status: os.stat_result) -> None:
        known = self.view.manifest[path]
        self.proofs[path] = Proof(known.model, known.sha256, known.source, known.licence, status)

    def _own(self, one: Finding) -> str:
        """Publish a file of another owner again, from its own bytes."""
        if one.path not in self.view.manifest or not self.view.is_right(one.path):
            return FOUND
        store, path = self.view.store, one.path
        staging = os.path.join(store, TEMPORARY, _STAGING)
        remove_tree(staging)
        os.mkdir(staging, 0o700)
        try:
            staged = os.path.join(staging, os.path.basename(path))
            if not self._copy(path, staged):
                return FOUND
            status = os.lstat(staged)
            publish_files(store, _STAGING, os.path.dirname(path), [os.path.basename(path)])
        finally:
            remove_tree(staging)
        self._prove(path, status)
        return REPAIRED

    def _copy(self, path: str, staged: str) -> bool:
        """Copy a file; False where what was copied is not what was proved."""
        digest = hashlib.sha256()
        size = self.view.manifest[path].size
        with opened(self.view.store, os.path.dirname(path)) as folder:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(os.path.basename(path), flags, dir_fd=folder)
        with os.fdopen(descriptor, "rb") as source, open(staged, "xb") as target:
            if not same_stat(os.fstat(descriptor), self.looks[path].status):
                return False
            done = 0
            while True:
                block = source.read(_READ_BYTES)
                if not block:
                    break
                done += len(block)
                digest.update(block)
                target.write(block)
                self.progress.update(f"copying {os.path.basename(path)}", None, done, size, "bytes")
        return digest.hexdigest() == self.view.manifest[path].sha256

    def _make_way(self, path: str) -> bool:
        """Remove what lies where a file of ours belongs; False where it is a folder with something in it."""
        name = os.path.basename(path)
        with contextlib.suppress(OSError, UnsafePathError), opened(self.view.store, os.path.dirname(path)) as folder:
            if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
                os.rmdir(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)
            os.fsync(folder)
            return True
        return False


def _unit_of(path: str) -> Optional[str]:
    """Return the folder that is published whole and holds ``path``, None where there is none."""
    category = next((one for one in CATEGORIES if path.startswith(f"{one}/")), None)
    if category is None:
        return None
    name, below, _ = path[len(category) + 1 :].partition("/")
    return f"{category}/{name}" if below else None
