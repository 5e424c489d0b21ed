"""Building what the managed environment needs and putting it together, all with the owner's rights alone.

Nothing is downloaded that a hash does not pin, the tools of the build
included; nothing runs as root.
"""

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import sys
from typing import Any, BinaryIO, Dict, List, NamedTuple, Optional, Sequence, Tuple

from ..errors import IntegrityError, RuntimeBuildError
from ..fetch.package_index import PackageIndexSettings, download_distribution
from ..jobs import Progress
from ..privilege import Account, acting_as
from ..store.manifest import hold, now, write_json
from ..store.tree import ensure_directory
from .environment import (
    HELD,
    MINIMUM_PYTHON,
    SCHEMA_VERSION,
    STATE,
    Wanted,
    installed_distributions,
    kept_wheel,
    libraries_of,
    own_differences,
    pin_of,
    read_state,
)
from .lock import PackageSet, check_lock, lock_from_report, without_hashes
from .proving import prove
from .workshop import Workshop, write

PIP_WHEEL = "pip-25.3-py3-none-any.whl"
PIP_SHA256 = "9655943313a94722b7774661c21049070f6bbb0a1516bf02f7c8d5d9201514cd"
PIP_SIZE = 1778622
"""The pip that installs (Python 3.9 or newer), in bytes; many systems' Python comes without one."""

_KEPT_ENVIRONMENTS = 2
_NINJA_STEP = re.compile(r"\s*\[(\d+)/(\d+)\]")


class Package(NamedTuple):
    """A wheel that was brought to the host: its path and its SHA-256."""

    path: str
    sha256: str


class Brought(NamedTuple):
    """What was brought to the host beside the modelfleet package, all of it optional.

    ``wheel`` is one of this build, ``lock`` that of the packages, both made earlier; ``packages`` a folder of wheels
    to install from, where nothing but them is asked if ``offline``.
    """

    wheel: Optional[Package] = None
    lock: Optional[Package] = None
    packages: str = ""
    offline: bool = False


NOTHING = Brought()


class Done(NamedTuple):
    """What a run did: the wheel of the build, if one is wanted, whether it was compiled here, and the lock's path."""

    wheel: Optional[str]
    compiled: bool
    lock: Optional[str] = None


