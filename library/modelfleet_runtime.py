#!/usr/bin/python
# Copyright: the modelfleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The managed Python environment of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: modelfleet_runtime
short_description: Build and install the managed inference environment
description:
  - Decides from the host's hardware what computes there, and which packages in which versions that takes.
  - Compares the managed Python environment with that; builds llama-cpp-python from its pinned source where no wheel
    of that build is at hand, and installs all beside what is there. The switch is one step, and only to an
    environment that was proved.
  - Compiles and installs with the rights of the store's owner, never as root.
version_added: "0.1.0"
author:
  - The modelfleet contributors (@modelfleet)
options:
  state:
    description:
      - C(inspect) compares and changes nothing; C(present) makes it so.
      - C(rollback) goes back to the environment that was in use before; later runs leave it, until another one is
        wanted than the one that was left.
      - C(collected) installs nothing, and keeps all that an installation takes in O(wheelhouse), for hosts of the same
        kind that reach no package index.
    type: str
    choices: [inspect, present, rollback, collected]
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
    description:
      - The interpreter that the environment is made with, as a path, a name, or a version such as C(3.12).
      - Empty means the first of the host that serves.
    type: str
    default: ""
  requirements:
    description: What llama-cpp-python needs to run, as a pip requirements file with hashes.
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
  hardware:
    description: The host's hardware, as M(modelfleet_hardware_info) returns it.
    type: dict
    required: true
  profiles:
    description:
      - What the environment is for, some of C(gguf), C(torch), C(diffusion), C(embeddings), C(onnx).
      - C(auto) means what O(models) need.
    type: list
    elements: str
    default: [auto]
  models:
    description: The host's models, each as its format and its category, for the profile C(auto).
    type: list
    elements: str
    default: []
  backend:
    description: What computes, in place of the choice, one of C(cuda), C(rocm), C(metal), C(vulkan), C(cpu).
    type: str
    default: ""
  driver_branch:
    description: The branch of NVIDIA's driver that will be installed, where there is none yet. Empty means the default.
    type: str
    default: ""
  extra_cmake_arguments:
    description: Flags to add to the build of llama-cpp-python, each as C(-DNAME=VALUE).
    type: list
    elements: str
    default: []
  versions:
    description:
      - Versions of packages in place of those that were chosen, by the package's name.
      - An empty one leaves the package out.
    type: dict
    default: {}
  torch_index:
    description: Where PyTorch's indexes of wheels are, one below it for each kind of build. Empty asks none of them.
    type: str
    default: ""
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
  lock_path:
    description: Where a lock of the packages, made earlier, lies on the host. Set by the action plugin.
    type: path
    default: ""
  lock_sha256:
    description: The SHA-256 of that lock.
    type: str
    default: ""
  packages_path:
    description: A folder of wheels on the host, to install from first.
    type: path
    default: ""
  offline:
    description: Whether nothing but O(packages_path) is asked.
    type: bool
    default: false
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
    hardware: "{{ ansible_facts['modelfleet_hardware'] }}"

- name: Go back to the environment before this one
  modelfleet_runtime:
    state: rollback
    requirements: "{{ lookup('ansible.builtin.file', 'requirements-gguf.txt') }}"
    build_requirements: "{{ lookup('ansible.builtin.file', 'requirements-build.txt') }}"
    source_requirement: "{{ lookup('ansible.builtin.file', 'requirements-llama-cpp-python.txt') }}"
    hardware: "{{ ansible_facts['modelfleet_hardware'] }}"
"""

RETURN = r"""
ansible_facts:
  description: The environment, for the roles that follow.
  type: dict
  returned: always
  contains:
    modelfleet_runtime:
      description:
        - The environment's path, the key that names all that is installed in it, what computes, the profiles, and
          the installed packages with their versions.
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
  description: Why it is not, each with the id of its check.
  type: list
  elements: str
  returned: always
findings:
  description: The same as data, each with C(id), C(title), C(detail) and C(cure).
  type: list
  elements: dict
  returned: always
held:
  description: Whether a rollback keeps the environment, though another is wanted.
  type: bool
  returned: always
stack:
  description: What was decided for the host, with the reasons.
  type: dict
  returned: always
lock:
  description:
    - The lock of the packages. C(key) names it, C(required) says whether it has yet to be resolved, C(path) and
      C(sha256) tell of the one that this host has. Null where the profile C(gguf) alone is wished.
  type: dict
  returned: always
missing_python_packages:
  description: The system's packages that bring the Python that is needed, where the host lacks it.
  type: list
  elements: str
  returned: always
system_packages:
  description: The system's packages that compiling for the backend needs, by their names in Debian and Ubuntu.
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
  description: The name of the build; equal names mean interchangeable wheels. Empty where none is wished.
  type: str
  returned: always
packages_key:
  description: The name of all wheels that an installation takes beside llama-cpp-python's.
  type: str
  returned: always
