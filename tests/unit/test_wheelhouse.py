"""Wheels that the controller keeps: what counts as kept, and who builds while others wait."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import pytest
from modelfleet import wheelhouse as wheelhouse_module
from modelfleet.wheelhouse import Wheelhouse, made_by
from support.action import Connection
from support.index import sha256

KEY = "llama_cpp_python-0.3.36-cpu-linux_x86_64-glibc2.36-abcdef01"
BUILDER = "host1"
WHEEL = "llama_cpp_python-0.3.36-py3-none-any.whl"


@pytest.fixture
def wheelhouse(tmp_path: Path) -> Wheelhouse:
    return Wheelhouse(tmp_path / "house")


class TestKept:
    @pytest.fixture
    def remote(self, tmp_path: Path) -> Path:
        remote = tmp_path / "host" / WHEEL
        remote.parent.mkdir()
        remote.write_bytes(b"a wheel")
        return remote

    def test_what_is_kept_is_found(self, tmp_path: Path, wheelhouse: Wheelhouse, remote: Path) -> None:
        assert wheelhouse.find(KEY) is None
        wheelhouse.keep(KEY, str(remote), sha256(remote), BUILDER, Connection(tmp_path).fetch_file)
        kept = wheelhouse.find(KEY)
        assert kept == tmp_path / "house" / KEY / WHEEL and kept.read_bytes() == b"a wheel"
        assert Wheelhouse.pin(kept) == sha256(remote)
        assert sorted(path.name for path in kept.parent.iterdir()) == [WHEEL, f"{WHEEL}.json", f"{WHEEL}.sha256"]
        assert made_by(kept) == BUILDER

    def test_only_a_builders_wheel_is_trusted(self, tmp_path: Path, wheelhouse: Wheelhouse, remote: Path) -> None:
        wheelhouse.keep(KEY, str(remote), sha256(remote), BUILDER, Connection(tmp_path).fetch_file)
        kept = wheelhouse.find(KEY, [BUILDER, "host2"])
        assert kept is not None and wheelhouse.find(KEY, ["host2"]) is None
        for said in ("", "no JSON", "[]", '{"made_by": 1}', '{"made_at": "today"}'):
            Path(f"{kept}.json").write_text(said)
            assert wheelhouse.find(KEY, [BUILDER]) is None and wheelhouse.find(KEY) == kept

    def test_another_hash_is_not_kept(self, tmp_path: Path, wheelhouse: Wheelhouse, remote: Path) -> None:
        wheelhouse.keep(KEY, str(remote), "0" * 64, BUILDER, Connection(tmp_path).fetch_file)
        assert wheelhouse.find(KEY) is None and list((tmp_path / "house" / KEY).iterdir()) == []

    @pytest.mark.parametrize(
        "key",
        [
            *("../x", "/etc", "..", "", "llama_cpp_python-../../x", "llama_cpp_python-x/y", "llama_cpp_python-\0"),
            *("llama_cpp_python-x\n", "llama_cpp_python-é", "llama_cpp_python-" + "x" * 200, "other-1.0", "*"),
        ],
    )
    def test_a_key_that_is_no_plain_name(self, tmp_path: Path, wheelhouse: Wheelhouse, remote: Path, key: str) -> None:
        wheelhouse.keep(key, str(remote), sha256(remote), BUILDER, Connection(tmp_path).fetch_file)
        assert wheelhouse.find(key) is None
        assert sorted(path.name for path in tmp_path.iterdir()) == ["host"]

    @pytest.mark.parametrize(
        "remote",
        [
            *("../../x.whl", "/x/..", "/x/", "x.whl", "llama_cpp_python-1.tar.gz", "/x/llama_cpp_python-1.whl\n"),
            *("/x/llama_cpp_python-\x1b.whl", "/x/.llama_cpp_python-1.whl", "/x/llama_cpp_python-..\\..\\x.whl"),
        ],
    )
    def test_a_wheel_that_is_no_plain_name(self, tmp_path: Path, wheelhouse: Wheelhouse, remote: str) -> None:
        connection = Connection(tmp_path)
        connection.lost = True
        wheelhouse.keep(KEY, remote, "0" * 64, BUILDER, connection.fetch_file)
        assert list(tmp_path.iterdir()) == []

    def test_a_wheel_without_its_hash_does_not_count(self, tmp_path: Path, wheelhouse: Wheelhouse) -> None:
        folder = tmp_path / "house" / KEY
        folder.mkdir(parents=True)
        (folder / WHEEL).touch()
        assert wheelhouse.find(KEY) is None


def hold(folder: Path, host: str, held: Pipe) -> None:
    """Hold the build until the other end of the pipe says or closes something."""
    with Wheelhouse(folder).building(KEY, host, lambda who: None):
        held.send("held")
        held.recv()


class TestBuilding:
    """One host builds; the others of its kind wait, in whatever process of the controller they are served."""

    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(wheelhouse_module, "WAIT_SECONDS", 0.01)

    @pytest.mark.parametrize("end", ["done", "killed"])
    def test_a_second_waits_until_the_first_has_ended(self, tmp_path: Path, wheelhouse: Wheelhouse, end: str) -> None:
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        holder = context.Process(target=hold, args=(tmp_path / "house", "host1", theirs))
        holder.start()
        assert ours.recv() == "held"
        waited_for: list[str] = []

        def wait(who: str) -> None:
            waited_for.append(who)
            if len(waited_for) == 3:
                assert holder.pid is not None
                os.kill(holder.pid, signal.SIGKILL) if end == "killed" else ours.send("enough")

        with wheelhouse.building(KEY, "host2", wait):
            holder.join()
        assert len(waited_for) >= 3 and set(waited_for) == {"host1"}
        assert holder.exitcode == (0 if end == "done" else -signal.SIGKILL)

    def test_of_many_at_once_one_builds_at_a_time(self, wheelhouse: Wheelhouse) -> None:
        inside, most, waits = [0], [0], threading.Event()

        def build(name: str) -> None:
            with wheelhouse.building(KEY, name, lambda who: waits.set()):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                if name == "first":
                    waits.wait()
                inside[0] -= 1

        threads = [threading.Thread(target=build, args=(name,)) for name in ("first", "second", "third")]
        for thread in threads:
            thread.start()
        # Where "first" comes last, nobody is left to wait for it.
        while sum(thread.is_alive() for thread in threads) > 1 and not waits.wait(0.01):
            pass
        waits.set()
        for thread in threads:
            thread.join()
        assert most == [1] and inside == [0]

    def test_another_build_does_not_wait(self, wheelhouse: Wheelhouse) -> None:
        def refuse(who: str) -> None:
            raise AssertionError(f"waits for {who}")

        with wheelhouse.building(KEY, "host1", refuse), wheelhouse.building(f"{KEY}2", "host2", refuse):
            pass

    def test_a_wheelhouse_that_cannot_be_written_is_no_reason_not_to_build(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with Wheelhouse(tmp_path / "file").building(KEY, "host1", lambda who: None):
            pass
        with Wheelhouse(tmp_path).building("../x", "host1", lambda who: None):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
