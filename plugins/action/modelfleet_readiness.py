# Copyright: the modelfleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Judges a host's hardware here, on the controller: the host has told all that is needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

# Plain ansible-playbook may run in an environment that has no package, or that of another checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

from modelfleet.core.errors import ModelfleetError
from modelfleet.core.hardware.readiness import readiness_to_dict


class ActionModule(ActionBase):
    """See the documentation of the module modelfleet_readiness."""

    _requires_connection = False
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the readiness as a fact."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            {"hardware": {"type": "dict", "required": True}, "requirements": {"type": "dict", "default": {}}}
        )
        try:
            readiness = readiness_to_dict(arguments["hardware"], arguments["requirements"])
        except ModelfleetError as error:
            return {**result, "failed": True, "msg": str(error)}
        return {**result, "changed": False, "ansible_facts": {"modelfleet_readiness": readiness}}
