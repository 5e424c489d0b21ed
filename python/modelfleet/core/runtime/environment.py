"""The managed Python environment: what is there, against what is wanted.

::

    RUNTIME/
      current -> environments/KEY      what applications use; moved in one step
      environments/KEY/                a virtual environment; KEY-2, KEY-3: made anew after somebody changed it
        modelfleet-runtime.json        what was installed, and from what
      wheelhouse/BUILD/                wheels compiled for this kind of host, each with its .sha256
      wheelhouse/STACK/                the lock of the other packages for this kind of host
      held.json                        after a rollback: which environment was left, so that nothing goes back to it
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
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from . import checks
from .checks import Finding
from .lock import PackageSet, normalized, pins_of
from .resolver.build import Build

SCHEMA_VERSION = 1
STATE = "modelfleet-runtime.json"
HELD = "held.json"
MINIMUM_PYTHON = (3, 9)
"""llama-cpp-python's requirements have wheels from here on (numpy 2.0)."""

BUILD_TOOLS = {"cc": "C compiler", "c++": "C++ compiler", "cmake": "cmake", "ninja": "ninja"}
"""What compiling needs, by the program's name."""
BACKEND_TOOLS = {"cuda": "nvcc", "rocm": "hipcc", "vulkan": "glslc"}
"""What compiling for a backend needs besides; the stack tells what brings it."""
TOOLKIT_FOLDERS = ("/usr/local/cuda/bin", "/opt/rocm/bin")
"""Where the makers' own packages put their compilers, out of the usual search path."""
LIBRARY = re.compile(r"\.(so|dylib)(\.[0-9.]+)?$")


class Wanted(NamedTuple):
    """What the environment is to hold.

    ``requirements`` and ``build_requirements`` are pip requirement files, pinned
    with hashes; ``source_requirement`` pins llama-cpp-python's source archive;
    ``package_sha256`` is the hash of the modelfleet wheel that goes in too.
    ``python`` is the interpreter that the user named, or ''. ``build`` is None where no llama-cpp-python is wished;
    ``packages`` are those of the other profiles, whose lock has all of ``requirements`` too. ``backend`` is what
    computes; ``gpu``: a GPU whose driver works, and that has to be found before the environment is used.
    ``toolkit`` tells what brings the compiler of the backend, ``profiles`` what the environment is for.
    """

    path: str
    python: str
    requirements: str
    build_requirements: str
    source_requirement: str
    build: Optional[Build]
    package_sha256: str
    packages: Optional[PackageSet] = None
    backend: str = "cpu"
    gpu: bool = False
    toolkit: str = ""
    profiles: Tuple[str, ...] = ("gguf",)

    @property
    def key(self) -> str:
        """The environment's name: equal keys mean equal content."""
        build = self.build.key if self.build else ""
        packages = (self.packages.key,) if self.packages else ()
        parts = (self.requirements, build, self.package_sha256, self.python, *packages)
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
        return os.path.join(self.path, "wheelhouse", self.build.key if self.build else "")

    @property
    def lock_file(self) -> str:
        """Where this host keeps the lock of the packages."""
        return os.path.join(self.path, "wheelhouse", self.packages.key if self.packages else "", "requirements.txt")

    @property
    def build_tools(self) -> Dict[str, str]:
        """What compiling needs: the names of programs, and what they are."""
        tools = dict(BUILD_TOOLS)
        name = BACKEND_TOOLS.get(self.backend)
        if name:
            tools[name] = f"{name} ({self.toolkit})"
        return tools


class State(NamedTuple):
    """What is there: findings why it is not as wanted (none: it is), and what making it so would take.

    ``packages`` are the installed ones by name, with their version. ``held``: a rollback keeps it, though another is
    wanted.
    """

    findings: Tuple[Finding, ...]
    wheel: Optional[str]
    missing_tools: Tuple[str, ...]
    packages: Mapping[str, str]
    held: bool = False

    @property
    def reasons(self) -> Tuple[str, ...]:
        """The findings as text."""
        return tuple(finding.text for finding in self.findings)


