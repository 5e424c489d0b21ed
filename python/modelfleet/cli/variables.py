"""What the inventory says of the models, read on the controller: for plans of machines that are not there.

``ansible-inventory`` merges group and host variables; the role's defaults stand behind them, ``-e`` before them.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

from ..core.errors import ConfigurationError
from ..runner import playbook_program
from .options import Options, ansible_environment, checkout, inventory_arguments

_ROLE = "roles/models/defaults/main"
_PREFIX = "models_"


class Variables:
    """The variables of the role models for any host or group of the inventory."""

    def __init__(self, options: Options) -> None:
        self._root = checkout()
        self._options = options
        self._defaults = _defaults(self._root)
        self._extra = _extra(options.extra_vars)
        self._groups: dict[str, Any] | None = None

    def of(self, name: str) -> dict[str, Any]:
        """Return the variables without their ``models_``, for the host or group ``name``, else for all hosts.

        Raises ConfigurationError where the inventory cannot be read, or a value needs a host to be known.
        """
        groups = self._inventory()
        found: dict[str, Any] = {**self._defaults, **_vars(groups.get("all"))}
        if name in groups.get("_meta", {}).get("hostvars", {}) or any(
            name in (group.get("hosts") or []) for group in groups.values() if isinstance(group, dict)
        ):
            found.update(self._ask("--host", name))
        elif name in groups:
            found.update(_vars(groups[name]))
        found.update(self._extra)
        unlocked, backend = found.get("modelfleet_allow_unlocked", False), found.get("inference_runtime_backend", "")
        mine = {key[len(_PREFIX) :]: value for key, value in found.items() if key.startswith(_PREFIX)}
        lock_file = str(self._root / "models.lock.json")
        for key, standard in (("allow_unlocked", unlocked), ("backend", backend), ("lock_file", lock_file)):
            if mine.get(key) == self._defaults.get(f"{_PREFIX}{key}"):
                mine[key] = standard
        for key in ("store_path", "ca_bundle", "plan_file", "hub_token"):
            mine.pop(key, None)
        for key, value in mine.items():
            if "{{" in json.dumps(value, default=str):
                raise ConfigurationError(
                    f"{_PREFIX}{key} is a template, which only a host can fill in",
                    f"give its value with -e {_PREFIX}{key}=…",
                )
        return mine

    def _inventory(self) -> dict[str, Any]:
        if self._groups is None:
            self._groups = self._ask("--list", "--export")
        return self._groups

    def _ask(self, *question: str) -> dict[str, Any]:
        program = str(Path(playbook_program()[0]).with_name("ansible-inventory"))
        arguments = inventory_arguments(self._root, self._options, os.environ)
        # No group_vars lie beside the playbooks: those of a user's inventory are not mixed with any of ours.
        command = [program, *arguments, *question, "--playbook-dir", str(self._root / "playbooks")]
        environment = {**os.environ, **ansible_environment(self._root, os.environ), "ANSIBLE_NOCOLOR": "1"}
        environment["ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED"] = "true"
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        said = " ".join((done.stderr or done.stdout).split())
        if done.returncode != 0:
            raise ConfigurationError(f"the inventory cannot be read: {said[:300]}", "name another with -i")
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            raise ConfigurationError("ansible-inventory gave no JSON", "run it yourself with --list") from None
        return answer if isinstance(answer, dict) else {}


def _vars(group: Any) -> dict[str, Any]:
    found = group.get("vars") if isinstance(group, dict) else None
    return dict(found) if isinstance(found, dict) else {}


def _defaults(root: Path) -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = {}
    for path in sorted((root / _ROLE).glob("*.yml")):
        found.update(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    return found


def _extra(given: tuple[str, ...]) -> dict[str, Any]:
    """Return the variables of ``-e`` as ansible-playbook reads them: JSON or YAML, ``@file``, ``key=value`` words."""
    import yaml

    found: dict[str, Any] = {}
    for text in given:
        try:
            if text.startswith("@"):
                value = yaml.safe_load(Path(text[1:]).read_text(encoding="utf-8"))
            elif text.lstrip().startswith(("{", "[")):
                value = yaml.safe_load(text)
            else:
                value = dict(word.split("=", 1) for word in shlex.split(text))
        except OSError as error:
            raise ConfigurationError(f"-e {text}: {error.strerror}", "name a file that can be read") from error
        except (ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise ConfigurationError(f"-e {text[:80]}: {reason[:200]}", "write key=value, JSON, or @file") from None
        if isinstance(value, dict):
            found.update(value)
    return found
