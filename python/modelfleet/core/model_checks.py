"""The check of a catalog entry: what is asked of a model as its proof, and what has to come out, by what it does.

::

    chat:       {prompt: text, expected: text}       the greedy continuation begins with what is expected
    embedding:  {similar: [text, text], dissimilar: text, dimension: number}
                                                     the similar ones lie closer; dimension may be left out
    diffusion:  {prompt: text, size: pixels, steps: number, configuration: folder}
                                                     each may be left out; a single file has no other configuration
    tts:        {text: text}
    stt:        {}
"""

from typing import Any, Dict, Mapping, Optional

from .reading import Section

Check = Dict[str, Any]
KEYS = ("prompt", "expected", "similar", "dissimilar", "dimension", "size", "steps", "configuration", "text")
_NUMBERS = {"dimension": "elements", "size": "pixels", "steps": "steps"}
_REQUIRED = {"chat": ("prompt", "expected"), "embedding": ("similar", "dissimilar"), "tts": ("text",)}
_OPTIONAL = {"embedding": ("dimension",), "diffusion": ("prompt", "size", "steps", "configuration")}


def read_check(section: Section, kind: str) -> Optional[Check]:
    """Return the check of a catalog entry for a model of ``kind``, None where it has none. Raises CatalogError."""
    if section.value.get("check") is None:
        return None
    required, optional = _REQUIRED.get(kind, ()), _OPTIONAL.get(kind, ())
    check = section.inside("check", "check", (*required, *optional, "")[0])
    check.only((*required, *optional))
    found: Check = {}
    for key in (*required, *optional):
        if key in check.value or key in required:
            found[key] = _read(check, key)
    return found


def _read(check: Section, key: str) -> Any:
    if key in _NUMBERS:
        return check.number(key, _NUMBERS[key])
    if key == "similar":
        texts = check.value.get(key)
        if (
            not isinstance(texts, (list, tuple))
            or len(texts) != 2
            or not all(text and _is_text(text) for text in texts)
        ):
            raise check.wrong(
                key if key in check.value else None, ": 'similar' is not two texts", "write 'similar: [one, other]'"
            )
        return list(texts)
    return check.text(key)


def is_check(value: Mapping[str, Any]) -> bool:
    """Tell whether a mapping that came back from elsewhere has the form of a check, of whatever kind."""
    for key, one in value.items():
        if key not in KEYS:
            return False
        if key in _NUMBERS:
            good = isinstance(one, int) and not isinstance(one, bool) and one > 0
        elif key == "similar":
            good = isinstance(one, (list, tuple)) and all(map(_is_text, one))
        else:
            good = _is_text(one)
        if not good:
            return False
    return True


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
