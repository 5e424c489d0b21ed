"""Where a model file comes from: the forms of ``source`` in the catalog."""

import re
import urllib.parse
from typing import NamedTuple, Union

from ..errors import ConfigurationError


class WheelSource(NamedTuple):
    """``wheel://PACKAGE==VERSION/MEMBER``: a file inside a wheel of the configured package index."""

    package: str
    version: str
    member: str


class FileSource(NamedTuple):
    """``file:///PATH``: a file on the host itself."""

    path: str


Source = Union[WheelSource, FileSource]

_WHEEL = re.compile(r"wheel://([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)/(.+)\Z")


def parse_source(text: str) -> Source:
    """Return the parsed source; raises ConfigurationError where it is of no known form."""
    wheel = _WHEEL.match(text)
    if wheel:
        package, version, member = wheel.groups()
        if member.startswith("/") or ".." in member.split("/") or not member.isprintable():
            raise ConfigurationError(f"source {text!r}: the member leaves the wheel", "name it as the wheel lists it")
        return WheelSource(package, version, member)
    path = urllib.parse.unquote(text[len("file://") :])
    if text.startswith("file:///") and "\0" not in path:
        return FileSource(path)
    raise ConfigurationError(
        f"source {text!r} is of no form that this release reads", "use wheel://PACKAGE==VERSION/MEMBER or file:///PATH"
    )
