"""Running the child process of a proof, away from everything that it does not need.

It runs from the package in the managed environment, under the store's owner, or the account that runs us where we are
not root; without network, with nothing of our environment, so without tokens, and with limits on time and memory.
What the system did not grant is told, not assumed.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from typing import AbstractSet, Any, Callable, Dict, List, NamedTuple, Optional

from ..errors import InferenceError
from ..privilege import Account, dropping_to, environment_for
from .request import UnprovenError

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h


class Isolation(NamedTuple):
    """How far the child is kept from the rest: entering what the system grants, and what that is called."""

    network: str
    enter: Optional[Callable[[], None]]


class Limits(NamedTuple):
    """What one child may take: seconds, and bytes of memory of its own (0: what the machine has)."""

    seconds: float
    memory_bytes: int = 0


class Answer(NamedTuple):
    """What a child said, and how it was kept from the rest."""

    said: Dict[str, Any]
    isolation: Dict[str, Any]


def run_child(
    python: str, request: Dict[str, Any], account: Account, limits: Limits, subject: str, needed: AbstractSet[str]
) -> Answer:
    """Ask a child of the interpreter ``python`` for ``request``, as ``account``, and return its answer.

    Raises InferenceError, which names ``subject``, where the child cannot be
    run, is too slow, ends without an answer that has the ``needed`` keys, or
    answers with an error; UnprovenError where it says that nothing is wrong and
    that it cannot prove this here.
    """
    isolation = find_isolation()
    asked = {**request, "memory_limit_bytes": limits.memory_bytes or None}
    try:
        process = subprocess.Popen(
            [python, "-I", "-m", "modelfleet.core.inference"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment_for(account, {}),
            cwd="/",
            preexec_fn=dropping_to(account, isolation.enter),
            start_new_session=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InferenceError(
            f"{python} cannot be run: {error}", "run apply, or the role inference_runtime, first"
        ) from None
    try:
        output, errors = process.communicate(json.dumps(asked).encode(), timeout=limits.seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise InferenceError(
            f"{subject}: the proof took over {limits.seconds:.0f} s",
            "raise verification_timeout_seconds, or choose a smaller model",
        ) from None
    said = _last_line(output)
    if said is None or not ("error" in said or said.keys() >= needed):
        reason = f"signal {-process.returncode}" if process.returncode < 0 else f"status {process.returncode}"
        last = errors.decode("utf-8", "replace").strip().splitlines()
        raise InferenceError(
            f"{subject}: the proof ended with {reason}: {plain(last[-1]) if last else 'no message'}",
            "run apply again",
        )
    if said.get("unproven") is True:
        reason, command = plain(str(said.get("reason"))), plain(str(said.get("command")))
        raise UnprovenError(reason, command, passing=said.get("passing") is True)
    if "error" in said:
        raise InferenceError(f"{subject}: {plain(str(said['error']))}")
    kept = {
        "account": account.name,
        "network": isolation.network,
        "environment": "emptied",
        "new_privileges": "refused" if sys.platform.startswith("linux") else "not refused: the system cannot",
        "time": f"at most {limits.seconds:.0f} s",
        "memory": _memory_limit(limits.memory_bytes),
    }
    return Answer(said, kept)


def _memory_limit(amount: int) -> str:
    if not amount:
        return "not limited"
    if not sys.platform.startswith("linux"):
        return "not limited: the system does not hold mappings to a limit"
    return f"{amount} bytes of its own (RLIMIT_DATA)"


def find_isolation() -> Isolation:
    """Return how a child can be cut off from the network here: a namespace, a user namespace, or not at all."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare"):
        return Isolation("not isolated: the system has no network namespaces", None)
    flags = _CLONE_NEWNET if os.geteuid() == 0 else _CLONE_NEWUSER | _CLONE_NEWNET
    user, group = os.geteuid(), os.getegid()

    def enter() -> None:
        if libc.unshare(flags) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        if flags & _CLONE_NEWUSER:
            _map_to_itself(user, group)

    # All of it is tried: some systems grant the namespace and refuse what makes it usable (Ubuntu's AppArmor).
    child = os.fork()
    if child == 0:
        status = 1
        try:
            enter()
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1] != 0:
        return Isolation("not isolated: the system refuses a network namespace", None)
    return Isolation("none: a network namespace of its own", enter)


def _map_to_itself(user: int, group: int) -> None:
    """In a new user namespace, be the account that we were: files then have the owners that they had."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(descriptor, text.encode())
        os.close(descriptor)


def plain(text: str) -> str:
    """Return a text of the child's as one line without control characters."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def _last_line(output: bytes) -> Optional[Dict[str, Any]]:
    """Return the child's answer, or None where its last line is none."""
    lines: List[str] = output.decode("utf-8", "replace").strip().splitlines()
    try:
        said = json.loads(lines[-1])
    except (IndexError, ValueError):
        return None
    return said if isinstance(said, dict) else None
