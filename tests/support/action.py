"""What Ansible does for an action plugin, on this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ansible.errors import AnsibleFileNotFound


class Display:
    """Keeps what is shown."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def display(self, line: str, stderr: bool = False) -> None:
        (self.errors if stderr else self.lines).append(line)

    def warning(self, line: str) -> None:
        self.warnings.append(line)


class Connection:
    """A host whose files are this machine's."""

    def __init__(self, folder: Path) -> None:
        self._shell = SimpleNamespace(tmpdir=str(folder), join_path=os.path.join)
        self.lost = False

    def fetch_file(self, remote: str, local: str) -> None:
        if self.lost:
            raise AnsibleFileNotFound(file_name=remote)
        Path(local).write_bytes(Path(remote).read_bytes())


class OnThisMachine:
    """What Ansible does for an action plugin, with a real shell on this machine and a module that is a function."""

    def __init__(self, folder: Path, check_mode: bool = False) -> None:
        self._task = SimpleNamespace(check_mode=check_mode, args={}, get_name=lambda: "the task")
        self._connection = Connection(folder)
        self._display = Display()
        self.calls: list[dict[str, Any]] = []
        self.commands: list[str] = []
        self.answers: list[dict[str, Any]] = []

    def _execute_module(self, module_args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        self.calls.append(module_args)
        return self.answers.pop(0)

    def _transfer_file(self, local: str, remote: str) -> None:
        Path(remote).write_bytes(Path(local).read_bytes())

    def _low_level_execute_command(self, command: str, sudoable: bool) -> dict[str, Any]:
        # Modules may run as another account; what is brought to them is the connection's.
        assert sudoable or command.startswith("mkdir ")
        self.commands.append(command)
        done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True)
        return {"stdout": done.stdout, "stderr": done.stderr, "rc": done.returncode}

    def _transfer_data(self, path: str, content: bytes) -> None:
        Path(path).write_bytes(content)

    def _fixup_perms2(self, paths: tuple[str, ...]) -> None:
        assert all(os.path.exists(path) for path in paths)
