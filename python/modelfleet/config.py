"""ModelConfig: where an application finds its models.

::

    from modelfleet.config import ModelConfig

    config = ModelConfig()
    config.get_model_path("chat_7b", "llama-3.1-8b-instruct.q4_k_m.gguf")
    config.list_available_models()["embeddings"]

Standard library only: it is installed in the managed environment of every host
and costs an application no dependency.
"""

import os
import sys
from pathlib import Path, PurePosixPath
from typing import Dict, Iterator, List, Mapping, Optional, Union

from .core.env_format import read_values
from .core.store.layout import CATEGORIES, SYSTEM_BASE, TEMPORARY, TOKENIZER_CACHE, default_base, default_store_path

MODEL_TYPES: Mapping[str, str] = {
    "chat_7b": "chat/7b",
    "chat_13b": "chat/13b",
    "chat_specialized": "chat/specialized",
    "image": "image/stable-diffusion",
    "voice_tts": "voice/tts",
    "voice_stt": "voice/stt",
    "embedding": "embeddings",
}
"""The model types of ``get_model_path`` and the directory of each."""

FORMATS = (".gguf", ".safetensors", ".onnx", ".bin")
"""The suffixes of model files."""

# What marks a managed environment: the file that core.runtime.environment leaves in it.
_MANAGED = "modelfleet-runtime.json"

AnyPath = Union[str, "os.PathLike[str]"]


class ModelConfig:
    """The model store as an application sees it.

    The store is ``base_path``, else LOCAL_MODELS_PATH of the environment, else
    LOCAL_MODELS_PATH of the environment file, else the first of these that exists:
    the store beside the managed environment that runs this, the default store
    of this account, that of the system. Where none does, the account's own.

    The environment file is ``env_file``, else the one that ASHLEY_AI_ENV_FILE
    names, else ``.env`` beside the store that is named; without a named store
    the first readable ``.env`` beside the managed environment that runs this,
    beside the default store of this account, or beside that of the system.
    Variables of the environment win over those of the file.

    Missing directories of the store are made where this account may write; an
    account that only reads gets no error. Raises OSError where a file named by
    ``env_file`` or ASHLEY_AI_ENV_FILE cannot be read, EnvFileError where it
    cannot be understood, NotADirectoryError where the store is a file.
    """

    def __init__(self, base_path: Optional[AnyPath] = None, env_file: Optional[AnyPath] = None) -> None:
        named = os.fspath(base_path) if base_path is not None else os.environ.get("LOCAL_MODELS_PATH", "")
        self.env_file: Optional[Path] = None
        self.variables: Dict[str, str] = {}
        self._read_env_file(named, env_file)
        chosen = named or self.variables.get("LOCAL_MODELS_PATH", "") or _default_store()
        self.base_path = Path(os.path.abspath(os.path.expanduser(chosen)))
        # os.path, as pathlib raises where a directory on the way may not be entered.
        if os.path.exists(self.base_path) and not os.path.isdir(self.base_path):
            raise NotADirectoryError(f"{self.base_path}: the model store is not a directory; correct LOCAL_MODELS_PATH")
        self._make_directories()

    def get_model_path(self, model_type: str, model_name: str) -> Path:
        """Return the file or directory of a model.

        ``model_name`` is its name in the directory of its type. Where nothing
        has that very name, a name without suffix, or without quantization and
        suffix, stands for the one model that it fits. A model that is not
        there gets the path that it would have.

        Raises ValueError for an unknown type, for a name that leads out of the
        directory, and for a short name that fits several models.
        """
        if model_type not in MODEL_TYPES:
            raise ValueError(f"unknown model type {model_type!r}: use one of {', '.join(sorted(MODEL_TYPES))}")
        directory = self.base_path / MODEL_TYPES[model_type]
        return _find(directory, model_name) or directory / model_name

    def list_available_models(self) -> Dict[str, List[str]]:
        """Return the sorted names of the models in each category.

        A model is a file of a known format or a directory that holds one;
        hidden ones and the cache are left out.
        """
        return {category: sorted(_models_in(self.base_path / category)) for category in CATEGORIES}

    @property
    def default_chat_model(self) -> Optional[Path]:
        """The model that DEFAULT_CHAT_MODEL names, wherever it is under ``chat``; None: unset, or not there."""
        return self._default("DEFAULT_CHAT_MODEL", "chat/")

    @property
    def default_image_model(self) -> Optional[Path]:
        """The model that DEFAULT_IMAGE_MODEL names, wherever it is under ``image``; None: unset, or not there."""
        return self._default("DEFAULT_IMAGE_MODEL", "image/")

    def _default(self, variable: str, prefix: str) -> Optional[Path]:
        name = os.environ.get(variable) or self.variables.get(variable)
        if not name:
            return None
        directories = [self.base_path / category for category in CATEGORIES if category.startswith(prefix)]
        # The full name in any directory comes before a short one in the first.
        exact = (directory / name for directory in directories if os.path.exists(directory / _checked(name)))
        return next(exact, None) or next(filter(None, (_find(directory, name) for directory in directories)), None)

    def _read_env_file(self, named_store: str, env_file: Optional[AnyPath]) -> None:
        given = os.fspath(env_file) if env_file is not None else os.environ.get("ASHLEY_AI_ENV_FILE", "")
        candidates = [Path(given).expanduser()] if given else _env_files(named_store)
        for path in candidates:
            try:
                text = path.read_bytes().decode("utf-8", "surrogateescape")
            except OSError:
                if given:
                    raise
                continue
            self.env_file, self.variables = path, read_values(text, str(path))
            return

    def _make_directories(self) -> None:
        try:
            for relative in (*CATEGORIES, TOKENIZER_CACHE, TEMPORARY):
                (self.base_path / relative).mkdir(parents=True, exist_ok=True)
        except OSError:
            # Read-only, or another account's: this one only reads.
            return


