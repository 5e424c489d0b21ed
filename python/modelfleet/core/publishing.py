"""Carrying out the models' part of a plan: fetch what is missing, prove it, publish it; take away what is to go.

What appears together (one file, a split or sharded model, a folder) is a unit.
Its files are fetched into a staging folder of its own in ``cache/temp``, each
proved by size and hash, and judged together; then the unit appears whole. A
run that ends before leaves the staging folder: the next one proves what is in
it and fetches only the rest.
"""

import contextlib
import hashlib
import os
import re
import shutil
import stat
import time
from typing import Dict, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

from .errors import ModelfleetError, UnsafePathError
from .fetch.package_index import PackageIndexSettings
from .fetch.settings import FetchSettings
from .fetch.transfer import KEEP_PARTS_SECONDS, bytes_held, fetch, hash_file, part_key, sweep
from .formats.auxiliary import judge_names
from .formats.judge import INDEX_SUFFIX, judge, judge_folder
from .jobs import Progress
from .pins import PinnedFile
from .planning.document import HostPlan
from .privilege import acting_as
from .store.folders import folder_of, opened
from .store.layout import CATEGORIES, TEMPORARY
from .store.manifest import FileRecord, Manifest, locked, read_manifest, settle
from .store.publish import (
    OLD,
    Proof,
    list_unit,
    publish_files,
    publish_folder,
    record,
    refuse_irregular,
    remove_tree,
    take_away_files,
    take_away_folder,
)
from .store.tree import store_owner
from .units import format_bytes

STAGING = "modelfleet-unit-"
_STAGING = re.compile(re.escape(STAGING) + r"[0-9a-f]{32}\Z")
_FIRST_SHARD = re.compile(r".*-00001-of-[0-9]{5}\.gguf\Z")
# What a run writes beside the models themselves: staging folders, the manifest, a wheel.
_MORE_INODES = 16


class Outcome(NamedTuple):
    """What was done: paths relative to the store, and what the report is to warn of."""

    published: List[str]
    removed: List[str]
    warnings: List[str]


class Unit(NamedTuple):
    """Files that appear together in ``folder`` of the store; ``whole``: they are all that is in it."""

    model: str
    licence: Optional[str]
    folder: str
    whole: bool
    files: Tuple[PinnedFile, ...]
    allow_pickle: bool
    action: str

    @property
    def staging(self) -> str:
        """The name of its folder in ``cache/temp``: other bytes have another."""
        pins = "".join(sorted(f"{file.path}\\0{file.sha256 or file.source}\\n" for file in self.files))
        return STAGING + hashlib.sha256(pins.encode("utf-8")).hexdigest()[:32]

    @property
    def entry(self) -> PinnedFile:
        """The file that readers open first."""

        def rank(file: PinnedFile) -> Tuple[bool, ...]:
            name = file.path
            return (not name.endswith(INDEX_SUFFIX), not _FIRST_SHARD.match(name), not name.endswith(".onnx"))

        return min(self.files, key=rank)

    def inside(self, file: PinnedFile) -> str:
        """Return the file's path below the unit's folder."""
        return file.path[len(self.folder) + 1 :]


def units_of(plan: HostPlan) -> List[Unit]:
    """Return what ``plan`` publishes or takes away, each once.

    Raises UnsafePathError for paths that are not below a category, FormatError
    for names that a repository must not use, ModelfleetError where the plan refuses a model.
    """
    units: Dict[str, Unit] = {}
    for model in plan.models:
        if model.action == "refuse":
            raise ModelfleetError(f"{model.model} is refused: {model.reason}", "change the wish, and plan again")
        if model.action == "keep":
            continue
        groups: Dict[str, List[PinnedFile]] = {}
        for file in model.files:
            groups.setdefault(folder_of(file.path), []).append(file)
        for folder, files in groups.items():
            whole = folder not in CATEGORIES
            unit = Unit(model.model, model.licence, folder, whole, tuple(files), model.allow_pickle, model.action)
            judge_names([unit.inside(file) for file in files], unit.model)
            units[f"{unit.action} {unit.staging}"] = unit
    return list(units.values())


