"""Plans of a fleet for people: a matrix of hosts and models, totals, and every candidate of one host.

A plan comes from a host and is untrusted: every text is cleaned, every number checked.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import click

from ..core.units import format_bytes
from .text import clean, count, table

Plan = Mapping[str, Any]
PIPE_WIDTH = 120
_GAP = "  "


def models_of(plan: object) -> list[Plan]:
    """Return a plan's models."""
    models = plan.get("models") if isinstance(plan, Mapping) else None
    return [model for model in models if isinstance(model, Mapping)] if isinstance(models, list) else []


def number(mapping: Plan, key: str) -> int | None:
    """Return a whole number of a plan, None where it is none."""
    value = mapping.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def fetched(plan: object) -> int:
    """Return the bytes that a plan fetches."""
    return (number(plan, "bytes_to_fetch") or 0) if isinstance(plan, Mapping) else 0


def matrix(plans: Mapping[str, object]) -> Iterator[str]:
    """Yield the matrix: a row a host, a column a model, three lines a cell; in blocks that are as wide as fits.

    Hosts whose plans say the same share a row.
    """
    names = list(dict.fromkeys(str(model.get("model")) for plan in plans.values() for model in models_of(plan)))
    if not names:
        return
    rows: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for host, plan in plans.items():
        cells = [_cells(plan, name) for name in names]
        rows.setdefault((*cells, _total(plan)), []).append(host)
    heads = [clean(name) for name in names] + ["TO FETCH"]
    labels = {cells: _label(hosts) for cells, hosts in rows.items()}
    width = max([len("HOST"), *(len(label) for label in labels.values())])
    widths = [
        max([len(head), *(len(click.unstyle(line)) for cells in rows for line in cells[place])])
        for place, head in enumerate(heads)
    ]
    available = shutil.get_terminal_size((PIPE_WIDTH, 24)).columns - width
    start = 0
    while start < len(heads):
        end, used = start, 0
        while end < len(heads) and (end == start or used + widths[end] + len(_GAP) <= available):
            used += widths[end] + len(_GAP)
            end += 1
        if start:
            yield ""
        yield from _block(rows, labels, heads, start, end)
        start = end


def _block(
    rows: Mapping[tuple[tuple[str, ...], ...], list[str]],
    labels: Mapping[tuple[tuple[str, ...], ...], str],
    heads: list[str],
    start: int,
    end: int,
) -> Iterator[str]:
    lines = [[click.style(head, bold=True) for head in ("HOST", *heads[start:end])]]
    for cells in rows:
        height = max(len(cell) for cell in cells[start:end])
        for line in range(height):
            label = click.style(labels[cells], bold=True) if line == 0 else ""
            lines.append([label, *(cell[line] if line < len(cell) else "" for cell in cells[start:end])])
    yield from table(lines)


def _label(hosts: list[str]) -> str:
    first = clean(hosts[0])
    return first if len(hosts) == 1 else f"{first} and {len(hosts) - 1} more"


def _cells(plan: object, name: str) -> tuple[str, ...]:
    found = [model for model in models_of(plan) if str(model.get("model")) == name]
    return tuple(line for model in found for line in _cell(model)) or ("-",)


def _cell(model: Plan) -> Iterator[str]:
    action = model.get("action")
    if action == "remove":
        yield click.style("remove", fg="yellow")
        return
    need, budget = number(model, "need_bytes"), number(model, "budget_bytes")
    yield f"{clean(model.get('quantization'))} {_coloured_fit(model)}"
    if need is not None:
        yield f"{format_bytes(need)} of {format_bytes(budget) if budget is not None else '?'}"
    if needs_lock(model):
        size = number(model, "bytes_to_fetch")
        yield "needs lock" + (f", {format_bytes(size)}" if size else "")
    elif action in ("fetch", "replace"):
        yield f"{action} {format_bytes(number(model, 'bytes_to_fetch') or 0)}"
    elif action == "keep":
        yield "kept"


def needs_lock(model: Plan) -> bool:
    """Tell whether a model could be had, if the lock pinned it."""
    return model.get("needs_lock") is True


def fit(model: Plan) -> str:
    """Return where a model fits: GPU, 2 GPUs, GPU 18/40 layers, CPU, refused; a question mark: nothing tells."""
    placement = model.get("placement")
    if not isinstance(placement, Mapping):
        return "refused" if model.get("action") == "refuse" and not needs_lock(model) else "?"
    return where(placement)


def where(placement: Plan) -> str:
    """Return a placement in short."""
    if placement.get("backend") == "cpu":
        return "CPU"
    devices = str(placement.get("device")).split("+")
    layers, held = number(placement, "layers") or 0, number(placement, "gpu_layers") or 0
    name = "MIG" if "/MIG" in devices[0] else "GPU"
    name = f"{len(devices)} {name}s" if len(devices) > 1 else name
    return name if held > layers else f"{name} {held}/{layers + 1} layers"


