#!/usr/bin/python
# Copyright: the modelfleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What a host is to hold, and where each model is to run."""

from __future__ import annotations

DOCUMENTATION = r"""
module: modelfleet_plan
short_description: Plan the models of a host
description:
  - Decides for each wish which quantization fits this host's memory, where it is to run, and what has to be fetched.
  - Decides from capacity minus a headroom, never from what happens to be free; a published choice that still serves
    is kept. A plan that was carried out comes out again as it was.
  - Changes nothing, ever. Where nothing changed on the host it costs one stat per file.
version_added: "0.1.0"
author:
  - The modelfleet contributors (@modelfleet)
options:
  store_path:
    description: The store. Empty means C(/opt/ashley-ai/models) as root, else C(~/.local/share/ashley-ai/models).
    type: str
    default: ""
  wanted:
    description:
      - The wishes, each with C(model) or C(task); if it matters one of C(use_case), C(quantization) and C(best); and
        C(context) and C(device).
    type: list
    elements: dict
    required: true
  catalog:
    description: The known models; a later entry wins over an earlier one of the same C(id).
    type: list
    elements: dict
    required: true
  lock:
    description: What pins every file by size and SHA-256, as in C(models.lock.json).
    type: dict
    required: true
  hardware:
    description: The host's hardware, as M(modelfleet_hardware_info) tells it.
    type: dict
    required: true
  context:
    description: Tokens of context for which memory is reckoned, each sequence; no more than a model was made for.
    type: int
    default: 8192
  kv_type:
    description: The type of the KV cache.
    type: str
    choices: [f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0]
    default: f16
  flash_attention:
    description: Whether llama.cpp uses flash attention. Without it a computation takes more memory.
    type: str
    choices: [auto, 'on', 'off']
    default: auto
  parallel_sequences:
    description: Sequences that a model serves at once.
    type: int
    default: 1
  headroom_mebibytes:
    description: Memory of each accelerator that no plan takes.
    type: int
    default: 1024
  memory_headroom_mebibytes:
    description: Main memory that no plan takes; never more than half of it.
    type: int
    default: 4096
  backend:
    description: What the host's runtime was told to compute with. Empty for what its hardware and driver give.
    type: str
    choices: ["", cuda, rocm, metal, vulkan, cpu]
    default: ""
  allow_partial_offload:
    description: Whether a model that does not fit on accelerators may be there in part, the rest on the processor.
    type: bool
    default: true
  allow_cpu:
    description: Whether a model may run on the processor.
    type: bool
    default: true
  loaded_together:
    description: Whether all models are loaded at the same time. Else each has the machine for itself.
    type: bool
    default: false
  replan:
    description: Whether a published choice that still serves gives way to what would be chosen today.
    type: bool
    default: false
  allow_unlocked:
    description: Whether files may be published that the lock does not pin.
    type: bool
    default: false
  remove_unwished:
    description: Whether files that modelfleet published and no wish keeps any more are planned to be removed.
    type: bool
    default: false
  reviewed:
    description: A plan that this module returned before. A plan that would do anything else is refused.
    type: dict
  made_for:
    description: Returned as it is; tells its caller what a plan was made for.
    type: str
    default: ""
attributes:
  check_mode:
    description: It never changes anything.
    support: full
  diff_mode:
    description: There is no difference to be shown.
    support: none
"""

EXAMPLES = r"""
- name: Probe the hardware
  modelfleet_hardware_info:

- name: Plan a model for coding, as good as fits
  modelfleet_plan:
    wanted:
      - task: coding
        best: true
        context: 16384
    catalog: "{{ models_catalog }}"
    lock: "{{ lookup('ansible.builtin.file', 'models.lock.json') | from_json }}"
    hardware: "{{ ansible_facts['modelfleet_hardware'] }}"
"""

