"""Plans for machines that are not there: simulated or recorded ones, made on the controller."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..core.catalog import Catalog, read_catalog
from ..core.errors import ConfigurationError
from ..core.planning.host import plan_host
from ..core.planning.needs import Needs
from ..core.planning.settings import read_settings
from ..core.planning.state import empty_state
from ..core.wishes import USE_CASES, read_wishes
from .options import Options
from .simulate import simulated
from .variables import Variables

STORE = "/opt/ashley-ai/models"
ALL = "all-"


def plans_of_machines(
    options: Options, simulate: tuple[str, ...], replay: tuple[str, ...], want: tuple[str, ...]
) -> dict[str, Any]:
    """Return the plan of each machine by its name: with the wishes ``want``, else those of the inventory.

    A machine that has the name of a host or group has its variables, any other those of all hosts.
    """
    profiles: dict[str, dict[str, Any]] = {}
    for text in simulate:
        name, profile = simulated(text)
        profiles[_new(name, profiles)] = profile
    if replay:
        from .probe import replayed

        for name, profile in replayed(replay).items():
            profiles[_new(name, profiles)] = profile
    variables = Variables(options)
    known: dict[str, tuple[Catalog, Needs]] = {}
    plans = {}
    for name, profile in profiles.items():
        given = variables.of(name)
        entries = [*_list(given, "catalog"), *_list(given, "catalog_extra")]
        lock = str(given.get("lock_file"))
        key = json.dumps([entries, lock], default=str)
        if key not in known:
            known[key] = read_catalog(entries, _lock(lock)), Needs()
        catalog, needs = known[key]
        wishes = read_wishes(_wanted(want, catalog) if want else _list(given, "wanted"), catalog)
        state = empty_state(STORE, profile)
        plans[name] = plan_host(wishes, catalog, profile, state, read_settings(given), needs).to_dict()
    return plans


def _new(name: str, taken: dict[str, Any]) -> str:
    number = 2
    while name in taken:
        name = f"{name.rsplit(' #', 1)[0]} #{number}"
        number += 1
    return name


def _list(given: dict[str, Any], name: str) -> list[Any]:
    value = given.get(name)
    if not isinstance(value, list):
        raise ConfigurationError(f"models_{name} is no list", "write each entry beginning with '- '")
    return value


def _lock(path: str) -> dict[str, Any]:
    try:
        document = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}", "point models_lock_file at a models.lock.json") from error
    except ValueError:
        raise ConfigurationError(f"{path} is not JSON", "restore it, or run modelfleet lock") from None
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path} is no lock", "restore it, or run modelfleet lock")
    return document


def _wanted(want: tuple[str, ...], catalog: Catalog) -> list[dict[str, Any]]:
    """Return the wishes of ``--want``: a model or ``all-KIND``, behind a colon a quantization, a use case or best."""
    wishes = []
    for text in want:
        name, _, how = text.partition(":")
        chosen: dict[str, Any] = {}
        if how:
            chosen = {"best": True} if how == "best" else {"use_case" if how in USE_CASES else "quantization": how}
        kind = name[len(ALL) :] if name.startswith(ALL) else None
        models = [entry.id for entry in catalog.entries.values() if entry.kind == kind] or [name]
        if kind is not None and models == [name]:
            kinds = ", ".join(f"{ALL}{one}" for one in dict.fromkeys(e.kind for e in catalog.entries.values()))
            raise ConfigurationError(f"--want {text}: the catalog has no {kind!r} models", f"use one of {kinds}")
        for model in models:
            offered = catalog.entries[model].variants if model in catalog.entries else {}
            # Not every model of a kind has the quantization that is asked of all of them.
            fits = kind is None or "quantization" not in chosen or how in offered
            wishes.append({"model": model, **(chosen if fits else {})})
    return wishes