collected:
  description: Path and SHA-256 of each wheel that an installation takes beside llama-cpp-python's.
  type: list
  elements: dict
  returned: when I(state) is C(collected)
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
import re
import shutil

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.modelfleet.core.errors import ModelfleetError, RuntimeBuildError
from ansible.module_utils.modelfleet.core.jobs import Progress, describe_os_error, start
from ansible.module_utils.modelfleet.core.runtime.environment import (
    Wanted,
    inspect,
    packages_of,
    pin_of,
    pinned_version,
    read_state,
)
from ansible.module_utils.modelfleet.core.runtime.lock import packages_of_stack
from ansible.module_utils.modelfleet.core.runtime.profiles import AUTO, profiles_of
from ansible.module_utils.modelfleet.core.runtime.resolver.settings import StackSettings
from ansible.module_utils.modelfleet.core.runtime.resolver.stack import Stack, resolve_stack, stack_to_dict
from ansible.module_utils.modelfleet.core.store.layout import resolve_runtime_path, resolve_store_path
from ansible.module_utils.modelfleet.core.store.tree import store_owner


def get_argument_spec() -> dict:
    return {
        "state": {"type": "str", "choices": ["inspect", "present", "rollback", "collected"], "default": "present"},
        "path": {"type": "str", "default": ""},
        "store_path": {"type": "str", "default": ""},
        "python": {"type": "str", "default": ""},
        "requirements": {"type": "str", "required": True},
        "build_requirements": {"type": "str", "required": True},
        "source_requirement": {"type": "str", "required": True},
        "hardware": {"type": "dict", "required": True},
        "profiles": {"type": "list", "elements": "str", "default": [AUTO]},
        "models": {"type": "list", "elements": "str", "default": []},
        "backend": {"type": "str", "default": ""},
        "driver_branch": {"type": "str", "default": ""},
        "extra_cmake_arguments": {"type": "list", "elements": "str", "default": []},
        "versions": {"type": "dict", "default": {}},
        "torch_index": {"type": "str", "default": ""},
        "ca_bundle": {"type": "path", "default": ""},
        "wheelhouse": {"type": "str", "default": ""},
        "builders": {"type": "list", "elements": "str", "default": []},
        "compile": {"type": "bool", "default": True},
        "package_sha256": {"type": "str", "default": ""},
        "package_path": {"type": "path", "default": ""},
        "wheel_path": {"type": "path", "default": ""},
        "wheel_sha256": {"type": "str", "default": ""},
        "lock_path": {"type": "path", "default": ""},
        "lock_sha256": {"type": "str", "default": ""},
        "packages_path": {"type": "path", "default": ""},
        "offline": {"type": "bool", "default": False},
        "background": {"type": "bool", "default": False},
    }


def find_stack(params: dict, libc: str) -> Stack:
    """Return what computes on this host, and with which packages."""
    branch = params["driver_branch"]
    profiles = profiles_of(params["models"]) if params["profiles"] == [AUTO] else tuple(params["profiles"])
    settings = StackSettings(
        profiles=profiles,
        backend=params["backend"],
        python=version_of_python(params["python"]),
        driver_branch=int(branch) if branch.isdigit() else 0,
        machine=platform.machine(),
        libc=libc,
        extra_cmake_arguments=tuple(params["extra_cmake_arguments"]),
        versions={name: str(version or "") for name, version in params["versions"].items()},
    )
    return resolve_stack(params["hardware"], settings)


def version_of_python(named: str) -> str:
    """Return the version of the interpreter that the user named, by its name alone; '' where none was."""
    found = re.search(r"(?:^|python)(3[.][0-9][0-9.]*)$", os.path.basename(os.path.realpath(named)) if named else "")
    if found is None and named:
        found = re.search(r"(?:^|python)(3[.][0-9][0-9.]*)$", os.path.basename(named))
    return found.group(1) if found else ""


def find_wanted(params: dict, store_path: str, stack: Stack, libc: str) -> Wanted:
    """Return what the environment is to hold on this host."""
    gguf = stack.llama is not None
    packages = packages_of_stack(stack, params["requirements"], libc, params["torch_index"])
    return Wanted(
        path=resolve_runtime_path(params["path"], store_path),
        python=params["python"],
        requirements=params["requirements"] if gguf else "",
        build_requirements=params["build_requirements"],
        source_requirement=params["source_requirement"],
        build=stack.build(pinned_version(params["source_requirement"]), libc) if gguf else None,
        package_sha256=params["package_sha256"],
        packages=packages if stack.packages else None,
        backend=stack.backend,
        # ROCm and Vulkan: which accounts may use the card differs by system; the installation's proof tells it.
        gpu=stack.backend in ("cuda", "metal") and not stack.driver_pending,
        toolkit=stack.llama.toolkit if gguf else "",
        profiles=tuple(stack.profiles),
    )


def lock_of(wanted: Wanted, brought: bool, work: bool) -> dict:
    """Return what there is of the packages' lock; None where there are no packages that need one."""
    if wanted.packages is None:
        return None
    found = os.path.exists(wanted.lock_file)
    sha256 = None
    if found:
        with open(wanted.lock_file, "rb") as source:
            sha256 = hashlib.sha256(source.read()).hexdigest()
    return {
        "key": wanted.packages.key,
        "required": work and not found and not brought,
        "path": wanted.lock_file if found else None,
        "sha256": sha256,
    }


