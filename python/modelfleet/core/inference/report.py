"""What is told of proofs: records for the answer, and the one line of what failed."""

from typing import Any, Dict, Iterator, Mapping, Optional

from ..hardware.verdict import FAIL
from .checks import TITLES
from .proof import Outcome
from .records import Record

ALTERED = "MF-RUN-050"
BROKEN = "MF-RUN-056"


def told(record: Record, ran: bool) -> Dict[str, Any]:
    """Return a record as it is told: without its grounds, of which the fingerprint is enough."""
    return {**{name: value for name, value in record.items() if name != "grounds"}, "ran": ran}


def problem(outcome: Outcome, altered: Mapping[str, str]) -> Optional[str]:
    """Return what failed as one line, the first in full, the others by id; None where all is well."""
    failures = [
        *_failed("the installation", outcome.installation),
        *(
            f"{ALTERED} {TITLES[ALTERED]}: {model}: {what}; run ./modelfleet apply: it fetches what is not as pinned"
            for model, what in altered.items()
        ),
        *(f"{BROKEN} {TITLES[BROKEN]}: {line}" for line in outcome.broken),
        *(line for proof in outcome.proofs for line in _failed(str(proof["model"]), proof)),
    ]
    if not failures:
        return None
    others = [line.split(" ", 1)[0] for line in failures[1:]]
    return failures[0] + (f"; also {', '.join(dict.fromkeys(others))}" if others else "")


def _failed(name: str, record: Optional[Record]) -> Iterator[str]:
    for check in (record or {}).get("checks") or []:
        if check["status"] == FAIL:
            yield (
                f"{check['id']} {check['title']}: {name}: found {check['measured']}, wanted {check['required']}; "
                f"{check['cure']}"
            )
