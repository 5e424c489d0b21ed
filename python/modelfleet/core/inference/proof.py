"""What is due to be proved on a host, and proving it: first that the installation works, then that the models answer.

What rests on unchanged grounds (core.inference.sentinel) is not run again, and no process is started for it. A file
that is not the published one is refused without being loaded.
"""

import os
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..errors import InferenceError, ModelfleetError, StackError
from ..formats.judge import describe
from ..hardware.verdict import FAIL
from ..jobs import Progress, describe_os_error
from ..privilege import Account, acting_as
from ..runtime.environment import read_state
from ..runtime.resolver.stack import resolve_stack
from ..store.layout import STATE
from ..store.manifest import now, read_manifest
from ..store.tree import store_owner
from . import checks, ledger, throughput
from .child import Limits, run_child
from .records import Record, Records, read_records, write_records
from .request import UnprovenError
from .sentinel import (
    Grounds,
    changed_file,
    fingerprint,
    host_grounds,
    installation_grounds,
    installed_key,
    proof_grounds,
    why_due,
)
from .subjects import Subject, Unproved, subjects

# What the child has to say of a proof, and of the installation, at least.
_ANSWER = frozenset(("backend", "device", "output", "load_seconds", "offloaded_layers", "memory", "versions"))
_INSTALLATION = frozenset(("python", "kernel", "torch", "llama_cpp", "onnxruntime"))
OUTPUTS = f"{STATE}/proofs"
"""Where images and sounds of proofs are kept, relative to the store."""

# What a kind's library is installed as, and the runtime's profile that has it. A GGUF's is in every environment.
_NEEDS = {
    "embedding": ("sentence_transformers", "embeddings"),
    "transformers": ("transformers", "torch"),
    "diffusion": ("diffusers", "diffusion"),
    "onnx": ("onnxruntime", "onnx"),
    "speech": ("transformers", "torch"),
}


class Place(NamedTuple):
    """Where proofs run: the store's and the runtime's path, and what one child may take."""

    store_path: str
    runtime_path: str
    limits: Limits
    least_share: float = 0.2

    @property
    def python(self) -> str:
        """The interpreter of the environment in use."""
        return os.path.join(self.runtime_path, "current", "bin", "python")


class Wished(NamedTuple):
    """What a host is to prove: the models of its plan, and what the role runtime said of the environment."""

    models: Sequence[Mapping[str, Any]]
    environment_key: str = ""
    hardware: Mapping[str, Any] = {}
    backend: str = ""
    profiles: Tuple[str, ...] = ()


class Due(NamedTuple):
    """A proof that has to run: of the installation where there is no subject. ``reasons`` say why."""

    subject: Optional[Subject]
    grounds: Grounds
    reasons: Tuple[str, ...]

    @property
    def told(self) -> str:
        """One line for a diff."""
        name = self.subject.file if self.subject else "installation"
        return f"{name}: proved ({', '.join(self.reasons)})\n"


class Survey(NamedTuple):
    """What stands and what is due. ``altered``: models whose files are not the published ones, with what is wrong."""

    due: Tuple[Due, ...]
    proofs: Tuple[Record, ...]
    installation: Optional[Record]
    unproved: Tuple[Unproved, ...]
    altered: Dict[str, str]

    @property
    def ready(self) -> Tuple[Due, ...]:
        """What is due and can be run: no file is loaded that is not the published one."""
        return tuple(one for one in self.due if one.subject is None or one.subject.model not in self.altered)


