"""Files of a Hub that speaks Hugging Face's protocol: their addresses, and the cache that may have them already.

::

    HUB_CACHE/models--OWNER--NAME/     ~/.cache/huggingface/hub unless HF_HUB_CACHE or HF_HOME says otherwise
      blobs/SHA256                     a large file, by its hash (a small one by git's)
      refs/REVISION                    the commit that a branch or tag was at
      snapshots/COMMIT/FILE            -> ../../blobs/…
"""

import os
import urllib.parse
from typing import Iterator, List, Optional

from ..privilege import current_account
from .download import Upstream
from .settings import FetchSettings, origin_of, plain_text
from .sources import HubSource

_NEWEST = "main"
_COMMIT_LENGTH = 40


def address_at(endpoint: str, source: HubSource) -> str:
    """Return the address of a file at one endpoint, which ends without a slash."""
    revision = urllib.parse.quote(source.revision or _NEWEST, safe="")
    return f"{endpoint}/{urllib.parse.quote(source.repository)}/resolve/{revision}/{urllib.parse.quote(source.file)}"


def upstreams(source: HubSource, settings: FetchSettings) -> List[Upstream]:
    """Return where ``source`` is to be asked for, endpoint by endpoint; the token goes with the first one only."""
    repository = plain_text(source.repository)
    return [
        Upstream(
            address_at(endpoint, source),
            f"{repository} at {origin_of(endpoint)[1]}",
            settings.credential,
            repository,
        )
        for endpoint in settings.hub_endpoints
    ]


def cached(source: HubSource, sha256: Optional[str], settings: FetchSettings) -> Iterator[str]:
    """Yield the paths in the host's Hugging Face cache that may hold the file; whoever uses one proves its bytes."""
    folder = settings.hub_cache or os.path.join(current_account().home, ".cache", "huggingface", "hub")
    repository = os.path.join(folder, "models--" + source.repository.replace("/", "--"))
    candidates = [os.path.join(repository, "blobs", sha256)] if sha256 else []
    revision = source.revision or _NEWEST
    if len(revision) != _COMMIT_LENGTH:
        try:
            with open(os.path.join(repository, "refs", *revision.split("/")), encoding="ascii") as reference:
                revision = reference.read(_COMMIT_LENGTH + 1).strip()
        except (OSError, ValueError):
            revision = ""
    if revision and "/" not in revision and revision not in (".", ".."):
        candidates.append(os.path.join(repository, "snapshots", revision, *source.file.split("/")))
    for path in candidates:
        if os.path.isfile(path):
            yield path
