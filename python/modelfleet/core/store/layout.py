"""Where things are: the directory tree of the model store and the paths beside it.

::

    BASE/                       /opt/ashley-ai, or ~/.local/share/ashley-ai without root
      .env                      the application's environment file
      runtime/                  the managed Python environment (core.runtime)
      models/                   the store
        chat/7b  chat/13b  chat/specialized
        image/stable-diffusion  image/controlnet
        voice/tts  voice/stt
        embeddings
        cache/tokenizers  cache/temp
        .modelfleet/            manifest.json, verification.json, memory.json, proofs/, lock

The tree is the tutorial's; ``cache/temp`` holds what is in flight, on the same
file system as what it becomes, so that publishing is one rename.
"""

import os

STORE_DIRECTORIES = (
    "chat",
    "chat/7b",
    "chat/13b",
    "chat/specialized",
    "image",
    "image/stable-diffusion",
    "image/controlnet",
    "voice",
    "voice/tts",
    "voice/stt",
    "embeddings",
    "cache",
    "cache/tokenizers",
    "cache/temp",
    ".modelfleet",
)
CATEGORIES = (
    "chat/7b",
    "chat/13b",
    "chat/specialized",
    "image/stable-diffusion",
    "image/controlnet",
    "voice/tts",
    "voice/stt",
    "embeddings",
)
TEMPORARY = "cache/temp"
TOKENIZER_CACHE = "cache/tokenizers"
STATE = ".modelfleet"

SYSTEM_BASE = "/opt/ashley-ai"
USER_BASE = ".local/share/ashley-ai"


def default_base(euid: int, home: str) -> str:
    """Return the folder that holds store, runtime and environment file for an account."""
    return SYSTEM_BASE if euid == 0 else os.path.join(home, USER_BASE)


def default_store_path(euid: int, home: str) -> str:
    """Return the store's path where the user names none."""
    return os.path.join(default_base(euid, home), "models")


def resolve_store_path(path: str) -> str:
    """Return the store's absolute path: ``path``, ``~`` expanded, or the default for the effective user."""
    if not path:
        return default_store_path(os.geteuid(), os.path.expanduser("~"))
    return os.path.abspath(os.path.expanduser(path))


def resolve_runtime_path(path: str, store_path: str) -> str:
    """Return the runtime's absolute path: ``path``, or ``runtime`` beside the store."""
    return os.path.abspath(os.path.expanduser(path)) if path else os.path.join(os.path.dirname(store_path), "runtime")
