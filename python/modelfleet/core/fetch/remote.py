"""The header of a file behind HTTP or on the Hub, without the file: for what judges a model before it is fetched."""

import os
from typing import Mapping, Optional

from ..formats.ranges import open_ranges
from ..formats.source import Source
from .hub import address_at
from .settings import DEFAULT_ENDPOINT, Credential
from .sources import HubSource, parse_source


def is_url(text: str) -> bool:
    """Tell whether ``text`` names a file behind HTTP or on the Hub."""
    return text.startswith(("https://", "http://", "hf://"))


def open_url(url: str, environment: Optional[Mapping[str, str]] = None) -> Source:
    """Return the file at ``url`` as a source; its first range is read at once.

    ``hf://OWNER/NAME[@REVISION]/FILE`` is a file on the Hub: HF_ENDPOINT and HF_TOKEN are honoured, the token
    over https only. Proxies and certificates are those of the environment. Raises ConfigurationError, FetchError.
    """
    if not url.startswith("hf://"):
        return open_ranges(url)
    source = parse_source(url)
    assert isinstance(source, HubSource)
    known = os.environ if environment is None else environment
    endpoint = (known.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
    address = address_at(endpoint, source)
    credential = Credential.bind(known.get("HF_TOKEN", ""), endpoint)
    token = credential.for_url(address) if credential else None
    return open_ranges(address, url, {"Authorization": f"Bearer {token.reveal()}"} if token else {})
