"""The way back: the environment that was in use before the present one becomes it again."""

import os
from typing import Any, Dict

from ..errors import RuntimeBuildError
from ..privilege import Account, acting_as
from ..store.manifest import hold, now, write_json
from .build import earlier_environments, switch_to
from .environment import HELD, SCHEMA_VERSION, own_differences, packages_of, read_state


def go_back(runtime: str, owner: Account, check_mode: bool) -> Dict[str, Any]:
    """Switch to the newest other environment of ``runtime``, as its owner, and write down which one was left.

    As long as that one is wanted, nothing goes forward to it again; a second call does. Returns what changed, as a
    module does. In ``check_mode`` nothing is changed.

    Raises:
        RuntimeBuildError: there is no other environment, or it is damaged.
    """
    current = os.path.join(runtime, "current")
    if not os.path.isdir(current):
        raise RuntimeBuildError(f"there is no environment in {runtime} to go back from", "run ./modelfleet apply")
    if check_mode:
        return _change(runtime, _target(runtime))
    with acting_as(owner), hold(os.path.join(runtime, "lock"), lambda: None):
        target = _target(runtime)
        changed = _change(runtime, target)
        left, used = read_state(current) or {}, read_state(target) or {}
        held = {"schema_version": SCHEMA_VERSION, "key": used["key"], "instead_of": left.get("key"), "since": now()}
        write_json(os.path.join(runtime, HELD), held)
        # Touched, so that the one that was left counts as the newest of the others.
        os.utime(os.path.realpath(current))
        switch_to(runtime, target)
    return {**changed, "packages": packages_of(used)}


def _target(runtime: str) -> str:
    in_use = os.path.realpath(os.path.join(runtime, "current"))
    others = [path for path in earlier_environments(runtime) if os.path.realpath(path) != in_use]
    if not others:
        raise RuntimeBuildError(
            "there is no earlier environment to go back to", "name an older release, and install it"
        )
    state = read_state(others[0])
    damage = next(own_differences(others[0], state), None) if state else None
    if state is None or not state.get("key") or damage:
        why = damage.text if damage else "it has no record"
        raise RuntimeBuildError(
            f"the earlier environment {os.path.basename(others[0])} is damaged: {why}",
            "stay with the present one, or name an older release, and install it",
        )
    return others[0]


def _change(runtime: str, target: str) -> Dict[str, Any]:
    current = os.path.join(runtime, "current")
    before = os.path.basename(os.path.realpath(current))
    after = os.path.basename(target)
    return {
        "changed": True,
        "diff": {"before": f"{current} -> environments/{before}\n", "after": f"{current} -> environments/{after}\n"},
    }
