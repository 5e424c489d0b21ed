"""Proofs: which are due, and running one away from everything it does not need.

A proof runs in a child process from the package in the managed environment:
under the store's owner, or the account that runs us where we are not root;
without network and with nothing of our environment, so without tokens; with
limits on time. The record says which of these were really had.

Records are kept in the store, ``.modelfleet/verification.json``, by model
file. A proof is due when its fingerprint changed: kernel, driver, packages,
model, prompt, expectation, placement, modelfleet.
"""

import ctypes
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from ... import __version__
from ..errors import InferenceError
from ..jobs import Progress
from ..privilege import Account, acting_as, dropping_to, environment_for
from ..runtime.environment import read_state
from ..store.layout import STATE
from ..store.manifest import now, write_json
from ..store.tree import store_owner

SCHEMA_VERSION = 1
RECORDS = f"{STATE}/verification.json"
# What the child has to say of a proof, at least; see llama.prove.
_RESULT = {"backend", "device", "output", "load_seconds", "offloaded_layers", "memory", "versions"}
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h


class Subject(NamedTuple):
    """What is to be proved: a model, its first file (relative to the store) with its pinned sha256, and its check."""

    model: str
    file: str
    sha256: str
    prompt: str
    expected: str


class Isolation(NamedTuple):
    """How far the child is kept from the rest: entering what the system grants, and what that is called."""

    network: str
    enter: Optional[Callable[[], None]]


def subjects(planned: List[Dict[str, Any]]) -> Tuple[List[Subject], List[str]]:
    """Return what can be proved of a HostPlan's models, and the names of those that have no check yet."""
    found: List[Subject] = []
    unproved: List[str] = []
    for model in planned:
        check, files = model.get("check"), model.get("files") or []
        if check and files and files[0]["path"].endswith(".gguf"):
            first = files[0]
            found.append(Subject(model["model"], first["path"], first["sha256"], check["prompt"], check["expected"]))
        else:
            unproved.append(model["model"])
    return found, unproved


def fingerprint(subject: Subject, environment_key: str) -> str:
    """Return the hash of all that could change what a proof gives; the key names all that is installed."""
    parts = {
        "kernel": platform.release(),
        "driver": _driver_version(),
        "environment": environment_key,
        "model": subject.sha256,
        "prompt": subject.prompt,
        "expected": subject.expected,
        "placement": {"offloaded_layers": 0},
        "modelfleet": __version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def installed_key(runtime_path: str) -> str:
    """Return the key of the environment in use; '' where there is none."""
    state = read_state(os.path.join(runtime_path, "current")) or {}
    return str(state.get("key", ""))


def read_records(store_path: str) -> Dict[str, Dict[str, Any]]:
    """Return the records by model file; empty where there are none that can be read."""
    try:
        with open(os.path.join(store_path, RECORDS), encoding="utf-8") as source:
            proofs = json.load(source)["proofs"]
        return {name: record for name, record in proofs.items() if isinstance(record, dict)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def due(subject: Subject, mark: str, records: Dict[str, Dict[str, Any]]) -> bool:
    """Tell whether the proof has to run: never passed, or something changed since."""
    record = records.get(subject.file)
    return record is None or not record.get("passed") or record.get("fingerprint") != mark


def prove(
    store_path: str, runtime_path: str, pending: List[Tuple[Subject, str]], timeout: float, progress: Progress
) -> List[Dict[str, Any]]:
    """Run the proofs of ``pending`` (with their fingerprints), keep their records, and return them.

    Raises InferenceError where a proof cannot be run; one that runs and does
    not give what is expected is returned with ``passed`` false.
    """
    owner = store_owner(store_path)
    done = []
    for subject, mark in pending:
        progress.update(f"proving {subject.model}: loading and generating")
        done.append(_prove_one(store_path, runtime_path, subject, mark, owner, timeout))
        # Kept at once: the next may be one that cannot be run.
        records = {**read_records(store_path), subject.file: done[-1]}
        with acting_as(owner):
            write_json(os.path.join(store_path, RECORDS), {"schema_version": SCHEMA_VERSION, "proofs": records})
    return done


def _prove_one(
    store_path: str, runtime_path: str, subject: Subject, mark: str, owner: Account, timeout: float
) -> Dict[str, Any]:
    python = os.path.join(runtime_path, "current", "bin", "python")
    if not os.path.isfile(os.path.join(store_path, subject.file)):
        raise InferenceError(
            f"{subject.model}: {subject.file} is not in the store", "run apply, or the role models, first"
        )
    isolation = find_isolation()
    request = {
        "path": os.path.join(store_path, subject.file),
        "prompt": subject.prompt,
        "expected": subject.expected,
    }
    environment = environment_for(owner, {})
    try:
        process = subprocess.Popen(
            [python, "-I", "-m", "modelfleet.core.inference"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd="/",
            preexec_fn=dropping_to(owner, isolation.enter),
            start_new_session=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InferenceError(
            f"{python} cannot be run: {error}", "run apply, or the role inference_runtime, first"
        ) from None
    try:
        output, errors = process.communicate(json.dumps(request).encode(), timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise InferenceError(
            f"{subject.model}: the proof took over {timeout:.0f} s",
            "raise verification_timeout_seconds, or choose a smaller model",
        ) from None
    result = _last_line(output)
    if result is None:
        reason = f"signal {-process.returncode}" if process.returncode < 0 else f"status {process.returncode}"
        last = errors.decode("utf-8", "replace").strip().splitlines()
        raise InferenceError(
            f"{subject.model}: the proof ended with {reason}: {_plain(last[-1]) if last else 'no message'}",
            "run apply again",
        )
    if "error" in result:
        raise InferenceError(f"{subject.model}: {_plain(str(result['error']))}")
    # What the child says comes first: of ours it can replace nothing.
    return {
        **result,
        "model": subject.model,
        "file": subject.file,
        "prompt": subject.prompt,
        "expected": subject.expected,
        "isolation": {
            "account": owner.name,
            "network": isolation.network,
            "environment": "emptied",
            "new_privileges": "refused" if sys.platform.startswith("linux") else "not refused: the system cannot",
        },
        "passed": str(result["output"]).startswith(subject.expected),
        "fingerprint": mark,
        "verified_at": now(),
    }


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


def _driver_version() -> Optional[str]:
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as source:
            return source.readline().strip()
    except OSError:
        return None


def _last_line(output: bytes) -> Optional[Dict[str, Any]]:
    """Return the child's result, or None where its last line is none."""
    lines = output.decode("utf-8", "replace").strip().splitlines()
    try:
        result = json.loads(lines[-1])
    except (IndexError, ValueError):
        return None
    return result if isinstance(result, dict) and ("error" in result or result.keys() >= _RESULT) else None


def _plain(text: str) -> str:
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())
