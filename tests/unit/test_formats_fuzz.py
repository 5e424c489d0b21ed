"""A while of fuzzing the readers of model files from their seeds: 60 seconds with --long or in CI, else a few."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


def test_nothing_but_a_refusal_comes_out_of_the_readers(
    checkout: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed")
    seconds = 60 if request.config.getoption("--long") or os.environ.get("CI") else 8
    target = checkout / "tests" / "fuzz" / "fuzz_formats.py"
    command = [sys.executable, str(target), f"-max_total_time={seconds}", "-print_final_stats=1", "-rss_limit_mb=1024"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=seconds + 120)
    assert run.returncode == 0, run.stderr[-4000:]
    executed = re.search(r"number_of_executed_units: (\d+)", run.stderr)
    assert executed is not None and int(executed[1]) > 100, run.stderr[-1000:]
