"""One HTTP exchange: a request, redirects, and an answer whose body is read into buffers that are there already.

What can be cured by asking again is raised as TryAgainError; what cannot as FetchError.
No message carries what a server or an exception said in its own words beyond a
short plain text: a signed address or a token must not come back that way.
"""

import base64
import contextlib
import encodings.idna
import functools
import http.client
import re
import socket
import ssl
import threading
import urllib.parse
from typing import Dict, Iterator, Mapping, Optional

from ..errors import ConfigurationError, FetchError
from .settings import Credential, FetchSettings, origin_of, plain_text, proxy_for

REDIRECTS = 5
_REDIRECT = frozenset((301, 302, 303, 307, 308))
# Python loads it when a host name is first encoded; its files may be out of reach by then (core.privilege).
_NEEDED_LATER = (encodings.idna,)
_LENGTH = re.compile("[0-9]{1,19}")
_SAFE = "!#$%&'()*+,/:;=?@[]~"


class TryAgainError(Exception):
    """Raised when an exchange failed in a way that another try may cure.

    ``after`` is the time in seconds that the server asks to wait; ``at_once``
    tells that asking otherwise may help, without a wait; ``connected`` whether
    anybody was there.
    """

    def __init__(
        self, reason: str, after: Optional[float] = None, at_once: bool = False, connected: bool = True
    ) -> None:
        self.reason = reason
        self.after = after
        self.at_once = at_once
        self.connected = connected
        super().__init__(reason)


class Answer:
    """Status, headers and body of the last answer; ``redirects`` are the headers of those that led to it."""

    def __init__(
        self, response: http.client.HTTPResponse, url: str, redirects: "list[http.client.HTTPMessage]"
    ) -> None:
        self.status = response.status
        self.headers = response.headers
        self.redirects = redirects
        self.host = origin_of(url)[1]
        self.url = url
        self._response = response
        length = response.headers.get("Content-Length")
        chunked = "chunked" in (response.headers.get("Transfer-Encoding") or "").lower()
        self.length = int(length) if length and _LENGTH.fullmatch(length) and not chunked else None
        self._chunked = chunked

    def readinto(self, view: memoryview) -> int:
        """Read what one call of the system brings, at most ``len(view)`` bytes; 0 is the end. Raises TryAgainError."""
        try:
            if self._chunked:
                data = self._response.read1(len(view))
                view[: len(data)] = data
                return len(data)
            # Not the response's own readinto: it waits until the buffer is full, and so for a server that drips.
            stream = self._response.fp
            return 0 if stream is None else stream.readinto1(view)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise TryAgainError(describe(error)) from None


@contextlib.contextmanager
def open_answer(
    url: str, headers: Mapping[str, str], settings: FetchSettings, credential: Optional[Credential] = None
) -> Iterator[Answer]:
    """Ask for ``url`` and yield the answer that its redirects lead to.

    The token goes with the credential's own origin only; after a redirect to
    another it does not come back. Raises TryAgainError, FetchError, ConfigurationError.
    """
    redirects: list[http.client.HTTPMessage] = []
    for _ in range(REDIRECTS + 1):
        with contextlib.ExitStack() as stack:
            response = stack.enter_context(_exchange(url, headers, settings, credential))
            location = response.headers.get("Location")
            if response.status not in _REDIRECT or location is None:
                yield Answer(response, url, redirects)
                return
            redirects.append(response.headers)
        target = _target(url, location)
        if credential is not None and origin_of(target) != origin_of(url):
            credential = None
        url = target
    raise FetchError(f"it redirects more than {REDIRECTS} times", "correct the source")


def describe(error: BaseException) -> str:
    """Return in plain words what went wrong, without a word of what an answer or an address held."""
    if isinstance(error, socket.timeout):
        return "nothing came for too long"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({plain_text(str(error.reason or 'no reason given'))})"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the connection was closed without an answer"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection was cut"
    if isinstance(error, (http.client.HTTPException, ValueError)):
        return "the answer is no valid HTTP"
    if isinstance(error, OSError):
        return plain_text(error.strerror or type(error).__name__)
    return type(error).__name__


def _target(url: str, location: str) -> str:
    try:
        target = urllib.parse.urljoin(url, urllib.parse.quote(location.strip(), safe=_SAFE))
        scheme, host, _ = origin_of(target)
    except (ValueError, ConfigurationError):
        raise FetchError("it redirects to what is no http or https address", "correct the source") from None
    if url.startswith("https:") and scheme != "https":
        raise FetchError(
            f"it redirects from https to {scheme} at {plain_text(host)}", "name a source that stays on https"
        )
    return urllib.parse.urldefrag(target).url


