"""The header of a file behind HTTP, in at most three ranges: 1 MiB, then 15 MiB, then 48 MiB where they are needed."""

import contextlib
import http.client
import re
import urllib.error
import urllib.parse
import urllib.request
from typing import List, Mapping, Optional, Tuple

from ..errors import ConfigurationError, FetchError
from .source import Source, shown

RANGE_BYTES = (1024 * 1024, 15 * 1024 * 1024, 48 * 1024 * 1024)
TIMEOUT_SECONDS = 30
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})")


def open_ranges(address: str, name: Optional[str] = None, headers: Optional[Mapping[str, str]] = None) -> Source:
    """Return the file at ``address`` as a source; its first range is read at once.

    ``name`` is what messages call it; without one that is the address, which then must have no account in it.
    ``headers`` are sent to its server alone. Proxies and certificates are those of the environment. Raises
    ConfigurationError, FetchError.
    """
    remote = _Remote(address, _plain(address) if name is None else name, headers or {})
    remote.read_block(0, 0)
    assert remote.size is not None
    return Source(remote.name, remote.size, remote.read)


class _Remote:
    def __init__(self, address: str, name: str, headers: Mapping[str, str]) -> None:
        self.address = address
        self.name = name
        self.headers = headers
        self.size: Optional[int] = None
        self.tag: Optional[str] = None
        self.ranges = 0
        # The first block stays, because recognising a file and reading it both begin there; of the others one does.
        self.blocks: List[Tuple[int, bytes]] = []

    def read(self, offset: int, length: int) -> bytes:
        for start, block in self.blocks:
            if start <= offset and offset + length <= start + len(block):
                return block[offset - start : offset - start + length]
        # What is at hand is not fetched again.
        known = b""
        for start, block in self.blocks:
            if start <= offset < start + len(block):
                known = block[offset - start :]
        self.read_block(offset + len(known), length - len(known))
        return known + self.blocks[-1][1][: length - len(known)]

    def read_block(self, start: int, least: int) -> None:
        """Read the next range at ``start``, of at least ``least`` bytes."""
        if self.ranges == len(RANGE_BYTES) or least > RANGE_BYTES[-1]:
            raise FetchError(
                f"{shown(self.name)}: its header does not lie in {len(RANGE_BYTES)} ranges",
                "fetch the file and inspect it there",
            )
        length = max(RANGE_BYTES[self.ranges], least)
        self.ranges += 1
        block = self._request(start, length)
        self.blocks = [*self.blocks[:1], (start, block)]

    def _request(self, start: int, length: int) -> bytes:
        request = urllib.request.Request(self.address)
        request.add_header("Range", f"bytes={start}-{start + length - 1}")
        request.add_header("Accept-Encoding", "identity")
        for name, value in self.headers.items():
            # Never carried along to where a redirect leads.
            request.add_unredirected_header(name, value)
        try:
            with contextlib.closing(urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)) as answer:
                if self.address.startswith("https:") and not answer.geturl().startswith("https:"):
                    raise self._failed("it leads from https to another protocol")
                size = self._size(answer.status, answer.headers.get("Content-Range"), start, answer.headers)
                tag = answer.headers.get("ETag")
                if (self.size, self.tag) not in ((None, None), (size, tag)):
                    raise self._failed("it changed while it was read")
                self.size, self.tag = size, tag
                wanted = min(length, size - start)
                block = answer.read(wanted)
        except urllib.error.HTTPError as error:
            raise self._failed(f"the server answers {error.code}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise self._failed(shown(str(reason))) from None
        if len(block) != wanted:
            raise self._failed(f"the connection ended after {len(block)} of {wanted} bytes")
        return bytes(block)

    def _size(self, status: int, said: Optional[str], start: int, headers: Mapping[str, str]) -> int:
        match = _CONTENT_RANGE.fullmatch(said or "")
        if status == 206 and match and int(match[1]) == start <= int(match[2]) < int(match[3]):
            return int(match[3])
        length = headers.get("Content-Length") or ""
        # A server without ranges sends the file from its beginning; the rest of it is not waited for.
        if status == 200 and start == 0 and re.fullmatch("[0-9]{1,19}", length):
            return int(length)
        raise self._failed("the server gives no ranges")

    def _failed(self, reason: str) -> FetchError:
        return FetchError(f"{shown(self.name)}: {reason}", "check the address and the network, or fetch the file")


def _plain(url: str) -> str:
    """Return ``url`` without its query, which may be a signature. Raises ConfigurationError where it is no address."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        raise ConfigurationError(f"{shown(url.split('?')[0])} is no address", "write https://HOST/FILE") from None
    if not parts.hostname:
        raise ConfigurationError("an address without a host", "write https://HOST/FILE")
    if "@" in parts.netloc:
        raise ConfigurationError("an address with an account in it", "fetch the file and inspect it, or leave that out")
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
