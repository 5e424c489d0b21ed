"""A plan that is carried out in a process of its own, in which the system fails or kills as strace is told."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from modelfleet.core.planning.document import HostPlan
from modelfleet.core.privilege import Account

# It starts fast: of these processes there are hundreds.
CHILD = """
import os, pickle, sys
sys.path.insert(0, sys.argv[1])
from modelfleet.core.errors import ModelfleetError
from modelfleet.core.fetch.settings import FetchSettings, Patience
from modelfleet.core.jobs import Progress, describe_os_error
from modelfleet.core.publishing import carry_out
from modelfleet.core.store import manifest
manifest.RACY_NS = 12_000_000
plan = pickle.loads(sys.stdin.buffer.read())
# Not before: another account may not be allowed to read the Python that runs this.
if len(sys.argv) > 2:
    uid, gid = map(int, sys.argv[2:])
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
try:
    carry_out(plan, FetchSettings(patience=Patience(tries=1)), Progress())
except ModelfleetError as error:
    sys.exit(str(error))
except OSError as error:
    sys.exit(describe_os_error(error))
"""


def carried_out(
    checkout: Path, plan: HostPlan, inject: str = "", account: Account | None = None
) -> tuple[int, str, bool]:
    """Carry out ``plan`` in a child, with this injection of strace, and as ``account``, where they are given.

    Returns exit status, what was said, and whether a call was made to fail. The status is -9 where it was killed.
    """
    line = [sys.executable, "-c", CHILD, str(checkout / "python")]
    if account is not None:
        line += [str(account.uid), str(account.gid)]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.NamedTemporaryFile() as log:
        if inject:
            call = inject.split(":")[0]
            line = ["strace", "-f", "-qq", "-e", f"trace={call}", "-e", f"inject={inject}", "-o", log.name, *line]
        done = subprocess.run(line, input=pickle.dumps(plan), env=environment, capture_output=True, check=False)
        injected = b"(INJECTED)" in log.read()
    killed = done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    return (-signal.SIGKILL if killed else done.returncode), done.stderr.decode("utf-8", "replace"), injected


@pytest.fixture(scope="session")
def strace() -> None:
    """Skip where nothing can be traced."""
    probe = ["strace", "-f", "-qq", "-o", os.devnull, "-e", "inject=sync:error=EIO", "true"]
    if shutil.which("strace") is None or subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the program strace, and to be allowed to trace")
