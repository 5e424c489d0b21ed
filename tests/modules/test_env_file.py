"""modelfleet_env_file as Ansible calls it, and what the role keeps in step with it."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args

Call = Callable[..., dict[str, Any]]
SEVEN = """LOCAL_MODELS_ENABLED=true
LOCAL_MODELS_PATH={store}
MODEL_CACHE_PATH={store}/cache
HF_HOME={store}/cache/tokenizers
DEFAULT_CHAT_MODEL=a.gguf
ENABLE_GPU_INFERENCE=false
"""


@pytest.fixture
def call(checkout: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return a function that runs the module and returns its result."""
    path = checkout / "library" / "modelfleet_env_file.py"
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)

    def run(**arguments: Any) -> dict[str, Any]:
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return an empty store."""
    path = tmp_path / "base" / "models"
    path.mkdir(parents=True)
    return path


def test_the_file_lies_beside_the_store(call: Call, store: Path) -> None:
    result = call(store_path=str(store), models=["chat/7b/a.gguf"])
    path = store.parent / ".env"
    assert (result["changed"], result["path"]) == (True, str(path))
    assert path.read_text() == SEVEN.format(store=store)
    assert path.stat().st_mode & 0o777 == 0o640
    assert call(store_path=str(store), models=["chat/7b/a.gguf"])["changed"] is False


def test_check_mode_shows_exactly_what_a_run_does(call: Call, store: Path) -> None:
    path = store.parent / ".env"
    path.write_text("# mine\nA=1\nENABLE_GPU_INFERENCE=true\n")
    arguments = {"store_path": str(store), "models": ["chat/7b/a.gguf"], "variables": {"B": 2}}
    foreseen = call(_ansible_check_mode=True, **arguments)
    assert path.read_text() == "# mine\nA=1\nENABLE_GPU_INFERENCE=true\n"
    done = call(**arguments)
    assert (foreseen["changed"], foreseen["diff"]) == (True, done["diff"])
    assert "A=1" not in done["diff"]["before"] + done["diff"]["after"]
    assert "ENABLE_GPU_INFERENCE=true\n" in done["diff"]["before"]
    assert path.read_text().startswith("# mine\nA=1\nENABLE_GPU_INFERENCE=false\nLOCAL_MODELS_ENABLED=true\n")
    assert path.read_text().endswith("B=2\n")


def test_check_mode_foresees_a_store_that_is_not_there(call: Call, tmp_path: Path) -> None:
    result = call(store_path=str(tmp_path / "base" / "models"), models=[], _ansible_check_mode=True)
    assert result["changed"] is True and result["diff"]["before"] == ""
    assert os.listdir(tmp_path) == []


def test_without_a_store_nothing_is_written(call: Call, tmp_path: Path) -> None:
    result = call(store_path=str(tmp_path / "models"), models=[])
    assert result["failed"] and "run the role model_store first" in result["msg"] and "\n" not in result["msg"]
    assert os.listdir(tmp_path) == []


def test_models_left_out_are_read_from_the_manifest(call: Call, store: Path) -> None:
    numbers = dict.fromkeys(("size", "device", "inode", "mtime_ns", "ctime_ns"), 1)
    record = {**numbers, "model": "m", "sha256": "0", "source": "s", "licence": None, "published_at": "2026-01-01"}
    names = ["image/stable-diffusion/sd/unet/a.safetensors", "chat/specialized/z.gguf", "chat/7b/a.gguf"]
    (store / ".modelfleet").mkdir()
    manifest = {"schema_version": 1, "files": dict.fromkeys(names, record)}
    (store / ".modelfleet" / "manifest.json").write_text(json.dumps(manifest))
    call(store_path=str(store))
    lines = (store.parent / ".env").read_text().splitlines()
    assert {"DEFAULT_CHAT_MODEL=a.gguf", "DEFAULT_IMAGE_MODEL=sd"} <= set(lines)


def test_a_path_of_ones_own(call: Call, store: Path, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    path = tmp_path / "app" / "settings.env"
    assert call(path=str(path), store_path=str(store), models=[], mode="0600")["path"] == str(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert not (store.parent / ".env").exists()


def test_secrets_are_written_and_not_shown(call: Call, store: Path) -> None:
    arguments = {"variables": {"API_KEY": "k-12345"}, "secret_variables": {"PLAIN": "hidden-1"}}
    result = call(store_path=str(store), models=[], **arguments)
    assert "k-12345" not in json.dumps(result["diff"]) and "hidden-1" not in json.dumps(result)
    assert {"API_KEY=k-12345", "PLAIN=hidden-1"} <= set((store.parent / ".env").read_text().splitlines())


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("what is this\n", {}, ".env:1: neither a comment nor NAME=VALUE; correct or remove the line"),
        ("", {"variables": {"A": "x\ny"}}, "the value of A has a control character or a line break"),
        ("", {"variables": {"A": [1]}}, "env_file_variables: A is a list"),
        ("", {"variables": {"A B": "1"}}, "'A B' is no name of a variable"),
        ("", {"mode": "416"}, "env_file_mode: '416' is no octal number"),
        ("", {"path": "relative/.env"}, "not the absolute path of a file"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    call: Call, store: Path, content: str, arguments: dict[str, Any], message: str
) -> None:
    path = store.parent / ".env"
    path.write_text(content)
    result = call(**{"store_path": str(store), "models": [], **arguments})
    assert result["failed"] and message in result["msg"] and "\n" not in result["msg"]
    assert path.read_text() == content


def test_the_role_and_the_module_take_the_same_names_for_secret(checkout: Path) -> None:
    from modelfleet.core.env_file import _SECRET

    variables = yaml.safe_load((checkout / "roles" / "env_file" / "vars" / "main.yml").read_text())
    assert variables["__env_file_secret"] == _SECRET.pattern
