# Copyright: the modelfleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Judges catalog and wishes here, where the line is known that they stand in, then runs the module modelfleet_plan."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

# Plain ansible-playbook may run in an environment that has no package, or that of another checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

from modelfleet.core.catalog import read_catalog
from modelfleet.core.errors import CatalogError, ModelfleetError
from modelfleet.core.wishes import read_wishes


class ActionModule(ActionBase):
    """See the documentation of the module modelfleet_plan."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what the module returns, or what is wrong and where."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = self._task.args
        try:
            read_wishes(arguments.get("wanted"), read_catalog(arguments.get("catalog"), arguments.get("lock")))
        except CatalogError as error:
            where = _place(arguments.get(error.variable), error.path)
            return {**result, "failed": True, "msg": f"{where}{error}"}
        except ModelfleetError as error:
            return {**result, "failed": True, "msg": str(error)}
        return {**result, **self._execute_module(task_vars=task_vars)}


def _place(value: Any, path: tuple[str | int, ...]) -> str:
    """Return ``FILE, line N: `` of the value at ``path`` or what is nearest above it, nothing where it is unknown."""
    try:
        from ansible._internal._datatag._tags import Origin
    except ImportError:  # what values remember is internal to Ansible, and a help only
        return ""
    found = ""
    for step in (None, *path):
        try:
            value = value if step is None else value[step]
        except (LookupError, TypeError):
            break
        origin = Origin.get_tag(value)
        if origin is not None and origin.path and origin.line_num:
            found = f"{origin.path}, line {origin.line_num}: "
    return found
