"""The application's environment file: read, merged with what modelfleet manages, replaced atomically.

Three readers must see the same values: python-dotenv, ``set -a; . FILE`` in a
POSIX shell, and systemd's ``EnvironmentFile=``. They agree on less than each
allows, so a value is written bare where its characters are safe, in single
quotes where not, in double quotes where it holds a single quote, and refused
where no spelling is read alike (the tests ask the readers themselves).

Lines that modelfleet does not manage stay as they are, byte for byte.
"""

import contextlib
import os
import re
import stat
from typing import Dict, Iterator, List, Mapping, NamedTuple, NoReturn, Optional, Sequence, Tuple

from .errors import ConfigurationError, EnvFileError, UnsafePathError
from .privilege import Account, account_of_path, acting_as
from .store.layout import CATEGORIES, TOKENIZER_CACHE
from .store.manifest import read_manifest
from .store.tree import _walk as walk_safely

Variables = Mapping[str, Optional[str]]
"""What is wanted, in the order of writing: a value, or None for a line that must not be there."""

# An environment file is written by hand; anything larger is another file by mistake.
SIZE_LIMIT_BYTES = 1024 * 1024
MASK = "********"

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_ASSIGNMENT = re.compile(rf"[ \t]*(?:export[ \t]+)?({_NAME})[ \t]*=[ \t]*", re.ASCII)
_SAFE = re.compile(r"[A-Za-z0-9_./:@%+,=-]*", re.ASCII)
_QUOTED_BY_SHELL = {"'": re.compile(r"'[^']*'"), '"': re.compile(r'"(?:\\.|[^"\\])*"', re.DOTALL)}
# python-dotenv takes a backslash before the quote for an escape in both kinds of quotes.
_QUOTED_BY_DOTENV = {"'": re.compile(r"'(?:\\'|[^'])*'"), '"': re.compile(r'"(?:\\"|[^"])*"')}
_SECRET = re.compile(r"(TOKEN|KEYS?|SECRETS?|PASSWORDS?|PASSWD)($|_)", re.IGNORECASE)


class Entry(NamedTuple):
    """One logical entry with its line ending: ``name`` is None for comments and blank lines."""

    text: str
    name: Optional[str]


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


def parse(text: str, path: str) -> List[Entry]:
    """Split ``text`` into logical entries; joined, they are ``text`` again.

    Raises EnvFileError with ``path`` and the line, never with the line's
    content, which may be a secret.
    """
    if text.startswith("\ufeff"):
        _refuse(
            path, 1, "a byte order mark, which a shell takes for a part of the first name", "save the file without it"
        )
    entries: List[Entry] = []
    position, number = 0, 0
    while position < len(text):
        end = _end_of_line(text, position)
        line = text[position:end].rstrip("\r\n")
        number += 1
        name: Optional[str] = None
        stripped = line.strip(" \t")
        if "\0" in line or "\r" in line:
            _refuse(path, number, "a control character (NUL or carriage return) inside the line", "remove it")
        if stripped.startswith("#"):
            if stripped.endswith("\\"):
                _refuse(
                    path, number, "a comment that ends in a backslash: systemd skips the next line too", "remove it"
                )
        elif stripped:
            match = _ASSIGNMENT.match(text, position, position + len(line))
            if match is None:
                _refuse(path, number, "neither a comment nor NAME=VALUE", "correct or remove the line")
            name = match.group(1)
            end = _end_of_assignment(text, match.end(), end, path, number)
        entries.append(Entry(text[position:end], name))
        number += max(text.count("\n", position, end) - 1, 0)
        position = end
    return entries


def _end_of_line(text: str, position: int) -> int:
    newline = text.find("\n", position)
    return len(text) if newline < 0 else newline + 1


def _end_of_assignment(text: str, value: int, end: int, path: str, number: int) -> int:
    """Return where the entry ends whose value starts at ``value``: a quoted value may span lines."""
    quote = text[value : value + 1]
    if quote not in _QUOTED_BY_SHELL:
        if text[value:end].rstrip("\r\n").endswith("\\"):
            _refuse(
                path, number, "a line continued with a backslash, which python-dotenv cannot read", "join the lines"
            )
        return end
    by_shell = _QUOTED_BY_SHELL[quote].match(text, value)
    by_dotenv = _QUOTED_BY_DOTENV[quote].match(text, value)
    if by_shell is None or by_dotenv is None:
        _refuse(path, number, f"a {quote} that is not closed", "close it")
    if by_shell.end() != by_dotenv.end():
        _refuse(path, number, f"a \\{quote} that readers understand differently", "write the value without it")
    end = _end_of_line(text, by_shell.end())
    if re.fullmatch(r"[ \t]*(?:[ \t]#[^\r\n]*)?\r?\n?", text[by_shell.end() : end]) is None:
        _refuse(path, number, "text after the closing quote", "put the whole value in one pair of quotes")
    return end


