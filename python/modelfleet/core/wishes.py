"""What a host is to keep, as its user says it, and which of a model's variants that means.

A wish (YAML)::

    - model: llama-3.1-8b-instruct     # or task: coding
      use_case: production             # or quantization: q8_0, or best: true; else the entry's default
      context: 16384                   # tokens; else the host's
      device: accelerator              # or cpu; else wherever it fits best
"""

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from .catalog import Catalog, Entry, Variant, rank
from .errors import CatalogError
from .reading import Section, nearest

USE_CASES = {
    "development": "q4_k_m",
    "production": "q8_0",
    "mobile": "q4_0",
    "research": "fp16",
    "batch_processing": "q3_k_m",
}
"""The tutorial's quantization for each use."""
DEVICES = ("accelerator", "cpu")

_KEYS = ("model", "task", "use_case", "quantization", "best", "context", "device")
_CHOICES = ("use_case", "quantization", "best")


class Wish(NamedTuple):
    """One model that a host is to keep: by id or by task, at most one way to choose its variant; context in tokens."""

    model: Optional[str]
    task: Optional[str]
    use_case: Optional[str]
    quantization: Optional[str]
    best: bool
    context: Optional[int]
    device: Optional[str]


def read_wishes(wanted: Sequence[Mapping[str, Any]], catalog: Catalog) -> List[Wish]:
    """Return the wishes in their order; of those that mean the same model and quantization the first.

    Raises CatalogError naming the wish and key that is wrong, contradicts
    another, or names what the catalog does not have.
    """
    if not isinstance(wanted, (list, tuple)):
        raise CatalogError("models_wanted is not a list", "write each wish as '- model: …' or '- task: …'", "wanted")
    wishes: List[Wish] = []
    known: Dict[Tuple[str, str], Tuple[int, Wish]] = {}
    for number, raw in enumerate(wanted):
        section = Section(raw, "wanted", (number,), f"models_wanted entry {number + 1}", "model")
        wish = _wish(section, catalog)
        entry, variants, _ = candidates(wish, catalog)
        key = (entry.id, variants[0].quantization)
        before, same = known.setdefault(key, (number, wish))
        if before == number:
            wishes.append(wish)
        elif (same.context, same.device) != (wish.context, wish.device):
            what = "context" if same.context != wish.context else "device"
            raise section.wrong(
                what if what in section.value else None,
                f" wishes {entry.id} in {key[1]} with another {what} than entry {before + 1}",
                "keep one of them",
            )
    return wishes


def candidates(wish: Wish, catalog: Catalog) -> Tuple[Entry, List[Variant], str]:
    """Return the entry that a wish means, its variants in the order of preference, and why in a few words.

    The first is the preferred one; those after it are smaller, for where it does not fit. A quantization that is named
    has no others.
    """
    reason = ""
    if wish.model is not None:
        entry = catalog.entries[wish.model]
    else:
        assert wish.task is not None
        entry, reason = _for_task(wish.task, catalog)
    variants = list(entry.variants.values())
    if wish.quantization is not None:
        chosen, why = [entry.variants[wish.quantization]], f"{wish.quantization} is wished for"
    elif wish.best:
        chosen, why = variants, "the best that fits is wished for"
    elif wish.use_case is not None:
        chosen, why = _for_use(wish.use_case, entry, variants)
    else:
        names = list(entry.variants)
        chosen = variants[names.index(entry.default_quantization) :]
        why = f"{entry.default_quantization} is the default"
    return entry, chosen, f"{reason}{why}"


def _for_task(task: str, catalog: Catalog) -> Tuple[Entry, str]:
    offered = [entry for entry in catalog.entries.values() if task in entry.tasks]
    preferred = [entry for entry in offered if task in entry.preferred_for]
    # A user's own entries come after the shipped ones and win.
    entry = preferred[-1] if preferred else offered[0]
    others = [other.id for other in offered if other is not entry]
    why = f"preferred over {', '.join(others)}" if others else "the only one"
    return entry, f"{entry.id} for the task {task} ({why}); "


def _for_use(use_case: str, entry: Entry, variants: List[Variant]) -> Tuple[List[Variant], str]:
    wanted = USE_CASES[use_case]
    names = list(entry.variants)
    if wanted in names:
        return variants[names.index(wanted) :], f"{wanted} is for {use_case}"
    places = [rank(name) for name in names]
    limit = rank(wanted)
    if limit is None or None in places:
        default = entry.default_quantization
        return variants[names.index(default) :], f"{entry.id} has nothing for {use_case}: {default} is the default"
    # The nearest that is no larger than what the use calls for; else the smallest there is.
    smaller = [variant for variant, place in zip(variants, places) if place is not None and place > limit]
    chosen = smaller or variants[-1:]
    return chosen, f"{wanted} is for {use_case}, and {chosen[0].quantization} is the nearest that there is"


def _wish(section: Section, catalog: Catalog) -> Wish:
    section.only(_KEYS)
    value = section.value
    if value.get("model") is not None and value.get("task") is not None:
        raise section.wrong("task", " names both a model and a task", "name one of them")
    ways = [key for key in _CHOICES if value.get(key) not in (None, False)]
    if len(ways) > 1:
        raise section.wrong(
            ways[1], f" has both {ways[0]} and {ways[1]}", "keep one: each chooses the quantization in its own way"
        )
    if value.get("task") is not None:
        task, model = section.text("task"), None
        tasks = dict.fromkeys(name for entry in catalog.entries.values() for name in entry.tasks)
        if task not in tasks:
            raise section.wrong(
                "task", f": no model of the catalog is for the task {task!r}{nearest(task, tasks)}", _one_of(tasks)
            )
        entry, _ = _for_task(task, catalog)
    else:
        task, model = None, section.text("model")
        if model not in catalog.entries:
            raise section.wrong(
                "model",
                f": the catalog has no model {model!r}{nearest(model, catalog.entries)}",
                "correct the name, or add the model to models_catalog_extra",
            )
        entry = catalog.entries[model]
    return Wish(
        model=model,
        task=task,
        use_case=_use_case(section),
        quantization=_quantization(section, entry),
        best=section.flag("best"),
        context=_context(section, entry),
        device=_device(section),
    )


def _use_case(section: Section) -> Optional[str]:
    if section.value.get("use_case") is None:
        return None
    name = section.text("use_case")
    if name not in USE_CASES:
        raise section.wrong(
            "use_case", f": there is no use case {name!r}{nearest(name, USE_CASES)}", _one_of(USE_CASES)
        )
    return name


def _quantization(section: Section, entry: Entry) -> Optional[str]:
    if section.value.get("quantization") is None:
        return None
    name = str(section.value["quantization"])
    if name not in entry.variants:
        message = f": {entry.id} has no quantization {name!r}{nearest(name, entry.variants)}"
        raise section.wrong("quantization", message, _one_of(entry.variants))
    return name


def _context(section: Section, entry: Entry) -> Optional[int]:
    context = section.number("context", "tokens")
    if context is not None and entry.context_length is not None and context > entry.context_length:
        raise section.wrong(
            "context",
            f": a context of {context} tokens is beyond the {entry.context_length} that {entry.id} was made for",
            f"write at most {entry.context_length}",
        )
    return context


def _device(section: Section) -> Optional[str]:
    if section.value.get("device") is None:
        return None
    name = section.text("device")
    if name not in DEVICES:
        raise section.wrong("device", f": there is no device {name!r}{nearest(name, DEVICES)}", _one_of(DEVICES))
    return name


def _one_of(names: "Mapping[str, Any] | Sequence[str]") -> str:
    return f"use one of {', '.join(map(str, names))}"