def facts_of(wanted: Wanted, stack: Stack, packages: dict) -> dict:
    """Return what the roles that follow learn of the environment."""
    about = {"path": wanted.current, "key": wanted.key, "backend": stack.backend, "profiles": list(stack.profiles)}
    return {"modelfleet_runtime": {**about, "packages": packages}}


def run(params: dict, check_mode: bool) -> dict:
    """Return the module's result, or the job that will have it."""
    store_path = resolve_store_path(params["store_path"])
    libc = "".join(platform.libc_ver()) or platform.release()
    stack = find_stack(params, libc)
    wanted = find_wanted(params, store_path, stack, libc)
    state = inspect(wanted)
    work = bool(state.findings) or params["state"] == "collected"
    build_required = work and wanted.build is not None and state.wheel is None and not params["wheel_path"]
    lacks_python = stack.python.packages and not shutil.which(f"python{stack.python.version}")
    result = {
        "ansible_facts": facts_of(wanted, stack, dict(state.packages)),
        "changed": work and params["state"] in ("present", "collected"),
        "path": wanted.current,
        "update_required": work,
        "reasons": list(state.reasons),
        "findings": [finding.to_dict() for finding in state.findings],
        "held": state.held,
        "stack": stack_to_dict(stack),
        "lock": lock_of(wanted, bool(params["lock_path"]), work),
        "packages_key": packages_of_stack(stack, params["requirements"], libc).key,
        "build_required": build_required,
        "missing_build_tools": list(state.missing_tools) if build_required else [],
        "missing_python_packages": list(stack.python.packages) if work and lacks_python else [],
        "system_packages": list(stack.llama.packages) if build_required else [],
        "build_key": wanted.build.key if wanted.build else "",
        "wheel": state.wheel,
        "diff": {
            "before": "",
            "after": f"{wanted.environments}/{wanted.key}: {name_of(wanted)} ({'; '.join(state.reasons)})\n"
            if work
            else "",
        },
    }
    if params["state"] == "rollback":
        # Rare, and more than a comparison needs.
        from ansible.module_utils.modelfleet.core.runtime.rollback import go_back

        return {**result, **go_back(wanted.path, store_owner(store_path), check_mode)}
    if params["state"] == "inspect" or check_mode or not work:
        return result
    if result["missing_build_tools"]:
        names = ", ".join(wanted.build_tools[name] for name in result["missing_build_tools"])
        raise RuntimeBuildError(
            f"compiling llama-cpp-python needs what this host lacks: {names}", "install it, or run with become"
        )
    if not params["package_path"]:
        raise RuntimeBuildError(
            "the modelfleet package was not brought to the host", "run this module through its action plugin"
        )
    # Loading what builds takes longer than the comparison above: a run with nothing to do does without.
    from ansible.module_utils.modelfleet.core.fetch.package_index import PackageIndexSettings
    from ansible.module_utils.modelfleet.core.runtime.build import Brought, Builder, Package

    settings = PackageIndexSettings.from_environment(os.environ, params["ca_bundle"] or None)
    package = Package(params["package_path"], params["package_sha256"])
    brought = Brought(
        Package(params["wheel_path"], params["wheel_sha256"]) if params["wheel_path"] else None,
        Package(params["lock_path"], params["lock_sha256"]) if params["lock_path"] else None,
        params["packages_path"] or "",
        params["offline"],
    )
    owner = store_owner(store_path)

    def collect(progress: Progress) -> dict:
        from ansible.module_utils.modelfleet.core.runtime.collecting import Collector, collected

        collector = Collector(wanted, owner, settings, progress)
        done = collector.converge(package, brought)
        return {
            **result,
            "wheel": done.wheel,
            "wheel_sha256": pin_of(done.wheel) if done.wheel else None,
            "compiled": done.compiled,
            "lock": lock_of(wanted, brought=True, work=False),
            "collected": collected(collector.folder),
        }

    def do(progress: Progress) -> dict:
        if params["state"] == "collected":
            return collect(progress)
        done = Builder(wanted, owner, settings, progress).converge(package, brought)
        installed = packages_of(read_state(wanted.current))
        return {
            **result,
            "ansible_facts": facts_of(wanted, stack, installed),
            "wheel": done.wheel,
            "wheel_sha256": pin_of(done.wheel) if done.wheel else None,
            "compiled": done.compiled,
            "lock": lock_of(wanted, brought=True, work=False),
        }

    if params["background"]:
        # The same environment at another path is other work.
        place = hashlib.sha256(wanted.path.encode()).hexdigest()[:16]
        return {"changed": False, "job": start(f"runtime-{params['state']}-{wanted.key}-{place}", do)}
    return do(Progress())


def name_of(wanted: Wanted) -> str:
    """Return what an environment is, in a word or two."""
    names = (wanted.build.key if wanted.build else "", wanted.packages.key if wanted.packages else "")
    return ", ".join(filter(None, names))


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
