# Copyright: the modelfleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Runs the module modelfleet_models and shows its progress."""

from __future__ import annotations

import sys
from pathlib import Path

# Plain ansible-playbook may run in an environment that has no package, or that of another checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

from modelfleet.models_action import ModelsAction


class ActionModule(ModelsAction):
    """See ModelsAction."""
