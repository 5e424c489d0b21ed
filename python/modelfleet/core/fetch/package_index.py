"""Distributions (wheels and source archives) from the Python package index that this machine is set to use.

Reads what pip reads: the environment (``PIP_INDEX_URL``, ``PIP_EXTRA_INDEX_URL``,
``PIP_FIND_LINKS``, ``PIP_CERT``, ``PIP_PROXY``, ``PIP_NO_INDEX``) over the ``pip.conf``
files, and the certificates of ``SSL_CERT_FILE`` or ``REQUESTS_CA_BUNDLE``. An index is
asked in the simple repository API, HTML or JSON
(https://packaging.python.org/en/latest/specifications/simple-repository-api/).

Which index serves a file does not matter: the caller pins its SHA-256.
"""

import configparser
import email.utils
import errno
import hashlib
import html.parser
import http.client
import json
import mimetypes
import os
import re
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Callable, Dict, Iterable, List, Mapping, Optional, Tuple
from urllib.response import addinfourl

from ..errors import FetchError, IntegrityError

DEFAULT_INDEX = "https://pypi.org/simple"
READ_SIZE = 1024 * 1024
TIMEOUT_SECONDS = 30
LOCAL_ERRORS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS))
"""What the system says when the trouble is the place that is written to, not the source."""

# urllib imports them when it first opens a file:// URL; Python's files may be out of reach by then (core.privilege).
_NEEDED_LATER = (email.utils, mimetypes)
# What asking a place can raise: the network, a URL or a page that is none, a server that speaks no HTTP.
_FAILURES = (OSError, ValueError, http.client.HTTPException)
_PAGE_LIMIT = 64 * 1024 * 1024
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"

Progress = Callable[[int, Optional[int]], None]
"""Called with bytes done and, where known, bytes in all."""


@dataclass(frozen=True)
class PackageIndexSettings:
    """Where distributions come from: index URLs and link pages or folders, in the order in which they are asked."""

    index_urls: Tuple[str, ...] = (DEFAULT_INDEX,)
    find_links: Tuple[str, ...] = ()
    ca_bundle: Optional[str] = None
    proxy: Optional[str] = None

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str], ca_bundle: Optional[str] = None
    ) -> "PackageIndexSettings":
        """Read the settings that pip would use; ``ca_bundle`` (a path) wins over the environment's."""
        options = _read_options(environment)
        index_urls: List[str] = []
        if options.get("no-index", "").lower() not in ("1", "true", "t", "yes", "y", "on"):
            index_urls = options.get("index-url", DEFAULT_INDEX).split() + options.get("extra-index-url", "").split()
        certificates = (
            ca_bundle
            or options.get("cert")
            or environment.get("SSL_CERT_FILE")
            or environment.get("REQUESTS_CA_BUNDLE")
            or None
        )
        return cls(
            index_urls=tuple(url.rstrip("/") for url in index_urls),
            find_links=tuple(options.get("find-links", "").split()),
            ca_bundle=certificates,
            proxy=options.get("proxy") or None,
        )


def configuration_files(environment: Mapping[str, str]) -> List[str]:
    """Return the paths of the pip.conf files, weakest first, as pip orders them: global, user, environment's own.

    One that PIP_CONFIG_FILE names comes last, and in the place of the user's.
    """
    named = environment.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return []
    home = environment.get("HOME") or os.path.expanduser("~")
    config_home = environment.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    system = [
        os.path.join(folder, "pip", "pip.conf") for folder in environment.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")
    ]
    user = [os.path.join(home, ".pip", "pip.conf"), os.path.join(config_home, "pip", "pip.conf")]
    if sys.platform == "darwin":
        user.append(os.path.join(home, "Library", "Application Support", "pip", "pip.conf"))
    if named and os.path.exists(named):
        user = []
    return [*system, "/etc/pip.conf", *user, os.path.join(sys.prefix, "pip.conf"), *([named] if named else [])]


