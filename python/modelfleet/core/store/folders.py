"""The store's folders, opened from descriptor to descriptor, so that no symlink on the way is ever followed."""

import contextlib
import ctypes
import errno
import os
import stat
import sys
from typing import Iterator, List

from ..errors import UnsafePathError
from .layout import CATEGORIES
from .tree import enter

_RENAME_EXCHANGE = 2  # linux/fs.h; RENAME_SWAP of macOS's renameatx_np has the same number
_NOT_OFFERED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)
_MAX_NAME_BYTES = 255


def folder_of(path: str) -> str:
    """Return the folder in which the file ``path`` of the store appears: its category, or the folder of its unit.

    Raises UnsafePathError where it is no plain path below a category.
    """
    category = next((one for one in CATEGORIES if path.startswith(f"{one}/")), None)
    names = path[len(category) + 1 :].split("/") if category else []
    plain = all(
        # Hidden files are judged by nobody.
        name and not name.startswith(".") and name.isprintable() and "\\" not in name and ":" not in name
        for name in names
    )
    if category is None or not plain or any(len(os.fsencode(name)) > _MAX_NAME_BYTES for name in names):
        raise UnsafePathError(repr(path), "is no plain path below a category of the store", "correct the catalog")
    return category if len(names) == 1 else f"{category}/{names[0]}"


@contextlib.contextmanager
def opened(store_path: str, relative: str) -> Iterator[int]:
    """Yield a descriptor of the folder ``relative``; raises UnsafePathError where something on the way is no folder."""
    path = os.path.join(store_path, relative)
    current = os.open(store_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in relative.split("/"):
            try:
                entered = enter(current, name, path)
            except FileNotFoundError as error:
                error.filename = path
                raise
            os.close(current)
            current = entered
        yield current
    finally:
        os.close(current)


def files_below(folder: int, prefix: str = "") -> List[str]:
    """Return what lies below the folder, folders themselves left out, relative and sorted; symlinks count as files."""
    found: List[str] = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            if not entry.is_dir(follow_symlinks=False):
                found.append(prefix + entry.name)
                continue
            below = enter(folder, entry.name, prefix + entry.name)
            try:
                found += files_below(below, f"{prefix}{entry.name}/")
            finally:
                os.close(below)
    return found


def seal(folder: int, directory_mode: int, file_mode: int, gid: int) -> None:
    """Give the folder and all below it their modes and, where we may, the group; then make all of it durable.

    What is no regular file and no folder is refused with UnsafePathError.
    """
    for name in os.listdir(folder):
        status = os.lstat(name, dir_fd=folder)
        if stat.S_ISDIR(status.st_mode):
            below = enter(folder, name, name)
            try:
                seal(below, directory_mode, file_mode, gid)
            finally:
                os.close(below)
        else:
            seal_file(folder, name, file_mode, gid)
    dress(folder, directory_mode, gid)
    os.fsync(folder)


def seal_file(folder: int, name: str, mode: int, gid: int) -> None:
    """Give one file its mode and group and make it durable."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnsafePathError(name, "is not a regular file", "move it away")
        dress(descriptor, mode, gid)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def dress(descriptor: int, mode: int, gid: int) -> None:
    """Give what is open its mode and group; an owner who is no member of the group keeps his own."""
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, -1, gid)
    os.fchmod(descriptor, mode)


def exchange(one_folder: int, one: str, other_folder: int, other: str) -> bool:
    """Exchange two names in one step; False where the system or the file system does not offer it."""
    library = ctypes.CDLL(None, use_errno=True)
    name = "renameatx_np" if sys.platform == "darwin" else "renameat2"
    try:
        function = getattr(library, name)
    except AttributeError:
        return False
    if function(one_folder, os.fsencode(one), other_folder, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    error = ctypes.get_errno()
    if error in _NOT_OFFERED:
        return False
    raise OSError(error, os.strerror(error), other)