def _coloured_fit(model: Plan) -> str:
    text = fit(model)
    if text == "refused":
        return click.style(text, fg="red")
    return click.style(text, fg="yellow" if text == "CPU" or "layers" in text else "green")


def _total(plan: object) -> tuple[str, ...]:
    models = models_of(plan)
    unlocked = sum(1 for model in models if needs_lock(model))
    refused = sum(1 for model in models if model.get("action") == "refuse") - unlocked
    lines = [format_bytes(fetched(plan))]
    if unlocked:
        lines.append(f"{unlocked} to lock")
    if refused:
        lines.append(click.style(f"{refused} refused", fg="red"))
    return tuple(lines)


def totals(plans: Mapping[str, object]) -> str:
    """Return the fleet in one line: hosts, models, how they fit, and the bytes to fetch."""
    models = [model for plan in plans.values() for model in models_of(plan)]
    fits = [fit(model) for model in models]
    counted = {
        "whole on accelerators": sum(1 for one in fits if one not in ("CPU", "refused", "?") and "layers" not in one),
        "in part": sum(1 for one in fits if "layers" in one),
        "on processors": fits.count("CPU"),
        "refused": fits.count("refused"),
        "to be locked first": sum(1 for model in models if needs_lock(model)),
    }
    said = ", ".join(f"{amount} {what}" for what, amount in counted.items() if amount)
    total = format_bytes(sum(fetched(plan) for plan in plans.values()))
    return f"{count(len(plans), 'host')}, {count(len(models), 'model')}: {said or 'nothing planned'}; {total} to fetch"


def problems(plans: Mapping[str, object]) -> Iterator[str]:
    """Yield why models are refused and what plans warn of, each line once with the hosts that it is about."""
    lines: dict[str, list[str]] = {}
    unlocked: dict[str, None] = {}
    for host, plan in plans.items():
        for model in models_of(plan):
            if needs_lock(model):
                unlocked[clean(f"{model.get('model')}:{model.get('quantization')}")] = None
            elif model.get("action") == "refuse":
                text = f"{clean(model.get('model'))} is refused: {clean(model.get('reason'))}"
                lines.setdefault(click.style(text, fg="red"), []).append(host)
        warnings = plan.get("warnings") if isinstance(plan, Mapping) else None
        for warning in warnings if isinstance(warnings, list) else []:
            lines.setdefault(click.style(f"warning: {clean(warning)}", fg="yellow"), []).append(host)
    for text, hosts in lines.items():
        yield f"{_label(hosts)}: {text}"
    if unlocked:
        yield f"apply refuses what the lock does not pin: ./modelfleet lock {' '.join(unlocked)}"


def explained(host: str, plan: object) -> Iterator[str]:
    """Yield every candidate of every model of a host: where it was tried, what it needs of what, and why not."""
    yield click.style(clean(host), bold=True)
    budgets = plan.get("budgets") if isinstance(plan, Mapping) else None
    for budget in budgets if isinstance(budgets, list) else []:
        if isinstance(budget, Mapping):
            yield f"  {_budget(budget)}"
    for model in models_of(plan):
        context = number(model, "context")
        about = f", context {context} tokens" if context else ""
        yield f"  {click.style(clean(model.get('model')), bold=True)}: {clean(model.get('action'))}{about}"
        yield f"    {clean(model.get('reason'))}"
        rows = []
        candidates = model.get("candidates")
        for one in candidates if isinstance(candidates, list) else []:
            if isinstance(one, Mapping):
                rows.append(_candidate(one))
        yield from table(rows, indent="    ")


def _budget(budget: Plan) -> str:
    capacity, room = number(budget, "capacity_bytes"), number(budget, "budget_bytes")
    if capacity is None or room is None:
        return f"{clean(budget.get('device'))} {clean(budget.get('name'))}: its memory is not known"
    kept = format_bytes(number(budget, "headroom_bytes") or 0)
    name = " ".join(filter(None, (clean(budget.get("device")), clean(budget.get("name") or ""))))
    return f"{name}: {format_bytes(room)} of {format_bytes(capacity)} for models, {kept} kept free"


def _candidate(one: Plan) -> list[str]:
    placement, need, budget = one.get("placement"), number(one, "need_bytes"), number(one, "budget_bytes")
    colour = "green" if one.get("fits") is True else "red"
    return [
        clean(one.get("quantization")),
        where(placement) if isinstance(placement, Mapping) else "?",
        f"{format_bytes(need)} of {format_bytes(budget) if budget is not None else '?'}" if need is not None else "?",
        click.style(clean(one.get("reason")), fg=colour),
    ]