def download_distribution(
    project: str,
    filename: str,
    sha256: str,
    destination: str,
    settings: PackageIndexSettings,
    progress: Optional[Progress] = None,
    size_limit: Optional[int] = None,
) -> int:
    """Write the distribution ``filename`` of ``project`` to ``destination``, proved by its SHA-256.

    Every place that has a file of that name is tried in turn, so one that lies
    or fails costs a retry, not the file. Returns the size in bytes. Raises
    FetchError where no place has it or can be reached, IntegrityError where
    every copy has another hash. Nothing is left at ``destination`` on failure.
    """
    failures: List[str] = []
    wrong: Optional[IntegrityError] = None
    for url in _locations(project, filename, settings, failures):
        try:
            return _download(url, filename, sha256, destination, settings, progress, size_limit)
        except IntegrityError as error:
            wrong = error
        except (FetchError, *_FAILURES) as error:
            if isinstance(error, OSError) and error.filename == destination:
                raise
            failures.append(f"{_without_credentials(url)}: {_reason(error)}")
    if wrong is not None:
        raise wrong
    raise FetchError(
        f"{filename} of the package {project} could not be fetched ({'; '.join(failures) or 'no index is configured'})",
        "check the package index (PIP_INDEX_URL, pip.conf), the proxy and the certificates (modelfleet_ca_bundle)",
    )


def _read_options(environment: Mapping[str, str]) -> Dict[str, str]:
    options: Dict[str, str] = {}
    for path in configuration_files(environment):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (OSError, UnicodeDecodeError, configparser.Error) as error:
            raise FetchError(
                f"{path} cannot be read as a pip configuration: {str(error).splitlines()[0]}", "correct it"
            ) from None
        for section in ("global", "install", "download", "wheel"):
            if parser.has_section(section):
                options.update(
                    (name.replace("_", "-"), value) for name, value in parser.items(section) if value is not None
                )
    for name, value in environment.items():
        if name.startswith("PIP_") and value:
            options[name[len("PIP_") :].lower().replace("_", "-")] = value
    return options


def _locations(project: str, filename: str, settings: PackageIndexSettings, failures: List[str]) -> Iterable[str]:
    """Yield the URLs under which ``filename`` is offered; what cannot be asked is noted in ``failures``."""
    for place in settings.find_links:
        local = urllib.request.url2pathname(urllib.parse.urlsplit(place).path) if place.startswith("file:") else place
        if os.path.isdir(local):
            if os.path.isfile(os.path.join(local, filename)):
                yield "file://" + urllib.request.pathname2url(os.path.join(os.path.abspath(local), filename))
        elif "://" in place:
            yield from _links(place, filename, settings, failures)
    name = re.sub(r"[-_.]+", "-", project).lower()
    for index in settings.index_urls:
        # A folder laid out as an index has no server that would answer for its pages.
        page = f"{index}/{name}/index.html" if index.startswith("file:") else f"{index}/{name}/"
        yield from _links(page, filename, settings, failures)


def _links(page: str, filename: str, settings: PackageIndexSettings, failures: List[str]) -> List[str]:
    try:
        with _open(page, settings, {"Accept": _ACCEPT}) as response:
            content = response.read(_PAGE_LIMIT)
            kind = response.headers.get("Content-Type", "")
            base = response.geturl()
        found = _json_links(content) if "json" in kind else _html_links(content)
        links = [_resolve(link, base, page) for name, link in found if name == filename]
    except _FAILURES as error:
        failures.append(f"{_without_credentials(page)}: {_reason(error)}")
        return []
    if not links:
        failures.append(f"{_without_credentials(page)}: has no {filename}")
    return links


def _resolve(link: str, base: str, page: str) -> str:
    """Return the URL of a page's link; what is on the page's own server is fetched with the page's password."""
    parts, home = urllib.parse.urlsplit(urllib.parse.urljoin(base, link)), urllib.parse.urlsplit(page)
    if parts.scheme == "file" and home.scheme != "file":
        raise ValueError("it names a file of this host")
    userinfo, at, _ = home.netloc.rpartition("@")
    if at and "@" not in parts.netloc and _server(parts) == _server(home):
        parts = parts._replace(netloc=f"{userinfo}@{parts.netloc}")
    return urllib.parse.urlunsplit(parts._replace(fragment=""))


