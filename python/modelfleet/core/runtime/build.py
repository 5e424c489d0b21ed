"""Building what the managed environment needs and putting it together, all with the owner's rights alone.

Nothing is downloaded that a hash does not pin, the tools of the build
included; nothing runs as root.
"""

import glob
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections import deque
from typing import Callable, Deque, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..errors import IntegrityError, RuntimeBuildError
from ..fetch.package_index import PackageIndexSettings, download_distribution
from ..jobs import Progress
from ..privilege import Account, acting_as, dropping_to, environment_for
from ..store.manifest import hold, now, write_json
from ..store.tree import ensure_directory
from .environment import MINIMUM_PYTHON, SCHEMA_VERSION, STATE, Wanted, installed_distributions, kept_wheel, pin_of

PIP_WHEEL = "pip-25.3-py3-none-any.whl"
PIP_SHA256 = "9655943313a94722b7774661c21049070f6bbb0a1516bf02f7c8d5d9201514cd"
PIP_SIZE = 1778622
"""The pip that installs (Python 3.9 or newer), in bytes; many systems' Python comes without one."""

_KEPT_ENVIRONMENTS = 2
_NINJA_STEP = re.compile(r"\s*\[(\d+)/(\d+)\]")
# Not -Werror, nor the name of a file.
_CAUSE = re.compile(r"\berror[: ]|fatal|could not|no matching|not found|no space", re.IGNORECASE)
# What tools say about the failure of others, after the cause.
_CONSEQUENCE = re.compile(
    r"subprocess-exited-with-error|failed to build|failed building|did not run successfully|encountered error while"
    r"|error originates from|subcommand failed|build failed",
    re.IGNORECASE,
)


