"""The errors that a user can cause or cure, each one line: what happened, to what, what to do next.

A module turns them into ``fail_json`` once, the command line into one line on
standard error and an exit code. Anything else that escapes is a defect.
"""

from typing import Optional, Tuple, Union


class ModelfleetError(Exception):
    """Raised when something failed for a reason that can be told in one line.

    ``cure`` says what to do next; it is appended to the message.
    """

    def __init__(self, message: str, cure: Optional[str] = None) -> None:
        self.message = message
        self.cure = cure
        super().__init__(message if cure is None else f"{message}; {cure}")


class ConfigurationError(ModelfleetError):
    """Raised when what the user wrote cannot be meant: an unknown model, a malformed source, a bad value."""


class CatalogError(ConfigurationError):
    """Raised when a catalog entry or a wish is not what it must be.

    ``variable`` says which list it is in (``catalog`` or ``wanted``), ``path`` leads from there to what is wrong
    (numbers are places in a list, from 0), so that whoever has the file can name the line.
    """

    def __init__(
        self, message: str, cure: Optional[str], variable: str = "catalog", path: Tuple[Union[str, int], ...] = ()
    ) -> None:
        self.variable = variable
        self.path = path
        super().__init__(message, cure)


class UnsafePathError(ModelfleetError):
    """Raised when a path is not what it must be: no directory, or a symlink that another account controls."""

    def __init__(self, path: str, message: str, cure: Optional[str] = None) -> None:
        self.path = path
        super().__init__(f"{path}: {message}", cure)


class IntegrityError(ModelfleetError):
    """Raised when bytes are not the bytes that the lock pins."""

    def __init__(self, name: str, expected: str, found: str) -> None:
        self.name = name
        self.expected = expected
        self.found = found
        super().__init__(
            f"{name}: expected {expected}, found {found}",
            "nothing was published; check the source, or pin the right hash with a new lock",
        )


class FetchError(ModelfleetError):
    """Raised when a source cannot be reached or does not hold what it should."""


class RuntimeBuildError(ModelfleetError):
    """Raised when the managed environment cannot be built or installed."""


class HardwareOutputError(ModelfleetError):
    """Raised when the output of a vendor's tool, or a capture, is not in the form that it should be."""


class EnvFileError(ModelfleetError):
    """Raised when an environment file cannot be read as one, or a value cannot be written to it safely."""


class StackError(ModelfleetError):
    """Raised when no inference stack serves a host as it is wished."""


class InferenceError(ModelfleetError):
    """Raised when a proof of inference cannot be run or does not give what is expected."""


class FormatError(ModelfleetError):
    """Raised when a model file is not what its format allows: ``file``, ``field``, ``found``, ``allowed`` say how."""

    def __init__(self, file: str, field: str, found: str, allowed: str) -> None:
        self.file = file
        self.field = field
        self.found = found
        self.allowed = allowed
        super().__init__(
            f"{file}: {field}: found {found}, allowed: {allowed}",
            "do not load this file; fetch it again from a source that you trust",
        )