def inspect(wanted: Wanted) -> State:
    """Compare the environment with what is wanted, by reading a few small files."""
    state = read_state(wanted.current)
    held = held_back(wanted, state)
    findings = tuple(_differences(wanted, state, held))
    wheel = kept_wheel(wanted.wheel_folder) if wanted.build else None
    path = search_path(os.environ.get("PATH", os.defpath))
    missing = tuple(sorted(name for name in wanted.build_tools if not shutil.which(name, path=path)))
    return State(findings, wheel, missing, packages_of(state), held)


def search_path(path: str) -> str:
    """Return the search path ``path`` with the folders of the accelerators' toolkits after it."""
    return os.pathsep.join((path, *TOOLKIT_FOLDERS))


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


def packages_of(state: Optional[Mapping[str, Any]]) -> Dict[str, str]:
    """Return name and version of all that a record says was installed."""
    return dict(_split(one) for one in (state or {}).get("distributions", []))


def libraries_of(environment: str) -> Dict[str, int]:
    """Return the size (bytes) of each shared library in a virtual environment, by its path there."""
    found = {}
    for folder, _, names in os.walk(os.path.join(environment, "lib")):
        for name in names:
            if LIBRARY.search(name):
                path = os.path.join(folder, name)
                found[os.path.relpath(path, environment)] = os.lstat(path).st_size
    return found


def own_differences(environment: str, state: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield how an environment differs from its own record, by the names and sizes of its files."""
    python = state["python"]
    if not os.access(os.path.join(environment, "bin", "python"), os.X_OK) or os.path.realpath(
        python.get("executable", "")
    ) != python.get("real_executable"):
        yield Finding(checks.PYTHON_GONE, f"its Python {python.get('executable')} is gone or another")
        return
    recorded, found = set(state.get("distributions", [])), set(installed_distributions(environment))
    gone, new = dict(map(_split, recorded - found)), dict(map(_split, found - recorded))
    for name, version in sorted(gone.items()):
        if name not in new:
            yield Finding(checks.MISSING, f"{name} {version} is missing")
        else:
            yield _replaced(name, version, new[name])
    for name, version in sorted(new.items()):
        if name not in gone:
            yield Finding(checks.BY_HAND, f"{name} {version} was installed by hand")
    for path, size in sorted(state.get("libraries", {}).items()):
        try:
            now = os.lstat(os.path.join(environment, path)).st_size
        except OSError:
            yield Finding(checks.LIBRARY, f"the library {path} is missing")
        else:
            if now != size:
                yield Finding(checks.LIBRARY, f"the library {path} has {now} bytes, not {size}")


def _replaced(name: str, wanted: str, found: str) -> Finding:
    detail = f"{name} is {found}, not {wanted}"
    if wanted.partition("+")[2] != found.partition("+")[2]:
        return Finding(checks.OTHER_BUILD, f"{detail}: another build")
    return Finding(checks.BY_HAND, f"{detail}: installed by hand")


def _split(distribution: str) -> Tuple[str, str]:
    name, _, version = distribution.partition("-")
    return normalized(name), version


def held_back(wanted: Wanted, state: Optional[Mapping[str, Any]]) -> bool:
    """Tell whether the environment in use was gone back to, from the very one that is wanted."""
    try:
        with open(os.path.join(wanted.path, HELD), encoding="utf-8") as source:
            held = json.load(source)
        return bool(state) and (held["key"], held["instead_of"]) == ((state or {}).get("key"), wanted.key)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _differences(wanted: Wanted, state: Optional[Mapping[str, Any]], held: bool) -> Iterator[Finding]:
    if not os.path.isdir(wanted.current):
        yield Finding(checks.NO_ENVIRONMENT, "there is no environment yet")
        return
    if state is None:
        yield Finding(checks.NO_RECORD, "the environment has no record")
        return
    if state.get("key") != wanted.key and not held:
        yield Finding(checks.ANOTHER, "another environment is in use")
        return
    yield from own_differences(wanted.current, state)
    # The record was written by the owner, who can write it again: what the hardware asks for is compared with what
    # is there, too.
    if wanted.packages is not None and not held:
        found, recorded = dict(map(_split, installed_distributions(wanted.current))), packages_of(state)
        for name, version in pins_of(wanted.packages.requirements).items():
            if found.get(name, version) != version and recorded.get(name) == found[name]:
                yield _replaced(name, version, found[name])
