#!/usr/bin/python
# Copyright: the modelfleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The models that a host keeps."""

from __future__ import annotations

DOCUMENTATION = r"""
module: modelfleet_models
short_description: Carry out a plan of models
description:
  - Fetches what a plan of M(modelfleet_plan) misses, proves it and publishes it; then removes what the plan removes.
  - A file is published only when its size and SHA-256 are those that the lock pins; it appears whole or not at all.
  - Where nothing changed it costs one stat per file.
  - A model of several files, or a folder, appears whole; what a plan removes is removed only where we published it.
version_added: "0.1.0"
author:
  - The modelfleet contributors (@modelfleet)
options:
  plan:
    description: What to carry out, as M(modelfleet_plan) returns it.
    type: dict
    required: true
  ca_bundle:
    description: A file of certificates on the host, in PEM form, for every download. Empty means the system's.
    type: path
    default: ""
  hub_endpoints:
    description:
      - Where files of the Hub are asked for, the first that answers counts; a token goes to the first one only.
      - Empty means C(HF_ENDPOINT) of the host's environment, else the Hub itself.
    type: list
    elements: str
    default: []
  hub_token_variable:
    description:
      - The name of a variable that holds the Hub's token, best one from a vault. The token itself is no argument, so
        that it is shown and kept nowhere; it is handed to the host in memory.
      - Empty, or where the variable is empty, I(hub_token_file) counts.
    type: str
    default: ""
  hub_token_file:
    description: A file on the host that holds the Hub's token, readable by its owner alone. Empty means C(HF_TOKEN).
    type: path
    default: ""
  hub_token_handover:
    description: Where on the host the token was handed over; read once and removed. The action plugin sets it.
    type: path
    default: ""
  rate_limit:
    description: Bytes per second that downloads may take at most; 0 means as fast as they come.
    type: int
    default: 0
  background:
    description: Do the work in a process of its own and return at once. The action plugin sets it.
    type: bool
    default: false
attributes:
  check_mode:
    description: Tells which files a run would publish and remove.
    support: full
  diff_mode:
    description: Lists the files that are published and removed.
    support: full
"""

EXAMPLES = r"""
- name: Plan the models of this host
  modelfleet_plan:
    wanted:
      - model: smollm2-135m-instruct
    catalog: "{{ models_catalog }}"
    lock: "{{ lookup('ansible.builtin.file', 'models.lock.json') | from_json }}"
    hardware: "{{ ansible_facts['modelfleet_hardware'] }}"

- name: Publish them
  modelfleet_models:
    plan: "{{ ansible_facts['modelfleet_plan'] }}"

- name: Publish them, of gated repositories too
  modelfleet_models:
    plan: "{{ ansible_facts['modelfleet_plan'] }}"
    hub_token_variable: vault_hub_token
"""

RETURN = r"""
published:
  description: The files that were published, relative to the store.
  type: list
  elements: str
  returned: always
removed:
  description: The files that were removed, relative to the store.
  type: list
  elements: str
  returned: always
job:
  description: Where the progress and the result of the work are, when it goes on in the background.
  type: dict
  returned: when I(background) is set and there is work to do
"""

import hashlib
import json
import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.modelfleet.core.errors import ModelfleetError
from ansible.module_utils.modelfleet.core.jobs import Progress, describe_os_error, start
from ansible.module_utils.modelfleet.core.planning.document import HostPlan, plan_from_dict
from ansible.module_utils.modelfleet.core.store.tree import store_owner


def get_argument_spec() -> dict:
    return {
        "plan": {"type": "dict", "required": True},
        "ca_bundle": {"type": "path", "default": ""},
        "hub_endpoints": {"type": "list", "elements": "str", "default": []},
        "hub_token_variable": {"type": "str", "default": "", "no_log": False},
        "hub_token_file": {"type": "path", "default": "", "no_log": False},
        "hub_token_handover": {"type": "path", "default": "", "no_log": False},
        "rate_limit": {"type": "int", "default": 0},
        "background": {"type": "bool", "default": False},
    }


def tell(plan: HostPlan, published: list, removed: list) -> dict:
    """Return what is done as a diff: a line for each file."""
    files = [file for model in plan.models for file in model.files]
    pins = {file.path: f"{file.path}: {file.size} bytes, sha256 {file.sha256}\n" for file in files}
    return {"before": "".join(pins[path] for path in removed), "after": "".join(pins[path] for path in published)}


def run(params: dict, check_mode: bool) -> dict:
    """Return the module's result, or the job that will have it."""
    token = None
    if params["hub_token_handover"]:
        from ansible.module_utils.modelfleet.core.fetch.settings import take_token

        token = take_token(params["hub_token_handover"])
    plan = plan_from_dict(params["plan"])
    result = {"changed": False, "diff": {"before": "", "after": ""}, "published": [], "removed": []}
    if all(model.action == "keep" for model in plan.models):
        return result
    # Loading what fetches takes longer than all of the above: a run with nothing to do does without.
    from ansible.module_utils.modelfleet.core.fetch.settings import FetchSettings
    from ansible.module_utils.modelfleet.core.publishing import carry_out, foresee

    expected = foresee(plan)
    result.update(
        changed=bool(expected.published or expected.removed),
        diff=tell(plan, expected.published, expected.removed),
        published=expected.published,
        removed=expected.removed,
    )
    if check_mode or not result["changed"]:
        return result
    # Said now rather than by the work in the background.
    store_owner(plan.store_path)
    settings = FetchSettings.from_environment(
        os.environ,
        params["ca_bundle"] or None,
        hub_endpoints=params["hub_endpoints"],
        token=token,
        token_file=params["hub_token_file"] or None,
        rate_limit=params["rate_limit"] or None,
    )

    def work(progress: Progress) -> dict:
        done = carry_out(plan, settings, progress)
        warnings = {"warnings": done.warnings} if done.warnings else {}
        return {**result, "published": done.published, "removed": done.removed, **warnings}

    if params["background"]:
        what = hashlib.sha256(json.dumps(plan.to_dict(), sort_keys=True).encode()).hexdigest()[:16]
        secrets = [settings.credential.token.reveal()] if settings.credential else []
        return {"changed": False, "job": start(f"models-{what}", work, secrets)}
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