@contextlib.contextmanager
def _exchange(
    url: str, headers: Mapping[str, str], settings: FetchSettings, credential: Optional[Credential]
) -> Iterator[http.client.HTTPResponse]:
    scheme, host, port = origin_of(url)
    parts = urllib.parse.urlsplit(url)
    proxy = proxy_for(url, settings.proxies)
    patience = settings.patience
    with contextlib.ExitStack() as stack:
        try:
            plain = _connect(proxy or url, patience.connect_seconds)
        except OSError as error:
            where = f"the proxy {_host(proxy)}: " if proxy else ""
            raise TryAgainError(f"{where}no connection: {describe(error)}", connected=False) from None
        except UnicodeError:
            raise FetchError("its host has no valid name", "correct the source") from None
        stack.callback(plain.close)
        stopped = stack.enter_context(_deadline(plain, patience.head_seconds))
        try:
            plain.settimeout(patience.stall_seconds)
            connection = http.client.HTTPConnection(host, port)
            connection.sock = plain
            target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
            sent: Dict[str, str] = {}
            if scheme == "https":
                if proxy:
                    _tunnel(plain, host, port, proxy)
                # A socket of its own from here on; the plain one no longer has the connection.
                connection.sock = _context(settings.ca_bundle).wrap_socket(plain, server_hostname=host)
                stack.callback(connection.sock.close)
            elif proxy:
                target = urllib.parse.urlunsplit(("http", _netloc(host, port, 80), parts.path or "/", parts.query, ""))
                sent.update(_proxy_authorization(proxy))
            sent.update({"Host": _netloc(host, port, 443 if scheme == "https" else 80), "User-Agent": "modelfleet"})
            sent.update(headers)
            token = credential.for_url(url) if credential else None
            if token is not None:
                sent["Authorization"] = f"Bearer {token.reveal()}"
            connection.request("GET", target, headers=sent)
            response = connection.getresponse()
            stack.callback(response.close)
        except ssl.SSLCertVerificationError as error:
            raise FetchError(
                f"the certificate of {plain_text(host)} is not trusted ({plain_text(error.verify_message)})",
                "name the bundle that it is signed by (modelfleet_ca_bundle)",
            ) from None
        except http.client.InvalidURL:
            raise FetchError("it is no valid address", "correct the source") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise TryAgainError("the answer took too long" if stopped.is_set() else describe(error)) from None
        stopped.set()
        yield response


def _connect(url: str, seconds: float) -> socket.socket:
    _, host, port = origin_of(url)
    connection = socket.create_connection((host, port), timeout=seconds)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


@contextlib.contextmanager
def _deadline(connection: socket.socket, seconds: float) -> "Iterator[threading.Event]":
    """Shut the connection down after ``seconds`` unless the event is set: a head can drip, byte by byte, for days."""
    stopped = threading.Event()
    # Of its own: wrapping a socket in TLS takes the descriptor away from the plain one.
    handle = connection.dup()

    def watch() -> None:
        if not stopped.wait(seconds):
            stopped.set()
            with contextlib.suppress(OSError):
                handle.shutdown(socket.SHUT_RDWR)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield stopped
    finally:
        stopped.set()
        watcher.join()
        handle.close()


@functools.lru_cache(maxsize=4)
def _context(ca_bundle: Optional[str]) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_bundle)
    except OSError as error:
        raise FetchError(
            f"the certificates in {ca_bundle} cannot be read: {describe(error)}",
            "name a bundle in PEM form (modelfleet_ca_bundle or SSL_CERT_FILE)",
        ) from None


def _tunnel(connection: socket.socket, host: str, port: int, proxy: str) -> None:
    netloc = _netloc(host, port, 0)
    lines = [f"CONNECT {netloc} HTTP/1.1", f"Host: {netloc}", "User-Agent: modelfleet"]
    lines += [f"{name}: {value}" for name, value in _proxy_authorization(proxy).items()]
    connection.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
    response = http.client.HTTPResponse(connection, method="CONNECT")
    response.begin()
    if response.status != 200:
        raise FetchError(
            f"the proxy {_host(proxy)} answers {response.status}", "correct the proxy (https_proxy, no_proxy)"
        )


def _proxy_authorization(proxy: str) -> Dict[str, str]:
    parts = urllib.parse.urlsplit(proxy)
    if not parts.username:
        return {}
    account = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(account.encode()).decode("ascii")}


def _host(url: Optional[str]) -> str:
    return plain_text(origin_of(url)[1]) if url else ""


def _netloc(host: str, port: int, default: int) -> str:
    if ":" in host:
        host = f"[{host}]"
    elif not host.isascii():
        host = host.encode("idna").decode("ascii")
    return host if port == default else f"{host}:{port}"
