#!/usr/bin/python
# Copyright: the modelfleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The model store's directory tree."""

from __future__ import annotations

DOCUMENTATION = r"""
module: modelfleet_store
short_description: Make the directory tree of the model store
description:
  - Creates the whole directory tree of a model store with its owner, group and mode, and the convenience link.
  - As root it creates the first missing directory and gives it away; everything under that is written
    with the owner's own rights. Nothing is changed recursively, and no symlink is followed that another
    account could have planted.
version_added: "0.1.0"
author:
  - The modelfleet contributors (@modelfleet)
options:
  path:
    description: The store. Empty means C(/opt/ashley-ai/models) as root, else C(~/.local/share/ashley-ai/models).
    type: str
    default: ""
  owner:
    description:
      - The account that uses the models.
      - Empty means, as root, the account that called sudo, else O(service_account); not as root, oneself.
    type: str
    default: ""
  group:
    description: The group of the directories. Empty means the owner's primary group.
    type: str
    default: ""
  mode:
    description: The mode of every directory of the tree, as an octal text.
    type: str
    default: "0755"
  link:
    description: A symlink to the store, C(~) being the owner's home. Empty means none.
    type: str
    default: "~/models"
  service_account:
    description: The owner as root where nobody called sudo.
    type: str
    default: ashley-ai
attributes:
  check_mode:
    description: Tells exactly what a run would change.
    support: full
  diff_mode:
    description: Lists each directory before and after.
    support: full
"""

EXAMPLES = r"""
- name: Make the model store
  modelfleet_store:
    path: /srv/models
    owner: ashley
"""

RETURN = r"""
path:
  description: The store's path.
  type: str
  returned: always
  sample: /opt/ashley-ai/models
owner:
  description: The account that owns the store.
  type: str
  returned: always
  sample: ashley
group:
  description: The group that the directories have, by name or, where it has none, by number.
  type: str
  returned: when the owner exists
  sample: ashley
account_missing:
  description: Whether the owner does not exist yet. Nothing is made then.
  type: bool
  returned: always
"""

import grp
import os
import stat

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.modelfleet.core.errors import ConfigurationError, ModelfleetError
from ansible.module_utils.modelfleet.core.jobs import describe_os_error
from ansible.module_utils.modelfleet.core.privilege import current_account, find_account
from ansible.module_utils.modelfleet.core.store.layout import resolve_store_path
from ansible.module_utils.modelfleet.core.store.tree import Tree, compare, converge, foresee


def get_argument_spec() -> dict:
    return {
        "path": {"type": "str", "default": ""},
        "owner": {"type": "str", "default": ""},
        "group": {"type": "str", "default": ""},
        "mode": {"type": "str", "default": "0755"},
        "link": {"type": "str", "default": "~/models"},
        "service_account": {"type": "str", "default": "ashley-ai"},
    }


def choose_owner(owner: str, service_account: str) -> str:
    """Return the owner's name: the one that was given, or the one that the rule names."""
    if owner:
        return owner
    if os.geteuid() != 0:
        return current_account().name
    caller = os.environ.get("SUDO_USER", "")
    return caller if caller not in ("", "root") else service_account


def account_exists(name: str) -> bool:
    try:
        find_account(name)
    except ConfigurationError:
        return False
    return True


def group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def find_group(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid if name else None
    except KeyError:
        raise ConfigurationError(
            f"there is no group named {name!r} on this host", "create it, or name another"
        ) from None


def parse_mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not stat.S_IRWXU <= mode <= 0o7777 or mode & stat.S_IRWXU != stat.S_IRWXU:
        raise ConfigurationError(
            f"the mode {text!r} is none that lets the owner in", "set model_store_mode to an octal text such as '0755'"
        )
    return mode


def find_tree(params: dict, path: str, owner_name: str) -> Tree:
    """Return the wanted tree; raises ConfigurationError where a value cannot be meant."""
    owner = find_account(owner_name)
    if os.geteuid() not in (0, owner.uid):
        raise ConfigurationError(
            f"only root can make a store for {owner.name}", "run with become, or leave model_store_owner empty"
        )
    gid = find_group(params["group"])
    link = params["link"]
    if link == "~" or link.startswith("~/"):
        link = owner.home + link[1:]
    if link and not os.path.isabs(link):
        raise ConfigurationError(f"the link {link!r} is no absolute path", "begin model_store_link with / or ~/")
    return Tree(
        path,
        owner,
        owner.gid if gid is None else gid,
        parse_mode(params["mode"]),
        os.path.normpath(link) if link else None,
    )


def run(params: dict, check_mode: bool) -> dict:
    """Return the module's result."""
    path = resolve_store_path(params["path"])
    owner_name = choose_owner(params["owner"], params["service_account"])
    result = {"path": path, "owner": owner_name, "account_missing": False, "changed": False}
    # Only the service account is made for the user; any other name may be a slip.
    if owner_name == params["service_account"] and not params["owner"] and not account_exists(owner_name):
        # What is wrong is said before the account is made.
        find_group(params["group"])
        parse_mode(params["mode"])
        changes = foresee(path, owner_name)
        return {**result, "account_missing": True, "changed": check_mode, "diff": tell(changes)}
    tree = find_tree(params, path, owner_name)
    changes = compare(tree) if check_mode else converge(tree)
    return {**result, "group": group_name(tree.gid), "changed": bool(changes), "diff": tell(changes)}


def tell(changes: list) -> dict:
    """Return the changes as a diff: what was there, and what is."""
    return {
        "before": "".join(f"{change.path}: {change.before}\n" for change in changes if change.before),
        "after": "".join(f"{change.path}: {change.after}\n" for change in changes),
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