def _env_files(named_store: str) -> List[Path]:
    """Return where an environment file is looked for, best first."""
    if named_store:
        return [Path(os.path.abspath(os.path.expanduser(named_store))).parent / ".env"]
    return [base / ".env" for base in _bases()]


def _bases() -> List[Path]:
    """Return the folders that may hold a store and its environment file, best first."""
    bases = [Path(default_base(os.geteuid(), os.path.expanduser("~"))), Path(SYSTEM_BASE)]
    if os.path.isfile(os.path.join(sys.prefix, _MANAGED)):
        # BASE/runtime/environments/KEY, whichever way it was entered.
        bases.insert(0, Path(os.path.realpath(sys.prefix)).parents[2])
    return bases


def _default_store() -> str:
    own = default_store_path(os.geteuid(), os.path.expanduser("~"))
    return next((store for store in map(str, (base / "models" for base in _bases())) if os.path.isdir(store)), own)


def _checked(name: str) -> str:
    """Return ``name``; raises ValueError where it does not stay in the directory that it is looked up in."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise ValueError(f"model name {name!r} leads out of the directory of its type: give the name of a file in it")
    return name


def _find(directory: Path, name: str) -> Optional[Path]:
    """Return the model called ``name`` in ``directory``, or the only one that it is short for."""
    path = directory / _checked(name)
    if os.path.exists(path):
        return path
    fitting = [
        other for other in _models_in(path.parent) if other.startswith(f"{path.name}.") and _is_model_file(other)
    ]
    plain = [other for other in fitting if os.path.splitext(other)[0] == path.name]
    if len(plain or fitting) > 1:
        raise ValueError(f"model name {name!r} fits several in {directory}: {', '.join(sorted(plain or fitting))}")
    return path.parent / (plain or fitting)[0] if fitting else None


def _models_in(directory: Path) -> Iterator[str]:
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_model_file(entry.name) if entry.is_file() else _holds_model(entry.path):
                    yield entry.name
    except OSError:
        return


def _is_model_file(name: str) -> bool:
    return name.lower().endswith(FORMATS) and not name.startswith(".")


def _holds_model(directory: str) -> bool:
    """Tell whether a model file lies in ``directory`` at any depth, as in the layout of diffusers."""
    return any(any(map(_is_model_file, files)) for _, _, files in os.walk(directory))
