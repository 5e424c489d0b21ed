"""The store's directory tree: compared with what is wanted, then made so.

``compare`` decides and changes nothing; ``converge`` does exactly what
``compare`` found. Every directory is opened from its parent's descriptor
without following a symlink, so nothing can be swapped in between the look and
the act, and nothing is ever changed recursively.
"""

import contextlib
import errno
import os
import stat
from typing import Iterator, List, NamedTuple, Optional, Set, Tuple

from ..errors import UnsafePathError
from ..privilege import Account, acting_as
from .layout import STORE_DIRECTORIES

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LINK_LIMIT = 40


class Tree(NamedTuple):
    """What is wanted: the store's absolute path, its owner and group, the directories' mode, the convenience link."""

    path: str
    owner: Account
    gid: int
    mode: int
    link: Optional[str]


class Change(NamedTuple):
    """One thing that is not as wanted: a path, how it is and how it will be; None: it does not exist."""

    path: str
    before: Optional[str]
    after: str


def compare(tree: Tree) -> List[Change]:
    """Return what ``converge`` would change, in its order; raises UnsafePathError where it must not act at all."""
    wanted = _describe(tree.owner.uid, tree.gid, tree.mode)
    changes: List[Change] = []
    with _walk(tree.path, tree.owner) as (_, missing):
        if missing:
            parent = tree.path[: -len("/".join(missing)) - 1]
            for name in missing:
                parent = f"{parent}/{name}"
                changes.append(Change(parent, None, wanted))
            changes.extend(Change(f"{tree.path}/{relative}", None, wanted) for relative in STORE_DIRECTORIES)
        else:
            changes.extend(_compare_directory(tree.path, tree, wanted))
            for relative in STORE_DIRECTORIES:
                changes.extend(_compare_directory(f"{tree.path}/{relative}", tree, wanted))
    changes.extend(_compare_link(tree))
    return changes


def converge(tree: Tree) -> List[Change]:
    """Make the tree as wanted and return what was changed; raises UnsafePathError or OSError."""
    changes = compare(tree)
    with _walk(tree.path, tree.owner) as (parent, missing):
        directory = parent
        try:
            for name in missing:
                directory = _replace_descriptor(directory, _make_directory(directory, name, tree), keep=parent)
            _converge_directory(directory, tree)
            for relative in STORE_DIRECTORIES:
                _converge_relative(directory, relative, tree)
        finally:
            if directory != parent:
                os.close(directory)
    if any(change.path == tree.link for change in changes):
        _make_link(tree)
    return changes


def ensure_directory(path: str, owner: Account, mode: int = 0o755) -> None:
    """Make the directory ``path``, and those missing on the way to it, as ``converge`` makes the store's."""
    tree = Tree(path, owner, owner.gid, mode, None)
    with _walk(path, owner) as (parent, missing):
        directory = parent
        try:
            for name in missing:
                directory = _replace_descriptor(directory, _make_directory(directory, name, tree), keep=parent)
            _refuse_foreign(path, os.fstat(directory), tree)
        finally:
            if directory != parent:
                os.close(directory)


@contextlib.contextmanager
def _walk(path: str, owner: Account) -> Iterator[Tuple[int, List[str]]]:
    """Open the deepest existing directory of ``path``; yields its descriptor and the names still missing under it.

    A symlink on the way is followed only where no other account could have
    planted or could replace it.
    """
    trusted = {0, os.geteuid(), owner.uid}
    names = [name for name in path.split("/") if name]
    links = 0
    current = os.open("/", _OPEN_DIRECTORY)
    try:
        while names:
            name = names[0]
            try:
                entered = os.open(name, _OPEN_DIRECTORY, dir_fd=current)
            except FileNotFoundError:
                break
            except PermissionError:
                raise UnsafePathError(
                    path, f"{name!r} on the way cannot be entered", "run with become, or choose another path"
                ) from None
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
                    raise
                target = _trusted_target(current, name, path, trusted)
                links += 1
                if links > _LINK_LIMIT:
                    raise UnsafePathError(path, "too many symlinks on the way", "correct them") from None
                names[:1] = [part for part in target.split("/") if part]
                if target.startswith("/"):
                    current = _replace_descriptor(current, os.open("/", _OPEN_DIRECTORY))
                continue
            current = _replace_descriptor(current, entered)
            names.pop(0)
        if any(name == ".." for name in names):
            raise UnsafePathError(path, "a symlink on the way leads through a directory that is missing", "correct it")
        yield current, names
    finally:
        os.close(current)


