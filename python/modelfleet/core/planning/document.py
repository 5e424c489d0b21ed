"""A host's plan: what it is to hold, where each model is to run, and what has to be done for it.

Made by ``core.planning.host``, kept by ``modelfleet plan --out``, carried out by ``core.publishing``. As JSON::

    {"schema_version": 2, "store_path": …, "bytes_to_fetch": …, "disk_bytes": …, "warnings": [text],
     "budgets": [{"device", "name", "backend", "capacity_bytes", "headroom_bytes", "budget_bytes"}],
     "models": [{"model", "quantization", "category", "kind", "format", "unit", "licence", "check", "allow_pickle",
                 "files": [{"path", "source", "size", "sha256", "wheel", "alternatives", "in_lock"}], "missing": [path],
                 "action": "keep|fetch|replace|remove|refuse", "needs_lock", "reason", "bytes_to_fetch",
                 "placement": {"device", "backend", "gpu_layers", "layers", "split"} or null,
                 "context", "kv_type", "memory", "tier", "need_bytes", "budget_bytes",
                 "candidates": [{"quantization", "placement", "need_bytes", "budget_bytes", "fits", "reason"}]}]}

Sizes are bytes, ``context`` tokens. ``memory`` is the estimate as ``core.memory`` gives it, of tier ``tier``.
"""

import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..catalog import PinnedFile, WheelPin
from ..errors import ConfigurationError
from ..model_checks import Check, is_check

SCHEMA_VERSION = 2
ACTIONS = ("keep", "fetch", "replace", "remove", "refuse")
_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]*(/[A-Za-z0-9._+@-]+)+\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_CURE = "make the plan anew: ./modelfleet plan --out FILE"


class Budget(NamedTuple):
    """What models may take of one device (bytes): its capacity minus the headroom.

    ``device`` is its name in a plan (``GPU0``, ``CPU``), ``name`` the maker's. A ``budget_bytes`` of None is not known.
    ``alone``: a process that uses it can use no other (a MIG slice). ``shared``: it is main memory (Apple, GB10).
    """

    device: str
    name: str
    backend: str
    capacity_bytes: Optional[int]
    headroom_bytes: int
    budget_bytes: Optional[int]
    alone: bool = False
    shared: bool = False


class Placement(NamedTuple):
    """Where a model runs: ``device`` as in the budgets, several with ``+`` between, ``CPU`` for the processor.

    ``gpu_layers`` and ``split`` are what llama.cpp takes as n_gpu_layers and
    tensor_split: of ``layers`` repeating layers and the output, which counts as
    one more, the last ``gpu_layers`` go to the accelerators. Of a model that is
    no GGUF ``layers`` is 0.
    """

    device: str
    backend: str
    gpu_layers: int
    layers: int
    split: Tuple[int, ...] = ()

    @property
    def on_accelerator(self) -> bool:
        """Whether all of it is on accelerators."""
        return self.backend != "cpu" and self.gpu_layers > self.layers

    @property
    def partial(self) -> bool:
        """Whether some of it is on accelerators, the rest on the processor."""
        return self.backend != "cpu" and not self.on_accelerator


class Candidate(NamedTuple):
    """One quantization that was looked at, in the order of preference, and why it was not taken."""

    quantization: str
    placement: Optional[Placement]
    need_bytes: Optional[int]
    budget_bytes: Optional[int]
    fits: bool
    reason: str


class ModelPlan(NamedTuple):
    """One model of a host: what is done for it, why, and which of its files have to come.

    ``needs_lock``: it is refused for nothing but that the lock does not pin all of its files. ``kind`` is what it does
    (chat, embedding, …); None where it is removed, and in a plan of an earlier release.
    """

    model: str
    quantization: str
    category: str
    format: str
    unit: Optional[str]
    files: Tuple[PinnedFile, ...]
    missing: Tuple[PinnedFile, ...]
    action: str
    reason: str
    licence: Optional[str] = None
    check: Optional[Check] = None
    allow_pickle: bool = False
    placement: Optional[Placement] = None
    context: Optional[int] = None
    kv_type: Optional[str] = None
    memory: Optional[Dict[str, Any]] = None
    tier: Optional[str] = None
    need_bytes: Optional[int] = None
    budget_bytes: Optional[int] = None
    candidates: Tuple[Candidate, ...] = ()
    bytes_to_fetch: int = 0
    needs_lock: bool = False
    kind: Optional[str] = None


