"""Gathering all that an installation takes, for hosts of the same kind that reach no package index."""

import hashlib
import os
import shutil
from typing import Dict, List

from .build import Builder


class Collector(Builder):
    """Does what Builder does, but for the last step: what would be installed is kept as wheels in ``folder``.

    The environment in use stays as it is.
    """

    @property
    def folder(self) -> str:
        """Where the wheels are on this host."""
        return os.path.join(self._wanted.path, "wheelhouse", "collected")

    def _install(self, python: str, pip: str, requirements: str, local: List[str]) -> None:
        self._remove(self.folder)
        environment = self._make_environment(python, os.path.join(self._workshop, "collecting"))
        step = "collecting the packages"
        self._progress.update(step)
        self._shop.pip(
            environment,
            pip,
            ["download", "--only-binary", ":all:", "--no-deps", "--dest", self._kept_folder(self.folder)],
            requirements,
            watch=lambda line: self._tell_package(step, line),
        )
        shutil.copy(pip, self.folder)


def collected(folder: str) -> List[Dict[str, str]]:
    """Return path and SHA-256 of each wheel that was collected. Raises OSError."""
    found = []
    for name in sorted(os.listdir(folder)):
        digest = hashlib.sha256()
        with open(os.path.join(folder, name), "rb") as source:
            for block in iter(lambda: source.read(1 << 20), b""):
                digest.update(block)
        found.append({"path": os.path.join(folder, name), "sha256": digest.hexdigest()})
    return found
