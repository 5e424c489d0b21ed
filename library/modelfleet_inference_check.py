#!/usr/bin/python
# Copyright: the modelfleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Proof that a host's models answer."""

from __future__ import annotations

DOCUMENTATION = r"""
module: modelfleet_inference_check
short_description: Prove local inference
description:
  - Checks that the installed stack computes on the host's accelerator, then that each model of the plan answers.
  - Runs in the managed environment, in child processes under the store's owner, without network.
  - A proof whose fingerprint (kernel, driver, packages, model, check, placement) is unchanged is not run again.
version_added: "0.1.0"
author:
  - The modelfleet contributors (@modelfleet)
options:
  store_path:
    description: The store. Empty means C(/opt/ashley-ai/models) as root, else C(~/.local/share/ashley-ai/models).
    type: str
    default: ""
  runtime_path:
    description: The managed environment's path. Empty means C(runtime) beside the store.
    type: str
    default: ""
  environment_key:
    description:
      - The key of the managed environment, as M(modelfleet_runtime) returns it.
      - Empty means that of the environment that is installed; in check mode that may be about to change.
    type: str
    default: ""
  models:
    description: The models of the plan that M(modelfleet_plan) returned.
    type: list
    elements: dict
    required: true
  hardware:
    description:
      - The HardwareProfile that M(modelfleet_hardware_info) returned.
      - Without it nothing is expected of an accelerator.
    type: dict
    default: {}
  backend:
    description: The backend of the stack that M(modelfleet_runtime) installed. Empty means that of its record.
    type: str
    default: ""
  profiles:
    description: The profiles of the environment, as M(modelfleet_runtime) returned them.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds that one proof may take.
    type: int
    default: 600
  memory_mebibytes:
    description: MiB of memory of its own that the process of one proof may take. 0 means no limit.
    type: int
    default: 0
  throughput_share:
    description: The share of what the memory's bandwidth allows under which generation counts as slow.
    type: float
    default: 0.2
  background:
    description: Do the work in a process of its own and return at once. The action plugin sets it.
    type: bool
    default: false
attributes:
  check_mode:
    description: Tells which proofs would run.
    support: full
  diff_mode:
    description: Lists the proofs that run, and what changed since they were last run.
    support: full
"""

EXAMPLES = r"""
- name: Prove the installation and the models of this host
  modelfleet_inference_check:
    models: "{{ ansible_facts['modelfleet_plan']['models'] }}"
    hardware: "{{ ansible_facts['modelfleet_hardware'] }}"
"""

RETURN = r"""
proofs:
  description: >-
    For each model what it was asked, the output, what was expected, whether it passed, the checks, load time, tokens
    per second, throughput, memory, isolation and versions; C(ran) tells whether it was run now, C(reasons) why it was
    run last.
  type: list
  elements: dict
  returned: always
installation:
  description: The checks of the installed stack, and what it said of itself; null where there is no environment yet.
  type: dict
  returned: always
unproved:
  description: The models that are not proved, each with the reason and the command that proves it.
  type: list
  elements: dict
  returned: always
memory:
  description: Predicted and measured memory by device, and the headroom that would have covered the difference.
  type: list
  elements: dict
  returned: always
job:
  description: Where the progress and the result of the work are, when it goes on in the background.
  type: dict
  returned: when I(background) is set and there is work to do
"""

import hashlib

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.modelfleet.core.errors import ModelfleetError
from ansible.module_utils.modelfleet.core.inference.child import Limits
from ansible.module_utils.modelfleet.core.inference.ledger import read_ledger, summary
from ansible.module_utils.modelfleet.core.inference.proof import Place, Wished, prove, survey
from ansible.module_utils.modelfleet.core.inference.report import problem, told
from ansible.module_utils.modelfleet.core.jobs import Progress, describe_os_error, start
from ansible.module_utils.modelfleet.core.store.layout import resolve_runtime_path, resolve_store_path
from ansible.module_utils.modelfleet.core.units import MIB


def get_argument_spec() -> dict:
    return {
        "store_path": {"type": "str", "default": ""},
        "runtime_path": {"type": "str", "default": ""},
        "environment_key": {"type": "str", "default": "", "no_log": False},
        "models": {"type": "list", "elements": "dict", "required": True},
        "hardware": {"type": "dict", "default": {}},
        "backend": {"type": "str", "default": ""},
        "profiles": {"type": "list", "elements": "str", "default": []},
        "timeout": {"type": "int", "default": 600},
        "memory_mebibytes": {"type": "int", "default": 0},
        "throughput_share": {"type": "float", "default": 0.2},
        "background": {"type": "bool", "default": False},
    }


def run(params: dict, check_mode: bool) -> dict:
    """Return the module's result, or the job that will have it."""
    store_path = resolve_store_path(params["store_path"])
    limits = Limits(params["timeout"], params["memory_mebibytes"] * MIB)
    place = Place(
        store_path, resolve_runtime_path(params["runtime_path"], store_path), limits, params["throughput_share"]
    )
    wished = Wished(
        *(params["models"], params["environment_key"], params["hardware"]),
        *(params["backend"], tuple(params["profiles"])),
    )
    found = survey(place, wished)
    result = {
        "changed": bool(found.due),
        "proofs": [told(record, False) for record in found.proofs],
        "installation": told(found.installation, False) if found.installation else None,
        "unproved": [one._asdict() for one in found.unproved],
        "memory": summary(read_ledger(store_path)),
        "diff": {"before": "", "after": "".join(one.told for one in found.due)},
    }
    if check_mode or not found.due:
        return result

    def work(progress: Progress) -> dict:
        outcome = prove(place, wished, found.ready, progress)
        installation, proofs, unproved, _ = outcome
        answer = {
            **result,
            "changed": bool(installation or proofs or unproved),
            "proofs": [*result["proofs"], *(told(record, True) for record in proofs)],
            "unproved": [*result["unproved"], *(one._asdict() for one in unproved)],
            "memory": summary(read_ledger(store_path)),
        }
        if installation:
            answer["installation"] = told(installation, True)
        message = problem(outcome, found.altered)
        return {**answer, "failed": True, "msg": message} if message else answer

    if params["background"]:
        what = "\0".join([store_path, place.runtime_path, result["diff"]["after"], repr(params["models"])])
        return {"changed": False, "job": start(f"proof-{hashlib.sha256(what.encode()).hexdigest()[:16]}", work)}
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
