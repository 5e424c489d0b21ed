#!/usr/bin/python
# Copyright: the modelfleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The readiness of a host's hardware and driver."""

from __future__ import annotations

DOCUMENTATION = r"""
module: modelfleet_readiness
short_description: Judge a host's hardware and driver
description:
  - Compares the fact C(modelfleet_hardware) with requirements and returns one check for each rule that concerns the
    machine. See C(docs/readiness.md) for all of them.
  - Runs on the controller, by an action plugin of the same name, and costs the host nothing.
version_added: "0.2.0"
author:
  - The modelfleet contributors (@modelfleet)
options:
  hardware:
    description:
      - The profile that C(modelfleet_hardware_info) returned.
    type: dict
    required: true
  requirements:
    description:
      - The profiles V(minimum) and V(recommended), each a dictionary. What is left out keeps the default of the role
        C(accelerator), variable C(accelerator_requirements).
    type: dict
    default: {}
attributes:
  check_mode:
    description: Can run in check mode and return the same result.
    support: full
  diff_mode:
    description: Returns details on what has changed.
    support: none
    details: Nothing is ever changed.
  facts:
    description: Returns an C(ansible_facts) dictionary.
    support: full
  idempotent:
    description: A second run changes nothing.
    support: full
  platform:
    description: Target systems.
    platforms: posix
    support: full
"""

EXAMPLES = r"""
- name: Judge the hardware
  modelfleet_readiness:
    hardware: "{{ ansible_facts['modelfleet_hardware'] }}"

- name: Ask for more cores than the tutorial does
  modelfleet_readiness:
    hardware: "{{ ansible_facts['modelfleet_hardware'] }}"
    requirements:
      minimum:
        cpu_cores: 16
"""

RETURN = r"""
ansible_facts:
  description: The fact that roles and reports read.
  returned: success
  type: dict
  contains:
    modelfleet_readiness:
      description:
        - C(status), the worst of all checks; C(accelerator_ready), whether there is a GPU and no check fails that keeps
          a process from using it; C(checks), each with C(id), C(title), C(status), C(measured), C(required)
          and C(cure); C(nvidia_modules), which of NVIDIA's kernel modules serve all cards of the machine
          (V(open), V(proprietary), V(either), V(older), V(mixed), or null where there is no such card).
      type: dict
      sample:
        schema_version: 1
        status: fail
        nvidia_modules: either
        checks:
          - id: MF-DRV-003
            title: module and libraries match
            status: fail
            measured: module 535.183.01, libraries 535.309.01
            required: the same version
            cure: "reboot the host, or set accelerator_reboot_ok: true"
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.modelfleet.core.errors import ModelfleetError
from ansible.module_utils.modelfleet.core.hardware.readiness import readiness_to_dict


def get_argument_spec() -> dict:
    return {
        "hardware": {"type": "dict", "required": True},
        "requirements": {"type": "dict", "default": {}},
    }


def main() -> None:
    module = AnsibleModule(argument_spec=get_argument_spec(), supports_check_mode=True)
    try:
        readiness = readiness_to_dict(module.params["hardware"], module.params["requirements"])
    except ModelfleetError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, ansible_facts={"modelfleet_readiness": readiness})


if __name__ == "__main__":
    main()
