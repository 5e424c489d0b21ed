"""What a Hub says of a file: its commit, size and SHA-256, through huggingface_hub; nothing of it is believed blindly.

HF_ENDPOINT and HF_TOKEN (or what ``hf auth login`` has stored) are honoured. The
token goes to the endpoint's own origin only, whatever an answer leads to, and
never over plain HTTP; no message ever holds it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .core.errors import ConfigurationError, FetchError, IntegrityError
from .core.fetch.settings import DEFAULT_ENDPOINT, Credential
from .core.fetch.sources import HubSource
from .core.formats.source import shown
from .core.reading import nearest

TIMEOUT_SECONDS = 30
# Answers of the interface, and the small files that are not in LFS (the Hub allows 10 MB), are no larger.
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_SMALL_BYTES = 16 * 1024 * 1024
MAX_FILES = 100_000
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class UnreachableError(FetchError):
    """Raised when the Hub itself cannot be asked: what else it has need not be tried."""


class Found(NamedTuple):
    """A file as the Hub has it: the commit that was looked at, size in bytes, SHA-256."""

    commit: str
    size: int
    sha256: str


class Hub:
    """One Hub, asked with the settings of ``environment``; what it says of a commit is asked once.

    ``warn`` is told in one line what a user should know.
    """

    def __init__(self, environment: Mapping[str, str], warn: Callable[[str], None]) -> None:
        try:
            import huggingface_hub
            from huggingface_hub.utils.tqdm import disable_progress_bars
        except ImportError:
            raise ConfigurationError(
                "huggingface_hub is not installed", 'install the controller\'s packages: pip install -e ".[controller]"'
            ) from None

        self.endpoint = (environment.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        parts = urllib.parse.urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(f"HF_ENDPOINT is {shown(self.endpoint)}", "write https://HOST")
        self.shown_endpoint = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        credential = Credential.bind(environment.get("HF_TOKEN") or huggingface_hub.get_token() or "", self.endpoint)
        token = credential.for_url(self.endpoint) if credential else None
        if credential and not token:
            warn(f"{self.shown_endpoint} is asked without the token: it would travel in the clear")
        self.token = token.reveal() if token else None
        self._warn = warn
        self._commits: dict[tuple[str, str], str] = {}
        self._trees: dict[tuple[str, str], dict[str, Any]] = {}
        huggingface_hub.set_client_factory(lambda: _client(credential))
        # Its own words about retries are not ours.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        disable_progress_bars()
        self._api = huggingface_hub.HfApi(endpoint=self.endpoint, token=self.token or False)

    def commit(self, repository: str, revision: str | None) -> str:
        """Return the commit that a revision means. Raises FetchError, ConfigurationError."""
        key = (repository, revision or "main")
        if key not in self._commits:
            with self._told(repository, revision):
                found = self._api.model_info(repository, revision=revision or "main")
                commit, name = found.sha, found.id
            if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
                raise self._lie(f"commit {shown(str(commit))} of {repository}")
            if revision and _COMMIT.fullmatch(revision) and commit != revision:
                raise self._lie(f"commit {commit} of {repository} where {revision} was asked for")
            if isinstance(name, str) and name.lower() != repository.lower():
                self._warn(f"{repository} is now {shown(name)}: correct its sources in the catalog")
            self._commits[key] = commit
        return self._commits[key]

    def find(self, source: HubSource, revision: str | None = None) -> Found:
        """Return a file as it is at the source's revision, or at another. Raises FetchError, ConfigurationError."""
        commit = self.commit(source.repository, revision or source.revision)
        tree = self._tree(source.repository, commit)
        file = tree.get(source.file)
        if file is None:
            raise ConfigurationError(
                f"{source.repository} at {commit[:12]} has no file {shown(source.file)}{nearest(source.file, tree)}",
                "correct the source in the catalog",
            )
        size = file.size
        if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
            raise self._lie(f"size {shown(str(size))} of {shown(source.file)}")
        if file.lfs is None:
            return Found(commit, size, self._hash_small(source, commit, size, file.blob_id))
        sha256 = file.lfs.sha256
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256) or file.lfs.size != size:
            raise self._lie(f"size {size}, in LFS {shown(str(file.lfs.size))}, of {shown(source.file)}")
        self._compare(source, commit, size, sha256)
        return Found(commit, size, sha256)

    def _tree(self, repository: str, commit: str) -> dict[str, Any]:
        if (repository, commit) not in self._trees:
            files: dict[str, Any] = {}
            with self._told(repository, commit):
                for number, one in enumerate(self._api.list_repo_tree(repository, recursive=True, revision=commit)):
                    if number == MAX_FILES:
                        raise self._lie(f"more than {MAX_FILES} files in {repository}")
                    if hasattr(one, "blob_id"):
                        files[str(one.path)] = one
            self._trees[repository, commit] = files
        return self._trees[repository, commit]

    def _compare(self, source: HubSource, commit: str, size: int, sha256: str) -> None:
        """Ask for the file as a download would: a Hub that contradicts itself is not believed."""
        import huggingface_hub

        with self._told(source.repository, commit):
            url = huggingface_hub.hf_hub_url(source.repository, source.file, revision=commit, endpoint=self.endpoint)
            said = huggingface_hub.get_hf_file_metadata(
                url, token=self.token or False, timeout=TIMEOUT_SECONDS, endpoint=self.endpoint
            )
        if (said.size, said.etag, said.commit_hash) != (size, sha256, commit):
            raise self._lie(f"{shown(source.file)}: its list and its download differ in size, hash or commit")

    def _hash_small(self, source: HubSource, commit: str, size: int, blob: str) -> str:
        """Return the SHA-256 of a file that is not in LFS: it is fetched, and proved by git's own id."""
        if size > MAX_SMALL_BYTES:
            raise self._lie(f"{size} bytes outside LFS for {shown(source.file)}")
        with tempfile.TemporaryDirectory() as folder, self._told(source.repository, commit):
            path = self._api.hf_hub_download(source.repository, source.file, revision=commit, cache_dir=folder)
            content = Path(path).read_bytes()
        if len(content) != size or hashlib.sha1(f"blob {size}\0".encode() + content).hexdigest() != blob:
            raise IntegrityError(
                f"hf://{source.repository}/{shown(source.file)}", f"{size} bytes of git's {shown(blob)}", "others"
            )
        return hashlib.sha256(content).hexdigest()

    def _lie(self, what: str) -> FetchError:
        return FetchError(
            f"the Hub at {self.shown_endpoint} gives {what}", "check HF_ENDPOINT: this is no answer of a Hub"
        )

    @contextlib.contextmanager
    def _told(self, repository: str, revision: str | None) -> Iterator[None]:
        """Turn what huggingface_hub raises into one line without a token."""
        import httpx2
        from huggingface_hub import errors

        where = f"the Hub at {self.shown_endpoint}"
        try:
            yield
        except errors.GatedRepoError:
            cure = (
                "the token has no access: accept the repository's conditions on the Hub"
                if self.token
                else "accept its conditions on the Hub, then set HF_TOKEN"
            )
            raise ConfigurationError(f"{repository} is gated", cure) from None
        except errors.RepositoryNotFoundError:
            raise ConfigurationError(
                f"{where} has no repository {repository}, or it is private",
                "correct the source in the catalog, or set HF_TOKEN to a token that may read it",
            ) from None
        except errors.RevisionNotFoundError:
            raise ConfigurationError(
                f"{repository} has no revision {shown(str(revision))}", "correct the source in the catalog"
            ) from None
        except errors.EntryNotFoundError:
            raise FetchError(f"{where} lists a file of {repository} that it does not have", "try again later") from None
        except errors.OfflineModeIsEnabled:
            raise UnreachableError("HF_HUB_OFFLINE forbids asking the Hub", "unset it to lock") from None
        except errors.HfHubHTTPError as error:
            status = getattr(error.response, "status_code", None)
            what = f"answers {status}" if status else "fails"
            raise UnreachableError(
                f"{where} {what} for {repository}", "try again later, or check HF_ENDPOINT"
            ) from None
        except (httpx2.HTTPError, OSError) as error:
            if isinstance(error, OSError) and error.filename:
                raise
            reason = shown(" ".join(str(error).split())) or type(error).__name__
            raise UnreachableError(
                f"{where} cannot be reached: {reason}", "check HF_ENDPOINT, the network and the proxies"
            ) from None
        except (errors.FileMetadataError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise self._lie(f"an answer that cannot be read ({type(error).__name__}) for {repository}") from None


def _client(credential: Credential | None) -> Any:
    """Return the HTTP client: no wait without end, no answer without bound, no token for another origin."""
    import httpx2
    from huggingface_hub.utils._http import hf_request_event_hook

    def bind(request: Any) -> None:
        # Redirects and the next page of a list lead wherever the server says.
        if credential is None or not credential.for_url(str(request.url)):
            request.headers.pop("Authorization", None)

    def bound(response: Any) -> None:
        response.stream = _Bounded(response.stream)

    class _Bounded(httpx2.SyncByteStream):
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        def __iter__(self) -> Iterator[bytes]:
            seen = 0
            for block in self._stream:
                seen += len(block)
                if seen > MAX_ANSWER_BYTES:
                    # Of a kind that huggingface_hub does not try again.
                    raise FetchError(
                        f"the Hub gives an answer of more than {MAX_ANSWER_BYTES} bytes", "check HF_ENDPOINT"
                    )
                yield block

        def close(self) -> None:
            self._stream.close()

    return httpx2.Client(
        event_hooks={"request": [hf_request_event_hook, bind], "response": [bound]},
        follow_redirects=True,
        timeout=TIMEOUT_SECONDS,
    )
