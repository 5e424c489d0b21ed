"""Predicted against measured memory of a host, by device: ``.modelfleet/memory.json`` in the store.

::

    {"schema_version": 1, "devices": {"CPU": [{"model", "predicted_bytes", "measured_bytes", "verified_at"}]}}

The newest entry of a model replaces its older one, and a device keeps its ``KEPT`` newest: the file stays small.
"""

import json
import math
import os
from typing import Any, Dict, Iterable, List, Mapping

from ..store.layout import STATE
from ..store.manifest import write_json
from ..units import MIB

SCHEMA_VERSION = 1
LEDGER = f"{STATE}/memory.json"
KEPT = 50
_STEP_MEBIBYTES = 64

Ledger = Dict[str, List[Dict[str, Any]]]


def read_ledger(store_path: str) -> Ledger:
    """Return the entries by device, the oldest first; none where there are none that can be read."""
    try:
        with open(os.path.join(store_path, LEDGER), encoding="utf-8") as source:
            devices = json.load(source)["devices"]
        return {str(name): [one for one in entries if _whole(one)] for name, entries in devices.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def write_ledger(store_path: str, ledger: Ledger) -> None:
    """Replace the ledger, to be called with the owner's rights."""
    write_json(os.path.join(store_path, LEDGER), {"schema_version": SCHEMA_VERSION, "devices": ledger})


def entered(ledger: Ledger, records: Iterable[Mapping[str, Any]]) -> Ledger:
    """Return the ledger with what the records of proofs say of memory."""
    found = {name: list(entries) for name, entries in ledger.items()}
    for record in records:
        for device in (record.get("memory") or {}).get("devices") or []:
            entry = {
                "model": record["model"],
                **{name: device.get(name) for name in ("predicted_bytes", "measured_bytes")},
                "verified_at": record["verified_at"],
            }
            if _whole(entry):
                name = str(device.get("name"))
                others = [one for one in found.get(name, []) if one["model"] != entry["model"]]
                found[name] = [*others, entry][-KEPT:]
    return found


def summary(ledger: Ledger) -> List[Dict[str, Any]]:
    """Return for each device what was predicted and measured, and the headroom that would have covered the difference.

    ``headroom_mebibytes`` is the largest excess of measured over predicted
    memory, rounded up to 64 MiB: 0 where nothing took more than predicted.
    """
    told = []
    for name in sorted(ledger):
        excess = max([one["measured_bytes"] - one["predicted_bytes"] for one in ledger[name]], default=0)
        told.append(
            {
                "device": name,
                "models": ledger[name],
                "largest_excess_bytes": excess,
                "headroom_mebibytes": math.ceil(max(excess, 0) / MIB / _STEP_MEBIBYTES) * _STEP_MEBIBYTES,
            }
        )
    return told


def _whole(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
        return False
    sizes = [entry.get("predicted_bytes"), entry.get("measured_bytes")]
    return all(isinstance(size, int) and not isinstance(size, bool) and 0 < size < 2**60 for size in sizes)
