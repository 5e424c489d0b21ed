"""A mistake in the user's catalog or wishes is told by plain ansible-playbook in one line: file, line and key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLAYBOOK = """
- name: Plan
  hosts: localhost
  gather_facts: false
  roles:
    - role: models
"""


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (
            "models_catalog_extra:\n  - id: mine\n    category: chat/8b\n    variants: {}\n",
            "vars.yml, line 3: catalog entry mine: category 'chat/8b' is no directory of the store",
        ),
        (
            "models_catalog_extra:\n  - id: mine\n    category: chat/7b\n    variants:\n      q8_0:\n        files:\n"
            "          - name: mine.gguf\n            source: ftp://host/mine.gguf\n",
            "vars.yml, line 8: catalog entry mine, q8_0, file 1, mine.gguf: source 'ftp://host/mine.gguf' is of",
        ),
        (
            "models_wanted:\n  - model: smollm2-135m-instruct\n  - task: codin\n",
            "vars.yml, line 3: models_wanted entry 2: no model of the catalog is for the task 'codin' (did you mean",
        ),
        (
            "models_wanted:\n  - model: qwen2.5-7b-instruct\n    context: 65536\n",
            "vars.yml, line 3: models_wanted entry 1: a context of 65536 tokens is beyond the 32768",
        ),
        ("models_lock_file: VARS\nmodels_wanted: []\n", "the lock has schema_version None, this release reads 1"),
    ],
)
def test_file_line_and_key(checkout: Path, tmp_path: Path, variables: str, expected: str) -> None:
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    (tmp_path / "lock.json").write_text("{}")
    path = tmp_path / "vars.yml"
    path.write_text(variables.replace("VARS", str(tmp_path / "lock.json")))
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    arguments = ["-e", f"@{path}", "-e", f"model_store_path={tmp_path / 'models'}", "--check"]
    done = subprocess.run(
        [program, "-i", "inventory/localhost.yml", str(tmp_path / "play.yml"), *arguments],
        cwd=checkout,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "500", "ANSIBLE_ROLES_PATH": str(checkout / "roles")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    (line,) = [one for one in (done.stdout + done.stderr).splitlines() if one.startswith("[ERROR]")]
    assert done.returncode == 2 and expected in line and not (tmp_path / "models").exists()
