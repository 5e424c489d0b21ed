#!/usr/bin/python
# Copyright: the modelfleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The environment file of an application."""

from __future__ import annotations

DOCUMENTATION = r"""
module: modelfleet_env_file
short_description: Keep the application's environment file
description:
  - Merges what an application needs to find its models into an environment file, and leaves every other line,
    comment and the order as they are.
  - Manages E(LOCAL_MODELS_ENABLED), E(LOCAL_MODELS_PATH), E(MODEL_CACHE_PATH), E(HF_HOME), E(DEFAULT_CHAT_MODEL),
    E(DEFAULT_IMAGE_MODEL), E(ENABLE_GPU_INFERENCE), and the variables given. Each has exactly one line, a default
    model that the host does not keep has none.
  - python-dotenv, C(set -a; . FILE) in a POSIX shell and systemd's C(EnvironmentFile=) read the same values. A value
    that they would not read alike is refused.
  - The file is replaced atomically, belongs to the store's owner, and is written with that account's rights.
version_added: "0.1.0"
author:
  - The modelfleet contributors (@modelfleet)
options:
  path:
    description:
      - The environment file. Empty means C(.env) beside the store.
    type: path
    default: ""
  store_path:
    description:
      - The model store. Empty means the default place, C(/opt/ashley-ai/models) for root and
        C(~/.local/share/ashley-ai/models) for another account.
    type: path
    default: ""
  models:
    description:
      - The files of the models that the host keeps, relative to the store, preferred ones first. The first under
        C(chat/) and under C(image/) become the defaults.
      - Left out, they are read from the store's manifest, in the order of their names.
    type: list
    elements: str
  gpu_inference:
    description:
      - Whether applications should use a GPU.
    type: bool
    default: false
  variables:
    description:
      - Further variables. V(null) removes a line. They win over the managed ones of the same name.
      - The difference shown has C(********) for the value of a name with a word that ends in C(TOKEN), C(KEY),
        C(SECRET) or C(PASSWORD).
    type: dict
    default: {}
  secret_variables:
    description:
      - Further variables whose values reach no log.
    type: dict
    default: {}
  mode:
    description:
      - The file's permissions, as an octal number in quotes.
    type: str
    default: "0640"
attributes:
  check_mode:
    description: Can run in check mode and return what would change.
    support: full
  diff_mode:
    description: Returns what has changed.
    support: full
    details: Only of the managed lines, permissions and owner; other lines never appear.
  idempotent:
    description: A second run changes nothing.
    support: full
  platform:
    description: Target systems.
    platforms: posix
    support: full
"""

EXAMPLES = r"""
- name: Describe the store to the application
  modelfleet_env_file:
    gpu_inference: true

- name: Add lines of one's own
  modelfleet_env_file:
    path: /srv/app/.env
    store_path: /srv/models
    variables:
      LOG_LEVEL: info
      OLD_SETTING:
    secret_variables:
      HF_TOKEN: "{{ vault_hf_token }}"
"""

RETURN = r"""
path:
  description: The environment file.
  returned: success
  type: str
  sample: /opt/ashley-ai/.env
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.modelfleet.core.env_file import (
    diff_lines,
    kept_models,
    parse_mode,
    plan_env_file,
    store_owner,
    wanted_variables,
    write_env_file,
)
from ansible.module_utils.modelfleet.core.errors import ModelfleetError
from ansible.module_utils.modelfleet.core.store.layout import resolve_store_path


def get_argument_spec() -> dict:
    return {
        "path": {"type": "path", "default": ""},
        "store_path": {"type": "path", "default": ""},
        "models": {"type": "list", "elements": "str"},
        "gpu_inference": {"type": "bool", "default": False},
        "variables": {"type": "dict", "default": {}},
        "secret_variables": {"type": "dict", "default": {}, "no_log": True},
        "mode": {"type": "str", "default": "0640"},
    }


def run(params: dict, check_mode: bool) -> dict:
    """Return the module's result."""
    store_path = resolve_store_path(params["store_path"])
    path = os.path.normpath(params["path"] or os.path.join(os.path.dirname(store_path), ".env"))
    models = kept_models(store_path) if params["models"] is None else params["models"]
    extra = dict(params["variables"], **params["secret_variables"])
    values = wanted_variables(store_path, models, params["gpu_inference"], extra)
    owner, gid = store_owner(store_path)
    plan = plan_env_file(path, values, owner, gid, parse_mode(params["mode"]))
    before, after = diff_lines(plan, list(values), list(params["secret_variables"]))
    if plan.changed and not check_mode:
        write_env_file(plan)
    header = {"before_header": path, "after_header": path}
    return {"changed": plan.changed, "path": path, "diff": dict(header, before=before, after=after)}


def main() -> None:
    module = AnsibleModule(argument_spec=get_argument_spec(), supports_check_mode=True)
    try:
        module.exit_json(**run(module.params, module.check_mode))
    except ModelfleetError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
