"""The packages of an environment beside llama-cpp-python, and the lock that pins each by its hash.

What is asked for directly comes from the stack; what that needs in turn is resolved by pip, once for each kind of
host, and written down in pip's own form. Every host of the kind installs from exactly that.
"""

import hashlib
import re
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence, Tuple

from ..errors import RuntimeBuildError
from .resolver.pythons import dotted, parse_python
from .resolver.stack import Stack

_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99})==([A-Za-z0-9][A-Za-z0-9.!+_-]{0,99})")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_CURE = "remove it, and run again: it is made anew"
# A resolution has some hundred packages; a text beyond this is none.
_SIZE_LIMIT = 4 * 1024 * 1024


class PackageSet(NamedTuple):
    """What an environment holds beside llama-cpp-python.

    ``key`` names it: equal keys mean one lock. ``requirements`` are what is asked for directly, ``python`` the major
    and minor version that it is for, ``indexes`` the indexes to ask beside the usual.
    """

    key: str
    requirements: Tuple[str, ...]
    python: str
    indexes: Tuple[str, ...] = ()


class Pin(NamedTuple):
    """One package of a lock."""

    name: str
    version: str
    sha256: str


def packages_of_stack(stack: Stack, requirements: str, libc: str, torch_index: str = "") -> PackageSet:
    """Return the packages of a stack, for hosts with a C library such as ``glibc2.36``.

    ``requirements`` is the pip requirements file of the profile gguf, from which that profile alone is installed: of
    it only the key counts then. ``torch_index`` is the URL below which PyTorch has one index for each kind of build;
    empty: none of them is asked.
    """
    python = dotted(parse_python(stack.python.version))
    wished = [one.requirement for one in stack.packages] or without_hashes(requirements)
    digest = hashlib.sha256("\n".join(wished).encode()).hexdigest()[:8]
    tags = dict.fromkeys(one.tag for one in stack.packages if one.tag and torch_index)
    return PackageSet(
        f"stack-{stack.backend}-py{python}-{stack.platform}-{libc}-{digest}",
        tuple(wished),
        python,
        tuple(f"{torch_index.rstrip('/')}/{tag}" for tag in tags),
    )


def without_hashes(requirements: str) -> List[str]:
    """Return the requirements of a pip requirements file, without their hashes and comments."""
    lines = (line.strip().rstrip("\\").strip() for line in requirements.splitlines())
    kept = (re.sub(r"\s*--hash=\S+", "", line) for line in lines if not line.startswith("#"))
    return [line for line in kept if line]


def normalized(name: str) -> str:
    """Return a package's name as the packaging specifications compare it ("Names and normalization")."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins_of(requirements: Sequence[str]) -> Dict[str, str]:
    """Return name and version of each requirement that pins one for every Python."""
    found = (re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(\S+)", one) for one in requirements)
    return {normalized(match.group(1)): match.group(2) for match in found if match}


def lock_from_report(report: Mapping[str, Any]) -> str:
    """Return the lock for what pip's installation report (version 1) says that it would install.

    Raises:
        RuntimeBuildError: a package comes without a SHA-256, or under a name that is none.
    """
    pins = []
    for entry in report.get("install") or ():
        metadata, archive = entry.get("metadata") or {}, (entry.get("download_info") or {}).get("archive_info") or {}
        digest = (archive.get("hashes") or {}).get("sha256") or str(archive.get("hash") or "").partition("sha256=")[2]
        pins.append(Pin(normalized(str(metadata.get("name"))), str(metadata.get("version")), str(digest)))
    text = "# Resolved by pip for this kind of host: every package, pinned by its hash.\n" + "".join(
        f"{pin.name}=={pin.version} \\\n    --hash=sha256:{pin.sha256}\n" for pin in sorted(pins)
    )
    parse_lock(text)
    return text


def parse_lock(text: str) -> List[Pin]:
    """Return the pins of a lock.

    A lock may have been made on another host: it holds pins with hashes and comments, and no option of pip's.

    Raises:
        RuntimeBuildError: it holds anything else, nothing at all, or a package without exactly one hash.
    """
    if len(text) > _SIZE_LIMIT:
        raise RuntimeBuildError("the lock of the packages is larger than any lock", _CURE)
    pins: List[Pin] = []
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for number in range(0, len(lines), 2):
        pin = _PIN.fullmatch(lines[number].rstrip("\\").strip())
        digest = _HASH.fullmatch(lines[number + 1].strip()) if number + 1 < len(lines) else None
        if pin is None or digest is None or not lines[number].endswith("\\"):
            raise RuntimeBuildError(f"the lock of the packages holds what is no pin: {lines[number][:80]!r}", _CURE)
        pins.append(Pin(pin.group(1), pin.group(2), digest.group(1)))
    if not pins:
        raise RuntimeBuildError("the lock of the packages pins nothing", _CURE)
    return pins


def check_lock(text: str, wanted: PackageSet) -> None:
    """Raise RuntimeBuildError unless a lock pins all that ``wanted`` asks for, in its versions."""
    found = {normalized(pin.name): pin.version for pin in parse_lock(text)}
    for name, version in pins_of(wanted.requirements).items():
        if found.get(name) != version:
            raise RuntimeBuildError(
                f"the lock of the packages has {name} {found.get(name, 'not at all')}, not {version}", _CURE
            )
