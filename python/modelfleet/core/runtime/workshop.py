"""Running programs, pip above all, with the rights of a runtime's owner and nothing of our environment.

Where a program fails, the line of its output that most likely tells why becomes the error.
"""

import os
import re
import subprocess
from collections import deque
from typing import Callable, Deque, Dict, List, Mapping, Optional, Sequence, Tuple

from ..errors import RuntimeBuildError
from ..fetch.package_index import PackageIndexSettings
from ..privilege import Account, dropping_to, environment_for
from .environment import search_path

# Not -Werror, nor the name of a file.
_CAUSE = re.compile(r"\berror[: ]|fatal|could not|no matching|not found|no space", re.IGNORECASE)
# What tools say about the failure of others, after the cause.
_CONSEQUENCE = re.compile(
    r"subprocess-exited-with-error|failed to build|failed building|did not run successfully|encountered error while"
    r"|error originates from|subcommand failed|build failed",
    re.IGNORECASE,
)


class Workshop:
    """A folder in which programs run for one owner.

    ``settings`` say where packages come from, ``indexes`` where else; the certificates in them reach every download.
    """

    def __init__(
        self, folder: str, owner: Account, settings: PackageIndexSettings, indexes: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.indexes = tuple(indexes)
        self._owner = owner

    def pip(
        self,
        environment: str,
        pip: str,
        arguments: Sequence[str],
        requirements: Optional[str] = None,
        extra: Optional[Mapping[str, str]] = None,
        watch: Optional[Callable[[str], None]] = None,
    ) -> str:
        """Run pip for ``environment``; ``requirements`` (text) must pin every package with its hash.

        ``extra`` is added to its environment. Returns the end of what it printed. Raises RuntimeBuildError.
        """
        executable = os.path.join(environment, "bin", "python")
        command = [executable, "-I", os.path.join(pip, "pip"), *arguments]
        if requirements is not None:
            path = os.path.join(self.folder, "requirements.txt")
            write(path, requirements.encode())
            command += ["--require-hashes", "-r", path]
        tools = os.path.join(environment, "bin")
        return self.run(
            command,
            {"VIRTUAL_ENV": environment, "PATH_FIRST": tools, **self.index_environment(), **(extra or {})},
            watch=watch,
        )[1]

    def index_environment(self) -> Dict[str, str]:
        """What pip must know to use our index: its configuration files may be out of the owner's reach."""
        settings = self.settings
        environment = {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_CACHE_DIR": "1",
            "PIP_NO_INPUT": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INDEX": "" if settings.index_urls else "1",
            "PIP_INDEX_URL": settings.index_urls[0] if settings.index_urls else "",
            "PIP_EXTRA_INDEX_URL": " ".join((*settings.index_urls[1:], *self.indexes)) if settings.index_urls else "",
            "PIP_FIND_LINKS": " ".join(settings.find_links),
            "PIP_PROXY": settings.proxy or "",
        }
        if settings.ca_bundle:
            for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
                environment[name] = settings.ca_bundle
        return {name: value for name, value in environment.items() if value}

    def run(
        self,
        command: Sequence[str],
        extra: Optional[Mapping[str, str]] = None,
        watch: Optional[Callable[[str], None]] = None,
        check: bool = True,
    ) -> Tuple[int, str]:
        """Run ``command`` as the owner; returns its status and the end of its output.

        Raises RuntimeBuildError where it fails and ``check`` is set.
        """
        environment = environment_for(self._owner, os.environ)
        environment.update(extra or {})
        environment["PATH"] = search_path(environment["PATH"])
        first = environment.pop("PATH_FIRST", "")
        if first:
            environment["PATH"] = f"{first}:{environment['PATH']}"
        try:
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=self.folder,
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


def write(path: str, content: bytes) -> None:
    """Write a file that everybody may read, and that is on the disk then; never through a symlink."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "wb") as target:
        os.fchmod(descriptor, 0o644)
        target.write(content)
        target.flush()
        os.fsync(descriptor)