RETURN = r"""
ansible_facts:
  description: The plan, for the roles that follow.
  type: dict
  returned: success
  contains:
    modelfleet_plan:
      description:
        - For each model its files, the action (keep, fetch, replace, remove or refuse) and its reason, the placement,
          the memory by device, the candidates that were looked at, the bytes to fetch; the budgets, and warnings.
        - C(docs/planning.md) describes it.
      type: dict
      returned: success
      sample:
        schema_version: 2
        store_path: /opt/ashley-ai/models
        bytes_to_fetch: 98362432
        models:
          - model: smollm2-135m-instruct
            quantization: q4_1
            action: fetch
            placement:
              device: CPU
              backend: cpu
              gpu_layers: 0
              layers: 30
              split: []
refused:
  description: For each model that cannot be had as it is wished, one line that says why and what would help.
  type: list
  elements: str
  returned: success
pending:
  description: Whether the plan has something to do.
  type: bool
  returned: success
made_for:
  description: What the option of that name said.
  type: str
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.modelfleet.core.catalog import read_catalog
from ansible.module_utils.modelfleet.core.errors import ConfigurationError, ModelfleetError
from ansible.module_utils.modelfleet.core.jobs import describe_os_error
from ansible.module_utils.modelfleet.core.planning.document import HostPlan, first_difference, plan_from_dict
from ansible.module_utils.modelfleet.core.planning.host import plan_host
from ansible.module_utils.modelfleet.core.planning.settings import read_settings
from ansible.module_utils.modelfleet.core.planning.state import read_state
from ansible.module_utils.modelfleet.core.store.layout import resolve_store_path
from ansible.module_utils.modelfleet.core.wishes import candidates, read_wishes


def get_argument_spec() -> dict:
    kv_types = ["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
    return {
        "store_path": {"type": "str", "default": ""},
        "wanted": {"type": "list", "elements": "dict", "required": True},
        "catalog": {"type": "list", "elements": "dict", "required": True},
        "lock": {"type": "dict", "required": True},
        "hardware": {"type": "dict", "required": True},
        "context": {"type": "int", "default": 8192},
        "kv_type": {"type": "str", "choices": kv_types, "default": "f16"},
        "flash_attention": {"type": "str", "choices": ["auto", "on", "off"], "default": "auto"},
        "parallel_sequences": {"type": "int", "default": 1},
        "headroom_mebibytes": {"type": "int", "default": 1024},
        "memory_headroom_mebibytes": {"type": "int", "default": 4096},
        "backend": {"type": "str", "choices": ["", "cuda", "rocm", "metal", "vulkan", "cpu"], "default": ""},
        "allow_partial_offload": {"type": "bool", "default": True},
        "allow_cpu": {"type": "bool", "default": True},
        "loaded_together": {"type": "bool", "default": False},
        "replan": {"type": "bool", "default": False},
        "allow_unlocked": {"type": "bool", "default": False},
        "remove_unwished": {"type": "bool", "default": False},
        "reviewed": {"type": "dict"},
        "made_for": {"type": "str", "default": ""},
    }


def make_plan(params: dict) -> HostPlan:
    """Return the plan. Raises ConfigurationError where it is another than the one that was reviewed."""
    catalog = read_catalog(params["catalog"], params["lock"])
    wishes = read_wishes(params["wanted"], catalog)
    files = [file for wish in wishes for variant in candidates(wish, catalog)[1] for file in variant.files]
    state = read_state(resolve_store_path(params["store_path"]), files)
    plan = plan_host(wishes, catalog, params["hardware"], state, read_settings(params))
    if params["reviewed"] is not None:
        if not params["reviewed"]:
            raise ConfigurationError("no plan of this host was reviewed", "review one: ./modelfleet plan --out FILE")
        difference = first_difference(plan_from_dict(params["reviewed"]), plan)
        if difference:
            raise ConfigurationError(
                f"the plan is not the reviewed one: {difference}", "review a new one: ./modelfleet plan --out FILE"
            )
    return plan


def main() -> None:
    module = AnsibleModule(argument_spec=get_argument_spec(), supports_check_mode=True)
    try:
        plan = make_plan(module.params)
    except ModelfleetError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=describe_os_error(error))
    if plan.pending:
        for warning in plan.warnings:
            module.warn(warning)
    module.exit_json(
        changed=False,
        ansible_facts={"modelfleet_plan": plan.to_dict()},
        refused=[f"{model.model}: {model.reason}" for model in plan.refused],
        pending=plan.pending,
        made_for=module.params["made_for"],
    )


if __name__ == "__main__":
    main()
