"""What is checked of a runtime, by the ids under which a finding is told: MF-RUN-001 to 019 the environment itself."""

from typing import Dict, NamedTuple, Tuple

_REPAIR = "run ./modelfleet apply: it is built anew beside this one, then switched to"


class Check(NamedTuple):
    """One check: ``id`` never changes its meaning, ``title`` says what is so when all is well, ``cure`` what to do."""

    id: str
    title: str
    cure: str


class Finding(NamedTuple):
    """A check that did not pass, and what was found."""

    id: str
    detail: str

    @property
    def text(self) -> str:
        """Return the finding as one line."""
        return f"{self.id}: {self.detail}"

    def to_dict(self) -> Dict[str, str]:
        """Return it as JSON carries it, with the check's title and cure."""
        check = CHECKS[self.id]
        return {"id": self.id, "title": check.title, "detail": self.detail, "cure": check.cure}


NO_ENVIRONMENT, NO_RECORD, ANOTHER, PYTHON_GONE = "MF-RUN-001", "MF-RUN-002", "MF-RUN-003", "MF-RUN-004"
MISSING, BY_HAND, OTHER_BUILD, LIBRARY = "MF-RUN-005", "MF-RUN-006", "MF-RUN-007", "MF-RUN-008"

_TABLE: Tuple[Check, ...] = (
    Check(NO_ENVIRONMENT, "there is a managed environment", "run ./modelfleet apply"),
    Check(NO_RECORD, "the environment has its record", _REPAIR),
    Check(ANOTHER, "the environment is the one that is wanted", "run ./modelfleet apply: it is built beside"),
    Check(PYTHON_GONE, "the environment's Python is the one it was made with", _REPAIR),
    Check(MISSING, "every installed package is still there", _REPAIR),
    Check(BY_HAND, "no package was installed or changed by hand", _REPAIR),
    Check(OTHER_BUILD, "every package is the build for this host's accelerator", _REPAIR),
    Check(LIBRARY, "every library of the packages is there, whole", _REPAIR),
)
CHECKS: Dict[str, Check] = {check.id: check for check in _TABLE}
