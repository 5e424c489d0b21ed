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
    for check in _checks(proof):
        yield clean(check.get("status")), _check(check)
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
    yield "pace", _pace(proof.get("throughput"))
    yield "memory", joined(_memory(proof.get("memory")))
    yield "isolation", joined(_isolation(proof.get("isolation")))
    if not proof.get("ran", True):
        yield "verified", f"earlier, at {_said(proof, 'verified_at')}; nothing that matters has changed since"
    elif isinstance(proof.get("reasons"), list):
        yield "because", joined(clean(reason) for reason in proof["reasons"])


def installation_lines(host: str, installation: object) -> Iterator[str]:
    """Yield the table of a host's stack: every check, with the cure of those that do not pass."""
    if not isinstance(installation, dict):
        return
    passed = installation.get("passed")
    mark = click.style("works", fg="green") if passed else click.style("FAILED", fg="red", bold=True)
    yield f"{mark}  {clean(host)}: the installation"
    rows = []
    for check in installation.get("checks") or []:
        if isinstance(check, dict):
            status = clean(check.get("status"))
            row = [click.style(status, fg=_COLOURS.get(status)), *(clean(check.get(name)) for name in ("id", "title"))]
            rows.append([*row, joined((clean(check.get("measured")), clean(check.get("cure"))))])
    yield from table(rows, indent="  ")
    yield from table([[name, value] for name, value in _installed(installation.get("said")) if value], indent="  ")


def unproved_lines(host: str, unproved: object) -> Iterator[str]:
    """Yield the models that are not proved on a host, each with the reason and what would prove it."""
    for one in unproved if isinstance(unproved, list) else []:
        if isinstance(one, dict):
            mark = click.style("unproved", fg="yellow")
            yield f"{mark}  {clean(host)}: {_said(one, 'model')}: {_said(one, 'reason')}; {_said(one, 'command')}"


def memory_lines(host: str, devices: object) -> Iterator[str]:
    """Yield by device how far measured memory was from what was predicted."""
    for one in devices if isinstance(devices, list) else []:
        excess = one.get("largest_excess_bytes") if isinstance(one, dict) else None
        if isinstance(excess, int):
            told = f"{format_bytes(abs(excess))} {'over' if excess > 0 else 'under'} the prediction at most"
            needed = f"; models_headroom_mebibytes of {one.get('headroom_mebibytes')} covers it" if excess > 0 else ""
            yield f"memory  {clean(host)}: {_said(one, 'device')}: {told if excess else 'as predicted'}{needed}"


def _installed(said: object) -> Iterator[tuple[str, str]]:
    """Yield what the stack says of itself: versions, backends that are built and usable, devices."""
    told = said if isinstance(said, dict) else {}
    yield "python", _said(told, "python")
    yield "driver", _said(told, "driver")
    for name, package in told.items():
        if not isinstance(package, dict):
            continue
        parts = [_said(package, "version")]
        if name == "torch":
            for key, title in (("cuda", "CUDA"), ("hip", "ROCm")):
                parts.append(f"{title} {_said(package, key)}" if package.get(key) else "")
            parts.append("MPS" if package.get("mps_available") else "")
            parts.append(f"devices: {_names(package.get('devices')) or 'none'}")
        elif name == "llama_cpp":
            parts.append(f"built for {_names(package.get('built'))}")
            parts.append(f"usable: {_names(package.get('usable')) or 'none'}")
        elif name == "onnxruntime":
            parts.append(_names(package.get("providers")))
        yield clean(name), joined(parts)


def _names(values: object) -> str:
    """Return the names of a list: devices by their description, else their name."""
    listed = values if isinstance(values, list) else []
    told = (one.get("description") or one.get("name") if isinstance(one, dict) else one for one in listed)
    return " and ".join(clean(one) for one in told if one)


_COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}


def _checks(proof: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the checks of a proof that do not pass."""
    checks = proof.get("checks")
    for check in checks if isinstance(checks, list) else []:
        if isinstance(check, dict) and check.get("status") != "pass":
            yield check


def _check(check: Mapping[str, Any]) -> str:
    found, wanted = _said(check, "measured"), _said(check, "required")
    return f"{_said(check, 'id')} {_said(check, 'title')}: {found} (wanted: {wanted}); {_said(check, 'cure')}"


def _pace(throughput: object) -> str:
    told = throughput if isinstance(throughput, dict) else {}
    share, bound = told.get("share"), told.get("bound_tokens_per_second")
    if not isinstance(share, (int, float)) or not isinstance(bound, (int, float)):
        return ""
    return f"{share:.0%} of the {bound:.0f} tokens/s that the memory allows"


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
