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

from ..errors import ModelfleetError, UnsafePathError
from ..privilege import Account, account_of, acting_as
from .layout import STATE, STORE_DIRECTORIES

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LINK_LIMIT = 40
# What opening a symlink or a file as a directory gives, by system.
_NO_DIRECTORY = (errno.ELOOP, errno.ENOTDIR, errno.EMLINK)
# What a slip in a path must never give to an account: /usr, say, for /usr/share/models.
_SYSTEM_DIRECTORIES = (
    *("/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/opt", "/proc", "/root", "/run", "/sbin", "/sys", "/tmp"),
    *("/usr", "/usr/local", "/usr/share", "/var", "/var/lib", "/var/tmp", "/Library", "/System", "/Users"),
)


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
    with walk(tree.path) as (directory, missing):
        if missing:
            _require_writable(directory, missing[0], tree)
            changes.extend(Change(path, None, wanted) for path in _new_directories(tree.path, missing))
        else:
            status = os.fstat(directory)
            _refuse_system(tree.path, status)
            changes.extend(_compare_directory(tree.path, status, tree, wanted))
            for relative in STORE_DIRECTORIES:
                path = f"{tree.path}/{relative}"
                try:
                    status = os.lstat(relative, dir_fd=directory)
                except FileNotFoundError:
                    changes.append(Change(path, None, wanted))
                else:
                    changes.extend(_compare_directory(path, status, tree, wanted))
    changes.extend(_compare_link(tree))
    return changes


def foresee(path: str, owner: str) -> List[Change]:
    """Return what ``converge`` would make for an account that is yet to be made; raises UnsafePathError as it would."""
    with walk(path) as (directory, missing):
        if not missing:
            _refuse_system(path, os.fstat(directory))
        return [Change(made, None, f"directory of {owner}") for made in _new_directories(path, missing or [""])]


def _new_directories(path: str, missing: List[str]) -> List[str]:
    """Return the store's directories, and those before it, where the last names of ``path`` are missing."""
    names = path.split("/")
    first = len(names) - len(missing) + 1
    before = ["/".join(names[:end]) for end in range(first, len(names))]
    return [*before, path, *(f"{path}/{relative}" for relative in STORE_DIRECTORIES)]


def converge(tree: Tree) -> List[Change]:
    """Make the tree as wanted and return what was changed; raises UnsafePathError or OSError."""
    changes = compare(tree)
    with walk(tree.path) as (parent, missing):
        directory = parent
        try:
            for name in missing:
                made = _make_directory(directory, name, tree, tree.path)
                directory = _replace_descriptor(directory, made, keep=parent)
            _converge_directory(directory, tree, tree.path)
            for relative in STORE_DIRECTORIES:
                _converge_relative(directory, relative, tree)
        finally:
            if directory != parent:
                os.close(directory)
    if tree.link != tree.path and any(change.path == tree.link for change in changes):
        _make_link(tree)
    return changes


def ensure_directory(path: str, owner: Account, mode: int = 0o755) -> None:
    """Make the directory ``path``, and those missing on the way to it, as ``converge`` makes the store's."""
    tree = Tree(path, owner, owner.gid, mode, None)
    with walk(path) as (parent, missing):
        directory = parent
        try:
            for name in missing:
                made = _make_directory(directory, name, tree, path)
                directory = _replace_descriptor(directory, made, keep=parent)
            _refuse_foreign(path, os.fstat(directory), tree)
        finally:
            if directory != parent:
                os.close(directory)


def store_owner(path: str) -> Account:
    """Return the account that owns the store at ``path``, for which we may act.

    Raises UnsafePathError where another account decides what the path leads
    to, or where only root could act for its owner; ModelfleetError where there
    is no store.
    """
    with walk(path) as (directory, missing):
        owner = account_of(os.fstat(directory))
        try:
            if missing:
                raise FileNotFoundError
            if os.geteuid() not in (0, owner.uid):
                raise UnsafePathError(path, f"belongs to {owner.name}", "run with become, or set model_store_path")
            os.lstat(STATE, dir_fd=directory)
        except FileNotFoundError:
            raise ModelfleetError(f"{path}: there is no model store", "run the role model_store first") from None
    return owner


@contextlib.contextmanager
def walk(path: str) -> Iterator[Tuple[int, List[str]]]:
    """Open the deepest existing directory of ``path``; yields its descriptor and the names still missing under it.

    A symlink on the way is followed only where it is ours or root's, and
    nobody else could have put it there. The store's owner is somebody else:
    root would lend an owner who plants a symlink root's rights at its target.
    """
    trusted = {0, os.geteuid()}
    names = [name for name in path.split("/") if name]
    links = borrowed = 0
    current = _open_directory("/")
    try:
        while names:
            name = names[0]
            try:
                entered = _open_directory(name, current)
            except FileNotFoundError:
                break
            except PermissionError:
                raise UnsafePathError(
                    path, f"{name!r} on the way cannot be entered", "run with become, or choose another path"
                ) from None
            except OSError as error:
                if error.errno not in _NO_DIRECTORY:
                    raise
                target = _trusted_target(current, name, path, trusted)
                links += 1
                if links > _LINK_LIMIT:
                    raise UnsafePathError(path, "too many symlinks on the way", "correct them") from None
                parts = [part for part in target.split("/") if part]
                names[:1] = parts
                borrowed = len(parts) + max(borrowed - 1, 0)
                if target.startswith("/"):
                    current = _replace_descriptor(current, _open_directory("/"))
                continue
            current = _replace_descriptor(current, entered)
            names.pop(0)
            borrowed = max(borrowed - 1, 0)
        if borrowed:
            raise UnsafePathError(
                path, f"a symlink on the way leads to {names[0]!r}, which is missing", "make it, or correct the symlink"
            )
        yield current, names
    finally:
        os.close(current)


