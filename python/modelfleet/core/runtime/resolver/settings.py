"""What is wished of a stack, and what of it cannot be meant."""

import re
from dataclasses import dataclass, field
from typing import Mapping, Tuple

from ...errors import StackError
from .flags import checked_arguments
from .releases import PACKAGES, PROFILES

_VERSION = re.compile(r"([0-9][A-Za-z0-9.!_-]{0,40}(\+[A-Za-z0-9.]{1,20})?)?", re.ASCII)
BACKENDS = ("cuda", "rocm", "metal", "vulkan", "cpu")


@dataclass(frozen=True)
class StackSettings:
    """What is wished.

    ``backend`` and ``python`` (a version such as ``3.12``) override the choice. ``driver_branch`` is what the role
    accelerator was told to install, 0: its default. ``machine`` is for a profile that does not tell it, as a record
    of one tool. ``libc`` such as ``glibc2.36``; empty: not known, and not judged. ``upstream_wheels`` allows
    llama-cpp-python's own wheels, which no hash pins, in place of a build. ``versions`` replaces versions of packages
    by their names, with a tag of PyTorch's indexes (``2.13.0+cpu``) or with the one that was chosen; an empty one
    leaves the package out.
    """

    profiles: Tuple[str, ...] = ("gguf",)
    backend: str = ""
    python: str = ""
    driver_branch: int = 0
    machine: str = ""
    libc: str = ""
    extra_cmake_arguments: Tuple[str, ...] = ()
    upstream_wheels: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Raise StackError where a setting cannot be meant."""
        unknown = [name for name in self.profiles if name not in PROFILES]
        if unknown or not self.profiles:
            told = f"{str(unknown[0])[:40]!r} is no profile" if unknown else "no profile is wished"
            raise StackError(told, f"use some of {', '.join(PROFILES)}")
        if self.backend and self.backend not in BACKENDS:
            raise StackError(f"{self.backend[:40]!r} is no backend", f"use one of {', '.join(BACKENDS)}, or none")
        for name, version in self.versions.items():
            if name not in PACKAGES:
                raise StackError(f"{str(name)[:40]!r} is no package of a stack", f"use some of {', '.join(PACKAGES)}")
            if not isinstance(version, str) or not _VERSION.fullmatch(version):
                raise StackError(
                    f"{str(version)[:40]!r} is no version of {name}", "write one such as '2.13.0', in quotes"
                )
        checked_arguments(self.extra_cmake_arguments)