class Package(NamedTuple):
    """A wheel that was brought to the host: its path and its SHA-256."""

    path: str
    sha256: str


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

    def converge(self, package: Package, brought_wheel: Optional[Package]) -> Tuple[str, bool]:
        """Make the environment as wanted and switch to it; returns the wheel's path and whether it was compiled here.

        The environment in use stays as it is until the new one is complete.
        Raises RuntimeBuildError, FetchError, IntegrityError, UnsafePathError.
        """
        wanted = self._wanted
        for folder in (wanted.path, wanted.environments, os.path.join(wanted.path, "wheelhouse")):
            ensure_directory(folder, self._owner)
        local = [self._take(given) for given in (package, brought_wheel) if given is not None]
        lock = os.path.join(wanted.path, "lock")
        with acting_as(self._owner), hold(lock, lambda: self._progress.update("waiting for another run's build")):
            self._remove(self._workshop)
            os.mkdir(self._workshop, 0o755)
            try:
                package_path = self._store(local[0], self._workshop)
                if brought_wheel is not None:
                    self._store(local[1], self._wheel_folder())
                python = self._choose_python()
                pip = self._fetch_pip()
                wheel, compiled = kept_wheel(wanted.wheel_folder), False
                if wheel is None:
                    wheel, compiled = self._compile(python, pip), True
                self._install(python, pip, _proved(wheel), package_path)
            finally:
                self._remove(self._workshop)
            self._forget_old_environments()
        return wheel, compiled

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
        _write(path, content)
        _write(path + ".sha256", hashlib.sha256(content).hexdigest().encode())
        return path

    def _choose_python(self) -> str:
        """Return an interpreter, new enough, that the owner can run: the one that was named, or the first found."""
        named = self._wanted.python
        ours = os.path.join(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
        candidates = (
            [named] if named else ["/usr/bin/python3", ours, "/usr/local/bin/python3", "/opt/homebrew/bin/python3"]
        )
        least = ".".join(map(str, MINIMUM_PYTHON))
        for candidate in candidates:
            test = f"import sys, venv; sys.exit(sys.version_info[:2] < {MINIMUM_PYTHON})"
            # A name without a path is looked for now: what is recorded must mean the same in every later run.
            path = shutil.which(candidate)
            if path and self._run([os.path.abspath(path), "-I", "-c", test], check=False)[0] == 0:
                return os.path.abspath(path)
        raise RuntimeBuildError(
            f"{self._owner.name} can run no Python {least} or newer with venv (tried {', '.join(candidates)})",
            "install one, or name it with inference_runtime_python",
        )

    def _fetch_pip(self) -> str:
        self._progress.update("fetching pip")
        path = os.path.join(self._workshop, PIP_WHEEL)
        download_distribution("pip", PIP_WHEEL, PIP_SHA256, path, self._settings, size_limit=PIP_SIZE)
        return path

    def _compile(self, python: str, pip: str) -> str:
        wanted = self._wanted
        environment = self._make_environment(python, os.path.join(self._workshop, "environment"))
        self._progress.update("installing the tools of the build")
        self._pip(environment, pip, ["install", "--only-binary", ":all:"], wanted.build_requirements)
        out = os.path.join(self._workshop, "out")
        arguments = " ".join(wanted.build.cmake_arguments)
        step = f"compiling llama-cpp-python {wanted.build.version} for {wanted.build.backend}"
        self._progress.update(step, "fetching its source")
        self._pip(
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
        return self._store((os.path.basename(built[0]), content), self._wheel_folder())

    def _wheel_folder(self) -> str:
        os.makedirs(self._wanted.wheel_folder, exist_ok=True)
        os.chmod(self._wanted.wheel_folder, 0o755)
        return self._wanted.wheel_folder

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

    def _install(self, python: str, pip: str, wheel: str, package: str) -> None:
        wanted = self._wanted
        environment = self._make_environment(python, self._free_folder())
        try:
            step = "installing the inference runtime"
            self._progress.update(step)
            self._pip(
                environment,
                pip,
                ["install", "--only-binary", ":all:"],
                wanted.requirements,
                watch=lambda line: self._tell_package(step, line),
            )
            self._pip(environment, pip, ["install", "--no-index", "--no-deps", wheel, package])
            self._pip(environment, pip, ["check"])
            executable = os.path.join(environment, "bin", "python")
            version = self._run([executable, "-I", "-c", "import platform; print(platform.python_version())"])[
                1
            ].strip()
            write_json(
                os.path.join(environment, STATE),
                {
                    "schema_version": SCHEMA_VERSION,
                    "key": wanted.key,
                    "build": wanted.build.key,
                    "backend": wanted.build.backend,
                    "cmake_arguments": list(wanted.build.cmake_arguments),
                    "wheel": os.path.basename(wheel),
                    "python": {"executable": python, "real_executable": os.path.realpath(python), "version": version},
                    "distributions": installed_distributions(environment),
                    "installed_at": now(),
                },
            )
        except BaseException:
            self._remove(environment)
            raise
        temporary = f"{wanted.current}.{os.getpid()}"
        self._remove(temporary)
        os.symlink(os.path.relpath(environment, wanted.path), temporary)
        os.replace(temporary, wanted.current)

    def _make_environment(self, python: str, path: str) -> str:
        self._progress.update("making a virtual environment")
        self._run([python, "-I", "-m", "venv", "--without-pip", path])
        return path

    def _pip(
        self,
        environment: str,
        pip: str,
        arguments: Sequence[str],
        requirements: Optional[str] = None,
        extra: Optional[Mapping[str, str]] = None,
        watch: Optional[Callable[[str], None]] = None,
    ) -> None:
        """Run pip for ``environment``; ``requirements`` (text) must pin every package with its hash."""
        executable = os.path.join(environment, "bin", "python")
        command = [executable, "-I", os.path.join(pip, "pip"), *arguments]
        if requirements is not None:
            path = os.path.join(self._workshop, "requirements.txt")
            _write(path, requirements.encode())
            command += ["--require-hashes", "-r", path]
        tools = os.path.join(environment, "bin")
        self._run(
            command,
            {"VIRTUAL_ENV": environment, "PATH_FIRST": tools, **self._index_environment(), **(extra or {})},
            watch=watch,
        )

    def _index_environment(self) -> Dict[str, str]:
        """What pip must know to use our index: its configuration files may be out of the owner's reach."""
        settings = self._settings
        environment = {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_CACHE_DIR": "1",
            "PIP_NO_INPUT": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INDEX": "" if settings.index_urls else "1",
            "PIP_INDEX_URL": settings.index_urls[0] if settings.index_urls else "",
            "PIP_EXTRA_INDEX_URL": " ".join(settings.index_urls[1:]),
            "PIP_FIND_LINKS": " ".join(settings.find_links),
            "PIP_PROXY": settings.proxy or "",
        }
        if settings.ca_bundle:
            for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
                environment[name] = settings.ca_bundle
        return {name: value for name, value in environment.items() if value}

    def _run(
        self,
        command: Sequence[str],
        extra: Optional[Mapping[str, str]] = None,
        watch: Optional[Callable[[str], None]] = None,
        check: bool = True,
    ) -> Tuple[int, str]:
        """Run ``command`` as the owner; returns its status and output. Raises RuntimeBuildError if ``check``."""
        environment = environment_for(self._owner, os.environ)
        environment.update(extra or {})
        first = environment.pop("PATH_FIRST", "")
        if first:
            environment["PATH"] = f"{first}:{environment['PATH']}"
        try:
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=self._workshop,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                preexec_fn=dropping_to(self._owner),
                encoding="utf-8",
                errors="replace",
            )
        except (OSError, subprocess.SubprocessError) as error:
            if check:
                raise RuntimeBuildError(f"{command[0]} cannot be run: {error}", "correct that, and run again") from None
            return 127, ""
        tail: Deque[str] = deque(maxlen=200)
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                tail.append(line.rstrip())
                if watch is not None:
                    watch(line)
        status = process.returncode
        if check and status != 0:
            raise RuntimeBuildError(
                f"{_describe(command)} failed with status {status}: {_cause(tail)}", "correct that, and run again"
            )
        return status, "\n".join(tail)

    def _remove(self, path: str) -> None:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)

    def _forget_old_environments(self) -> None:
        """Keep the environment in use and the one before it, which is the way back."""
        in_use = os.path.realpath(self._wanted.current)
        entries = os.scandir(self._wanted.environments)
        by_age = sorted(entries, key=lambda entry: entry.stat(follow_symlinks=False).st_mtime, reverse=True)
        others = [entry.path for entry in by_age if os.path.realpath(entry.path) != in_use]
        for path in others[_KEPT_ENVIRONMENTS - 1 :]:
            self._remove(path)


def _proved(wheel: str) -> str:
    with open(wheel, "rb") as content:
        expected, found = pin_of(wheel), hashlib.sha256(content.read()).hexdigest()
    if expected != found:
        raise RuntimeBuildError(f"{wheel} was changed since it was kept", "remove it, and run again")
    return wheel


def _describe(command: Sequence[str]) -> str:
    words: List[str] = [os.path.basename(word) for word in command if not word.startswith("-")]
    return " ".join(words[1:3] or words)


def _cause(lines: Sequence[str]) -> str:
    """Return the line that most likely tells why a tool failed, with the next where it only announces that."""
    said = [line.strip() for line in lines if line.strip()]
    telling = [number for number, line in enumerate(said) if _CAUSE.search(line) and not _CONSEQUENCE.search(line)]
    if not telling:
        return said[-1] if said else "it printed nothing"
    last = telling[-1]
    return " ".join(said[last : last + 2]) if said[last].endswith(":") else said[last]


def _write(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "wb") as target:
        os.fchmod(descriptor, 0o644)
        target.write(content)
        target.flush()
        os.fsync(descriptor)
