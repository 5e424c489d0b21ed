#!/usr/bin/python
# Copyright: the modelfleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The hardware of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: modelfleet_hardware_info
short_description: Probe the hardware of a host
description:
  - Reads processors, memory, storage, operating system, GPUs and the state of their driver from C(/proc) and C(/sys),
    and returns them as the fact C(modelfleet_hardware).
  - Needs no privileges. On Linux it starts a process only where there is a GPU, such as C(nvidia-smi), each with a
    limit of time. On macOS it asks C(sysctl), C(sw_vers) and C(system_profiler).
  - What cannot be read is V(null), with the reason in C(unknown) under its dotted name. Nothing is guessed.
version_added: "0.1.0"
author:
  - The modelfleet contributors (@modelfleet)
options:
  model_root:
    description:
      - Where the models are or will be kept. The storage below it is described. It need not exist.
      - Empty means the default place, C(/opt/ashley-ai/models) for root and
        C(~/.local/share/ashley-ai/models) for another account.
    type: path
    default: ""
  root:
    description:
      - Directory that holds a recorded C(/proc) and C(/sys). V(/) is the running machine.
    type: path
    default: /
  capture:
    description:
      - Also return all that was read of the running machine, as C(capture), for C(modelfleet probe --replay).
    type: bool
    default: false
  unmasked:
    description:
      - Leave serial numbers, unique ids, host and account names, MAC and IP addresses in the capture.
    type: bool
    default: false
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
- name: Probe the hardware
  modelfleet_hardware_info:

- name: Describe the disk that will hold the models
  modelfleet_hardware_info:
    model_root: /srv/models

- name: Read the record of another machine
  modelfleet_hardware_info:
    root: /tmp/recorded-machine
"""

RETURN = r"""
capture:
  description: What was read, in the form that docs/hardware.md describes.
  returned: when O(capture) is true
  type: dict
  sample:
    format: modelfleet-capture
    format_version: 1
    masked: true
ansible_facts:
  description: The fact that the roles read.
  returned: success
  type: dict
  contains:
    modelfleet_hardware:
      description:
        - C(accelerators), C(accelerator_driver), C(cpu), C(memory), C(storage), C(os), C(python) and C(account) of
          the host; C(unknown) with the reasons for what could not be read; C(sources) with where the rest was read;
          C(probed_at); C(schema_version). docs/schemas/hardware-profile.schema.json describes it.
        - Sizes are whole bytes, times RFC 3339 in UTC.
      type: dict
      sample:
        schema_version: 1
        probed_at: "2026-01-31T12:00:00Z"
        cpu:
          model: AMD Ryzen 9 7950X 16-Core Processor
          physical_cores: 16
        accelerators:
          - vendor: nvidia
            name: NVIDIA GeForce RTX 4090
            driver: nvidia
            driver_version: "580.95.05"
            compute_capability: "8.9"
            pci:
              address: "0000:01:00.0"
            memory:
              total_bytes: 25757220864
              unified: false
        unknown:
          storage.kind: vda is a virtual disk; its host does not tell what it lies on
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.modelfleet.core.hardware.probe import probe
from ansible.module_utils.modelfleet.core.hardware.profile import profile_to_dict
from ansible.module_utils.modelfleet.core.store.layout import resolve_store_path


def get_argument_spec() -> dict:
    return {
        "model_root": {"type": "path", "default": ""},
        "root": {"type": "path", "default": "/"},
        "capture": {"type": "bool", "default": False},
        "unmasked": {"type": "bool", "default": False},
    }


def main() -> None:
    module = AnsibleModule(argument_spec=get_argument_spec(), supports_check_mode=True)
    model_root = resolve_store_path(module.params["model_root"])
    profile = profile_to_dict(probe(model_root, root=module.params["root"]))
    record = {}
    if module.params["capture"]:
        # It is compiled each time that the module runs, and seldom wanted.
        from ansible.module_utils.modelfleet.core.hardware.capture import capture

        record["capture"] = capture(model_root, profile["probed_at"], unmasked=module.params["unmasked"])
    module.exit_json(changed=False, ansible_facts={"modelfleet_hardware": profile}, **record)


if __name__ == "__main__":
    main()