class Builder:
    """Builds and installs for one owner on one host.

    ``settings`` say where packages come from; the certificates in them reach
    every download.
    """

    def __init__(self, wanted: Wanted, owner: Account, settings: PackageIndexSettings, progress: Progress) -> None:
        if owner.uid == 0:
            raise RuntimeBuildError(
                "the inference runtime would be compiled and installed as root",
                "set model_store_owner to another account",
            )
        self._wanted = wanted
        self._owner = owner
        self._settings = settings
        self._progress = progress
        self._workshop = os.path.join(wanted.path, "build")
        indexes = wanted.packages.indexes if wanted.packages else ()
        self._shop = Workshop(self._workshop, owner, settings, indexes)

    def converge(self, package: Package, brought: Brought = NOTHING) -> Done:
        """Make the environment as wanted and switch to it.

        The environment in use stays as it is until the new one is complete and proved.
        Raises RuntimeBuildError, FetchError, IntegrityError, UnsafePathError.
        """
        wanted = self._wanted
        for folder in (wanted.path, wanted.environments, os.path.join(wanted.path, "wheelhouse")):
            ensure_directory(folder, self._owner)
        local = [self._take(given) if given else None for given in (package, brought.wheel, brought.lock)]
        path = os.path.join(wanted.path, "lock")
        with contextlib.ExitStack() as stack:
            # Opened with the rights of whoever brought them.
            wheels = [stack.enter_context(open(one, "rb")) for one in _wheels_in(brought.packages)]
            stack.enter_context(acting_as(self._owner))
            stack.enter_context(hold(path, lambda: self._progress.update("waiting for another run's build")))
            self._remove(self._workshop)
            os.mkdir(self._workshop, 0o755)
            try:
                self._use_packages(wheels, brought.offline)
                done = self._converge(*local)
            finally:
                self._remove(self._workshop)
            self._forget_old_environments()
        return done

    def _converge(
        self,
        package: Optional[Tuple[str, bytes]],
        wheel: Optional[Tuple[str, bytes]],
        lock: Optional[Tuple[str, bytes]],
    ) -> Done:
        wanted = self._wanted
        assert package is not None
        package_path = self._store(package, self._workshop)
        if wheel is not None and wanted.build:
            self._store(wheel, self._kept_folder(wanted.wheel_folder))
        if lock is not None and wanted.packages:
            self._keep_lock(wanted.packages, lock[1].decode("utf-8", "replace"))
        python, pip = self._choose_python(), self._fetch_pip()
        built, compiled = kept_wheel(wanted.wheel_folder) if wanted.build else None, False
        if wanted.build and built is None:
            built, compiled = self._compile(python, pip), True
        requirements = wanted.requirements
        if wanted.packages:
            requirements = self._locked(wanted.packages, python, pip)
        self._install(python, pip, requirements, [*([_proved(built)] if built else []), package_path])
        return Done(built, compiled, wanted.lock_file if wanted.packages else None)

    def _use_packages(self, wheels: Sequence[BinaryIO], offline: bool) -> None:
        """Copy wheels that were brought to where the owner can read them, and ask that place first."""
        if not wheels and not offline:
            return
        folder = os.path.join(self._workshop, "packages")
        os.mkdir(folder, 0o755)
        for number, source in enumerate(wheels, 1):
            name = os.path.basename(source.name)
            self._progress.update("taking the packages that were brought", name, number, len(wheels), "packages")
            with open(os.path.join(folder, name), "xb") as target:
                shutil.copyfileobj(source, target)
        settings = self._settings
        links = (folder,) if offline else (folder, *settings.find_links)
        self._settings = PackageIndexSettings(
            () if offline else settings.index_urls, links, settings.ca_bundle, settings.proxy
        )
        self._shop.settings = self._settings

    def _keep_lock(self, packages: PackageSet, text: str) -> None:
        check_lock(text, packages)
        self._kept_folder(os.path.dirname(self._wanted.lock_file))
        write(self._wanted.lock_file, text.encode())

    def _locked(self, packages: PackageSet, python: str, pip: str) -> str:
        """Return the lock of the packages: the one that this host has, else a new one, resolved by pip."""
        with contextlib.suppress(OSError):
            with open(self._wanted.lock_file, encoding="utf-8") as source:
                text = source.read()
            check_lock(text, packages)
            return text
        self._progress.update("resolving the packages", packages.key)
        environment = self._make_environment(python, os.path.join(self._workshop, "resolving"))
        wished = os.path.join(self._workshop, "wished.txt")
        write(wished, "\n".join([*packages.requirements, *without_hashes(self._wanted.requirements), ""]).encode())
        report = os.path.join(self._workshop, "report.json")
        command = [
            "install",
            "--dry-run",
            "--ignore-installed",
            "--only-binary",
            ":all:",
            "--report",
            report,
            "-r",
            wished,
        ]
        self._shop.pip(environment, pip, command, watch=lambda line: self._tell_package("resolving the packages", line))
        with open(report, encoding="utf-8") as source:
            text = lock_from_report(json.load(source))
        self._keep_lock(packages, text)
        return text

    def _take(self, given: Package) -> Tuple[str, bytes]:
        """Read a wheel that was brought, with the rights of whoever brought it, and prove it."""
        with open(given.path, "rb") as source:
            content = source.read()
        found = hashlib.sha256(content).hexdigest()
        if found != given.sha256:
            raise IntegrityError(os.path.basename(given.path), f"sha256 {given.sha256}", f"sha256 {found}")
        return os.path.basename(given.path), content

    def _store(self, wheel: Tuple[str, bytes], folder: str) -> str:
        name, content = wheel
        path = os.path.join(folder, name)
        write(path, content)
        write(path + ".sha256", hashlib.sha256(content).hexdigest().encode())
        return path

    def _choose_python(self) -> str:
        """Return an interpreter, new enough, that the owner can run: the one that was named, or the first found."""
        wanted = self._wanted
        exact = tuple(map(int, wanted.packages.python.split("."))) if wanted.packages else ()
        # A version may be named in place of a program.
        named = f"python{wanted.python}" if re.match(r"3\.\d", wanted.python) else wanted.python
        ours = os.path.join(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
        usual = ["/usr/bin/python3", ours, "/usr/local/bin/python3", "/opt/homebrew/bin/python3"]
        if exact:
            usual.append("python{}.{}".format(*exact))
        candidates = [named] if named else usual
        least = ".".join(map(str, MINIMUM_PYTHON))
        kind = "{}.{}".format(*exact) if exact else f"{least} or newer"
        condition = f"sys.version_info[:2] {f'!= {exact}' if exact else f'< {MINIMUM_PYTHON}'}"
        for candidate in candidates:
            test = f"import sys, venv; sys.exit({condition})"
            # A name without a path is looked for now: what is recorded must mean the same in every later run.
            path = shutil.which(candidate)
            if path and self._shop.run([os.path.abspath(path), "-I", "-c", test], check=False)[0] == 0:
                return os.path.abspath(path)
        raise RuntimeBuildError(
            f"{self._owner.name} can run no Python {kind} with venv (tried {', '.join(candidates)})",
            "install one, or name it with inference_runtime_python",
        )

    def _fetch_pip(self) -> str:
        self._progress.update("fetching pip")
        path = os.path.join(self._workshop, PIP_WHEEL)
        download_distribution("pip", PIP_WHEEL, PIP_SHA256, path, self._settings, size_limit=PIP_SIZE)
        return path

    def _compile(self, python: str, pip: str) -> str:
        wanted, build = self._wanted, self._wanted.build
        assert build is not None
        environment = self._make_environment(python, os.path.join(self._workshop, "environment"))
        if wanted.backend == "cuda":
            check_toolkit(self._shop.run(["nvcc", "--version"])[1], wanted.toolkit)
        self._progress.update("installing the tools of the build")
        self._shop.pip(environment, pip, ["install", "--only-binary", ":all:"], wanted.build_requirements)
        out = os.path.join(self._workshop, "out")
        arguments = " ".join(build.cmake_arguments)
        step = f"compiling llama-cpp-python {build.version} for {build.backend}"
        self._progress.update(step, "fetching its source")
        self._shop.pip(
            environment,
            pip,
            ["wheel", "-v", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--wheel-dir", out],
            wanted.source_requirement,
            {"CMAKE_ARGS": arguments, "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)},
            lambda line: self._tell_ninja_step(step, line),
        )
        built = glob.glob(os.path.join(glob.escape(out), "*.whl"))
        if len(built) != 1:
            raise RuntimeBuildError("compiling llama-cpp-python left no wheel", "run again with -vvv, and report it")
        with open(built[0], "rb") as source:
            content = source.read()
        return self._store((os.path.basename(built[0]), content), self._kept_folder(wanted.wheel_folder))

    def _kept_folder(self, folder: str) -> str:
        """Make a folder of what this host keeps; returns its path."""
        os.makedirs(folder, exist_ok=True)
        os.chmod(folder, 0o755)
        return folder

    def _tell_ninja_step(self, step: str, line: str) -> None:
        match = _NINJA_STEP.match(line)
        if match:
            self._progress.update(step, None, int(match.group(1)), int(match.group(2)), "steps")

    def _tell_package(self, step: str, line: str) -> None:
        if line.startswith("Collecting "):
            self._progress.update(step, line.split()[1].split("=")[0])

    def _free_folder(self) -> str:
        """Return where the environment is made: the one in use, though damaged, stays until this one is complete."""
        in_use = os.path.realpath(self._wanted.current)
        path, number = os.path.join(self._wanted.environments, self._wanted.key), 1
        while os.path.realpath(path) == in_use or os.path.exists(os.path.join(path, STATE)):
            number += 1
            path = os.path.join(self._wanted.environments, f"{self._wanted.key}-{number}")
        self._remove(path)
        return path

    def _install(self, python: str, pip: str, requirements: str, local: List[str]) -> None:
        """Install into a new environment, prove it, and switch to it; ``local`` are wheels that need no index."""
        wanted = self._wanted
        environment = self._make_environment(python, self._free_folder())
        try:
            step = "installing the inference runtime"
            self._progress.update(step)
            self._shop.pip(
                environment,
                pip,
                ["install", "--only-binary", ":all:", "--no-deps"]
                if wanted.packages
                else ["install", "--only-binary", ":all:"],
                requirements,
                watch=lambda line: self._tell_package(step, line),
            )
            self._shop.pip(environment, pip, ["install", "--no-index", "--no-deps", *local])
            self._shop.pip(environment, pip, ["check"])
            self._progress.update("proving the inference runtime")
            version = prove(self._shop, environment, wanted)
            write_json(os.path.join(environment, STATE), self._record(environment, python, version, requirements))
        except BaseException:
            self._remove(environment)
            raise
        switch_to(wanted.path, environment)
        self._remove(os.path.join(wanted.path, HELD))

    def _record(self, environment: str, python: str, version: str, requirements: str) -> Dict[str, Any]:
        wanted, build = self._wanted, self._wanted.build
        return {
            "schema_version": SCHEMA_VERSION,
            "key": wanted.key,
            "build": build.key if build else None,
            "backend": wanted.backend,
            "profiles": list(wanted.profiles),
            "cmake_arguments": list(build.cmake_arguments) if build else [],
            "packages": wanted.packages.key if wanted.packages else None,
            "lock_sha256": hashlib.sha256(requirements.encode()).hexdigest(),
            "python": {"executable": python, "real_executable": os.path.realpath(python), "version": version},
            "distributions": installed_distributions(environment),
            "libraries": libraries_of(environment),
            "installed_at": now(),
        }

    def _make_environment(self, python: str, path: str) -> str:
        self._progress.update("making a virtual environment")
        self._shop.run([python, "-I", "-m", "venv", "--without-pip", path])
        return path

    def _remove(self, path: str) -> None:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)

    def _forget_old_environments(self) -> None:
        """Keep the environment in use and the last one before it that is whole, which is the way back."""
        in_use = os.path.realpath(self._wanted.current)
        others = [path for path in earlier_environments(self._wanted.path) if os.path.realpath(path) != in_use]
        whole = [path for path in others if is_whole(path)]
        kept = (whole or others)[: _KEPT_ENVIRONMENTS - 1]
        for path in others:
            if path not in kept:
                self._remove(path)


def check_toolkit(said: str, wanted: str) -> None:
    """Raise RuntimeBuildError unless what nvcc says of itself is within ``wanted``, such as ``>=12.0,<13``.

    A build by another major version needs libraries that torch does not bring, and a newer driver.
    """
    found = re.search(r"release (\d+)\.(\d+)", said)
    least, below = (tuple(map(int, text.split("."))) for text in re.findall(r"[\d.]+", wanted))
    if found is None or not least <= (int(found.group(1)), int(found.group(2))) < below:
        version = ".".join(found.groups()) if found else "a version that it does not tell"
        raise RuntimeBuildError(
            f"nvcc is of CUDA {version}; this host's cards and driver take {wanted}", "install that"
        )


def earlier_environments(runtime: str) -> List[str]:
    """Return the paths of all environments of a runtime, the newest first."""
    with os.scandir(os.path.join(runtime, "environments")) as entries:
        by_age = sorted(entries, key=lambda entry: entry.stat(follow_symlinks=False).st_mtime, reverse=True)
    return [entry.path for entry in by_age]


def is_whole(environment: str) -> bool:
    """Tell whether an environment is as its own record says."""
    state = read_state(environment)
    return state is not None and not any(True for _ in own_differences(environment, state))


def switch_to(runtime: str, environment: str) -> None:
    """Make ``environment`` the one in use, in one step."""
    current = os.path.join(runtime, "current")
    temporary = f"{current}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    os.symlink(os.path.relpath(environment, runtime), temporary)
    os.replace(temporary, current)


def _wheels_in(folder: str) -> List[str]:
    return sorted(glob.glob(os.path.join(glob.escape(folder), "*.whl"))) if folder else []


def _proved(wheel: str) -> str:
    with open(wheel, "rb") as content:
        expected, found = pin_of(wheel), hashlib.sha256(content.read()).hexdigest()
    if expected != found:
        raise RuntimeBuildError(f"{wheel} was changed since it was kept", "remove it, and run again")
    return wheel
