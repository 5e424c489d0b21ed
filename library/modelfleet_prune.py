#!/usr/bin/python
# Copyright: the modelfleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What a host's store need not hold any more."""

from __future__ import annotations

DOCUMENTATION = r"""
module: modelfleet_prune
short_description: Remove published files that no wish keeps
description:
  - Removes what modelfleet published and the plan does not keep, and downloads in flight that it does not want.
  - Never removes a file that the plan names, that modelfleet did not publish, or that was changed since. Of a model
    that is wished every file stays until what is planned of it is published.
  - In check mode it shows what it would remove.
version_added: "0.1.0"
author:
  - The modelfleet contributors (@modelfleet)
options:
  plan:
    description: What the host is to hold, as M(modelfleet_plan) returns it.
    type: dict
    required: true
attributes:
  check_mode:
    description: Shows what a run would remove.
    support: full
  diff_mode:
    description: Lists the files that are removed.
    support: full
"""

EXAMPLES = r"""
- name: Remove what no wish keeps
  modelfleet_prune:
    plan: "{{ ansible_facts['modelfleet_plan'] }}"
"""

RETURN = r"""
files:
  description: The published files that no wish keeps.
  type: list
  elements: dict
  returned: success
  contains:
    path:
      description: The file, relative to the store.
      type: str
      returned: always
    model:
      description: The model that it belonged to.
      type: str
      returned: always
    state:
      description: C(removed), C(gone) where it was not there any more, C(left) where it was changed meanwhile.
      type: str
      returned: always
    freed_bytes:
      description: What the disk gets back.
      type: int
      returned: always
in_flight:
  description: What was left of downloads that no wish wants, names in C(cache/temp).
  type: list
  elements: str
  returned: success
freed_bytes:
  description: What the disk gets back for all of it.
  type: int
  returned: success
store_path:
  description: The store.
  type: str
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.modelfleet.core.errors import ModelfleetError
from ansible.module_utils.modelfleet.core.fetch.part import SUFFIXES
from ansible.module_utils.modelfleet.core.fetch.transfer import PREFIX, part_key
from ansible.module_utils.modelfleet.core.jobs import Progress, describe_os_error
from ansible.module_utils.modelfleet.core.planning.document import HostPlan, plan_from_dict
from ansible.module_utils.modelfleet.core.publishing import units_of
from ansible.module_utils.modelfleet.core.store.prune import LEFT, Keep, Pruned, foresee, prune
from ansible.module_utils.modelfleet.core.store.tree import store_owner


def get_argument_spec() -> dict:
    return {"plan": {"type": "dict", "required": True}}


def keep_of(plan: HostPlan) -> Keep:
    """Return what the plan keeps. Every variant of a model stays until the planned one is published."""
    wished = [model for model in plan.models if model.action != "remove"]
    unsure = {model.model for model in wished if plan.provisional or model.action != "keep"}
    files = [file for model in wished for file in model.files]
    keys = {part_key(file) for file in files}
    # A staging folder is named by all that its unit holds, and by what of it comes.
    sure = tuple(model for model in wished if model.action in ("fetch", "replace"))
    in_flight = {unit.staging for unit in units_of(plan._replace(models=sure))}
    in_flight |= {f"{PREFIX}{key}" for key in keys} | {f"{key}{suffix}" for key in keys for suffix in SUFFIXES}
    return Keep(frozenset(file.path for file in files), frozenset(unsure), frozenset(in_flight))


def run(params: dict, check_mode: bool) -> dict:
    """Return the module's result."""
    plan = plan_from_dict(params["plan"])
    owner = store_owner(plan.store_path)
    done: Pruned = (foresee if check_mode else prune)(plan.store_path, owner, keep_of(plan), Progress())
    gone = [f"{file.path} ({file.model})\n" for file in done.files if file.state != LEFT]
    gone += [f"cache/temp/{name}\n" for name, _ in done.in_flight]
    left = [f"{file.path} was changed since it was published: it is left" for file in done.files if file.state == LEFT]
    return {
        "changed": bool(done.files or done.in_flight),
        "files": [file._asdict() for file in done.files],
        "in_flight": [name for name, _ in done.in_flight],
        "freed_bytes": done.freed_bytes,
        "store_path": plan.store_path,
        "diff": {"before": "".join(gone), "after": ""},
        **({"warnings": left} if left else {}),
    }


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
