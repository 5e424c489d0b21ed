#!/usr/bin/python
# Copyright: the modelfleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Proof that a host's models answer."""

from __future__ import annotations

DOCUMENTATION = r"""
module: modelfleet_inference_check
short_description: Prove local inference
description:
  - Lets each model continue the prompt of its catalog entry and compares the text with what the catalog expects.
  - Runs in the managed environment, in a child process under the store's owner, without network.
  - A proof whose fingerprint (kernel, driver, packages, model, prompt, placement) is unchanged is not run again.
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
  timeout:
    description: Seconds that one proof may take.
    type: int
    default: 600
  background:
    description: Do the work in a process of its own and return at once. The action plugin sets it.
    type: bool
    default: false
attributes:
  check_mode:
    description: Tells which proofs would run.
    support: full
  diff_mode:
    description: Lists the proofs that run.
    support: full
"""

EXAMPLES = r"""
- name: Prove the models of this host
  modelfleet_inference_check:
    models: "{{ ansible_facts['modelfleet_plan']['models'] }}"
"""

RETURN = r"""
proofs:
  description: >-
    For each model the prompt, the output, what was expected, whether it passed, load time, tokens per second,
    memory, isolation and versions; C(ran) tells whether it was run now.
  type: list
  elements: dict
  returned: always
unproved:
  description: The models for which this release has no proof.
  type: list
  elements: str
  returned: always
job:
  description: Where the progress and the result of the work are, when it goes on in the background.
  type: dict
  returned: when I(background) is set and there is work to do
"""

import hashlib

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.modelfleet.core.errors import ModelfleetError
from ansible.module_utils.modelfleet.core.inference.proof import (
    due,
    fingerprint,
    installed_key,
    prove,
    read_records,
    subjects,
)
from ansible.module_utils.modelfleet.core.jobs import Progress, describe_os_error, start
from ansible.module_utils.modelfleet.core.store.layout import resolve_runtime_path, resolve_store_path


def get_argument_spec() -> dict:
    return {
        "store_path": {"type": "str", "default": ""},
        "runtime_path": {"type": "str", "default": ""},
        "environment_key": {"type": "str", "default": "", "no_log": False},
        "models": {"type": "list", "elements": "dict", "required": True},
        "timeout": {"type": "int", "default": 600},
        "background": {"type": "bool", "default": False},
    }


def run(params: dict, check_mode: bool) -> dict:
    """Return the module's result, or the job that will have it."""
    store_path = resolve_store_path(params["store_path"])
    runtime_path = resolve_runtime_path(params["runtime_path"], store_path)
    wanted, unproved = subjects(params["models"])
    environment_key = params["environment_key"] or installed_key(runtime_path)
    records = read_records(store_path)
    marked = [(subject, fingerprint(subject, environment_key)) for subject in wanted]
    pending = [(subject, mark) for subject, mark in marked if due(subject, mark, records)]
    waiting = {subject.file for subject, _ in pending}
    earlier = [{**records[subject.file], "ran": False} for subject in wanted if subject.file not in waiting]
    result = {
        "changed": bool(pending),
        "proofs": earlier,
        "unproved": unproved,
        "diff": {"before": "", "after": "".join(f"{subject.file}: proved\n" for subject, _ in pending)},
    }
    if check_mode or not pending:
        return result

    def work(progress: Progress) -> dict:
        proofs = [
            {**proof, "ran": True} for proof in prove(store_path, runtime_path, pending, params["timeout"], progress)
        ]
        failed = [proof for proof in proofs if not proof["passed"]]
        told = {**result, "proofs": earlier + proofs}
        if failed:
            first = failed[0]
            told.update(
                failed=True,
                msg=f"{first['model']} continued {first['prompt']!r} with {first['output']!r}, "
                f"expected {first['expected']!r}; the file is the pinned one, so look at the runtime: "
                "its build flags and this host's processor",
            )
        return told

    if params["background"]:
        what = "\0".join([store_path, runtime_path, *(f"{subject.file} {mark}" for subject, mark in pending)])
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