def is_proved(store_path: str, file: PinnedFile, entry: Optional[FileRecord]) -> bool:
    """Tell whether the store can prove, by one stat, that it holds ``file``; ``entry`` is the manifest's."""
    if entry is None or (entry.sha256 != file.sha256 if file.sha256 else entry.source != file.source):
        return False
    try:
        return entry.matches(os.lstat(os.path.join(store_path, file.path)))
    except (FileNotFoundError, NotADirectoryError):
        return False


def foresee(plan: HostPlan) -> Outcome:
    """Return what ``carry_out`` would publish and remove now."""
    manifest = read_manifest(plan.store_path)
    units = units_of(plan)
    published: List[str] = []
    removed: List[str] = []
    for unit in units:
        if unit.action != "remove":
            files = [file for file in unit.files if not is_proved(plan.store_path, file, manifest.get(file.path))]
            published += [file.path for file in files]
            removed += _replaced(unit, manifest) if files else []
    for unit in units:
        removed += [path for path in _to_remove(unit, _kept(plan), manifest) if path not in removed]
    return Outcome(published, removed, [])


Settings = Union[FetchSettings, PackageIndexSettings]


def carry_out(plan: HostPlan, settings: Settings, progress: Progress) -> Outcome:
    """Publish all that ``plan`` fetches or replaces, then remove what it removes.

    A unit that fails stops the run; what was published before stays. Raises
    ModelfleetError (its kinds say why) and OSError where the system refuses.
    """
    units = units_of(plan)
    owner = store_owner(plan.store_path)
    with acting_as(owner), locked(
        plan.store_path, lambda: progress.update("waiting for another run to release the store")
    ):
        return _Run(plan, units, settings, progress).carry_out()


def _kept(plan: HostPlan) -> Set[str]:
    """Return the paths that models of the plan need; a model that goes may have shared a file with them."""
    return {file.path for model in plan.models if model.action != "remove" for file in model.files}


def _to_remove(unit: Unit, kept: Set[str], manifest: Manifest) -> List[str]:
    """Return the files of ``unit`` that are to go: ours, and of no other model."""
    if unit.action != "remove":
        return []
    return [file.path for file in unit.files if file.path in manifest and file.path not in kept]


def _replaced(unit: Unit, manifest: Manifest) -> List[str]:
    """Return the files of ours that go with the folder that ``unit`` takes the place of."""
    paths = {file.path for file in unit.files}
    return [
        path for path in sorted(manifest) if unit.whole and path.startswith(f"{unit.folder}/") and path not in paths
    ]


