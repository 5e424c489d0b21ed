"""Reading what a user wrote, one mapping at a time: what is wrong is said in one line, with the way to it."""

import re
from typing import Any, Iterable, Mapping, Optional, Tuple, Union

from .errors import CatalogError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\Z")

Step = Union[str, int]


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `` (did you mean …?)`` with the nearest names, or nothing where none is near."""
    import difflib  # only for errors

    near = difflib.get_close_matches(name, [str(known) for known in names], n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


class Section:
    """A mapping that a user wrote: the list that it is in, the way to it from there, what it is called in errors."""

    def __init__(self, value: Any, variable: str, path: Tuple[Step, ...], where: str, first: str) -> None:
        """Raises CatalogError where ``value`` is no mapping; ``first`` is a key that it should have."""
        self.variable = variable
        self.path = path
        self.where = where
        if not isinstance(value, Mapping):
            raise CatalogError(
                f"{where} is not a mapping", f"write it as 'key: value' lines with at least '{first}'", variable, path
            )
        self.value: Mapping[str, Any] = value

    def wrong(self, key: Optional[Step], message: str, cure: str) -> CatalogError:
        """Return the error for one of the keys."""
        path = self.path if key is None else (*self.path, key)
        return CatalogError(f"{self.where}{message}", cure, self.variable, path)

    def inside(self, key: str, name: str, first: str) -> "Section":
        """Return the mapping under ``key``."""
        return Section(self.value.get(key), self.variable, (*self.path, key), f"{self.where}, {name}", first)

    def only(self, allowed: Iterable[str]) -> None:
        """Refuse keys that are not known: most are misspelt."""
        names = tuple(allowed)
        for key in self.value:
            if key not in names:
                hint = nearest(str(key), names)
                raise self.wrong(key, f" has the unknown key {key!r}{hint}", f"allowed are {', '.join(names)}")

    def text(self, key: str) -> str:
        """Return a required text."""
        value = self.value.get(key)
        if not isinstance(value, str) or not value:
            problem = "missing" if value is None else "not a text"
            raise self.wrong(key if key in self.value else None, f": {key!r} is {problem}", f"write '{key}: …'")
        return value

    def number(self, key: str, unit: str) -> Optional[int]:
        """Return a positive integer, or None where it is left out."""
        value = self.value.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise self.wrong(key, f": {key!r} is {value!r}", f"write a whole number of {unit}")
        return value

    def flag(self, key: str) -> bool:
        """Return a boolean, false where it is left out."""
        value = self.value.get(key, False)
        if not isinstance(value, bool):
            raise self.wrong(key, f": {key!r} is {value!r}", "write true or false")
        return value

    def words(self, key: str) -> Tuple[str, ...]:
        """Return a list of plain names, written as one where it is one; empty where it is left out."""
        value = self.value.get(key, [])
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) and NAME.match(one) for one in value):
            raise self.wrong(key, f": {key!r} is not a list of plain names", f"write '{key}: [general, coding]'")
        return tuple(value)