def _trusted_target(parent: int, name: str, path: str, trusted: Set[int]) -> str:
    """Return where the symlink ``name`` leads; raises UnsafePathError if it is none or another account's."""
    status = os.lstat(name, dir_fd=parent)
    if not stat.S_ISLNK(status.st_mode):
        raise UnsafePathError(path, f"{name!r} is not a directory", "move it away, or choose another path")
    around = os.fstat(parent)
    replaceable = around.st_mode & 0o022 and not around.st_mode & stat.S_ISVTX
    if status.st_uid not in trusted or around.st_uid not in trusted or replaceable:
        raise UnsafePathError(
            path,
            f"{name!r} on the way is a symlink that another account (uid {status.st_uid}) controls",
            "remove it, or choose another path",
        )
    return os.readlink(name, dir_fd=parent)


def _replace_descriptor(old: int, new: int, keep: Optional[int] = None) -> int:
    if old != keep:
        os.close(old)
    return new


def _describe(uid: int, gid: int, mode: int) -> str:
    return f"directory {mode:04o} uid {uid} gid {gid}"


def _compare_directory(path: str, tree: Tree, wanted: str) -> List[Change]:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return [Change(path, None, wanted)]
    if not stat.S_ISDIR(status.st_mode):
        # The root itself may lie behind a trusted symlink, which _walk has judged.
        if path == tree.path and stat.S_ISLNK(status.st_mode):
            status = os.stat(path)
        else:
            raise UnsafePathError(path, "is not a directory", "move it away")
    _refuse_foreign(path, status, tree)
    found = _describe(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
    return [] if found == wanted else [Change(path, found, wanted)]


def _refuse_foreign(path: str, status: os.stat_result, tree: Tree) -> None:
    if status.st_uid not in (tree.owner.uid, 0) or (status.st_uid != tree.owner.uid and os.geteuid() != 0):
        raise UnsafePathError(
            path,
            f"belongs to uid {status.st_uid}, not to {tree.owner.name}",
            "give it to that account by hand, or set model_store_owner",
        )


def _make_directory(parent: int, name: str, tree: Tree) -> int:
    """Create ``name`` under ``parent`` as the owner, or as root where only root may; returns its descriptor."""
    try:
        with acting_as(tree.owner):
            os.mkdir(name, 0o700, dir_fd=parent)
    except PermissionError:
        os.mkdir(name, 0o700, dir_fd=parent)
    created = os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
    os.fchown(created, tree.owner.uid, tree.gid)
    os.fchmod(created, tree.mode)
    os.fsync(parent)
    return created


def _converge_directory(directory: int, tree: Tree) -> None:
    status = os.fstat(directory)
    if (status.st_uid, status.st_gid) != (tree.owner.uid, tree.gid):
        os.fchown(directory, tree.owner.uid, tree.gid)
    if stat.S_IMODE(status.st_mode) != tree.mode:
        os.fchmod(directory, tree.mode)


def _converge_relative(root: int, relative: str, tree: Tree) -> None:
    current = os.dup(root)
    try:
        for name in relative.split("/"):
            try:
                entered = os.open(name, _OPEN_DIRECTORY, dir_fd=current)
            except FileNotFoundError:
                entered = _make_directory(current, name, tree)
            except OSError as error:
                raise UnsafePathError(
                    f"{tree.path}/{relative}", f"{name!r} is not a directory ({error.strerror})", "move it away"
                ) from None
            current = _replace_descriptor(current, entered)
        status = os.fstat(current)
        _refuse_foreign(f"{tree.path}/{relative}", status, tree)
        _converge_directory(current, tree)
    finally:
        os.close(current)


def _compare_link(tree: Tree) -> List[Change]:
    if tree.link is None or not os.path.isdir(os.path.dirname(tree.link)):
        # An account without a home directory has no place for a link.
        return []
    wanted = f"link to {tree.path}"
    with acting_as(tree.owner):
        try:
            status = os.lstat(tree.link)
        except FileNotFoundError:
            if not os.access(os.path.dirname(tree.link), os.W_OK, effective_ids=True):
                raise UnsafePathError(
                    tree.link, f"{tree.owner.name} may not make the link to the store there", "set model_store_link"
                ) from None
            return [Change(tree.link, None, wanted)]
        if not stat.S_ISLNK(status.st_mode):
            raise UnsafePathError(
                tree.link, "is in the way of the link to the store", "move it away, or set model_store_link to ''"
            )
        found = f"link to {os.readlink(tree.link)}"
    return [] if found == wanted else [Change(tree.link, found, wanted)]


def _make_link(tree: Tree) -> None:
    assert tree.link is not None
    with acting_as(tree.owner):
        temporary = f"{tree.link}.{os.getpid()}.modelfleet"
        os.symlink(tree.path, temporary)
        os.replace(temporary, tree.link)
