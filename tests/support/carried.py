"""A plan that is carried out in a process of its own, in which the system fails or kills as strace is told."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from modelfleet.core.planning.document import HostPlan

# It starts fast: of these processes there are hundreds.
CHILD = """
import pickle, sys
sys.path.insert(0, sys.argv[1])
from modelfleet.core.errors import ModelfleetError
from modelfleet.core.fetch.settings import FetchSettings, Patience
from modelfleet.core.jobs import Progress, describe_os_error
from modelfleet.core.publishing import carry_out
from modelfleet.core.store import manifest
manifest.RACY_NS = 12_000_000
plan = pickle.loads(sys.stdin.buffer.read())
try:
    carry_out(plan, FetchSettings(patience=Patience(tries=1)), Progress())
except ModelfleetError as error:
    sys.exit(str(error))
except OSError as error:
    sys.exit(describe_os_error(error))
"""


def carried_out(checkout: Path, plan: HostPlan, *inject: str, paths: Sequence[Path] = ()) -> tuple[int, str]:
    """Carry out ``plan`` in a child, with these injections of strace; returns exit status and what was said.

    Where ``paths`` are given, only calls that concern them are counted. The status is -9 where it was killed.
    """
    line = [sys.executable, "-c", CHILD, str(checkout / "python")]
    if inject:
        options = [option for one in inject for option in ("-e", f"inject={one}")]
        calls = ",".join(one.split(":")[0] for one in inject)
        some = [option for path in paths for option in ("-P", str(path))]
        line = ["strace", "-f", "-qq", *some, "-e", f"trace={calls}", *options, "-o", os.devnull, *line]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(line, input=pickle.dumps(plan), env=environment, capture_output=True, check=False)
    killed = done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    return (-signal.SIGKILL if killed else done.returncode), done.stderr.decode("utf-8", "replace")


@pytest.fixture(scope="session")
def strace() -> None:
    """Skip where nothing can be traced."""
    probe = ["strace", "-f", "-qq", "-o", os.devnull, "-e", "inject=sync:error=EIO", "true"]
    if shutil.which("strace") is None or subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the program strace, and to be allowed to trace")
