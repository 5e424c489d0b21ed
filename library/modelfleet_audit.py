#!/usr/bin/python
# Copyright: the modelfleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether a host's store holds what it should, byte for byte."""

from __future__ import annotations

DOCUMENTATION = r"""
module: modelfleet_audit
short_description: Hash every published file again
description:
  - Reads all that is published, on all processors, and holds it against the record of its publishing and the plan.
  - Finds what is missing, changed, no regular file, unreadable, of another mode or owner, what the lock pins otherwise,
    and what modelfleet did not put there. Flipped bits are found whatever the file's times say.
  - Without O(repair) it changes nothing. With it modes and owners are put right here; what has to come again is
    returned as a plan for M(modelfleet_models). A damaged file stays until the right bytes are proved; what is no
    regular file, or cannot be read, makes way at once.
version_added: "0.1.0"
author:
  - The modelfleet contributors (@modelfleet)
options:
  store_path:
    description: The store. Empty means C(/opt/ashley-ai/models) as root, else C(~/.local/share/ashley-ai/models).
    type: str
    default: ""
  plan:
    description:
      - What the host is to hold, as M(modelfleet_plan) returns it; its store wins over O(store_path).
      - Without it only the record of what was published counts, and nothing can be fetched again.
    type: dict
  repair:
    description: Put right what can be put right.
    type: bool
    default: false
  background:
    description: Do the work in a process of its own and return at once. The action plugin sets it.
    type: bool
    default: false
attributes:
  check_mode:
    description: It looks, and repairs nothing.
    support: full
  diff_mode:
    description: Lists what a repair put right, or takes the trust from.
    support: full
"""

EXAMPLES = r"""
- name: Hash every published file again
  modelfleet_audit:
    plan: "{{ ansible_facts['modelfleet_plan'] }}"
  register: audit

- name: Report damage
  ansible.builtin.fail:
    msg: "{{ audit['summary'] }}"
  when: audit['findings'] | length > 0
"""

RETURN = r"""
findings:
  description: What is not as it should be, by path.
  type: list
  elements: dict
  returned: success
  contains:
    kind:
      description: One of missing, changed, irregular, unreadable, outdated, unrecorded, mode, group, owner and extra.
      type: str
      returned: always
    path:
      description: The file, relative to the store.
      type: str
      returned: always
    model:
      description: The model that it belongs to, where that is known.
      type: str
      returned: always
    detail:
      description: What was found, and what should have been.
      type: str
      returned: always
    state:
      description: C(found), C(repaired), or C(to fetch) where RV(repair_plan) brings the right bytes.
      type: str
      returned: always
summary:
  description: The findings in one line, empty where there is none that stays.
  type: str
  returned: success
store_path:
  description: The store that was looked at.
  type: str
  returned: success
files:
  description: How many files are published.
  type: int
  returned: success
hashed_bytes:
  description: How many bytes were hashed.
  type: int
  returned: success
seconds:
  description: How long that took.
  type: float
  returned: success
touched:
  description: Files whose times or inode are not the recorded ones, though their bytes are right.
  type: list
  elements: str
  returned: success
repair_plan:
  description: The plan that fetches what is broken, for M(modelfleet_models); empty where there is nothing to fetch.
  type: dict
  returned: success
job:
  description: Where the progress and the result of the work are, when it goes on in the background.
  type: dict
  returned: when I(background) is set
"""

import hashlib
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.modelfleet.core.errors import ModelfleetError
from ansible.module_utils.modelfleet.core.jobs import Progress, describe_os_error, start
from ansible.module_utils.modelfleet.core.planning.document import HostPlan, plan_from_dict
from ansible.module_utils.modelfleet.core.store.audit import FOUND, TO_FETCH, Audit, audit
from ansible.module_utils.modelfleet.core.store.layout import resolve_store_path
from ansible.module_utils.modelfleet.core.store.repair import put_right
from ansible.module_utils.modelfleet.core.store.tree import store_owner

_NAMED = 3


def get_argument_spec() -> dict:
    return {
        "store_path": {"type": "str", "default": ""},
        "plan": {"type": "dict"},
        "repair": {"type": "bool", "default": False},
        "background": {"type": "bool", "default": False},
    }


def wished_files(plan: HostPlan | None) -> dict:
    """Return what the plan keeps on the host, by path."""
    kept = ("keep", "fetch", "replace")
    models = [model for model in plan.models if model.action in kept] if plan else []
    return {file.path: file for model in models for file in model.files}


def repair_plan(plan: HostPlan | None, done: Audit) -> dict:
    """Return the part of the plan that brings again what is broken."""
    broken = {one.path for one in done.findings if one.state == TO_FETCH}
    if plan is None or not broken:
        return {}
    models = []
    for model in plan.models:
        missing = tuple(file for file in model.files if file.path in broken)
        if missing and model.action in ("keep", "fetch", "replace"):
            size = sum(file.size or 0 for file in missing)
            reason = f"{len(missing)} of its files are broken"
            models.append(model._replace(action="replace", missing=missing, reason=reason, bytes_to_fetch=size))
    return plan._replace(models=tuple(models)).to_dict()


def summary_of(done: Audit) -> str:
    """Return in one line what is still wrong."""
    left = [one for one in done.findings if one.state == FOUND]
    if not left:
        return ""
    told = "; ".join(f"{one.path} {one.detail}" for one in left[:_NAMED])
    more = f"; and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    return " ".join(f"{len(left)} finding{'s' * (len(left) > 1)}: {told}{more}".split())


def run(params: dict, check_mode: bool) -> dict:
    """Return the module's result, or the job that will have it."""
    plan = plan_from_dict(params["plan"]) if params["plan"] is not None else None
    store_path = plan.store_path if plan else resolve_store_path(params["store_path"])
    repair = params["repair"] and not check_mode
    owner = store_owner(store_path)

    def work(progress: Progress) -> dict:
        started = time.monotonic()
        done = audit(store_path, owner, wished_files(plan), progress, put_right if repair else None)
        put = [f"{one.path} {one.detail}: {one.state}\n" for one in done.findings if one.state != FOUND]
        return {
            "changed": done.changed,
            "findings": [one._asdict() for one in done.findings],
            "summary": summary_of(done),
            "store_path": store_path,
            "files": done.files,
            "hashed_bytes": done.hashed_bytes,
            "seconds": round(time.monotonic() - started, 3),
            "touched": list(done.touched),
            "repair_plan": repair_plan(plan, done),
            "diff": {"before": "".join(put), "after": ""},
        }

    if params["background"]:
        what = hashlib.sha256(f"{store_path} {repair} {params['plan']}".encode()).hexdigest()[:16]
        return {"changed": False, "job": start(f"audit-{what}", work)}
    return work(Progress())


def main() -> None:
    module = AnsibleModule(argument_spec=get_argument_spec(), supports_check_mode=True)
    try:
        module.exit_json(**run(module.params, module.check_mode))
    except ModelfleetError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=describe_os_error(error))


if __name__ == "__main__":
    main()
