"""How plans are made: the variables of the role models that decide, checked once."""

from typing import Any, Mapping, NamedTuple

from ..errors import ConfigurationError
from ..runtime.resolver.settings import BACKENDS
from ..units import MIB

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
FLASH_ATTENTION = ("auto", "on", "off")
_MOST_MEBIBYTES = 16 * 1024 * 1024


class PlanSettings(NamedTuple):
    """Tokens of context, sequences at once, bytes of headroom, and what is allowed where a model does not fit.

    ``backend`` is what the runtime was told to compute with; empty: what the resolver chooses for the host.
    """

    context: int = 8192
    kv_type: str = "f16"
    flash_attention: str = "auto"
    parallel_sequences: int = 1
    headroom_bytes: int = 1024 * MIB
    memory_headroom_bytes: int = 4096 * MIB
    allow_partial_offload: bool = True
    allow_cpu: bool = True
    loaded_together: bool = False
    replan: bool = False
    allow_unlocked: bool = False
    remove_unwished: bool = False
    backend: str = ""


def read_settings(given: Mapping[str, Any]) -> PlanSettings:
    """Return the settings from the role's variables without their ``models_``; what is left out keeps its default.

    Raises ConfigurationError naming the variable.
    """
    default = PlanSettings()
    flags = {
        name: _flag(given, name, getattr(default, name))
        for name in (
            *("allow_partial_offload", "allow_cpu", "loaded_together", "replan", "allow_unlocked"),
            "remove_unwished",
        )
    }
    return PlanSettings(
        context=_count(given, "context", default.context, 1, 2**27),
        kv_type=_word(given, "kv_type", default.kv_type, KV_TYPES),
        flash_attention=_word(given, "flash_attention", default.flash_attention, FLASH_ATTENTION),
        parallel_sequences=_count(given, "parallel_sequences", default.parallel_sequences, 1, 256),
        backend=_word(given, "backend", default.backend, BACKENDS) if given.get("backend") else default.backend,
        headroom_bytes=_mebibytes(given, "headroom_mebibytes", default.headroom_bytes),
        memory_headroom_bytes=_mebibytes(given, "memory_headroom_mebibytes", default.memory_headroom_bytes),
        **flags,
    )


def _count(given: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = given.get(name)
    if value is None:
        return default
    # A variable given on Ansible's command line arrives as text.
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigurationError(f"models_{name} is {value!r}", f"write a whole number from {least} to {most}")
    return value


def _mebibytes(given: Mapping[str, Any], name: str, default: int) -> int:
    return _count(given, name, default // MIB, 0, _MOST_MEBIBYTES) * MIB


def _word(given: Mapping[str, Any], name: str, default: str, allowed: "tuple[str, ...]") -> str:
    value = given.get(name)
    if value is None:
        return default
    if isinstance(value, bool) and name == "flash_attention":
        # YAML reads on and off as truth values.
        return "on" if value else "off"
    if value not in allowed:
        raise ConfigurationError(f"models_{name} is {value!r}", f"use one of {', '.join(allowed)}")
    return str(value)


def _flag(given: Mapping[str, Any], name: str, default: bool) -> bool:
    value = given.get(name)
    if value is None:
        return default
    if isinstance(value, str) and value.lower() in ("true", "yes", "on", "false", "no", "off"):
        return value.lower() in ("true", "yes", "on")
    if not isinstance(value, bool):
        raise ConfigurationError(f"models_{name} is {value!r}", "write true or false")
    return value