class HostPlan(NamedTuple):
    """What one host is to hold. ``disk_bytes`` is what the store grows by; a carrying wheel comes on top for a while.

    ``provisional``: the memory of an accelerator is not known before its driver works; plan again then.
    """

    store_path: str
    models: Tuple[ModelPlan, ...]
    budgets: Tuple[Budget, ...] = ()
    warnings: Tuple[str, ...] = ()
    disk_bytes: int = 0
    provisional: bool = False

    @property
    def bytes_to_fetch(self) -> int:
        """Bytes that cross the network for all models together."""
        return sum(model.bytes_to_fetch for model in self.models)

    @property
    def refused(self) -> Tuple[ModelPlan, ...]:
        """The models that cannot be had as they are wished."""
        return tuple(model for model in self.models if model.action == "refuse")

    @property
    def pending(self) -> bool:
        """Whether something is to be done."""
        return any(model.action in ("fetch", "replace", "remove") for model in self.models)

    def to_dict(self) -> Dict[str, Any]:
        """Return the plan as JSON carries it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "store_path": self.store_path,
            "bytes_to_fetch": self.bytes_to_fetch,
            "disk_bytes": self.disk_bytes,
            "provisional": self.provisional,
            "budgets": [budget._asdict() for budget in self.budgets],
            "warnings": list(self.warnings),
            "models": [_model_to_dict(model) for model in self.models],
        }


def _model_to_dict(model: ModelPlan) -> Dict[str, Any]:
    document = model._asdict()
    document["files"] = [
        {
            **file._asdict(),
            "wheel": file.wheel._asdict() if file.wheel else None,
            "alternatives": list(file.alternatives),
        }
        for file in model.files
    ]
    document["missing"] = [file.path for file in model.missing]
    document["placement"] = _placement_to_dict(model.placement)
    document["candidates"] = [
        {**candidate._asdict(), "placement": _placement_to_dict(candidate.placement)} for candidate in model.candidates
    ]
    return document


def _placement_to_dict(placement: Optional[Placement]) -> Optional[Dict[str, Any]]:
    return {**placement._asdict(), "split": list(placement.split)} if placement else None


def plan_from_dict(document: Any) -> HostPlan:
    """Return the plan that ``to_dict`` wrote. Raises ConfigurationError, naming the key, where it is none."""
    plan = _mapping(document, "the plan")
    if plan.get("schema_version") != SCHEMA_VERSION:
        raise ConfigurationError(
            f"the plan has schema_version {plan.get('schema_version')!r}, this release reads {SCHEMA_VERSION}", _CURE
        )
    return HostPlan(
        store_path=_text(plan, "store_path", "the plan"),
        models=tuple(
            _model(model, f"the plan, models entry {number + 1}")
            for number, model in enumerate(_list(plan, "models", "the plan"))
        ),
        budgets=tuple(_budget(budget) for budget in _list(plan, "budgets", "the plan", optional=True)),
        warnings=tuple(str(text) for text in _list(plan, "warnings", "the plan", optional=True)),
        disk_bytes=_count(plan, "disk_bytes", "the plan") or 0,
        provisional=plan.get("provisional") is True,
    )


def _model(value: Any, where: str) -> ModelPlan:
    model = _mapping(value, where)
    action = _text(model, "action", where)
    if action not in ACTIONS:
        raise _wrong(where, "action", action)
    files = tuple(_file(file, where) for file in _list(model, "files", where))
    by_path = {file.path: file for file in files}
    missing = _list(model, "missing", where)
    for path in missing:
        if path not in by_path:
            raise _wrong(where, "missing", path)
    unit = _optional_text(model, "unit", where)
    if unit is not None and not _is_path(unit):
        raise _wrong(where, "unit", unit)
    check = model.get("check")
    if check is not None and not is_check(_mapping(check, where)):
        raise _wrong(where, "check", check)
    memory = model.get("memory")
    return ModelPlan(
        model=_text(model, "model", where),
        quantization=_text(model, "quantization", where),
        category=_text(model, "category", where),
        format=_text(model, "format", where),
        unit=unit,
        files=files,
        missing=tuple(by_path[path] for path in missing),
        action=action,
        reason=str(model.get("reason") or ""),
        licence=_optional_text(model, "licence", where),
        check=dict(check) if check is not None else None,
        allow_pickle=model.get("allow_pickle") is True,
        placement=_placement(model.get("placement"), where),
        context=_count(model, "context", where),
        kv_type=_optional_text(model, "kv_type", where),
        memory=dict(_mapping(memory, f"{where}, memory")) if memory is not None else None,
        tier=_optional_text(model, "tier", where),
        need_bytes=_count(model, "need_bytes", where),
        budget_bytes=_count(model, "budget_bytes", where),
        candidates=tuple(_candidate(one, where) for one in _list(model, "candidates", where, optional=True)),
        bytes_to_fetch=_count(model, "bytes_to_fetch", where) or 0,
        needs_lock=model.get("needs_lock") is True,
        kind=_optional_text(model, "kind", where),
    )


def _candidate(value: Any, where: str) -> Candidate:
    one = _mapping(value, f"{where}, candidates")
    return Candidate(
        _text(one, "quantization", where),
        _placement(one.get("placement"), where),
        _count(one, "need_bytes", where),
        _count(one, "budget_bytes", where),
        one.get("fits") is True,
        str(one.get("reason") or ""),
    )


def _file(value: Any, where: str) -> PinnedFile:
    file = _mapping(value, f"{where}, files")
    path = _text(file, "path", where)
    if not _is_path(path):
        raise _wrong(where, "path", path)
    carrier = file.get("wheel")
    wheel = None
    if carrier is not None:
        size = _count(_mapping(carrier, where), "size", where)
        wheel = WheelPin(_text(carrier, "filename", where), size or 0, _text(carrier, "sha256", where))
    sha256 = _optional_text(file, "sha256", where)
    if sha256 is not None and not _SHA256.match(sha256):
        raise _wrong(where, "sha256", sha256)
    return PinnedFile(
        path,
        _text(file, "source", where),
        _count(file, "size", where),
        sha256,
        wheel,
        tuple(str(source) for source in _list(file, "alternatives", where, optional=True)),
        file.get("in_lock", True) is True,
    )


def _placement(value: Any, where: str) -> Optional[Placement]:
    if value is None:
        return None
    placement = _mapping(value, f"{where}, placement")
    return Placement(
        _text(placement, "device", where),
        _text(placement, "backend", where),
        _count(placement, "gpu_layers", where) or 0,
        _count(placement, "layers", where) or 0,
        tuple(int(part) for part in _list(placement, "split", where, optional=True)),
    )


def _budget(value: Any) -> Budget:
    where = "the plan, budgets"
    budget = _mapping(value, where)
    return Budget(
        _text(budget, "device", where),
        str(budget.get("name") or ""),
        _text(budget, "backend", where),
        _count(budget, "capacity_bytes", where),
        _count(budget, "headroom_bytes", where) or 0,
        _count(budget, "budget_bytes", where),
        budget.get("alone") is True,
        budget.get("shared") is True,
    )


def _is_path(path: str) -> bool:
    # It comes to be a path below the store of a host.
    return bool(_PATH.match(path)) and not {".", ".."} & set(path.split("/"))


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{where} is not a mapping", _CURE)
    return value


def _list(mapping: Mapping[str, Any], key: str, where: str, optional: bool = False) -> List[Any]:
    value = mapping.get(key)
    if value is None and optional:
        return []
    if not isinstance(value, (list, tuple)):
        raise _wrong(where, key, value)
    return list(value)


def _text(mapping: Mapping[str, Any], key: str, where: str) -> str:
    value = mapping.get(key)
    if not isinstance(value, str) or not value:
        raise _wrong(where, key, value)
    return value


def _optional_text(mapping: Mapping[str, Any], key: str, where: str) -> Optional[str]:
    return None if mapping.get(key) is None else _text(mapping, key, where)


def _count(mapping: Mapping[str, Any], key: str, where: str) -> Optional[int]:
    value = mapping.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise _wrong(where, key, value)
    return value


def _wrong(where: str, key: str, value: object) -> ConfigurationError:
    return ConfigurationError(f"{where}: {key} is {value!r}", _CURE)


def first_difference(reviewed: HostPlan, now: HostPlan) -> Optional[str]:
    """Return in one line where ``now`` would do or leave something else than what was ``reviewed``, else None.

    What was carried out meanwhile is no difference, nor are warnings and what they come from.
    """
    if reviewed.store_path != now.store_path:
        return f"the store is {now.store_path}, reviewed was {reviewed.store_path}"
    before, after = _numbered(reviewed), _numbered(now)
    for key in [*before, *(key for key in after if key not in before)]:
        if key not in after:
            return f"{key[0]} was reviewed and is not planned now"
        if key not in before:
            return f"{key[0]} is planned now and was not reviewed"
        told = _model_difference(before[key], after[key])
        if told:
            return f"{key[0]}: {told}"
    return None


def _numbered(plan: HostPlan) -> Dict[Tuple[str, int], ModelPlan]:
    """A model may be wished in several quantizations: name, and which of that name."""
    found: Dict[Tuple[str, int], ModelPlan] = {}
    for model in plan.models:
        found[model.model, sum(1 for name, _ in found if name == model.model)] = model
    return found


def _model_difference(before: ModelPlan, after: ModelPlan) -> Optional[str]:
    for key in ("quantization", "placement", "context", "kv_type", "allow_pickle", "unit"):
        old, new = getattr(before, key), getattr(after, key)
        if old != new:
            return f"{key} is {_shown(new)}, reviewed was {_shown(old)}"
    old_files, new_files = {file.path: file for file in before.files}, {file.path: file for file in after.files}
    for path in [*old_files, *(path for path in new_files if path not in old_files)]:
        if old_files.get(path) != new_files.get(path):
            return f"{path} is {_pinned(new_files.get(path))}, reviewed was {_pinned(old_files.get(path))}"
    if after.action not in ("keep", before.action):
        return f"action is {after.action} ({after.reason}), reviewed was {before.action}"
    unexpected = [file.path for file in after.missing if file not in before.missing]
    return f"{unexpected[0]} is to be fetched too" if unexpected else None


def _shown(value: Any) -> str:
    return f"{value.device} with {value.gpu_layers} layers" if isinstance(value, Placement) else str(value)


def _pinned(file: Optional[PinnedFile]) -> str:
    return f"{file.source}, {file.size} bytes, sha256 {file.sha256}" if file else "not of the model"


def total_bytes(files: Sequence[PinnedFile]) -> int:
    """Return the bytes of ``files``; a size that is not known counts nothing."""
    return sum(file.size or 0 for file in files)
