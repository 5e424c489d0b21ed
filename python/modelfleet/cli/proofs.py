"""Proofs of inference, told for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from ..core.units import format_bytes
from .text import clean, joined, table


def proof_lines(proofs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what each proof says: model, prompt, output, speed, backend, isolation."""
    for proof in proofs:
        passed = proof.get("passed")
        mark = click.style("proved", fg="green") if passed else click.style("FAILED", fg="red", bold=True)
        backend, device = _said(proof, "backend"), _said(proof, "device")
        where = joined((backend, device if device.lower() != backend.lower() else ""))
        yield f"{mark}  {clean(proof.get('host', ''))}: {_said(proof, 'model')}" + (f" on {where}" if where else "")
        yield from table([[name, value] for name, value in _rows(proof) if value], indent="  ")


def _rows(proof: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "prompt", _quoted(proof, "prompt")
    yield "output", _quoted(proof, "output")
    if not proof.get("passed"):
        yield "expected", _quoted(proof, "expected")
    yield (
        "speed",
        joined(
            (
                _measured(proof, "prompt_tokens_per_second", "prompt {:.1f} tokens/s"),
                _measured(proof, "generation_tokens_per_second", "generation {:.1f} tokens/s"),
                _measured(proof, "load_seconds", "loaded in {:.2f} s"),
            )
        ),
    )
    yield "memory", joined(_memory(proof.get("memory")))
    yield "isolation", joined(_isolation(proof.get("isolation")))
    if not proof.get("ran", True):
        yield "verified", f"earlier, at {_said(proof, 'verified_at')}; nothing that matters has changed since"


def _memory(memory: object) -> Iterator[str]:
    devices = memory.get("devices") if isinstance(memory, dict) else None
    for device in devices if isinstance(devices, list) else []:
        if isinstance(device, dict) and isinstance(device.get("measured_bytes"), (int, float)):
            predicted = device.get("predicted_bytes")
            foretold = f" ({format_bytes(predicted)} predicted)" if isinstance(predicted, (int, float)) else ""
            yield f"{format_bytes(device['measured_bytes'])} on {_said(device, 'name') or 'the host'}{foretold}"


def _isolation(isolation: object) -> Iterator[str]:
    for name, value in isolation.items() if isinstance(isolation, dict) else ():
        said = ("yes" if value else "no") if isinstance(value, bool) else value
        if said is not None and said != "":
            yield f"{clean(name).replace('_', ' ')}: {clean(said)}"


def _said(proof: Mapping[str, Any], key: str) -> str:
    value = proof.get(key)
    return "" if value is None else clean(value)


def _quoted(proof: Mapping[str, Any], key: str) -> str:
    value = proof.get(key)
    return "" if value is None else '"' + clean(value) + '"'


def _measured(proof: Mapping[str, Any], key: str, form: str) -> str:
    value = proof.get(key)
    return form.format(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else ""