def survey(place: Place, wished: Wished) -> Survey:
    """Return what is due on this host; reads records, names of packages and stats, starts nothing."""
    key = wished.environment_key or installed_key(place.runtime_path)
    records, manifest = read_records(place.store_path), read_manifest(place.store_path)
    host = host_grounds(place.runtime_path, key)
    found, unproved = subjects(wished.models)
    due: List[Due] = []
    standing: List[Record] = []
    altered: Dict[str, str] = {}
    installation = None
    if key:
        grounds = installation_grounds(host, wished.hardware)
        reasons = why_due(records.installation, grounds)
        if reasons:
            due.append(Due(None, grounds, tuple(reasons)))
        else:
            installation = records.installation
    for subject in found:
        lacking = _lacking(subject, host)
        if lacking:
            unproved.append(lacking)
            continue
        grounds = proof_grounds(host, subject, manifest)
        reasons = why_due(records.proofs.get(subject.file), grounds)
        problem = changed_file(place.store_path, manifest, subject)
        if problem:
            altered[subject.model] = problem
            reasons = reasons or [problem]
        if reasons:
            due.append(Due(subject, grounds, tuple(reasons)))
            continue
        record = records.proofs[subject.file]
        if record.get("unproved"):
            unproved.append(Unproved(subject.model, str(record.get("reason")), str(record.get("command"))))
        else:
            standing.append(record)
    return Survey(tuple(due), tuple(standing), installation, tuple(unproved), altered)


class Outcome(NamedTuple):
    """What running proofs gave: records of the installation (None: it was not due) and of the models that answered.

    A model that gave another output than expected has a record with ``passed``
    false; ``broken`` has a line for each whose proof could not be run.
    """

    installation: Optional[Record]
    proofs: List[Record]
    unproved: List[Unproved]
    broken: List[str]


def prove(place: Place, wished: Wished, due: Iterable[Due], progress: Progress) -> Outcome:
    """Run what is due, each proof whatever became of the others, and keep the records.

    An installation that fails ends it: what computes on the wrong device is not
    worth proving. Raises InferenceError where the installation cannot be asked.
    """
    owner = store_owner(place.store_path)
    outcome = Outcome(None, [], [], [])
    bandwidth = _Bandwidth(wished.hardware)
    for one in due:
        subject = one.subject
        if subject is None:
            progress.update("checking the installation")
            record = _installation(place, wished, one, owner)
            _keep(place.store_path, owner, None, record)
            outcome = outcome._replace(installation=record)
            if not record["passed"]:
                break
            continue
        progress.update(f"proving {subject.model}: loading and computing")
        try:
            record = _model(place, subject, one, owner, bandwidth)
            outcome.proofs.append(record)
        except UnprovenError as error:
            unproved = Unproved(subject.model, error.reason, error.command)
            outcome.unproved.append(unproved)
            if error.passing:
                continue
            # Nothing that a later run could do better, as long as the grounds are these.
            record = {**unproved._asdict(), "unproved": True, **_said([], one), "passed": False}
        except (InferenceError, OSError) as error:
            told = str(error) if isinstance(error, InferenceError) else f"{subject.model}: {describe_os_error(error)}"
            outcome.broken.append(told)
            continue
        # Kept at once: the next may end the machine.
        _keep(place.store_path, owner, subject, record)
    return outcome


def _keep(store_path: str, owner: Account, subject: Optional[Subject], record: Record) -> None:
    before = read_records(store_path)
    with acting_as(owner):
        if subject is None:
            write_records(store_path, Records(before.proofs, record))
        else:
            write_records(store_path, Records({**before.proofs, subject.file: record}, before.installation))
            book = ledger.read_ledger(store_path)
            entered = ledger.entered(book, [record])
            if entered != book:
                ledger.write_ledger(store_path, entered)


def _installation(place: Place, wished: Wished, due: Due, owner: Account) -> Record:
    request: Dict[str, Any] = {
        "kind": "installation",
        "path": "",
        "check": {},
        "placement": None,
        "output_folder": None,
    }
    answer = run_child(place.python, request, owner, place.limits, "the installation", _INSTALLATION)
    found = checks.judge_installation(answer.said, installed_host(place.runtime_path, wished))
    return {**_said(found, due), "said": answer.said, "isolation": answer.isolation}


