"""Waiting for work in the background of a host, as the action plugins do."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


def result_of(job: dict[str, str]) -> dict[str, Any]:
    """Wait until a job is over and return its result."""
    end = time.monotonic() + 120
    while '"finished"' not in Path(job["progress"]).read_text(encoding="utf-8"):
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)
    result: dict[str, Any] = json.loads(Path(job["result"]).read_text(encoding="utf-8"))
    return result
