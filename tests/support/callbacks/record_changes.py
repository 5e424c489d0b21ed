"""Append one JSON line for each run of converge.yml: was it check mode, and which tasks changed which host.

The parity test compares the line of a check-mode run with the line of the run that followed. Read by molecule's verify
playbook; enabled, and told its file, by the environment (``MODELFLEET_TEST_CHANGES``).
"""

from __future__ import annotations

import json
import os

from ansible import context
from ansible.executor.stats import AggregateStats
from ansible.executor.task_result import CallbackTaskResult
from ansible.playbook import Playbook
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: record_changes
type: aggregate
short_description: record which tasks change which host
description:
  - Appends one JSON object with the keys check and changed, for each run of converge.yml, to the file named
    by E(MODELFLEET_TEST_CHANGES).
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Collects the changed tasks of one run."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "record_changes"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._changed: set[str] = set()
        self._wanted = False

    def v2_playbook_on_start(self, playbook: Playbook) -> None:
        """See whether it is the playbook under test: molecule runs others around it."""
        self._wanted = os.path.basename(playbook._file_name) == "converge.yml"

    def v2_runner_on_ok(self, result: CallbackTaskResult) -> None:
        """Keep host and task of a result that says changed."""
        if result.is_changed():
            self._changed.add(f"{result.host.get_name()}: {result.task.get_name()}")

    def v2_playbook_on_stats(self, stats: AggregateStats) -> None:
        """Write the run's line."""
        if not self._wanted:
            return
        line = {"check": bool(context.CLIARGS["check"]), "changed": sorted(self._changed)}
        with open(os.environ["MODELFLEET_TEST_CHANGES"], "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
