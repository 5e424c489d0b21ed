"""What a rule of readiness is and what it returns."""

from dataclasses import dataclass
from typing import Callable, Mapping, Optional

from .facts_view import Facts
from .requirements import Requirements

PASS, WARN, FAIL = "pass", "warn", "fail"


@dataclass(frozen=True)
class Verdict:
    """A rule's answer; ``cure`` is one line, empty for pass."""

    status: str
    measured: str
    required: str
    cure: str = ""


@dataclass(frozen=True)
class Rule:
    """A stable id, a title, and what judges; None from it: the rule does not concern this machine."""

    id: str
    title: str
    judge: Callable[[Facts, Mapping[str, Requirements]], Optional[Verdict]]


def graded(enough: bool, better: bool, measured: str, required: str, cure: str) -> Verdict:
    """Fail where there is not enough, warn where more is recommended, else pass."""
    status = FAIL if not enough else PASS if better else WARN
    return Verdict(status, measured, required, "" if status == PASS else cure)


def unknown(
    facts: Facts, name: str, required: str, cure: str = "run the probe on the machine itself, as root"
) -> Verdict:
    """Warn that a field is unknown, with the probe's reason."""
    return Verdict(WARN, f"unknown: {facts.reason(name)}", required, cure)
