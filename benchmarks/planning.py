"""How fast a fleet is planned: 1,000 hosts with 10 models each, decided by the core, without Ansible.

The hosts are of many kinds (cards, counts, MIG slices, Macs, processors only;
memories all different), the models are the shipped catalog's with the tutorial's
use cases in turn. Every answer about memory is reckoned once and kept, as in
``modelfleet plan``; ``cold`` is the first host, which reckons most of them.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import yaml
from modelfleet.cli.simulate import simulated
from modelfleet.core.catalog import read_catalog
from modelfleet.core.planning.host import plan_host
from modelfleet.core.planning.needs import Needs
from modelfleet.core.planning.settings import PlanSettings
from modelfleet.core.planning.state import empty_state
from modelfleet.core.units import MIB
from modelfleet.core.wishes import USE_CASES, read_wishes

CHECKOUT = Path(__file__).resolve().parents[1]
HOSTS, MODELS, RUNS = 1000, 10, 5
MACHINES = (
    *("RTX 3060 12 GB", "2x RTX 3090, 64 GB RAM", "RTX 4090", "4x RTX A6000, 256 GB RAM", "RTX 4060 Ti 8 GB"),
    *("A100 80 GB MIG 7x 1g.10gb, 512 GB RAM", "M1 16 GB", "M2 Max 64 GB", "CPU 32 GB 16 cores", "RX 7900 XTX"),
    *("8x H100, 2000 GB RAM", "GB10"),
)
LIMIT_SECONDS = 5.0


def hosts() -> list[dict[str, Any]]:
    """Return the profiles: each machine in turn, with memories that are alike on no two hosts."""
    chance = random.Random(4)
    found = []
    for number in range(HOSTS):
        _, profile = simulated(MACHINES[number % len(MACHINES)])
        profile["memory"]["total_bytes"] -= chance.randrange(512) * MIB
        for card in profile["accelerators"]:
            if card["memory"]["total_bytes"]:
                card["memory"]["total_bytes"] -= chance.randrange(64) * MIB
        found.append(profile)
    return found


def main() -> None:
    """Plan the fleet several times and print the table."""
    entries = yaml.safe_load((CHECKOUT / "roles/models/defaults/main/catalog.yml").read_text())["models_catalog"]
    catalog = read_catalog(entries, json.loads((CHECKOUT / "models.lock.json").read_text()))
    chat = [entry.id for entry in catalog.entries.values() if entry.kind == "chat" and len(entry.variants) > 1]
    uses = list(USE_CASES)
    wanted = [{"model": chat[number % len(chat)], "use_case": uses[number % len(uses)]} for number in range(MODELS)]
    wishes = read_wishes(wanted, catalog)
    fleet = hosts()
    settings = PlanSettings(allow_unlocked=True)
    cold, whole, processor = [], [], []
    for _ in range(RUNS):
        needs = Needs()
        started, began = time.perf_counter(), time.process_time()
        plans = []
        for number, profile in enumerate(fleet):
            plans.append(plan_host(wishes, catalog, profile, empty_state("/srv/models", profile), settings, needs))
            if number == 0:
                cold.append(time.perf_counter() - started)
        whole.append(time.perf_counter() - started)
        processor.append(time.process_time() - began)
    started = time.perf_counter()
    size = sum(len(json.dumps(plan.to_dict())) for plan in plans)
    written = time.perf_counter() - started
    models = [model for plan in plans for model in plan.models]
    median = statistics.median(whole)
    print(f"{HOSTS} hosts x {len(wishes)} wishes of {len(chat)} models: {len(models)} decided, ", end="")  # noqa: T201
    print(f"{sum(1 for model in models if model.action == 'refuse')} refused")  # noqa: T201
    for name, times in (("first host (cold)", cold), ("all hosts", whole), ("their CPU time", processor)):
        print(f"{name:18} median {statistics.median(times):6.3f} s  {min(times):6.3f} to {max(times):6.3f} s")  # noqa: T201
    print(f"{'as JSON':18}        {written:6.3f} s  {size / HOSTS / 1024:.0f} KiB a host")  # noqa: T201
    print(f"{'limit':18}        {LIMIT_SECONDS:6.3f} s  {'kept' if median < LIMIT_SECONDS else 'NOT KEPT'}")  # noqa: T201


if __name__ == "__main__":
    main()
