"""The files beside the weights: configuration, tokenizer, vocabulary, texts; and the names that a repository may use.

Nothing in them is ever run: no ``.py``, no executable, no configuration that names code (``auto_map``).
"""

import json
import os
import re
import unicodedata
from typing import Any, Dict, Iterable, List, Set, Tuple

from ..errors import FormatError
from .source import Source, shown

ALLOWED_SUFFIXES = (".json", ".txt", ".model", ".md", ".jinja")
MAX_BYTES = 64 * 1024 * 1024
# A larger JSON document (a tokenizer) is bounded in depth and searched, but not built in memory.
MAX_PARSED_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 64
MAX_NAME_BYTES = 255
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)
# What runs: ELF, Mach-O, Windows programs, scripts.
_PROGRAMS = (b"\x7fELF", b"MZ", b"#!", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")


def judge_auxiliary(source: Source, name: str) -> None:
    """Judge the file that is to be published as ``name``. Raises FormatError."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in ALLOWED_SUFFIXES:
        raise source.refuse("type", suffix or "no suffix", " ".join(ALLOWED_SUFFIXES) + " beside weights")
    if source.size > MAX_BYTES:
        raise source.refuse("size", f"{source.size} bytes", f"at most {MAX_BYTES}")
    head = source.read(0, min(8, source.size))
    if head.startswith(_PROGRAMS):
        raise source.refuse("content", head, "no program")
    if suffix == ".model":
        return
    if suffix == ".json":
        if source.size > MAX_PARSED_BYTES:
            text = _text(source)
            _require_depth(source, text)
            found = '"auto_map"' in text
        else:
            found = _names_code(parse_json(source))
        if found:
            raise source.refuse("auto_map", "a configuration that names code to run", "configurations without code")
        return
    _text(source)


def _names_code(document: Any) -> bool:
    waiting = [document]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if "auto_map" in one:
                return True
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)
    return False


def plain_name(name: str) -> bool:
    """Tell whether ``name`` names a file in the same folder: no path, no drive, nothing invisible."""
    return (
        0 < len(name.encode("utf-8", "replace")) <= MAX_NAME_BYTES
        and name not in (".", "..")
        and name.isprintable()
        and not any(character in name for character in "/\\:")
    )


def judge_names(names: Iterable[str], repository: str) -> None:
    """Judge the relative paths of a repository's files before any is written. Raises FormatError.

    Each part is a plain name, and no two paths differ only in case or in Unicode form: on some file systems they
    are one file.
    """
    seen: Set[str] = set()
    for name in names:
        if len(name) > 4096 or not all(plain_name(part) for part in name.split("/")):
            raise FormatError(shown(repository), "file name", shown(name), "plain relative names of at most 255 bytes")
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        if folded in seen:
            raise FormatError(shown(repository), "file name", shown(name), "names that differ in more than case")
        seen.add(folded)


def parse_json(source: Source, max_depth: int = MAX_DEPTH) -> Any:
    """Return the JSON document that ``source`` is: strict UTF-8, no key twice, bounded depth. Raises FormatError."""

    def unique(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise source.refuse("JSON", "a name twice", "each name once")
        return found

    text = _text(source)
    _require_depth(source, text, max_depth)
    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise source.refuse("JSON", str(error), "valid JSON") from None


def _text(source: Source) -> str:
    raw = source.read(0, source.size)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise source.refuse("content", raw[error.start : error.start + 8], "UTF-8") from None


def _require_depth(source: Source, text: str, max_depth: int = MAX_DEPTH) -> None:
    depth = 0
    for match in _BRACKETS.finditer(text):
        mark = text[match.start()]
        if mark in "[{":
            depth += 1
            if depth > max_depth:
                raise source.refuse("JSON", f"a depth of more than {max_depth}", f"a depth of at most {max_depth}")
        elif mark in "]}":
            depth -= 1
