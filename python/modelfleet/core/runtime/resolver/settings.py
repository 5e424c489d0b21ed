"""What is wished of a stack, and what of it cannot be meant."""

from dataclasses import dataclass
from typing import Tuple

from ...errors import StackError
from .flags import checked_arguments
from .releases import PROFILES

BACKENDS = ("cuda", "rocm", "metal", "vulkan", "cpu")


@dataclass(frozen=True)
class StackSettings:
    """What is wished.

    ``backend`` and ``python`` (a version such as ``3.12``) override the choice. ``driver_branch`` is what the role
    accelerator was told to install, 0: its default. ``machine`` is for a profile that does not tell it, as a record
    of one tool. ``libc`` such as ``glibc2.36``; empty: not known, and not judged. ``upstream_wheels`` allows
    llama-cpp-python's own wheels, which no hash pins, in place of a build.
    """

    profiles: Tuple[str, ...] = ("gguf",)
    backend: str = ""
    python: str = ""
    driver_branch: int = 0
    machine: str = ""
    libc: str = ""
    extra_cmake_arguments: Tuple[str, ...] = ()
    upstream_wheels: bool = False

    def check(self) -> None:
        """Raise StackError where a setting cannot be meant."""
        unknown = [name for name in self.profiles if name not in PROFILES]
        if unknown or not self.profiles:
            told = f"{str(unknown[0])[:40]!r} is no profile" if unknown else "no profile is wished"
            raise StackError(told, f"use some of {', '.join(PROFILES)}")
        if self.backend and self.backend not in BACKENDS:
            raise StackError(f"{self.backend[:40]!r} is no backend", f"use one of {', '.join(BACKENDS)}, or none")
        checked_arguments(self.extra_cmake_arguments)
