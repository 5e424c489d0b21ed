"""Which Python an environment is made with: the host's, or one that its platform offers.

What platforms offer, from their package lists (S, but Debian 12: V): Debian and Ubuntu name it ``pythonX.Y`` with
``pythonX.Y-venv`` beside; RHEL and what is built from it ``pythonX.Y`` in AppStream (3.12 since 8.10 and 9.4); openSUSE
``pythonXY``; Fedora ``pythonX.Y`` for every version that is maintained; macOS has Homebrew's ``python@X.Y``. Ubuntu
22.04's python3.11 (component universe) is a release candidate.
"""

import re
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from ...errors import StackError
from .releases import PYTHONS_REFUSED, Generation, PythonVersion

# By distribution or family, with the major version where it matters; the newest first.
OFFERED: Dict[str, Tuple[PythonVersion, ...]] = {
    "debian-11": ((3, 9),),
    "debian-12": ((3, 11),),
    "debian-13": ((3, 13),),
    "ubuntu-20.04": ((3, 9), (3, 8)),
    "ubuntu-22.04": ((3, 11), (3, 10)),
    "ubuntu-24.04": ((3, 12),),
    "ubuntu-26.04": ((3, 14),),
    "redhat-8": ((3, 12), (3, 11), (3, 9)),
    "redhat-9": ((3, 12), (3, 11), (3, 9)),
    "redhat-10": ((3, 12),),
    "fedora": ((3, 14), (3, 13), (3, 12)),
    "suse-15": ((3, 12), (3, 11)),
    "darwin": ((3, 13), (3, 12)),
}
NAMED, HOST, PLATFORM = "named", "host", "platform"


class PythonChoice(NamedTuple):
    """A Python: ``origin`` is named (by the user), host (it is there) or platform (``packages`` bring it)."""

    version: Optional[str]
    origin: str
    packages: Tuple[str, ...] = ()


def parse_python(text: Optional[str]) -> Tuple[int, ...]:
    """Return the numbers of a Python version, at least two; none where the text is no such version."""
    match = re.match(r"(3)\.(\d{1,3})(?:\.(\d{1,3}))?(?![\d.])", text or "", re.ASCII)
    return tuple(int(part) for part in match.groups() if part is not None) if match else ()


def fits(numbers: Sequence[int], generation: Generation) -> bool:
    """Tell whether a Python takes a generation's packages."""
    if len(numbers) < 2 or (generation.libraries and tuple(numbers[:3]) in PYTHONS_REFUSED):
        return False
    return generation.first <= (numbers[0], numbers[1]) <= generation.last


def platform_names(family: Optional[str], distribution: Optional[str], version: Optional[str]) -> List[str]:
    """Return the names under which OFFERED may have a platform, the most exact first."""
    major = (version or "").split(".")[0]
    return [f"{distribution}-{version}", f"{distribution}-{major}", f"{distribution}", f"{family}-{major}", f"{family}"]


def _packages(name: str, family: Optional[str], version: PythonVersion) -> Tuple[str, ...]:
    dotted = f"{version[0]}.{version[1]}"
    if name == "darwin":
        return (f"python@{dotted}",)
    if family == "suse":
        return (f"python{version[0]}{version[1]}",)
    return (f"python{dotted}", f"python{dotted}-venv") if family == "debian" else (f"python{dotted}",)


def choose_python(
    named: str,
    found: Optional[str],
    platform: Tuple[Optional[str], Optional[str], Optional[str]],
    generations: Sequence[Generation],
) -> Tuple[PythonChoice, Generation]:
    """Return the Python and the packages' generation that goes with it.

    The host's own is taken where the newest generation takes it; else the newest that the platform offers; else
    an older generation for the host's own.

    Args:
        named: the version of the Python that the user named, such as ``3.12``, or ''.
        found: the version of the host's.
        platform: family, distribution and version of the system.
        generations: the newest first.

    Raises:
        StackError: no Python at hand takes any of them.
    """
    newest = generations[0]
    span = f"{dotted(generations[-1].first)} or newer"
    if newest.libraries:
        span = f"{dotted(generations[-1].first)} to {dotted(newest.last)}"
    if named:
        for generation in generations:
            if fits(parse_python(named), generation):
                return PythonChoice(named, NAMED), generation
        raise StackError(f"Python {named[:20]} takes none of the packages that are wished", f"name one of {span}")
    numbers = parse_python(found)
    if fits(numbers, newest):
        return PythonChoice(found, HOST), newest
    name = next((one for one in platform_names(*platform) if one in OFFERED), None)
    for version in OFFERED.get(name or "", ()):
        if fits(version, newest):
            return PythonChoice(dotted(version), PLATFORM, _packages(name or "", platform[0], version)), newest
    for generation in generations[1:]:
        if fits(numbers, generation):
            return PythonChoice(found, HOST), generation
    where = f"{platform[1] or platform[0] or 'this system'} {platform[2] or ''}".strip()
    offered = f"and {where} offers no other that does" if name else f"and what {where} offers is not known here"
    raise StackError(
        f"the host's Python {found or '(not known)'} does not take the packages that are wished, {offered}",
        f"install Python {span} and name it with inference_runtime_python, or move to a newer release of the system",
    )


def dotted(version: Sequence[int]) -> str:
    """Return major and minor of a version as text."""
    return ".".join(map(str, version[:2]))
