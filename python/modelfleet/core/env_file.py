"""The application's environment file on disk: what it shall hold, compared with what is there, replaced atomically.

``plan_env_file`` decides and changes nothing; ``write_env_file`` does exactly
what it decided. The text itself is the concern of ``env_format``.
"""

import contextlib
import os
import re
import stat
from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from .env_format import Entry, Variables, merge, parse
from .errors import ConfigurationError, EnvFileError, UnsafePathError
from .privilege import Account, account_of, acting_as
from .store.layout import CATEGORIES, TOKENIZER_CACHE
from .store.manifest import read_manifest
from .store.tree import walk

# An environment file is written by hand; anything larger is another file by mistake.
SIZE_LIMIT_BYTES = 1024 * 1024
MASK = "********"

_SECRET = re.compile(r"(TOKEN|KEYS?|SECRETS?|PASSWORDS?|PASSWD)($|_)", re.IGNORECASE)


class EnvFilePlan(NamedTuple):
    """The environment file as it is and as it will be; ``before`` is None where there is no file.

    ``attributes`` are mode and owner, before and after, where they differ.
    """

    path: str
    before: Optional[str]
    after: str
    attributes: Tuple[Tuple[str, str], ...]
    owner: Optional[Account]
    gid: int
    mode: int

    @property
    def changed(self) -> bool:
        """True when writing would change anything."""
        return self.before != self.after or bool(self.attributes)


def wanted_variables(
    store_path: str, model_paths: Sequence[str], gpu_inference: bool, extra: Mapping[str, object]
) -> Dict[str, Optional[str]]:
    """Return the tutorial's six variables and HF_HOME, then ``extra``, which wins.

    ``model_paths`` are the kept files relative to the store, best first.
    Raises ConfigurationError where an extra value is no text, number or boolean.
    """
    values: Dict[str, Optional[str]] = {
        "LOCAL_MODELS_ENABLED": "true",
        "LOCAL_MODELS_PATH": store_path,
        "MODEL_CACHE_PATH": os.path.join(store_path, "cache"),
        "HF_HOME": os.path.join(store_path, TOKENIZER_CACHE),
        "DEFAULT_CHAT_MODEL": first_model(model_paths, "chat/"),
        "DEFAULT_IMAGE_MODEL": first_model(model_paths, "image/"),
        "ENABLE_GPU_INFERENCE": "true" if gpu_inference else "false",
    }
    for name, value in extra.items():
        if isinstance(value, bool):
            values[name] = "true" if value else "false"
        elif value is None or isinstance(value, str):
            values[name] = value
        elif isinstance(value, (int, float)):
            values[name] = str(value)
        else:
            raise ConfigurationError(f"env_file_variables: {name} is a {type(value).__name__}", "give it a text")
    return values


def first_model(model_paths: Sequence[str], prefix: str) -> Optional[str]:
    """Return the name, within its category, of the first model whose category starts with ``prefix``."""
    for path in model_paths:
        for category in CATEGORIES:
            # A model of several files is a directory: its name is what stands under the category.
            if category.startswith(prefix) and path.startswith(f"{category}/"):
                return path[len(category) + 1 :].split("/")[0]
    return None


def kept_models(store_path: str) -> List[str]:
    """Return the files that the store's manifest lists, relative to the store and sorted; none without a store."""
    return sorted(read_manifest(store_path))


def store_owner(store_path: str) -> Tuple[Optional[Account], int]:
    """Return the account and the group id that the store belongs to; no account where there is no store yet.

    Raises EnvFileError where we have no right to write for that account,
    UnsafePathError where another account decides what the path leads to.
    """
    with walk(store_path) as (directory, missing):
        if missing:
            return None, os.getegid()
        status = os.fstat(directory)
    account = account_of(status)
    if os.geteuid() not in (0, account.uid):
        raise EnvFileError(f"{store_path} belongs to {account.name}", "run as that account or with become")
    return account, status.st_gid


def parse_mode(text: str) -> int:
    """Return permissions written as ``0640``; raises ConfigurationError for what YAML made of an unquoted number."""
    if not re.fullmatch(r"0[0-7]{3}", text, re.ASCII):
        raise ConfigurationError(f"env_file_mode: {text!r} is no octal number", "write it as '0640', in quotes")
    return int(text, 8)


def plan_env_file(path: str, values: Variables, owner: Optional[Account], gid: int, mode: int) -> EnvFilePlan:
    """Read the file at the absolute ``path`` and decide what becomes of it; changes nothing.

    ``owner`` is None where it cannot be known yet, in check mode before the
    store exists. Raises EnvFileError and UnsafePathError.
    """
    with _opened_directory(path, owner) as (directory, missing):
        found = None if missing else _read_existing(path, directory, owner)
    if found is None:
        return EnvFilePlan(path, None, merge("", values, path), (), owner, gid, mode)
    text, status = found
    attributes: List[Tuple[str, str]] = []
    if stat.S_IMODE(status.st_mode) != mode:
        attributes.append((f"mode {stat.S_IMODE(status.st_mode):04o}", f"mode {mode:04o}"))
    if owner is not None and (status.st_uid, status.st_gid) != (owner.uid, gid):
        attributes.append((f"uid {status.st_uid} gid {status.st_gid}", f"uid {owner.uid} gid {gid}"))
    return EnvFilePlan(path, text, merge(text, values, path), tuple(attributes), owner, gid, mode)


