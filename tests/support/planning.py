"""A small catalog, machines and stores for the tests of plans."""

from __future__ import annotations

from typing import Any

from modelfleet.core.catalog import Catalog, PinnedFile, read_catalog
from modelfleet.core.planning.document import HostPlan
from modelfleet.core.planning.state import FoundFile, StoreState
from modelfleet.core.store.manifest import FileRecord
from modelfleet.core.units import GIB

STORE = "/srv/models"
LADDER = ("fp16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m")
# Llama-3.1-8B and Llama-2-13B: https://huggingface.co/meta-llama (config.json).
SHAPE_8B = {
    "architecture": "llama",
    "layers": 32,
    "embedding_length": 4096,
    "feed_forward_length": 14336,
    "heads": 32,
    "heads_kv": 8,
    "key_length": 128,
    "value_length": 128,
    "vocabulary_size": 128256,
    "context_length": 131072,
    "rope_factors": True,
}
SHAPE_13B = {
    **SHAPE_8B,
    "layers": 40,
    "embedding_length": 5120,
    "feed_forward_length": 13824,
    "heads": 40,
    "heads_kv": 40,
    "vocabulary_size": 32000,
    "context_length": 4096,
    "rope_factors": False,
}


def entry(name: str, shape: dict[str, Any] | None, task: str = "general", size: int = 1000) -> dict[str, Any]:
    """Return a catalog entry with the whole ladder; its files' sizes are what the catalog states, not the weights'."""
    variants = {}
    for place, quantization in enumerate(LADDER):
        file = {"name": f"{name}.{quantization}.gguf", "source": f"file:///x/{name}.{quantization}.gguf"}
        variants[quantization] = {"files": [{**file, "size": size + place, "sha256": f"{place + 1:064x}"}]}
    length = shape["context_length"] if shape else 4096
    plain = {"id": name, "category": "chat/7b", "tasks": [task], "context_length": length, "licence": "mit"}
    return {**plain, "default_quantization": "q4_k_m", "variants": variants, **({"shape": shape} if shape else {})}


ENTRIES = [
    entry("small", SHAPE_8B),
    entry("large", SHAPE_13B, "coding", 5000),
    # Nothing tells how much memory it needs.
    entry("dark", None, "medical", 70),
]


def lock_of(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a lock that pins every file of ``entries``."""
    models: dict[str, Any] = {}
    for one in entries:
        for quantization, variant in one["variants"].items():
            models.setdefault(one["id"], {})[quantization] = {"files": variant["files"]}
    return {"schema_version": 1, "models": models}


def catalog(entries: list[dict[str, Any]] | None = None, locked: bool = True) -> Catalog:
    """Return the catalog of ``entries``, all of it locked or nothing."""
    chosen = ENTRIES if entries is None else entries
    return read_catalog(chosen, lock_of(chosen) if locked else {"schema_version": 1, "models": {}})


def card(gigabytes: float, free: float | None = None, **more: Any) -> dict[str, Any]:
    """Return an NVIDIA card of a profile; sizes in GiB."""
    memory = {"total_bytes": int(gigabytes * GIB), "free_bytes": None if free is None else int(free * GIB)}
    return {"vendor": "nvidia", "name": "Card", "memory": memory, **more}


def profile(*cards: dict[str, Any], memory: float = 32, **main: Any) -> dict[str, Any]:
    """Return a HardwareProfile as plain data, as far as plans read it; ``memory`` in GiB."""
    return {"accelerators": list(cards), "memory": {"total_bytes": int(memory * GIB), **main}}


def store(*files: PinnedFile, free: int | None = None, inodes: int | None = None) -> StoreState:
    """Return a store that holds ``files``, published and untouched."""
    return carried_out(StoreState(STORE, {}, {}, free, inodes), files)


def carried_out(state: StoreState, files: Any, grown: int = 0) -> StoreState:
    """Return ``state`` when ``files`` were published; ``grown`` bytes are less free."""
    manifest, found = dict(state.manifest), dict(state.found)
    for file in files:
        size = 1 if file.size is None else file.size
        pinned = file.sha256 or "f" * 64
        manifest[file.path] = FileRecord("m", size, pinned, 1, 2, 3, 4, file.source, None, "2026-01-31T12:00:00Z")
        found[file.path] = FoundFile(size, True)
    free = None if state.free_bytes is None else state.free_bytes - grown
    inodes = None if state.free_inodes is None else state.free_inodes - len(list(files))
    return StoreState(state.path, manifest, found, free, inodes)


def pretend(plan: HostPlan, state: StoreState) -> StoreState:
    """Return ``state`` as it is when ``plan`` was carried out."""
    todo = [file for model in plan.models if model.action in ("fetch", "replace") for file in model.missing]
    gone = {file.path for model in plan.models if model.action == "remove" for file in model.files}
    after = carried_out(state, todo, plan.disk_bytes)
    return after._replace(
        manifest={path: record for path, record in after.manifest.items() if path not in gone},
        found={path: file for path, file in after.found.items() if path not in gone},
    )
