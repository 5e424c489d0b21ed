"""A host whose store is published to from models that lie beside it, of several files each."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fuzz.seeds import ARCHITECTURE, UINT32, pair, safetensors, safetensors_entry
from fuzz.seeds import gguf as gguf_of
from modelfleet.core import publishing
from modelfleet.core.fetch import transfer
from modelfleet.core.fetch.settings import FetchSettings, Patience
from modelfleet.core.jobs import Progress
from modelfleet.core.pins import PinnedFile
from modelfleet.core.planning.document import HostPlan, ModelPlan
from modelfleet.core.publishing import Outcome, carry_out, foresee

from .fault_server import FaultServer

UNIT = "embeddings/small"
ENTRY = "big-00001-of-00003.gguf"
"""The file of ``split`` that readers open first."""


def weights(name: str = "a") -> bytes:
    return safetensors({name: safetensors_entry(0, 8, [2])}, bytes(8))


def embedding(note: str = "") -> dict[str, bytes]:
    """Return the files of a model that is a folder."""
    return {
        "config.json": json.dumps({"model_type": "bert", "note": note}).encode(),
        "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
        "vocab.txt": b"[PAD]\n" + note.encode(),
        "model.safetensors": weights(f"a{note}"),
    }


def split(note: int = 0) -> dict[str, bytes]:
    """Return the files of a split GGUF."""

    def shard(number: int) -> bytes:
        keys = [("split.no", number), ("split.count", 3), ("note", note)]
        pairs = [pair(key, UINT32, value.to_bytes(4, "little")) for key, value in keys]
        return gguf_of([ARCHITECTURE, *pairs])

    return {f"big-{number + 1:05d}-of-00003.gguf": shard(number) for number in range(3)}


ONCE = FetchSettings(patience=Patience(tries=1))
"""Nothing is tried again within a run."""


class Host:
    """A store, and a place that its models come from: a folder, or a server."""

    def __init__(self, store: Path, sources: Path | FaultServer) -> None:
        self.store = store
        self.sources = sources
        self.fetched: list[str] = []

    def pin(self, folder: str, name: str, content: bytes) -> PinnedFile:
        digest = hashlib.sha256(content).hexdigest()
        if isinstance(self.sources, Path):
            path = self.sources / digest
            path.write_bytes(content)
            path.chmod(0o644)
            source = path.as_uri()
        else:
            self.sources.files[f"/{digest}"] = content
            source = self.sources.url(f"/{digest}")
        return PinnedFile(f"{folder}/{name}", source, len(content), digest, None)

    def model(
        self, files: Mapping[str, bytes], folder: str = UNIT, action: str = "fetch", allow_pickle: bool = False
    ) -> ModelPlan:
        pins = tuple(self.pin(folder, name, content) for name, content in files.items())
        unit = None if folder.count("/") == 1 and folder != UNIT else folder
        category = os.path.dirname(folder) if unit else folder
        return ModelPlan(
            *("small", "f32", category, "safetensors", unit, pins, pins, action, "because"), allow_pickle=allow_pickle
        )

    def run(self, *models: ModelPlan) -> Outcome:
        plan = HostPlan(str(self.store), models)
        expected = foresee(plan)
        outcome = carry_out(plan, ONCE, Progress())
        assert sorted(outcome.published) == sorted(expected.published) and outcome.removed == expected.removed
        return outcome

    def publish(self, files: Mapping[str, bytes], folder: str = UNIT, **more: Any) -> Outcome:
        return self.run(self.model(files, folder, **more))

    def content(self, folder: str = UNIT) -> dict[str, bytes]:
        """Return what a reader finds."""
        root = self.store / folder
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}

    def is_kept(self, files: Mapping[str, bytes], folder: str = UNIT) -> bool:
        """Tell whether a run has nothing to do, and that by stats alone."""
        return foresee(HostPlan(str(self.store), (self.model(files, folder),))) == Outcome([], [], [])

    def lose_sources(self) -> None:
        assert isinstance(self.sources, Path)
        for path in self.sources.iterdir():
            path.unlink()

    @property
    def in_flight(self) -> list[str]:
        return os.listdir(self.store / "cache/temp")


@pytest.fixture
def host(store: Path, ground: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    (ground / "sources").mkdir(mode=0o755)
    host = Host(store, ground / "sources")

    def note(file: PinnedFile, *rest: Any, **more: Any) -> str:
        path = transfer.fetch(file, *rest, **more)
        host.fetched.append(os.path.basename(file.path))
        return path

    monkeypatch.setattr(publishing, "fetch", note)
    return host