def diff_lines(plan: EnvFilePlan, names: Sequence[str], secrets: Sequence[str] = ()) -> Tuple[str, str]:
    """Return the managed lines and the attributes that differ, before and after.

    The values of ``secrets``, and of names that look like one, are masked.
    """
    before = [entry for entry in parse(plan.before or "", plan.path) if entry.name in names]
    after = [entry for entry in parse(plan.after, plan.path) if entry.name in names]
    old = [first for first, _ in plan.attributes] + [_shown(entry, secrets, "") for entry in before]
    new = [second for _, second in plan.attributes]
    for entry in after:
        known = any(other.name == entry.name and other.text.strip() == entry.text.strip() for other in before)
        new.append(_shown(entry, secrets, "" if known else " (new value)"))
    return "".join(f"{line}\n" for line in old), "".join(f"{line}\n" for line in new)


def _shown(entry: Entry, secrets: Sequence[str], suffix: str) -> str:
    if entry.name in secrets or _SECRET.search(entry.name or ""):
        return f"{entry.name}={MASK}{suffix}"
    return entry.text.rstrip("\r\n")


def write_env_file(plan: EnvFilePlan) -> None:
    """Replace the file: the old one or the new one is there, never half of it.

    It is born readable by its owner alone, written with the owner's rights
    where the directory is the owner's, and gets its mode last. Raises
    EnvFileError and UnsafePathError.
    """
    name = os.path.basename(plan.path)
    temporary = f".{name}.{os.getpid()}.modelfleet"
    if plan.owner is None:
        raise EnvFileError(f"{plan.path}: the store that it describes does not exist", "run the role model_store first")
    with _opened_directory(plan.path, plan.owner) as (directory, missing):
        if missing:
            raise EnvFileError(
                f"{plan.path}: its directory does not exist", "create it, or set env_file_path to one that does"
            )
        in_owners = os.fstat(directory).st_uid == plan.owner.uid
        try:
            with _as_writer(plan.owner, in_owners):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
            try:
                _fill(descriptor, plan)
                with _as_writer(plan.owner, in_owners):
                    os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=directory)
                raise
            finally:
                os.close(descriptor)
            # The new file is in its place; not every file system can sync a directory.
            with contextlib.suppress(OSError):
                os.fsync(directory)
        except OSError as error:
            raise EnvFileError(
                f"{plan.path}: cannot be written as {plan.owner.name}: {error.strerror}", "the file is as it was"
            ) from None


def _fill(descriptor: int, plan: EnvFilePlan) -> None:
    data = plan.after.encode("utf-8", "surrogateescape")
    while data:
        data = data[os.write(descriptor, data) :]
    assert plan.owner is not None
    status = os.fstat(descriptor)
    if (status.st_uid, status.st_gid) != (plan.owner.uid, plan.gid):
        os.fchown(descriptor, plan.owner.uid, plan.gid)
    os.fchmod(descriptor, plan.mode)
    os.fsync(descriptor)


@contextlib.contextmanager
def _as_writer(owner: Account, in_owners: bool) -> Iterator[None]:
    """Act as the owner in a directory of the owner's; in root's own directory nobody else can plant anything."""
    with acting_as(owner) if in_owners else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _opened_directory(path: str, owner: Optional[Account]) -> Iterator[Tuple[int, bool]]:
    """Open the directory that holds ``path`` without following another account's symlinks; True: it is missing."""
    if not os.path.isabs(path) or not os.path.basename(path):
        raise EnvFileError(f"{path}: not the absolute path of a file", "correct env_file_path")
    with contextlib.ExitStack() as stack:
        try:
            directory, missing = stack.enter_context(walk(os.path.dirname(path)))
        except OSError as error:
            raise EnvFileError(
                f"{path}: its directory cannot be opened: {error.strerror}", "set env_file_path to another file"
            ) from None
        found = os.fstat(directory).st_uid
        if not missing and owner is not None and found not in (0, owner.uid):
            raise UnsafePathError(
                os.path.dirname(path),
                f"belongs to uid {found}, neither to root nor to the store's owner {owner.name}",
                "set env_file_path to a directory of theirs",
            )
        yield directory, bool(missing)


def _read_existing(path: str, directory: int, owner: Optional[Account]) -> Optional[Tuple[str, os.stat_result]]:
    """Return text and stat of the file, None where there is none; refuses what is not the owner's own plain file."""
    name = os.path.basename(path)
    try:
        # Not blocking: a named pipe must be refused, not waited for.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        if stat.S_ISLNK(os.lstat(name, dir_fd=directory).st_mode):
            raise UnsafePathError(path, "is a symlink", "remove it, or set env_file_path to the file itself") from None
        raise EnvFileError(f"{path}: cannot be read: {error.strerror}", "run as its owner or with become") from None
    try:
        status = os.fstat(descriptor)
        _refuse_unsafe(path, status, owner)
        text = b""
        while len(text) <= SIZE_LIMIT_BYTES:
            part = os.read(descriptor, SIZE_LIMIT_BYTES)
            if not part:
                return text.decode("utf-8", "surrogateescape"), status
            text += part
    finally:
        os.close(descriptor)
    raise EnvFileError(f"{path}: larger than an environment file can be", "correct env_file_path")


def _refuse_unsafe(path: str, status: os.stat_result, owner: Optional[Account]) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnsafePathError(path, "is not a regular file", "move it away, or set env_file_path to another file")
    if owner is not None and status.st_uid not in (0, owner.uid):
        raise UnsafePathError(
            path, f"belongs to uid {status.st_uid}, not to {owner.name}", "give it to that account, or move it away"
        )
    # A second name in the owner's directory could be that of any file of root's.
    if owner is not None and status.st_uid != owner.uid and status.st_nlink > 1:
        raise UnsafePathError(path, "is a hard link to a file of root's", "remove it")
