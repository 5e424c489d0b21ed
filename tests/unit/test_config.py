"""ModelConfig: where it finds the store, what it returns, and that an application that only reads does not fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import modelfleet.config
import pytest
from modelfleet.config import MODEL_TYPES, ModelConfig
from modelfleet.core.errors import EnvFileError
from modelfleet.core.runtime.environment import STATE
from modelfleet.core.store.layout import CATEGORIES

TUTORIAL = [*CATEGORIES, "cache/tokenizers", "cache/temp"]


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Move the account's home and the system's folder under ``tmp_path``, and forget what the environment says."""
    for name in ("LOCAL_MODELS_PATH", "ASHLEY_AI_ENV_FILE", "DEFAULT_CHAT_MODEL", "DEFAULT_IMAGE_MODEL"):
        monkeypatch.delenv(name, raising=False)
    home, system = tmp_path / "home", tmp_path / "opt"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(modelfleet.config, "SYSTEM_BASE", str(system))
    monkeypatch.setattr("modelfleet.core.store.layout.SYSTEM_BASE", str(system))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    return {"own": home / ".local/share/ashley-ai", "system": system}


def put(path: Path, text: str = "x") -> Path:
    """Write a file with the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a store that holds models of every kind."""
    root = tmp_path / "store"
    for name in (
        *("chat/7b/llama-3.1-8b-instruct.q4_k_m.gguf", "chat/7b/qwen2.5-7b-instruct.q4_k_m.gguf"),
        *("chat/7b/qwen2.5-7b-instruct.q8_0.gguf", "chat/7b/.hidden.gguf", "chat/7b/notes.txt"),
        *("chat/13b/llama-2-13b-chat.q4_k_m.gguf", "image/stable-diffusion/sd-v1.5.safetensors"),
        *("image/stable-diffusion/sd-xl/unet/model.safetensors", "image/stable-diffusion/sd-xl/model_index.json"),
        *("image/controlnet/canny.bin", "voice/tts/xtts-v2/model.bin", "voice/stt/whisper.onnx"),
        *("embeddings/all-MiniLM-L6-v2/model.safetensors", "embeddings/empty/readme.md"),
        *("cache/temp/half.gguf", "cache/tokenizers/hub/model.bin", ".modelfleet/manifest.json"),
    ):
        put(root / name)
    return root


def test_the_types_are_those_of_the_tutorial() -> None:
    expected = {"chat_7b", "chat_13b", "chat_specialized", "image", "voice_tts", "voice_stt", "embedding"}
    assert set(MODEL_TYPES) == expected
    assert set(MODEL_TYPES.values()) < set(CATEGORIES)


def test_the_directories_are_made(tmp_path: Path) -> None:
    config = ModelConfig(tmp_path / "new")
    assert all((config.base_path / name).is_dir() for name in TUTORIAL)


def test_reading_an_others_store_does_not_fail(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "mkdir", refuse)
    assert ModelConfig(store).get_model_path("image", "sd-v1.5").name == "sd-v1.5.safetensors"
    assert ModelConfig(store.parent / "nowhere").list_available_models() == {name: [] for name in CATEGORIES}


def test_a_store_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="not a directory; correct LOCAL_MODELS_PATH"):
        ModelConfig(put(tmp_path / "file"))


@pytest.mark.parametrize(
    ("model_type", "name", "path"),
    [
        ("chat_7b", "llama-3.1-8b-instruct.q4_k_m.gguf", "chat/7b/llama-3.1-8b-instruct.q4_k_m.gguf"),
        ("chat_7b", "llama-3.1-8b-instruct.q4_k_m", "chat/7b/llama-3.1-8b-instruct.q4_k_m.gguf"),
        ("chat_7b", "llama-3.1-8b-instruct", "chat/7b/llama-3.1-8b-instruct.q4_k_m.gguf"),
        ("chat_7b", "qwen2.5-7b-instruct.q8_0", "chat/7b/qwen2.5-7b-instruct.q8_0.gguf"),
        ("chat_13b", "llama-2-13b-chat", "chat/13b/llama-2-13b-chat.q4_k_m.gguf"),
        ("chat_specialized", "missing.gguf", "chat/specialized/missing.gguf"),
        ("image", "sd-v1.5", "image/stable-diffusion/sd-v1.5.safetensors"),
        ("image", "sd-xl", "image/stable-diffusion/sd-xl"),
        ("image", "sd-xl/unet/model.safetensors", "image/stable-diffusion/sd-xl/unet/model.safetensors"),
        ("voice_tts", "xtts-v2", "voice/tts/xtts-v2"),
        ("voice_stt", "whisper", "voice/stt/whisper.onnx"),
        ("embedding", "all-MiniLM-L6-v2", "embeddings/all-MiniLM-L6-v2"),
        # A name is no pattern, and a part of a name is none.
        ("chat_7b", "llama*", "chat/7b/llama*"),
        ("chat_7b", "llama-3.1-8b", "chat/7b/llama-3.1-8b"),
        ("chat_7b", "notes", "chat/7b/notes"),
    ],
)
def test_the_path_of_a_model(store: Path, model_type: str, name: str, path: str) -> None:
    assert ModelConfig(store).get_model_path(model_type, name) == store / path


