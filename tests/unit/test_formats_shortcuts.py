"""The readers' short ways through plain parts give what the long ways give: the same description, the same refusal."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from fuzz import seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfleet.core.errors import FormatError
from modelfleet.core.formats import gguf, safetensors
from modelfleet.core.formats.model import ModelFile
from modelfleet.core.formats.source import Source

Read = Callable[[Source], ModelFile]


def outcome(read: Read, raw: bytes) -> object:
    try:
        return read(Source("x", len(raw), lambda offset, length: raw[offset : offset + length]))
    except FormatError as error:
        return str(error)


@st.composite
def changed(draw: st.DrawFn, seed: bytes) -> bytes:
    """Return ``seed`` with a few of its bytes changed, cut out or put in."""
    raw = bytearray(seed)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
    return bytes(raw)


@settings(max_examples=400, deadline=None)
@given(changed(seeds.plain_gguf_seed()) | changed(seeds.gguf_seed()))
def test_gguf(raw: bytes) -> None:
    short = outcome(gguf.read_gguf, raw)
    with pytest.MonkeyPatch.context() as patch:
        # Nothing is near enough then.
        patch.setattr(gguf, "_NEAR_BYTES", 2**62)
        assert outcome(gguf.read_gguf, raw) == short


@settings(max_examples=400, deadline=None)
@given(changed(seeds.plain_safetensors_seed()) | changed(seeds.safetensors_seed()))
def test_safetensors(raw: bytes) -> None:
    short = outcome(safetensors.read_safetensors, raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors._Header, "_plain_entries", lambda *_: None)
        assert outcome(safetensors.read_safetensors, raw) == short


@pytest.mark.parametrize("seed", [seeds.plain_gguf_seed(), seeds.plain_safetensors_seed()], ids=["gguf", "safetensors"])
def test_the_short_ways_are_taken(seed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed that never came there would prove nothing."""
    long: list[str] = []
    for owner, name in ((gguf._Reader, "_judged_tensor"), (gguf._Reader, "_pair"), (safetensors._Header, "_tensor")):
        judge = getattr(owner, name)

        def watch(self: object, *arguments: object, judge: Callable[..., object] = judge) -> object:
            long.append("")
            return judge(self, *arguments)

        monkeypatch.setattr(owner, name, watch)
    read: Read = gguf.read_gguf if seed.startswith(b"GGUF") else safetensors.read_safetensors
    assert isinstance(outcome(read, seed), ModelFile)
    assert 0 < len(long) < 8


def test_entries_in_any_layout_of_spaces() -> None:
    chance = random.Random(0)
    text = seeds.plain_safetensors_seed()[8 : -12 * 8].decode()
    for _ in range(50):
        spaced = "".join(one + chance.choice(["", "", " ", "\n", "\t "]) if one in ":,[]{}" else one for one in text)
        model = outcome(safetensors.read_safetensors, seeds.safetensors(spaced.strip().encode(), bytes(12 * 8)))
        assert isinstance(model, ModelFile) and len(model.tensors) == 12