def _open_directory(name: str, parent: Optional[int] = None) -> int:
    try:
        return os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
    except PermissionError:
        # One may pass through directories that one may not list.
        if not hasattr(os, "O_PATH"):
            raise
        return os.open(name, _OPEN_DIRECTORY | os.O_PATH, dir_fd=parent)


@contextlib.contextmanager
def _about(path: str) -> Iterator[None]:
    """Name the whole path in the system's errors, which know only a name or a descriptor."""
    try:
        yield
    except OSError as error:
        error.filename = path
        raise


def _trusted_target(parent: int, name: str, path: str, trusted: Set[int]) -> str:
    """Return where the symlink ``name`` leads; raises UnsafePathError if it is none or another account's."""
    status = os.lstat(name, dir_fd=parent)
    if not stat.S_ISLNK(status.st_mode):
        raise UnsafePathError(path, f"{name!r} is not a directory", "move it away, or choose another path")
    around = os.fstat(parent)
    replaceable = around.st_mode & 0o022 and not around.st_mode & stat.S_ISVTX
    foreign = [uid for uid in (status.st_uid, around.st_uid) if uid not in trusted]
    if foreign or replaceable:
        by = f"another account (uid {foreign[0]})" if foreign else "every account that may write beside it"
        raise UnsafePathError(
            path,
            f"{name!r} on the way is a symlink that {by} controls",
            "remove it, or name the path that it leads to",
        )
    return os.readlink(name, dir_fd=parent)


def _replace_descriptor(old: int, new: int, keep: Optional[int] = None) -> int:
    if old != keep:
        os.close(old)
    return new


def _describe(uid: int, gid: int, mode: int) -> str:
    return f"directory {mode:04o} uid {uid} gid {gid}"


def _compare_directory(path: str, status: os.stat_result, tree: Tree, wanted: str) -> List[Change]:
    if not stat.S_ISDIR(status.st_mode):
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


def _refuse_system(path: str, status: os.stat_result) -> None:
    for system in _SYSTEM_DIRECTORIES:
        with contextlib.suppress(OSError):
            if os.path.samestat(status, os.stat(system)):
                raise UnsafePathError(path, "is a directory of the system", "choose one below it")


def _require_writable(directory: int, name: str, tree: Tree) -> None:
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=directory, effective_ids=True):
        cure = "run with become" if os.geteuid() else "remount the file system writable"
        raise UnsafePathError(tree.path, f"{name!r} cannot be made there", f"{cure}, or choose another path")


def _make_directory(parent: int, name: str, tree: Tree, path: str) -> int:
    """Create ``name`` under ``parent`` as the owner, or as root where only root may; returns its descriptor."""
    with _about(path):
        try:
            with acting_as(tree.owner):
                os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            # Another run was faster; what it made is judged like all that was there before.
            pass
        except PermissionError:
            os.mkdir(name, 0o700, dir_fd=parent)
        created = enter(parent, name, path)
        try:
            _refuse_foreign(path, os.fstat(created), tree)
            os.fchown(created, tree.owner.uid, tree.gid)
            os.fchmod(created, tree.mode)
            os.fsync(parent)
        except BaseException:
            os.close(created)
            raise
    return created


def enter(parent: int, name: str, path: str) -> int:
    """Open the folder ``name`` in the open folder ``parent``; raises UnsafePathError where it is none, or a symlink.

    ``path`` is for the error.
    """
    try:
        return os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
    except OSError as error:
        if error.errno in _NO_DIRECTORY:
            raise UnsafePathError(path, f"{name!r} is not a directory", "move it away") from None
        raise


def _converge_directory(directory: int, tree: Tree, path: str) -> None:
    status = os.fstat(directory)
    _refuse_foreign(path, status, tree)
    with _about(path):
        if (status.st_uid, status.st_gid) != (tree.owner.uid, tree.gid):
            os.fchown(directory, tree.owner.uid, tree.gid)
        if stat.S_IMODE(status.st_mode) != tree.mode:
            os.fchmod(directory, tree.mode)


def _converge_relative(root: int, relative: str, tree: Tree) -> None:
    path = f"{tree.path}/{relative}"
    current = os.dup(root)
    try:
        for name in relative.split("/"):
            try:
                with _about(path):
                    entered = enter(current, name, path)
            except FileNotFoundError:
                entered = _make_directory(current, name, tree, path)
            current = _replace_descriptor(current, entered)
        _converge_directory(current, tree, path)
    finally:
        os.close(current)


def _compare_link(tree: Tree) -> List[Change]:
    if tree.link is None or tree.link == tree.path or not os.path.isdir(os.path.dirname(tree.link)):
        # A store that is where the link would be needs none; an account without a home has no place for one.
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
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        os.symlink(tree.path, temporary)
        try:
            os.replace(temporary, tree.link)
        except BaseException:
            os.unlink(temporary)
            raise