class _Run:
    """One run, with the owner's rights and the store's lock."""

    def __init__(self, plan: HostPlan, units: Sequence[Unit], settings: Settings, progress: Progress) -> None:
        self.store = plan.store_path
        self.units = units
        self.kept = _kept(plan)
        self.temporary = os.path.join(self.store, TEMPORARY)
        self.settings = settings
        self.progress = progress
        # Another run may have published while we waited.
        self.manifest = read_manifest(self.store)
        self.outcome = Outcome([], [], [])
        self.recorded: Set[str] = set()
        self.unproved = {
            file.path for unit in units for file in unit.files if not is_proved(self.store, file, self._known(file))
        }

    def _known(self, file: PinnedFile) -> Optional[FileRecord]:
        return self.manifest.get(file.path)

    def carry_out(self) -> Outcome:
        pending: List[Tuple[Unit, List[PinnedFile]]] = []
        for unit in self.units:
            missing = self._adopt(unit) if unit.action != "remove" else []
            if missing:
                pending.append((unit, missing))
        self._sweep(pending)
        self._require_space(pending)
        try:
            for unit, missing in pending:
                try:
                    self._bring(unit, missing)
                finally:
                    self._sweep(pending)
            for unit in self.units:
                self._remove(unit)
        finally:
            settle(self.store, self.manifest, self.recorded & set(self.manifest))
        return self.outcome

    def _adopt(self, unit: Unit) -> List[PinnedFile]:
        """Take into the manifest what is there already with the right bytes; returns what is missing."""
        missing: List[PinnedFile] = []
        proofs: Dict[str, Proof] = {}
        for file in unit.files:
            if is_proved(self.store, file, self._known(file)):
                continue
            path = os.path.join(self.store, file.path)
            proof = None
            with contextlib.suppress(FileNotFoundError), opened(self.store, os.path.dirname(file.path)):
                proof = self._prove(unit, file, path)
                if proof is None and os.path.lexists(path) and file.path not in self.manifest:
                    raise UnsafePathError(
                        path,
                        "is there with other bytes than the lock pins, and modelfleet did not put it there",
                        "move it away",
                    )
            if proof is None:
                missing.append(file)
                continue
            proofs[file.path] = proof
        folder = os.path.join(self.store, unit.folder)
        found = [file for file in unit.files if file.path in proofs]
        if len(found) == len(unit.files) > 1 and set(proofs) == set(list_unit(self.store, unit.folder)):
            # The whole model is there, and nothing of somebody else's.
            self._warn(judge_folder(folder, unit.allow_pickle))
        else:
            for file in found:
                self._warn(judge(os.path.join(self.store, file.path), file.path, unit.allow_pickle, folder))
        self._record(proofs)
        return missing

    def _prove(self, unit: Unit, file: PinnedFile, path: str) -> Optional[Proof]:
        """Return the proof that ``path`` is the pinned file, or None where it is another or none."""
        refuse_irregular(path)
        try:
            before = os.lstat(path)
        except FileNotFoundError:
            return None
        if file.sha256 is None or hash_file(path, file, self.progress) != file.sha256:
            return None
        after = os.lstat(path)
        same = (before.st_ino, before.st_mtime_ns, before.st_ctime_ns) == (
            after.st_ino,
            after.st_mtime_ns,
            after.st_ctime_ns,
        )
        return Proof(unit.model, file.sha256, file.source, unit.licence, after) if same else None

    def _record(self, proofs: Dict[str, Proof], gone: Sequence[str] = ()) -> None:
        if proofs or gone:
            record(self.store, self.manifest, proofs, gone)
            self.recorded.update(proofs)
            # What was copied with its folder, or hidden for a moment, is what it was.
            self.outcome.published.extend(name for name in proofs if name in self.unproved)
            self.unproved.difference_update(proofs)
            self.outcome.removed.extend(gone)

    def _warn(self, warnings: Sequence[str]) -> None:
        self.outcome.warnings.extend(one for one in warnings if one not in self.outcome.warnings)

    def _sweep(self, pending: Sequence[Tuple[Unit, List[PinnedFile]]]) -> None:
        """Remove what runs that ended left in flight and no run will go on with."""
        sweep(self.temporary, {part_key(file) for unit, missing in pending for file in _coming(unit, missing)})
        # An old folder that was moved away stays until the new one is there, see publish_folder.
        wanted = {f"{unit.staging}{suffix}" for unit, _ in pending for suffix in ("", OLD)}
        ours = {unit.staging for unit in self.units}
        for entry in list(os.scandir(self.temporary)):
            if not entry.is_dir(follow_symlinks=False) or entry.name in wanted:
                continue
            if _STAGING.match(entry.name) and entry.name not in ours:
                # Another plan of this host may still want it.
                if time.time() - entry.stat(follow_symlinks=False).st_mtime > KEEP_PARTS_SECONDS:
                    remove_tree(entry.path)
            elif entry.name.startswith(STAGING):
                remove_tree(entry.path)

    def _require_space(self, pending: Sequence[Tuple[Unit, List[PinnedFile]]]) -> None:
        if not pending:
            return
        coming = [(unit, file) for unit, missing in pending for file in _coming(unit, missing)]
        needed, wheel = 0, 0
        for unit, file in coming:
            here = max(_size(self._staged(unit, file)) or 0, bytes_held(self.temporary, file))
            needed += max((file.size or 0) - here, 0)
            if file.wheel and not here:
                wheel = max(wheel, file.wheel.size)
        needed += wheel
        free = os.statvfs(self.store)
        available = free.f_bavail * free.f_frsize
        cure = "free some space, or set model_store_path to another file system"
        if available < needed:
            raise ModelfleetError(
                f"{self.store}: {format_bytes(needed)} are needed, {format_bytes(available)} are free", cure
            )
        inodes = len(coming) + _MORE_INODES
        # Some file systems have no fixed number of inodes, and say 0.
        if free.f_files and free.f_favail < inodes:
            raise ModelfleetError(f"{self.store}: {inodes} inodes are needed, {free.f_favail} are free", cure)

    def _staged(self, unit: Unit, file: PinnedFile) -> str:
        return os.path.join(self.temporary, unit.staging, unit.inside(file))

    def _bring(self, unit: Unit, missing: List[PinnedFile]) -> None:
        """Fetch, judge and publish one unit."""
        if unit.whole:
            self._refuse_foreign(unit)
        files = _coming(unit, missing)
        folder = os.path.join(self.temporary, unit.staging)
        try:
            proofs = {file.path: self._stage(unit, file) for file in files}
        finally:
            if not list_unit(self.store, f"{TEMPORARY}/{unit.staging}"):
                remove_tree(folder)
        if not unit.whole and len(files) > 1 and unit.entry not in files:
            # It must not be read while the others change: it goes and comes again, see publish_files.
            entry = unit.entry
            status = os.lstat(os.path.join(self.store, entry.path))
            proofs[entry.path] = Proof(unit.model, entry.sha256 or "", entry.source, unit.licence, status)
        self._discard_others(unit, {unit.inside(file) for file in files})
        self._judge(unit, files, folder)
        self.progress.update(f"publishing {os.path.basename(unit.folder if unit.whole else unit.entry.path)}")
        gone = _replaced(unit, self.manifest)
        if unit.whole:
            publish_folder(self.store, unit.staging, unit.folder)
        else:
            names = [os.path.basename(name) for name in proofs]
            names.sort(key=lambda name: (name == os.path.basename(unit.entry.path), name))
            publish_files(self.store, unit.staging, unit.folder, names)
        self._record(proofs, gone)
        remove_tree(folder)
        remove_tree(f"{folder}{OLD}")

    def _refuse_foreign(self, unit: Unit) -> None:
        """Raise UnsafePathError where the folder that would be replaced holds something that is not ours."""
        for name in list_unit(self.store, unit.folder):
            if name not in self.manifest:
                raise UnsafePathError(
                    os.path.join(self.store, name),
                    f"lies in {unit.folder}, which is to be replaced, and modelfleet did not put it there",
                    "move it away",
                )

    def _stage(self, unit: Unit, file: PinnedFile) -> Proof:
        """Bring one file into the unit's staging folder, unless it is there already, and return its proof."""
        staged = self._staged(unit, file)
        self._make_folders(staged)
        if os.path.lexists(staged):
            # Only the owner could put something else there; it goes.
            proof = self._prove(unit, file, staged) if stat.S_ISREG(os.lstat(staged).st_mode) else None
            if proof:
                return proof
            (remove_tree if os.path.isdir(staged) and not os.path.islink(staged) else os.unlink)(staged)
        final = os.path.join(self.store, file.path)
        known = self._known(file)
        if unit.whole and file.sha256 and known and known.sha256 == file.sha256 and os.path.lexists(final):
            # The folder is to be another one, the file stays what it is; it is proved like one that was fetched.
            self.progress.update(f"copying {file.path}")
            shutil.copyfile(final, staged, follow_symlinks=False)
            proof = self._prove(unit, file, staged)
            if proof:
                return proof
        # Several members of one wheel come with one download.
        os.replace(fetch(file, self.temporary, self.settings, self.progress, keep_wheel=True), staged)
        status = os.lstat(staged)
        sha256 = file.sha256
        if sha256 is None:
            # Nothing pins it, and the user allows that: what came is what it is from now on.
            sha256 = hash_file(staged, file._replace(size=status.st_size), self.progress)
            assert sha256 is not None
        return Proof(unit.model, sha256, file.source, unit.licence, status)

    def _make_folders(self, staged: str) -> None:
        path = self.temporary
        for name in os.path.relpath(os.path.dirname(staged), self.temporary).split("/"):
            path = os.path.join(path, name)
            # Not makedirs, which gives those on the way whatever the umask leaves.
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)

    def _discard_others(self, unit: Unit, wanted: Set[str]) -> None:
        """Remove from the staging folder what a killed run left there and is not of the unit."""
        relative = f"{TEMPORARY}/{unit.staging}"
        for name in list_unit(self.store, relative):
            if name[len(relative) + 1 :] not in wanted:
                os.unlink(os.path.join(self.store, name))

    def _judge(self, unit: Unit, files: Sequence[PinnedFile], folder: str) -> None:
        """Judge the staged files, as one model where all of it is there."""
        try:
            if len(files) > 1 and len(files) == len(unit.files):
                self._warn(judge_folder(folder, unit.allow_pickle))
                return
            for file in files:
                self._warn(judge(self._staged(unit, file), file.path, unit.allow_pickle, folder))
        except ModelfleetError:
            # Refetching the same pinned bytes cures nothing.
            remove_tree(folder)
            raise

    def _remove(self, unit: Unit) -> None:
        """Take away a unit's files: ours only, and only as we published them."""
        paths = _to_remove(unit, self.kept, self.manifest)
        if not paths:
            return
        left = [path for path in paths if self._was_changed(path)]
        ours = [path for path in paths if path not in left]
        self._warn([f"{path} was changed since it was published: it is left where it is" for path in left])
        self.progress.update(f"removing {unit.model}")
        if unit.whole and set(list_unit(self.store, unit.folder)) <= set(ours):
            with contextlib.suppress(FileNotFoundError):
                take_away_folder(self.store, unit.folder, f"{unit.staging}-gone")
        else:
            for folder in sorted({os.path.dirname(path) for path in ours}, reverse=True):
                names = sorted(os.path.basename(path) for path in ours if os.path.dirname(path) == folder)
                entry = os.path.basename(unit.entry.path)
                with contextlib.suppress(FileNotFoundError):
                    take_away_files(self.store, folder, sorted(names, key=lambda name: name == entry))
                self._remove_empty(folder)
        record(self.store, self.manifest, {}, paths)
        self.outcome.removed.extend(ours)

    def _remove_empty(self, folder: str) -> None:
        with contextlib.suppress(OSError):
            while folder not in CATEGORIES:
                os.rmdir(os.path.join(self.store, folder))
                folder = os.path.dirname(folder)

    def _was_changed(self, path: str) -> bool:
        """Tell whether what is at ``path`` is not what we published there."""
        known = self.manifest[path]
        final = os.path.join(self.store, path)
        try:
            status = os.lstat(final)
        except (FileNotFoundError, NotADirectoryError):
            return False
        if known.matches(status):
            return False
        pinned = PinnedFile(path, known.source, known.size, known.sha256, None)
        return not stat.S_ISREG(status.st_mode) or hash_file(final, pinned, self.progress) != known.sha256


def _coming(unit: Unit, missing: Sequence[PinnedFile]) -> List[PinnedFile]:
    """Return the files that are staged: a folder is published as a whole, so all of its files."""
    return list(unit.files if unit.whole else missing)


def _size(path: str) -> Optional[int]:
    try:
        return os.lstat(path).st_size
    except (FileNotFoundError, NotADirectoryError):
        return None
