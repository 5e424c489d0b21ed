"""A user's inventory wins over every value that the repository ships."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.parent.name for path in CHECKOUT.glob("roles/*/tasks"))
SHIPPED = sorted({*CHECKOUT.glob("roles/*/defaults/main.yml"), *CHECKOUT.glob("roles/*/defaults/main/*.yml")})
SHIPPED += sorted(CHECKOUT.glob("group_vars/all/*.yml"))


def shipped_variables() -> list[str]:
    """Return the name of every variable that has a value in the repository."""
    return sorted({name for path in SHIPPED for name in yaml.safe_load(path.read_text()) or {}})


def test_no_playbook_sets_variables() -> None:
    assert not list(CHECKOUT.glob("playbooks/*_vars")), "they would win over the group_vars of a user's inventory"
    plays = [play for path in CHECKOUT.glob("playbooks/*.yml") for play in yaml.safe_load(path.read_text())]
    assert [play for play in plays if {"vars", "vars_files", "become"} & set(play)] == []


@pytest.mark.skipif(not ROLES, reason="no role yet")
def test_group_vars_of_another_inventory_win(tmp_path: Path) -> None:
    names = shipped_variables()
    inventory = tmp_path / "inventory"
    (inventory / "group_vars").mkdir(parents=True)
    host = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    (inventory / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": {"somewhere": host}}}))
    (inventory / "group_vars" / "all.yml").write_text(yaml.safe_dump({name: f"site {name}" for name in names}))
    report = tmp_path / "report.json"
    # A role that is imported brings its values into the play, whether its tasks run or not.
    tasks = [{"ansible.builtin.import_role": {"name": role}, "when": False} for role in ROLES]
    content = "{{ dict(names | zip(query('ansible.builtin.vars', *names))) | to_json }}"
    writing = {"content": content, "dest": str(report), "mode": "0600"}
    tasks.append({"ansible.builtin.copy": writing, "vars": {"names": names}})
    playbook = tmp_path / "playbook.yml"
    playbook.write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    subprocess.run(
        ["ansible-playbook", "-i", str(inventory), str(playbook)],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert json.loads(report.read_text()) == {name: f"site {name}" for name in names}
