"""What was proved on a host: ``.modelfleet/verification.json`` in the store.

::

    {"schema_version": 2, "proofs": {FILE: record}, "installation": record or null}

Each record has its ``fingerprint``, the hash of ``grounds``: everything that could change what it says.
"""

import json
import os
from typing import Any, Dict, NamedTuple, Optional

from ..store.layout import STATE
from ..store.manifest import write_json

SCHEMA_VERSION = 2
RECORDS = f"{STATE}/verification.json"

Record = Dict[str, Any]


class Records(NamedTuple):
    """The records of a store: of proofs by the model's first file, and of the installation."""

    proofs: Dict[str, Record]
    installation: Optional[Record] = None


def read_records(store_path: str) -> Records:
    """Return the records; none where there are none that can be read."""
    try:
        with open(os.path.join(store_path, RECORDS), encoding="utf-8") as source:
            document = json.load(source)
        proofs = {name: record for name, record in document["proofs"].items() if isinstance(record, dict)}
        installation = document.get("installation")
        return Records(proofs, installation if isinstance(installation, dict) else None)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return Records({})


def write_records(store_path: str, records: Records) -> None:
    """Replace the records, to be called with the owner's rights."""
    document = {"schema_version": SCHEMA_VERSION, **records._asdict()}
    write_json(os.path.join(store_path, RECORDS), document)
