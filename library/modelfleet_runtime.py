#!/usr/bin/python
# Copyright: the modelfleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The managed Python environment of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: modelfleet_runtime
short_description: Build and install the managed inference environment
description:
  - Compares the managed Python environment with what is wanted; builds llama-cpp-python from its pinned source
    where no wheel of that build is at hand, and installs it beside what is there. The switch is one step.
  - Compiles and installs with the rights of the store's owner, never as root.
version_added: "0.1.0"
author:
  - The modelfleet contributors (@modelfleet)
options:
  state:
    description: C(inspect) compares and changes nothing; C(present) makes it so.
    type: str
    choices: [inspect, present]
    default: present
  path:
    description: The environment's path. Empty means C(runtime) beside the store.
    type: str
    default: ""
  store_path:
    description: The store's path; its owner owns the environment. Empty means the default of M(modelfleet_store).
    type: str
    default: ""
  python:
    description: The interpreter that the environment is made with. Empty means the first of the host that serves.
    type: str
    default: ""
  requirements:
    description: What is installed, as a pip requirements file with hashes.
    type: str
    required: true
  build_requirements:
    description: What compiling needs of Python packages, as a pip requirements file with hashes.
    type: str
    required: true
  source_requirement:
    description: The source archive of llama-cpp-python, as a pip requirements file with hashes.
    type: str
    required: true
  instruction_sets:
    description: The processor's instruction sets, as in C(/proc/cpuinfo).
    type: list
    elements: str
    required: true
  ca_bundle:
    description: A file of certificates on the host, in PEM form, for every download. Empty means the system's.
    type: path
    default: ""
  wheelhouse:
    description:
      - A folder on the controller in which compiled wheels are kept for later hosts. Empty means none.
      - Used by the action plugin.
    type: str
    default: ""
  builders:
    description:
      - The hosts whose wheels are trusted, and that alone may compile. Empty means all.
      - Used by the action plugin.
    type: list
    elements: str
    default: []
  compile:
    description: Whether this host may compile; else it installs a kept wheel, or fails. Used by the action plugin.
    type: bool
    default: true
  package_sha256:
    description: The SHA-256 of the modelfleet package that belongs in the environment. Set by the action plugin.
    type: str
    default: ""
  package_path:
    description: Where the modelfleet package lies on the host. Set by the action plugin.
    type: path
    default: ""
  wheel_path:
    description: Where a wheel of this build, made earlier, lies on the host. Set by the action plugin.
    type: path
    default: ""
  wheel_sha256:
    description: The SHA-256 of that wheel. Set by the action plugin.
    type: str
    default: ""
  background:
    description: Do the work in a process of its own and return at once. The action plugin sets it.
    type: bool
    default: false
attributes:
  check_mode:
    description: Tells what a run would build and install.
    support: full
  diff_mode:
    description: Names the environment before and after.
    support: full
notes:
  - The action plugin of the same name brings the modelfleet package and kept wheels to the host; without it only
    O(state=inspect) is possible.
"""

EXAMPLES = r"""
- name: Compare the managed environment with what is wanted
  modelfleet_runtime:
    state: inspect
    requirements: "{{ lookup('ansible.builtin.file', 'requirements-gguf.txt') }}"
    build_requirements: "{{ lookup('ansible.builtin.file', 'requirements-build.txt') }}"
    source_requirement: "{{ lookup('ansible.builtin.file', 'requirements-llama-cpp-python.txt') }}"
    instruction_sets: "{{ ansible_facts['modelfleet_hardware']['cpu']['instruction_sets'] }}"
"""

RETURN = r"""
ansible_facts:
  description: The environment, for the roles that follow.
  type: dict
  returned: always
  contains:
    modelfleet_runtime:
      description: The environment's path, and the key that names all that is installed in it.
      type: dict
      returned: always
path:
  description: The path by which applications know the environment.
  type: str
  returned: always
  sample: /opt/ashley-ai/runtime/current
update_required:
  description: Whether the environment is not as wanted.
  type: bool
  returned: always
reasons:
  description: Why it is not.
  type: list
  elements: str
  returned: always
build_required:
  description: Whether a wheel has to be compiled on this host.
  type: bool
  returned: always
missing_build_tools:
  description: The programs that compiling needs and that the host lacks.
  type: list
  elements: str
  returned: always
build_key:
  description: The name of the build; equal names mean interchangeable wheels.
  type: str
  returned: always
wheel:
  description: The wheel that this host keeps of the build, or null.
  type: str
  returned: always
wheel_sha256:
  description: The SHA-256 of the wheel that was installed.
  type: str
  returned: after a run
compiled:
  description: Whether the wheel was compiled by this run.
  type: bool
  returned: after a run
job:
  description: Where the progress and the result of the work are, when it goes on in the background.
  type: dict
  returned: when I(background) is set and there is work to do
