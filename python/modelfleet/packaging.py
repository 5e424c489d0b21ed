"""The modelfleet package as a wheel, for the managed environment of a host.

Made from the sources beside this file, standard library only, and always the
same bytes for the same sources: its hash tells whether a host has this very
package. It holds what applications and proofs use, not the command line.
"""

import base64
import hashlib
import io
import zipfile
from pathlib import Path
from typing import List, NamedTuple, Tuple

from . import __version__

_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip archive can carry
_METADATA = f"""Metadata-Version: 2.1
Name: modelfleet
Version: {__version__}
Summary: Where an application's local models are, and the proof that they work
License: Apache-2.0
Requires-Python: >=3.8
"""
_WHEEL = """Wheel-Version: 1.0
Generator: modelfleet
Root-Is-Purelib: true
Tag: py3-none-any
"""


class Wheel(NamedTuple):
    """A wheel in memory: its file name, its bytes, their SHA-256."""

    filename: str
    content: bytes
    sha256: str


def build_wheel() -> Wheel:
    """Return the wheel of the host's part of this package."""
    root = Path(__file__).resolve().parent
    sources = [root / name for name in ("__init__.py", "py.typed", "config.py")] + sorted((root / "core").rglob("*.py"))
    files = [(source.relative_to(root.parent).as_posix(), source.read_bytes()) for source in sources]
    information = f"modelfleet-{__version__}.dist-info"
    files += [(f"{information}/METADATA", _METADATA.encode()), (f"{information}/WHEEL", _WHEEL.encode())]
    files.append((f"{information}/RECORD", _record(files, f"{information}/RECORD")))
    buffer = io.BytesIO()
    # Stored, not compressed: compressors differ between versions of Python.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files:
            member = zipfile.ZipInfo(name, _TIME)
            member.external_attr = 0o644 << 16
            archive.writestr(member, content)
    content = buffer.getvalue()
    return Wheel(f"modelfleet-{__version__}-py3-none-any.whl", content, hashlib.sha256(content).hexdigest())


def _record(files: List[Tuple[str, bytes]], own_name: str) -> bytes:
    lines = [f"{name},sha256={_encode(content)},{len(content)}" for name, content in files]
    return ("\n".join([*lines, f"{own_name},,"]) + "\n").encode()


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
