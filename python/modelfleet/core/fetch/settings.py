"""How files are fetched: endpoints of the Hub, the token, certificates, proxies, and how patient the transfer is."""

import os
import re
import stat
import urllib.parse
from dataclasses import dataclass, field
from typing import Dict, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from ..errors import ConfigurationError
from .package_index import PackageIndexSettings

DEFAULT_ENDPOINT = "https://huggingface.co"
_TOKEN = re.compile(r"[!-~]{1,4096}\Z")
_TRUE = frozenset(("1", "ON", "YES", "TRUE"))
_PORTS = {"http": 80, "https": 443}

Origin = Tuple[str, str, int]
"""Scheme, host and port: what a token is bound to."""


class Secret:
    """A text that no message, log or traceback shows by accident."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself, for the one header that carries it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"


class Credential(NamedTuple):
    """A token of the Hub, and the one origin that may see it."""

    token: Secret
    origin: Origin

    @classmethod
    def bind(cls, token: str, endpoint: str) -> "Optional[Credential]":
        """Return ``token`` bound to an endpoint's origin, None where there is none. Raises ConfigurationError."""
        return cls(_token(token), origin_of(endpoint)) if token.strip() else None

    def for_url(self, url: str) -> Optional[Secret]:
        """Return the token where ``url`` is of its origin and encrypted, else None."""
        return self.token if self.origin[0] == "https" and origin_of(url) == self.origin else None


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds, and for what: defaults give up on a silent connection in under 30 s."""

    connect_seconds: float = 10.0
    head_seconds: float = 25.0
    """For the whole answer up to its body, redirects apart."""
    stall_seconds: float = 20.0
    """For the next byte; and the time over which the least rate is judged."""
    least_rate: float = 1024.0
    """Bytes per second; a connection that stays below it is given up and made anew."""
    tries: int = 6
    """In a row that bring less than ``progress_bytes``, for each source."""
    progress_bytes: int = 1024 * 1024
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 60.0
    """Also of what a server asks for with Retry-After; where it asks for more, the next source is tried."""


@dataclass(frozen=True)
class FetchSettings:
    """All that ``fetch`` needs to know; made before acting as the store's owner, who may not read the token's file."""

    package_index: PackageIndexSettings = field(default_factory=PackageIndexSettings)
    ca_bundle: Optional[str] = None
    hub_endpoints: Tuple[str, ...] = (DEFAULT_ENDPOINT,)
    """Asked in this order; the token is the first one's alone."""
    credential: Optional[Credential] = None
    offline: bool = False
    """HF_HUB_OFFLINE: files of the Hub come from its cache on the host or not at all."""
    hub_cache: Optional[str] = None
    """The folder ``hub`` of a Hugging Face cache; None means that of the account that fetches."""
    rate_limit: Optional[float] = None
    """Bytes per second of all that comes over HTTP; None means as fast as it comes."""
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    """By scheme, as urllib names them; ``no`` lists the hosts that are asked directly. May hold passwords."""
    patience: Patience = field(default_factory=Patience)

    @classmethod
    def from_environment(
        cls,
        environment: Mapping[str, str],
        ca_bundle: Optional[str] = None,
        hub_endpoints: Sequence[str] = (),
        token: Optional[str] = None,
        token_file: Optional[str] = None,
        rate_limit: Optional[float] = None,
    ) -> "FetchSettings":
        """Return the settings of this host: what is given wins over the environment.

        ``environment`` tells HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, HF_HUB_CACHE or
        HF_HOME, proxies, certificates and pip's settings; ``token_file`` must be
        readable by its owner alone. Raises ConfigurationError, never with the token in it.
        """
        endpoints = [endpoint for endpoint in hub_endpoints if endpoint]
        if not endpoints:
            endpoints = [environment.get("HF_ENDPOINT") or DEFAULT_ENDPOINT]
        endpoints = [_endpoint(text) for text in endpoints]
        secret = token or (_read_token(token_file) if token_file else environment.get("HF_TOKEN", ""))
        if rate_limit is not None and rate_limit <= 0:
            rate_limit = None
        index = PackageIndexSettings.from_environment(environment, ca_bundle)
        certificates = [environment.get(name) for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")]
        return cls(
            package_index=index,
            ca_bundle=ca_bundle or next(filter(None, certificates), None),
            hub_endpoints=tuple(dict.fromkeys(endpoints)),
            credential=Credential.bind(secret, endpoints[0]),
            offline=environment.get("HF_HUB_OFFLINE", "").upper() in _TRUE,
            hub_cache=_hub_cache(environment),
            rate_limit=rate_limit,
            proxies=_proxies(environment),
        )

    @classmethod
    def of(cls, settings: "Union[FetchSettings, PackageIndexSettings]") -> "FetchSettings":
        """Return ``settings``, or the settings that ask this package index and are otherwise plain."""
        if isinstance(settings, FetchSettings):
            return settings
        return cls(package_index=settings, ca_bundle=settings.ca_bundle)


def origin_of(url: str) -> Origin:
    """Return scheme, host and port of ``url``. Raises ConfigurationError where it is no http or https URL."""
    try:
        parts = urllib.parse.urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        scheme, host, port = "", None, None
    if scheme not in _PORTS or not host or port == 0:
        raise ConfigurationError(f"{plain_url(url)} is no http or https address", "write https://HOST/PATH")
    return scheme, host, port or _PORTS[scheme]


def plain_url(url: str) -> str:
    """Return ``url`` as it may be shown: without account, password, query and fragment, which may be secret."""
    text = re.sub(r"[?#].*", "", url, flags=re.DOTALL)
    scheme, separator, rest = text.partition("://")
    # Whatever stands before an @ may be a password, wherever a malformed address has it.
    text = f"{scheme}{separator}{rest.rpartition('@')[2]}" if separator else text.rpartition("@")[2]
    return plain_text(text)


def plain_text(text: str, length: int = 200) -> str:
    """Return what a server or a user wrote as short printable ASCII in one line."""
    shown = text if text.isascii() and text.isprintable() else ascii(text)[1:-1]
    return shown if len(shown) <= length else f"{shown[:length]}…"


def _endpoint(text: str) -> str:
    parts = urllib.parse.urlsplit(text) if "://" in text else None
    if parts is None or "@" in parts.netloc or parts.query or parts.fragment or not text.isprintable() or " " in text:
        raise ConfigurationError(f"{plain_url(text)} is no endpoint of a Hub", "write https://HOST, and no account")
    origin_of(text)
    return text.rstrip("/")


def _token(text: str) -> Secret:
    if not _TOKEN.match(text.strip()):
        raise ConfigurationError(
            "the token of the Hub holds characters that no token has", "write it as one plain line"
        )
    return Secret(text.strip())


def take_token(path: str) -> str:
    """Return the token that was handed over in the file ``path``, which is gone then. Raises ConfigurationError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as source:
            os.unlink(path)
            status = os.fstat(descriptor)
            ours = stat.S_ISREG(status.st_mode) and not status.st_mode & 0o077 and status.st_uid == os.geteuid()
            content = source.read(8192) if ours else b""
    except OSError as error:
        raise ConfigurationError(
            f"the token that was handed over cannot be read: {error.strerror}", "run again"
        ) from None
    if not content:
        raise ConfigurationError("the token was handed over in a file that is not ours alone", "run again")
    return content.decode("ascii", "replace")


def _read_token(path: str) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as source:
            status = os.fstat(descriptor)
            content = source.read(8192) if stat.S_ISREG(status.st_mode) else b""
    except OSError as error:
        raise ConfigurationError(
            f"the token file {path} cannot be read: {error.strerror}", "correct models_hub_token_file"
        ) from None
    if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077 or status.st_uid not in (0, os.geteuid()):
        raise ConfigurationError(
            f"the token file {path} is not one that its owner alone can read", "chmod 600, and let root own it"
        )
    text = content.decode("ascii", "replace").strip()
    if not text:
        raise ConfigurationError(f"the token file {path} is empty", "write the token into it")
    return text


def _hub_cache(environment: Mapping[str, str]) -> Optional[str]:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environment.get(name):
            return os.path.expanduser(environment[name])
    for name, parts in (("HF_HOME", ("hub",)), ("XDG_CACHE_HOME", ("huggingface", "hub"))):
        if environment.get(name):
            return os.path.join(os.path.expanduser(environment[name]), *parts)
    return None


def _proxies(environment: Mapping[str, str]) -> Dict[str, str]:
    # As urllib.request.getproxies_environment, of this environment and not of the process's.
    proxies: Dict[str, str] = {}
    for lower in (False, True):
        for name, value in environment.items():
            scheme, separator, rest = name.rpartition("_")
            if rest.lower() != "proxy" or not separator or (lower and not name.islower()):
                continue
            # A web server sets HTTP_PROXY from a request's header Proxy:.
            if name == "HTTP_PROXY" and "REQUEST_METHOD" in environment:
                continue
            if value:
                proxies[scheme.lower()] = value
            elif lower:
                proxies.pop(scheme.lower(), None)
    return proxies


def _is_direct(host: str, port: int, no_proxy: str) -> bool:
    """Tell whether ``no_proxy`` lists the host, a domain that it is in, or either with its port."""
    for entry in no_proxy.lower().split(","):
        name = entry.strip().lstrip(".")
        if name == "*" or (
            name and any(form == name or form.endswith(f".{name}") for form in (host, f"{host}:{port}"))
        ):
            return True
    return False


def proxy_for(url: str, proxies: Mapping[str, str]) -> Optional[str]:
    """Return the proxy that ``url`` is to be asked through, or None."""
    scheme, host, port = origin_of(url)
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or _is_direct(host, port, proxies.get("no", "")):
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    if not proxy.startswith("http://"):
        raise ConfigurationError(
            f"the proxy {plain_url(proxy)} is of a kind that is not spoken here",
            "name an http:// proxy, or set no_proxy",
        )
    return proxy