"""

import hashlib
import os
import platform

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.modelfleet.core.errors import ModelfleetError, RuntimeBuildError
from ansible.module_utils.modelfleet.core.jobs import Progress, describe_os_error, start
from ansible.module_utils.modelfleet.core.runtime.environment import (
    BUILD_TOOLS,
    Wanted,
    inspect,
    pin_of,
    pinned_version,
)
from ansible.module_utils.modelfleet.core.runtime.resolver import resolve_build
from ansible.module_utils.modelfleet.core.store.layout import resolve_runtime_path, resolve_store_path
from ansible.module_utils.modelfleet.core.store.tree import store_owner


def get_argument_spec() -> dict:
    return {
        "state": {"type": "str", "choices": ["inspect", "present"], "default": "present"},
        "path": {"type": "str", "default": ""},
        "store_path": {"type": "str", "default": ""},
        "python": {"type": "str", "default": ""},
        "requirements": {"type": "str", "required": True},
        "build_requirements": {"type": "str", "required": True},
        "source_requirement": {"type": "str", "required": True},
        "instruction_sets": {"type": "list", "elements": "str", "required": True},
        "ca_bundle": {"type": "path", "default": ""},
        "wheelhouse": {"type": "str", "default": ""},
        "builders": {"type": "list", "elements": "str", "default": []},
        "compile": {"type": "bool", "default": True},
        "package_sha256": {"type": "str", "default": ""},
        "package_path": {"type": "path", "default": ""},
        "wheel_path": {"type": "path", "default": ""},
        "wheel_sha256": {"type": "str", "default": ""},
        "background": {"type": "bool", "default": False},
    }


def find_wanted(params: dict, store_path: str) -> Wanted:
    """Return what the environment is to hold on this host."""
    version = pinned_version(params["source_requirement"])
    libc = "".join(platform.libc_ver()) or platform.release()
    build = resolve_build(version, platform.system(), platform.machine(), libc, params["instruction_sets"])
    return Wanted(
        path=resolve_runtime_path(params["path"], store_path),
        python=params["python"],
        requirements=params["requirements"],
        build_requirements=params["build_requirements"],
        source_requirement=params["source_requirement"],
        build=build,
        package_sha256=params["package_sha256"],
    )


def run(params: dict, check_mode: bool) -> dict:
    """Return the module's result, or the job that will have it."""
    store_path = resolve_store_path(params["store_path"])
    wanted = find_wanted(params, store_path)
    state = inspect(wanted)
    build_required = bool(state.reasons) and state.wheel is None and not params["wheel_path"]
    result = {
        "ansible_facts": {"modelfleet_runtime": {"path": wanted.current, "key": wanted.key}},
        "changed": bool(state.reasons) and params["state"] == "present",
        "path": wanted.current,
        "update_required": bool(state.reasons),
        "reasons": list(state.reasons),
        "build_required": build_required,
        "missing_build_tools": list(state.missing_tools) if build_required else [],
        "build_key": wanted.build.key,
        "wheel": state.wheel,
        "diff": {
            "before": "",
            "after": f"{wanted.environments}/{wanted.key}: {wanted.build.key} ({'; '.join(state.reasons)})\n"
            if state.reasons
            else "",
        },
    }
    if params["state"] == "inspect" or check_mode or not state.reasons:
        return result
    if result["missing_build_tools"]:
        names = ", ".join(BUILD_TOOLS[name] for name in result["missing_build_tools"])
        raise RuntimeBuildError(
            f"compiling llama-cpp-python needs what this host lacks: {names}", "install it, or run with become"
        )
    if not params["package_path"]:
        raise RuntimeBuildError(
            "the modelfleet package was not brought to the host", "run this module through its action plugin"
        )
    # Loading what builds takes longer than the comparison above: a run with nothing to do does without.
    from ansible.module_utils.modelfleet.core.fetch.package_index import PackageIndexSettings
    from ansible.module_utils.modelfleet.core.runtime.build import Builder, Package

    settings = PackageIndexSettings.from_environment(os.environ, params["ca_bundle"] or None)
    package = Package(params["package_path"], params["package_sha256"])
    brought = Package(params["wheel_path"], params["wheel_sha256"]) if params["wheel_path"] else None
    owner = store_owner(store_path)

    def work(progress: Progress) -> dict:
        wheel, compiled = Builder(wanted, owner, settings, progress).converge(package, brought)
        return {**result, "wheel": wheel, "wheel_sha256": pin_of(wheel), "compiled": compiled}

    if params["background"]:
        # The same environment at another path is other work.
        place = hashlib.sha256(wanted.path.encode()).hexdigest()[:16]
        return {"changed": False, "job": start(f"runtime-{wanted.key}-{place}", work)}
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
