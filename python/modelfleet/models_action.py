"""The action plugin of modelfleet_models: what BackgroundAction does, and the Hub's token on its way to the host.

The token is no argument of the task, nor of the module: arguments are shown at
-vvv, kept by ansible-runner and written to files. The task names a variable.
Its value is rendered here, goes to the host on the standard input of one
command, lies there in memory under a name that nobody can guess, readable by
one account, and is gone as soon as the module has opened it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shlex
from collections.abc import Iterator
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleError

from .actions import BackgroundAction, Result

_TOKEN = re.compile(r"[!-~]{1,4096}")
_PREFIX = "modelfleet-token-"
_NO_MEMORY = 3
# Born with mode 0600. What a run that was killed between the two steps has left is swept by the next one.
_WRITE = rf"""umask 077
for folder in /dev/shm "/run/user/$(id -u)" /run; do
  grep -qs " $folder tmpfs " /proc/mounts || continue
  file=$(mktemp "$folder/{_PREFIX}XXXXXXXXXXXXXXXX" 2>/dev/null) || continue
  find "$folder" -maxdepth 1 -name '{_PREFIX}*' -user "$(id -u)" -mmin +10 -exec rm -f {{}} + 2>/dev/null
  if cat >"$file"; then echo "$file"; exit 0; fi
  rm -f "$file"
done
exit {_NO_MEMORY}"""
_HANDED = re.compile(rf"(?:/dev/shm|/run|/run/user/\d+)/{_PREFIX}[A-Za-z0-9]{{16}}")


class ModelsAction(BackgroundAction):
    """Runs modelfleet_models with the token that a variable holds."""

    _token = ""

    def execute(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> Result:
        """See BackgroundAction."""
        variable = arguments.pop("hub_token_variable", None)
        if variable and not self._task.check_mode:
            self._token = self._read_variable(str(variable), task_vars)
        result = super().execute(arguments, task_vars)
        return without(self._token, result) if self._token else result

    def call(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> Result:
        """See BackgroundAction."""
        if not self._token:
            return super().call(arguments, task_vars)
        with self._handed_over() as path:
            return super().call({**arguments, "hub_token_handover": path}, task_vars)

    def _read_variable(self, name: str, task_vars: dict[str, Any]) -> str:
        """Return what the variable holds, rendered only now. Raises AnsibleActionFail, never with the value."""
        if name not in task_vars:
            raise AnsibleActionFail(f"the variable {name} is to hold the Hub's token and is not set")
        value = self._templar.template(task_vars[name])
        token = value.strip() if isinstance(value, str) else value
        if token is None or token == "":
            return ""
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise AnsibleActionFail(f"the variable {name} holds no token of the Hub; write it as one plain line")
        return str(token)

    @contextlib.contextmanager
    def _handed_over(self) -> Iterator[str]:
        """Yield the path on the host of a file that holds the token; whoever opens it removes it."""
        try:
            said = self._low_level_execute_command(_WRITE, in_data=self._token.encode("ascii"), sudoable=True)
        except AnsibleConnectionFailure:
            raise
        except AnsibleError:
            # Some connections, paramiko's for one, have no way to a command's standard input.
            raise AnsibleActionFail(
                "this connection cannot hand the Hub's token over; put it into a file on the host, and set "
                "models_hub_token_file"
            ) from None
        path = str(said.get("stdout", "")).strip()
        if said.get("rc") != 0 or not _HANDED.fullmatch(path):
            reason = (
                "the host has no folder in memory to hand the Hub's token over on"
                if said.get("rc") == _NO_MEMORY
                else "the host did not take the Hub's token"
            )
            raise AnsibleActionFail(f"{reason}; put it into a file on the host, and set models_hub_token_file")
        try:
            yield path
        finally:
            # For a module that did not come as far as to open it. A lost host has none that can be told.
            with contextlib.suppress(AnsibleError):
                self._low_level_execute_command(f"rm -f {shlex.quote(path)}", sudoable=True)


def without(secret: str, value: Any) -> Any:
    """Return ``value`` with stars in place of ``secret``, wherever in it an error may have put that."""
    if isinstance(value, str):
        return value.replace(secret, "********") if secret in value else value
    if isinstance(value, dict):
        return {without(secret, key): without(secret, inside) for key, inside in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(without(secret, inside) for inside in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Tracebacks and warnings come as objects of Ansible's own.
        inside = {part.name: without(secret, getattr(value, part.name)) for part in dataclasses.fields(value)}
        return dataclasses.replace(value, **inside)
    return value
