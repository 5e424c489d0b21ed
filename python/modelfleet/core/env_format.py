"""The text of an environment file: split into entries, read, and merged with what modelfleet manages.

Three readers must see the same values: python-dotenv, ``set -a; . FILE`` in a
POSIX shell, and systemd's ``EnvironmentFile=``. They agree on less than each
allows, so a value is written bare where its characters are safe, in single
quotes where not, in double quotes where it holds a single quote, and refused
where no spelling is read alike (the tests ask the readers themselves).

Lines that modelfleet does not manage stay as they are, byte for byte.
"""

import re
from typing import Dict, List, Mapping, NamedTuple, NoReturn, Optional

from .errors import EnvFileError

Variables = Mapping[str, Optional[str]]
"""What is wanted, in the order of writing: a value, or None for a line that must not be there."""

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_ASSIGNMENT = re.compile(rf"[ \t]*(?:export[ \t]+)?({_NAME})[ \t]*=[ \t]*", re.ASCII)
_SAFE = re.compile(r"[A-Za-z0-9_./:@%+,=-]*", re.ASCII)
_QUOTED_BY_SHELL = {"'": re.compile(r"'[^']*'"), '"': re.compile(r'"(?:\\.|[^"\\])*"', re.DOTALL)}
# python-dotenv takes a backslash before the quote for an escape in both kinds of quotes.
_QUOTED_BY_DOTENV = {"'": re.compile(r"'(?:\\'|[^'])*'"), '"': re.compile(r'"(?:\\"|[^"])*"')}


class Entry(NamedTuple):
    """One logical entry with its line ending: ``name`` is None for comments and blank lines."""

    text: str
    name: Optional[str]


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


def read_values(text: str, path: str) -> Dict[str, str]:
    """Return the variables that ``text`` sets, as a shell reads them but expanding nothing; raises EnvFileError."""
    values: Dict[str, str] = {}
    for entry in parse(text, path):
        match = _ASSIGNMENT.match(entry.text) if entry.name else None
        if match is None:
            continue
        raw = entry.text[match.end() :]
        quoted = _QUOTED_BY_SHELL[raw[0]].match(raw) if raw[:1] in _QUOTED_BY_SHELL else None
        if quoted is None:
            value = re.split(r"[ \t]#", raw.rstrip("\r\n"), maxsplit=1)[0].strip(" \t")
        elif raw[0] == "'":
            value = quoted.group()[1:-1]
        else:
            value = re.sub(r'\\([\\"$`])', r"\1", quoted.group()[1:-1])
        values[match.group(1)] = value
    return values
