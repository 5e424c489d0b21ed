"""The managed Python environment: what is there, against what is wanted.

::

    RUNTIME/
      current -> environments/KEY      what applications use; moved in one step
      environments/KEY/                a virtual environment; KEY-2, KEY-3: made anew after somebody changed it
        modelfleet-runtime.json        what was installed, and from what
      wheelhouse/BUILD/                wheels compiled for this kind of host, each with its .sha256
      build/                           while a build runs, with
      lock                             held

KEY is made of everything that was asked for, so an environment is never
changed: another is built beside it.
"""

import glob
import hashlib
import json
import os
import re
import shutil
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from .resolver import Build

SCHEMA_VERSION = 1
STATE = "modelfleet-runtime.json"
MINIMUM_PYTHON = (3, 9)
"""llama-cpp-python's requirements have wheels from here on (numpy 2.0)."""

BUILD_TOOLS = {"cc": "C compiler", "c++": "C++ compiler", "cmake": "cmake", "ninja": "ninja"}
"""What compiling needs, by the program's name."""


class Wanted(NamedTuple):
    """What the environment is to hold.

    ``requirements`` and ``build_requirements`` are pip requirement files, pinned
    with hashes; ``source_requirement`` pins llama-cpp-python's source archive;
    ``package_sha256`` is the hash of the modelfleet wheel that goes in too.
    ``python`` is the interpreter that the user named, or ''.
    """

    path: str
    python: str
    requirements: str
    build_requirements: str
    source_requirement: str
    build: Build
    package_sha256: str

    @property
    def key(self) -> str:
        """The environment's name: equal keys mean equal content."""
        parts = (self.requirements, self.build.key, self.package_sha256, self.python)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    @property
    def environments(self) -> str:
        """The folder of this environment, those before it, and those made anew."""
        return os.path.join(self.path, "environments")

    @property
    def current(self) -> str:
        """The path by which applications know it."""
        return os.path.join(self.path, "current")

    @property
    def wheel_folder(self) -> str:
        """Where this host keeps the wheel of this build."""
        return os.path.join(self.path, "wheelhouse", self.build.key)


class State(NamedTuple):
    """What is there: reasons why it is not as wanted (none: it is), and what making it so would take."""

    reasons: Tuple[str, ...]
    wheel: Optional[str]
    missing_tools: Tuple[str, ...]


def inspect(wanted: Wanted) -> State:
    """Compare the environment with what is wanted, by reading a few small files."""
    reasons = tuple(_differences(wanted))
    wheel = kept_wheel(wanted.wheel_folder)
    missing = tuple(sorted(name for name in BUILD_TOOLS if not shutil.which(name)))
    return State(reasons, wheel, missing)


def kept_wheel(folder: str) -> Optional[str]:
    """Return the path of the wheel that ``folder`` keeps together with its hash, if there is one."""
    found = sorted(glob.glob(os.path.join(glob.escape(folder), "*.whl")))
    wheels = [path for path in found if os.path.exists(path + ".sha256")]
    return wheels[0] if wheels else None


def pin_of(wheel: str) -> str:
    """Return the SHA-256 that was written down when the wheel was kept."""
    with open(wheel + ".sha256", encoding="ascii") as pin:
        return pin.read().strip()


def read_state(environment: str) -> Optional[Dict[str, Any]]:
    """Return what is recorded of an environment, or None where there is no readable record."""
    try:
        with open(os.path.join(environment, STATE), encoding="utf-8") as source:
            state: Dict[str, Any] = json.load(source)
            return state if isinstance(state, dict) and isinstance(state.get("python"), dict) else None
    except (OSError, ValueError):
        return None


def installed_distributions(environment: str) -> List[str]:
    """Return ``name-version`` of every distribution in a virtual environment, sorted, from the names of its folders."""
    folders = glob.glob(os.path.join(glob.escape(environment), "lib", "python3*", "site-packages", "*.dist-info"))
    return sorted(os.path.basename(folder)[: -len(".dist-info")] for folder in folders)


def pinned_version(requirement: str) -> str:
    """Return the version that a ``NAME==VERSION`` requirement pins; '' where it pins none."""
    match = re.search(r"==\s*([^\s;\\]+)", requirement)
    return match.group(1) if match else ""


def _differences(wanted: Wanted) -> List[str]:
    if not os.path.isdir(wanted.current):
        return ["there is no environment yet"]
    state = read_state(wanted.current)
    if state is None:
        return ["the environment has no record"]
    if state.get("key") != wanted.key:
        return ["another environment is in use"]
    python = state["python"]
    if not os.access(os.path.join(wanted.current, "bin", "python"), os.X_OK) or os.path.realpath(
        python.get("executable", "")
    ) != python.get("real_executable"):
        return [f"its Python {python.get('executable')} is gone or another"]
    recorded, found = set(state.get("distributions", [])), set(installed_distributions(wanted.current))
    return [f"{name} is missing" for name in sorted(recorded - found)] + [
        f"{name} was installed by hand" for name in sorted(found - recorded)
    ]