def _refuse(path: str, number: int, what: str, cure: str) -> NoReturn:
    raise EnvFileError(f"{path}:{number}: {what}", cure)


def format_line(name: str, value: str) -> str:
    """Return ``NAME=VALUE`` without line ending as all three readers read it; raises EnvFileError where none is."""
    if not re.fullmatch(_NAME, name, re.ASCII):
        raise EnvFileError(f"{name!r} is no name of a variable", "use letters, digits and _, not a digit first")
    if _SAFE.fullmatch(value):
        return f"{name}={value}"
    problem = _unreadable(value)
    if problem:
        raise EnvFileError(
            f"the value of {name} has {problem}, which python-dotenv, sh and systemd do not read alike",
            "choose a value without it",
        )
    quote = '"' if "'" in value else "'"
    return f"{name}={quote}{value}{quote}"


def _unreadable(value: str) -> Optional[str]:
    """Return what keeps ``value`` from being read alike, in words; None where nothing does."""
    if any((ord(letter) < 32 and letter != "\t") or letter == "\x7f" for letter in value):
        return "a control character or a line break"
    # Surrogates stand for bytes that are no UTF-8; systemd refuses Unicode's noncharacters too.
    if any(
        0xD800 <= (code := ord(letter)) <= 0xDFFF or code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
        for letter in value
    ):
        return "text that is not valid UTF-8"
    if "\\" in value:
        return "a backslash"
    if "${" in value:
        return "'${'"
    if "'" in value and any(letter in value for letter in '"$`'):
        return "a single quote together with a double quote, a dollar sign or a backtick"
    return None


def merge(text: str, values: Variables, path: str) -> str:
    """Return ``text`` with exactly one line for each value and none for each None.

    A managed line stays in its place (the last one, where there are several);
    new ones come at the end. They end in a newline alone, as a shell takes a
    carriage return for a part of the value. Raises EnvFileError.
    """
    lines = {name: None if value is None else format_line(name, value) for name, value in values.items()}
    entries = parse(text, path)
    last = {entry.name: index for index, entry in enumerate(entries) if entry.name in lines}
    kept: List[str] = []
    for index, entry in enumerate(entries):
        if entry.name is None or entry.name not in lines:
            kept.append(entry.text)
            continue
        line = lines[entry.name]
        if line is not None and last[entry.name] == index:
            kept.append(line + ("\n" if entry.text.endswith("\n") else ""))
    added = [f"{line}\n" for name, line in lines.items() if line is not None and name not in last]
    if added and kept and not kept[-1].endswith("\n"):
        kept[-1] += "\n"
    return "".join(kept + added)


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

    Raises EnvFileError where we have no right to write for that account.
    """
    try:
        account, gid = account_of_path(os.path.realpath(store_path)), os.stat(store_path).st_gid
    except OSError:
        return None, os.getegid()
    if os.geteuid() not in (0, account.uid):
        raise EnvFileError(f"{store_path} belongs to {account.name}", "run as that account or with become")
    return account, gid


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
    account = owner or Account("root", os.geteuid(), os.getegid(), "/")
    with contextlib.ExitStack() as stack:
        try:
            directory, missing = stack.enter_context(walk_safely(os.path.dirname(path), account))
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
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnsafePathError(path, "is not a regular file", "move it away, or set env_file_path to another file")
        if owner is not None and status.st_uid not in (0, owner.uid):
            raise UnsafePathError(
                path, f"belongs to uid {status.st_uid}, not to {owner.name}", "give it to that account, or move it away"
            )
        # A second name in the owner's directory could be that of any file of root's.
        if owner is not None and status.st_uid != owner.uid and status.st_nlink > 1:
            raise UnsafePathError(path, "is a hard link to a file of root's", "remove it")
        if status.st_size > SIZE_LIMIT_BYTES:
            raise EnvFileError(f"{path}: larger than an environment file can be", "correct env_file_path")
        return stream.read().decode("utf-8", "surrogateescape"), status