def test_an_unknown_type_names_the_allowed_ones(store: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown model type 'video': use one of chat_13b, chat_7b, .*voice_tts"):
        ModelConfig(store).get_model_path("video", "x")


@pytest.mark.parametrize("name", ["../13b/x.gguf", "/etc/passwd", "a/../../x", "..", "", ".", "a\0b"])
def test_a_name_stays_in_its_directory(store: Path, name: str) -> None:
    with pytest.raises(ValueError, match="leads out of the directory"):
        ModelConfig(store).get_model_path("chat_7b", name)


def test_a_short_name_for_several_models_is_an_error(store: Path) -> None:
    with pytest.raises(ValueError, match=r"fits several in .*q4_k_m\.gguf, qwen2\.5-7b-instruct\.q8_0\.gguf"):
        ModelConfig(store).get_model_path("chat_7b", "qwen2.5-7b-instruct")


def test_every_category_and_format_is_listed(store: Path) -> None:
    assert ModelConfig(store).list_available_models() == {
        "chat/7b": [
            "llama-3.1-8b-instruct.q4_k_m.gguf",
            "qwen2.5-7b-instruct.q4_k_m.gguf",
            "qwen2.5-7b-instruct.q8_0.gguf",
        ],
        "chat/13b": ["llama-2-13b-chat.q4_k_m.gguf"],
        "chat/specialized": [],
        "image/stable-diffusion": ["sd-v1.5.safetensors", "sd-xl"],
        "image/controlnet": ["canny.bin"],
        "voice/tts": ["xtts-v2"],
        "voice/stt": ["whisper.onnx"],
        "embeddings": ["all-MiniLM-L6-v2"],
    }


def test_the_default_models(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store.parent / ".env", "DEFAULT_CHAT_MODEL=llama-2-13b-chat.q4_k_m.gguf\nDEFAULT_IMAGE_MODEL=sd-xl\n")
    config = ModelConfig(store)
    assert config.env_file == store.parent / ".env"
    assert config.default_chat_model == store / "chat/13b/llama-2-13b-chat.q4_k_m.gguf"
    assert config.default_image_model == store / "image/stable-diffusion/sd-xl"
    monkeypatch.setenv("DEFAULT_CHAT_MODEL", "llama-3.1-8b-instruct.q4_k_m.gguf")
    monkeypatch.setenv("DEFAULT_IMAGE_MODEL", "not-there")
    assert config.default_chat_model == store / "chat/7b/llama-3.1-8b-instruct.q4_k_m.gguf"
    assert config.default_image_model is None
    monkeypatch.setenv("DEFAULT_CHAT_MODEL", "../../secret")
    with pytest.raises(ValueError, match="leads out"):
        _ = config.default_chat_model


def test_no_default_is_none(store: Path) -> None:
    assert ModelConfig(store).default_chat_model is None


def test_where_the_store_is_found(tmp_path: Path, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    own, system = places["own"], places["system"]
    assert ModelConfig().base_path == own / "models", "the account's own, where there is none"
    put(system / ".env", f"LOCAL_MODELS_PATH={tmp_path}/from-system\n")
    assert ModelConfig().base_path == tmp_path / "from-system"
    put(own / ".env", f"LOCAL_MODELS_PATH='{tmp_path}/from own'\n")
    assert ModelConfig().base_path == tmp_path / "from own"
    monkeypatch.setenv("ASHLEY_AI_ENV_FILE", str(put(tmp_path / "named.env", f"LOCAL_MODELS_PATH={tmp_path}/named\n")))
    assert ModelConfig().base_path == tmp_path / "named"
    argument = put(tmp_path / "argument.env", f'LOCAL_MODELS_PATH="{tmp_path}/argument"\n')
    assert ModelConfig(env_file=argument).base_path == tmp_path / "argument"
    monkeypatch.setenv("LOCAL_MODELS_PATH", str(tmp_path / "environment"))
    assert ModelConfig(env_file=argument).base_path == tmp_path / "environment"
    assert ModelConfig("~/mine", argument).base_path == tmp_path / "home" / "mine"


def test_the_systems_store_is_used_where_only_it_exists(places: dict[str, Path]) -> None:
    (places["system"] / "models").mkdir(parents=True)
    assert ModelConfig().base_path == places["system"] / "models"
    assert not places["own"].exists()


def test_a_managed_environment_finds_the_store_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert modelfleet.config._MANAGED == STATE
    environment = tmp_path / "base/runtime/environments/0123"
    put(environment / STATE, "{}")
    put(tmp_path / "base/.env", f"LOCAL_MODELS_PATH={tmp_path}/base/models\n")
    current = tmp_path / "base/runtime/current"
    current.symlink_to("environments/0123")
    for prefix in (environment, current):
        monkeypatch.setattr(sys, "prefix", str(prefix))
        assert ModelConfig().env_file == tmp_path / "base/.env"
    # An account that may not read the environment file finds the store all the same.
    (tmp_path / "base/.env").unlink()
    assert ModelConfig().base_path == tmp_path / "base/models"


def test_a_named_file_must_be_readable(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ModelConfig(env_file=tmp_path / "missing.env")
    with pytest.raises(EnvFileError, match=r"bad\.env:1: neither"):
        ModelConfig(env_file=put(tmp_path / "bad.env", "nonsense\n"))


def test_it_imports_next_to_nothing() -> None:
    script = (
        "import sys; before = set(sys.modules); import modelfleet.config; print(*sorted(set(sys.modules) - before))"
    )
    source = str(Path(modelfleet.config.__file__).parents[1])
    output = subprocess.run(
        [sys.executable, "-S", "-c", script],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    ).stdout.split()
    ours = {name for name in output if name.startswith("modelfleet")}
    assert ours == {
        *("modelfleet", "modelfleet.config", "modelfleet.core", "modelfleet.core.env_format", "modelfleet.core.errors"),
        *("modelfleet.core.store", "modelfleet.core.store.layout"),
    }
    assert {name.split(".")[0] for name in output} - {"modelfleet"} <= set(sys.stdlib_module_names)