def _server(parts: urllib.parse.SplitResult) -> Tuple[str, Optional[str], Optional[int]]:
    return parts.scheme, parts.hostname, parts.port


def _json_links(content: bytes) -> List[Tuple[str, str]]:
    document = json.loads(content)
    files = document.get("files") if isinstance(document, dict) else None
    if not isinstance(files, list):
        raise ValueError("it is no page of a package index")
    return [(str(entry.get("filename")), str(entry.get("url"))) for entry in files if isinstance(entry, dict)]


class _LinkParser(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: List[str] = []

    def handle_starttag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        self.links.extend(value for name, value in attrs if tag == "a" and name == "href" and value)


def _html_links(content: bytes) -> List[Tuple[str, str]]:
    parser = _LinkParser()
    parser.feed(content.decode("utf-8", "replace"))
    return [(urllib.parse.unquote(link.split("#")[0].split("?")[0].rsplit("/", 1)[-1]), link) for link in parser.links]


def _open(url: str, settings: PackageIndexSettings, headers: Mapping[str, str]) -> addinfourl:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https", "file") or (parts.scheme != "file" and not parts.hostname):
        raise ValueError("it is no http, https or file URL")
    handlers: List[urllib.request.BaseHandler] = []
    if url.startswith("https:"):
        try:
            context = ssl.create_default_context(cafile=settings.ca_bundle)
        except OSError as error:
            raise FetchError(
                f"the certificates in {settings.ca_bundle} cannot be read: {_reason(error)}",
                "name a bundle in PEM form (modelfleet_ca_bundle, PIP_CERT or SSL_CERT_FILE)",
            ) from None
        handlers.append(urllib.request.HTTPSHandler(context=context))
    if settings.proxy:
        handlers.append(urllib.request.ProxyHandler({"http": settings.proxy, "https": settings.proxy}))
    request_headers = {"User-Agent": "modelfleet", "Accept-Encoding": "identity", **headers}
    if parts.username:
        # An index that wants a password is written https://user:password@host/ in pip's settings.
        passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
        url = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        passwords.add_password(
            None,
            url,
            urllib.parse.unquote(parts.username),
            urllib.parse.unquote(parts.password or ""),
            is_authenticated=True,
        )
        handlers.append(urllib.request.HTTPBasicAuthHandler(passwords))
    request = urllib.request.Request(url, headers=request_headers)
    response: addinfourl = urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT_SECONDS)
    return response


def _download(
    url: str,
    filename: str,
    sha256: str,
    destination: str,
    settings: PackageIndexSettings,
    progress: Optional[Progress],
    size_limit: Optional[int],
) -> int:
    digest = hashlib.sha256()
    done = 0
    try:
        with _open(url, settings, {}) as response, open(destination, "wb") as target:
            length = response.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else size_limit
            while True:
                block = response.read(READ_SIZE)
                if not block:
                    break
                done += len(block)
                if size_limit is not None and done > size_limit:
                    raise IntegrityError(filename, f"{size_limit} bytes", "more")
                digest.update(block)
                target.write(block)
                if progress is not None:
                    progress(done, total)
            target.flush()
            os.fsync(target.fileno())
        if length and length.isdigit() and done < int(length):
            raise FetchError(f"the connection was cut after {done} of {length} bytes")
        if digest.hexdigest() != sha256:
            raise IntegrityError(filename, f"sha256 {sha256}", f"sha256 {digest.hexdigest()} ({done} bytes)")
    except BaseException as error:
        if os.path.exists(destination):
            os.unlink(destination)
        if isinstance(error, OSError) and error.errno in LOCAL_ERRORS:
            error.filename = destination
        raise
    return done


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"HTTP status {error.code}"
    if isinstance(error, (http.client.InvalidURL, UnicodeError)):
        # Its text may hold what stands where the host should: half of a password.
        return "it is no valid URL"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return _without_credentials(" ".join(str(cause).split())) or type(cause).__name__


def _without_credentials(text: str) -> str:
    """Cut whatever stands before an @, which in a URL that is not well-formed may be anywhere."""
    return re.sub(r"((?:\w+:)?//)?\S*@", r"\1", text)
