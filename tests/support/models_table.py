"""The table of models in docs/models.md, made from the shipped catalog and lock.

``python tests/support/models_table.py`` rewrites it; a test fails while it is not up to date.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
DOCUMENT = CHECKOUT / "docs" / "models.md"
# What this project's own tests run on real hardware; nothing else may be called proved.
PROVED = {
    "smollm2-135m-instruct": "q4_1, by its answer (CPU)",
    "all-MiniLM-L6-v2": "fp32, by its hashes only",
}
_SECTION = re.compile(r"(?ms)^## The models\n.*?(?=^## |\Z)")
_INTRODUCTION = """\
*Planned*: quantizations whose memory is known without a network, from the catalog's shape or the lock's. *Locked*: what
`models.lock.json` of this release pins; everything else needs `modelfleet lock` once. *Proved*: what this project's
own tests have fetched and run."""


def section() -> str:
    """Return the section that the document must hold."""
    from modelfleet.core.catalog import read_catalog
    from modelfleet.core.memory.synthesis import QUANTIZATIONS

    path = CHECKOUT / "roles/models/defaults/main/catalog.yml"
    lock = json.loads((CHECKOUT / "models.lock.json").read_text(encoding="utf-8"))
    catalog = read_catalog(yaml.safe_load(path.read_text(encoding="utf-8"))["models_catalog"], lock)
    rows, by_size = [], "by its files' sizes"
    for entry in catalog.entries.values():
        variants = entry.variants.values()
        planned = [
            one.quantization
            for one in variants
            if one.shape is not None or (entry.shape is not None and one.quantization in QUANTIZATIONS)
        ]
        locked = [one.quantization for one in variants if one.locked]
        sizes = all(file.size is not None for one in variants for file in one.files)
        pickle = any(one.format == "pickle" and not one.allow_pickle for one in variants)
        cells = (
            f"`{entry.id}`",
            f"`{entry.category}`",
            ", ".join(entry.tasks),
            ", ".join(entry.variants),
            ("all" if len(planned) == len(entry.variants) else ", ".join(planned))
            or (by_size if sizes else "once locked"),
            "refused: pickle" if pickle else ", ".join(locked) or "-",
            PROVED.get(entry.id, "-"),
        )
        rows.append(f"| {' | '.join(cells)} |")
    head = ["| model | directory | tasks | variants | planned | locked | proved |", "|---|---|---|---|---|---|---|"]
    return "\n".join(["## The models", "", _INTRODUCTION, "", *head, *rows, "", ""])


def with_section(text: str) -> str:
    """Return ``text`` with its section of models replaced."""
    return _SECTION.sub(lambda _: section(), text).rstrip("\n") + "\n"


if __name__ == "__main__":
    sys.path.append(str(CHECKOUT / "python"))
    DOCUMENT.write_text(with_section(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
