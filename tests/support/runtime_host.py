"""A host's runtime folder with all that it may install, from a folder of tiny packages, with real venv and pip."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from modelfleet import packaging
from modelfleet.core.errors import FetchError
from modelfleet.core.fetch.package_index import PackageIndexSettings, download_distribution
from modelfleet.core.jobs import Progress
from modelfleet.core.privilege import Account, current_account, find_account
from modelfleet.core.runtime.build import NOTHING, PIP_SHA256, PIP_WHEEL, Brought, Builder, Done, Package
from modelfleet.core.runtime.environment import Wanted
from modelfleet.core.runtime.resolver import Build

from support.index import make_source, make_wheel, sha256

FLAGS = ("-DGGML_NATIVE=OFF", "-DGGML_AVX2=OFF")
BUILD = Build("0.0.1", "cpu", FLAGS, "linux_x86_64", "glibc2.36")


def fetch_pip(path: Path) -> None:
    """Write the pip that hosts install with, from this machine's index; skip where there is none."""
    try:
        settings = PackageIndexSettings.from_environment(os.environ)
        download_distribution("pip", PIP_WHEEL, PIP_SHA256, str(path), settings)
    except FetchError as error:
        pytest.skip(f"no package index that has pip can be reached: {error}")


class Recorder(Progress):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def update(self, *arguments: Any) -> None:
        self.told.append(arguments)

    @property
    def steps(self) -> list[str]:
        """Return the steps in their order, each once."""
        return list(dict.fromkeys(told[0] for told in self.told))


@dataclass
class Host:
    """A host's runtime folder, an owner, and all packages that it may install."""

    root: Path
    owner: Account
    source_name: str = "llama_cpp_python-0.0.1.tar.gz"
    modelfleet: packaging.Wheel = field(default_factory=packaging.build_wheel)
    progress: Recorder = field(default_factory=Recorder)

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def runtime(self) -> Path:
        return self.root / "base" / "runtime"

    def package(self) -> Package:
        """Bring modelfleet's own wheel."""
        path = self.root / self.modelfleet.filename
        path.write_bytes(self.modelfleet.content)
        return Package(str(path), self.modelfleet.sha256)

    def requirement(self, name: str, file: str, digest: str | None = None) -> str:
        """Return a requirement with its hash."""
        return f"{name} --hash=sha256:{digest or sha256(self.index / file)}\n"

    def wanted(self, **changes: Any) -> Wanted:
        """Return what the environment shall hold."""
        wanted = Wanted(
            path=str(self.runtime),
            python="",
            requirements=self.requirement("tiny-dep==1.0", "tiny_dep-1.0-py3-none-any.whl"),
            build_requirements=self.requirement("tiny-tool==1.0", "tiny_tool-1.0-py3-none-any.whl"),
            source_requirement=self.requirement("llama-cpp-python==0.0.1", self.source_name),
            build=BUILD,
            package_sha256=self.modelfleet.sha256,
        )
        return wanted._replace(**changes)

    def converge(self, brought: Package | Brought | None = None, **changes: Any) -> Done:
        """Build and install; a package that is brought is the wheel of the build."""
        if not isinstance(brought, Brought):
            brought = NOTHING._replace(wheel=brought)
        self.progress = Recorder()
        settings = PackageIndexSettings((), (str(self.index),))
        return Builder(self.wanted(**changes), self.owner, settings, self.progress).converge(self.package(), brought)

    def in_use(self) -> str:
        """Return the folder of the environment in use."""
        return os.path.realpath(self.runtime / "current")

    def run(self, program: str) -> str:
        """Run a program in the environment in use, as anybody."""
        python = str(self.runtime / "current" / "bin" / "python")
        done = subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, check=True, cwd="/")
        return done.stdout.strip()


def make_host(pip_wheel: Path) -> Host:
    """Return a host with everything to install from; its folder is the caller's to remove."""
    owner = find_account("nobody") if os.geteuid() == 0 else current_account()
    host = Host(Path(tempfile.mkdtemp(prefix="modelfleet-test-", dir=os.path.realpath("/tmp"))), owner)
    host.root.chmod(0o755)
    host.index.mkdir()
    shutil.copy(pip_wheel, host.index)
    make_wheel(host.index, "tiny-tool")
    make_wheel(host.index, "tiny-dep")
    make_source(host.index, "llama-cpp-python", "0.0.1")
    return host