def installed_host(runtime_path: str, wished: Wished) -> checks.Host:
    """Return what the installation is held against: the role's word, else the environment's own record."""
    state = read_state(os.path.join(runtime_path, "current")) or {}
    recorded = [str(one) for one in state.get("distributions") or []]
    try:
        best = resolve_stack(wished.hardware).backend if wished.hardware else ""
    except StackError:
        # No stack serves this host: the role runtime says so, with the cure.
        best = ""
    return checks.Host(
        wished.hardware,
        wished.backend or str(state.get("backend") or ""),
        best,
        wished.profiles or tuple(str(one) for one in state.get("profiles") or ()),
        {name: version for name, _, version in (one.rpartition("-") for one in recorded)},
    )


def _model(place: Place, subject: Subject, due: Due, owner: Account, bandwidth: "_Bandwidth") -> Record:
    folder = os.path.join(place.store_path, OUTPUTS)
    with acting_as(owner):
        os.makedirs(folder, mode=0o755, exist_ok=True)
    request = subject.request(place.store_path, folder)
    answer = run_child(place.python, request, owner, place.limits, subject.model, _ANSWER)
    said = answer.said
    expected = subject.check.get("expected")
    # What the child says comes first: of ours it can replace nothing.
    record = {
        **said,
        "model": subject.model,
        "kind": subject.kind,
        "file": subject.file,
        "prompt": subject.prompt,
        "expected": said.get("expected", "") if expected is None else expected,
        "passed": said.get("passed") is True if expected is None else str(said["output"]).startswith(expected),
        "isolation": answer.isolation,
    }
    if subject.kind == "gguf":
        token_bytes = _bytes_per_token(place, subject)
        record["throughput"] = throughput.judge(
            said.get("generation_tokens_per_second"),
            bandwidth.of(subject, record) if token_bytes else None,
            token_bytes,
        )
    return {**record, **_said(checks.judge_proof(record, subject.placement, place.least_share), due)}


def _said(found: List[checks.Check], due: Due) -> Record:
    return {
        "passed": all(check.status != FAIL for check in found),
        "checks": [check._asdict() for check in found],
        "fingerprint": fingerprint(due.grounds),
        "grounds": due.grounds,
        "reasons": list(due.reasons),
        "verified_at": now(),
    }


class _Bandwidth:
    """The bandwidth of the memory that a model is read from; the main memory's is measured once, when it is asked."""

    def __init__(self, hardware: Mapping[str, Any]) -> None:
        self._accelerators = hardware.get("accelerators") or []
        self._main: Optional[float] = None

    def of(self, subject: Subject, record: Mapping[str, Any]) -> Optional[float]:
        """Return bytes per second, None where it is not known: of a model on two kinds of memory there is no one."""
        if record.get("backend") == "cpu":
            if self._main is None:
                self._main = throughput.measure_main_memory()
            return self._main
        planned = str((subject.placement or {}).get("device") or "").split("+")
        named = [throughput.card_bandwidth(self._name(device)) for device in planned]
        known = [one for one in named if one is not None]
        return min(known) if known and len(known) == len(named) else None

    def _name(self, device: str) -> Optional[str]:
        number = device[len("GPU") :]
        if device.startswith("GPU") and number.isdigit() and int(number) < len(self._accelerators):
            name = self._accelerators[int(number)].get("name")
            return str(name) if name else None
        return None


def _bytes_per_token(place: Place, subject: Subject) -> Optional[int]:
    try:
        return throughput.bytes_per_token(describe(os.path.join(place.store_path, subject.file)))
    except (ModelfleetError, OSError):
        # llama.cpp read it: what our own reader cannot describe has no bound, and that is all.
        return None


def _lacking(subject: Subject, host: Grounds) -> Optional[Unproved]:
    package, profile = _NEEDS.get(subject.kind, ("", ""))
    installed = {name.replace("-", "_").lower().replace("onnxruntime_gpu", "onnxruntime") for name in host["packages"]}
    if not package or package in installed:
        return None
    return Unproved(
        subject.model,
        f"{package} is not in the managed environment",
        f'./modelfleet apply -l HOST -e \'{{"inference_runtime_profiles": ["{profile}"]}}\' && '
        "./modelfleet verify -l HOST",
    )
