"""What the controller does for a host's runtime: what it brings, who may compile, what it keeps."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure
from modelfleet import wheelhouse as wheelhouse_module
from modelfleet.packaging import build_wheel
from modelfleet.runtime_action import RuntimeAction
from modelfleet.wheelhouse import Wheelhouse
from support.action import OnThisMachine
from support.index import sha256

KEY = "llama_cpp_python-0.3.36-cpu-linux_x86_64-glibc2.36-abcdef01"
WHEEL = "llama_cpp_python-0.3.36-py3-none-any.whl"


class Runtime(OnThisMachine, RuntimeAction):
    """The action plugin of the runtime on this machine."""


def run(action: Any, **arguments: Any) -> dict[str, Any]:
    result: dict[str, Any] = action.execute(arguments, {"inventory_hostname": "host1"})
    return result


def seen(update: bool = True, build: bool = True) -> dict[str, Any]:
    return {
        "changed": False,
        "update_required": update,
        "build_required": build,
        "build_key": KEY,
        "missing_build_tools": ["cmake"] if build else [],
    }


class TestRuntime:
    @pytest.fixture
    def runtime(self, tmp_path: Path) -> Runtime:
        (tmp_path / "transfer").mkdir()
        return Runtime(tmp_path / "transfer")

    @pytest.fixture
    def house(self, tmp_path: Path) -> Path:
        return tmp_path / "house"

    def keep(self, house: Path) -> Path:
        folder = house / KEY
        folder.mkdir(parents=True)
        (folder / WHEEL).write_bytes(b"a wheel")
        (folder / f"{WHEEL}.sha256").write_text(sha256(folder / WHEEL))
        return folder / WHEEL

    def test_nothing_to_do_brings_nothing(self, runtime: Runtime, house: Path) -> None:
        runtime.answers = [seen(update=False, build=False), {"changed": False}]
        assert run(runtime, state="present", wheelhouse=str(house)) == {"changed": False}
        assert [call.get("state") for call in runtime.calls] == ["inspect", "present"]
        assert runtime.calls[0]["package_sha256"] == build_wheel().sha256
        assert os.listdir(runtime._connection._shell.tmpdir) == []
        assert all("wheelhouse" not in call for call in runtime.calls)

    def test_inspect_knows_the_wheelhouse(self, runtime: Runtime, house: Path) -> None:
        runtime.answers = [seen()]
        assert run(runtime, state="inspect", wheelhouse=str(house))["missing_build_tools"] == ["cmake"]
        self.keep(house)
        runtime.answers = [seen()]
        told = run(runtime, state="inspect", wheelhouse=str(house))
        assert (told["build_required"], told["missing_build_tools"]) == (False, [])

    def test_a_failure_to_inspect_is_the_tasks(self, runtime: Runtime) -> None:
        runtime.answers = [{"failed": True, "msg": "no"}]
        assert run(runtime, state="present") == {"failed": True, "msg": "no"}

    def test_a_kept_wheel_is_brought(self, runtime: Runtime, house: Path) -> None:
        kept = self.keep(house)
        runtime.answers = [seen(), {"changed": True}]
        assert run(runtime, state="present", wheelhouse=str(house)) == {"changed": True}
        call = runtime.calls[-1]
        assert call["background"] is True and call["wheel_sha256"] == sha256(kept)
        assert Path(call["wheel_path"]).read_bytes() == b"a wheel"
        assert Path(call["package_path"]).read_bytes() == build_wheel().content

    def test_a_compiled_wheel_is_kept(self, tmp_path: Path, runtime: Runtime, house: Path) -> None:
        remote = tmp_path / WHEEL
        remote.write_bytes(b"compiled")
        compiled = {"compiled": True, "build_key": KEY, "wheel": str(remote), "wheel_sha256": sha256(remote)}
        runtime.answers = [seen(), compiled]
        assert run(runtime, state="present", wheelhouse=str(house)) == compiled
        kept = Wheelhouse(house).find(KEY)
        assert kept is not None and kept.read_bytes() == b"compiled"

    @pytest.mark.parametrize("trouble", ["cannot be fetched", "read-only wheelhouse"])
    def test_a_wheel_that_cannot_be_kept_does_not_undo_the_work(
        self, tmp_path: Path, runtime: Runtime, house: Path, trouble: str
    ) -> None:
        """A home that only its owner may enter, say: the environment is there all the same."""
        remote = tmp_path / WHEEL
        remote.write_bytes(b"compiled")
        compiled = {"compiled": True, "build_key": KEY, "wheel": str(remote), "wheel_sha256": sha256(remote)}
        runtime.answers = [seen(), compiled]
        if trouble == "cannot be fetched":
            runtime._connection.lost = True
        else:
            house.touch()
        assert run(runtime, state="present", wheelhouse=str(house)) == compiled
        (warning,) = runtime._display.warnings
        assert warning.startswith(f"{KEY} was not kept in ") and "\n" not in warning

    def test_a_lost_connection_is_lost(self, tmp_path: Path, runtime: Runtime, house: Path) -> None:
        def lose(remote: str, local: str) -> None:
            raise AnsibleConnectionFailure("gone")

        runtime._connection.fetch_file = lose  # type: ignore[method-assign]
        compiled = {"compiled": True, "build_key": KEY, "wheel": f"/x/{WHEEL}", "wheel_sha256": "0" * 64}
        runtime.answers = [seen(), compiled]
        with pytest.raises(AnsibleConnectionFailure):
            run(runtime, state="present", wheelhouse=str(house))

    def test_check_mode_brings_nothing(self, tmp_path: Path, house: Path) -> None:
        (tmp_path / "transfer").mkdir()
        checking = Runtime(tmp_path / "transfer", check_mode=True)
        checking.answers = [seen(), {"changed": True}]
        assert run(checking, state="present", wheelhouse=str(house)) == {"changed": True}
        assert os.listdir(tmp_path / "transfer") == [] and not house.exists()


class TestBuilders:
    """Where builders are named, nobody else compiles, and nobody else's wheel is used."""

    @pytest.fixture
    def runtime(self, tmp_path: Path) -> Runtime:
        (tmp_path / "transfer").mkdir()
        return Runtime(tmp_path / "transfer")

    def compiled(self, tmp_path: Path) -> dict[str, Any]:
        remote = tmp_path / WHEEL
        remote.write_bytes(b"compiled")
        return {"compiled": True, "build_key": KEY, "wheel": str(remote), "wheel_sha256": sha256(remote)}

    def test_a_builder_compiles_and_its_name_is_kept(self, tmp_path: Path, runtime: Runtime) -> None:
        runtime.answers = [seen(), self.compiled(tmp_path)]
        run(runtime, state="present", wheelhouse=str(tmp_path / "house"), builders=["host1", "host2"])
        kept = Wheelhouse(tmp_path / "house").find(KEY, ["host1"])
        assert kept is not None and kept.read_bytes() == b"compiled"
        assert all("builders" not in call for call in runtime.calls)

    @pytest.mark.parametrize("house", ["house", ""])
    def test_another_host_is_refused_in_one_line(self, tmp_path: Path, runtime: Runtime, house: str) -> None:
        named = str(tmp_path / house) if house else ""
        runtime.answers = [seen()]
        result = run(runtime, state="present", wheelhouse=named, builders=["host2", "host3"])
        lacking = f"no {KEY} in {named}" if house else "no wheelhouse"
        assert result["failed"] and result["msg"] == (
            f"there is {lacking}, and host1 does not make it: the builders are host2, host3; "
            "run that one first, see why it failed, or add host1 to runtime_builders"
        )
        assert [call["state"] for call in runtime.calls] == ["inspect"]

    def test_a_wheel_of_somebody_else_is_not_used(self, tmp_path: Path, runtime: Runtime) -> None:
        compiled = self.compiled(tmp_path)
        house = Wheelhouse(tmp_path / "house")
        house.keep(KEY, compiled["wheel"], compiled["wheel_sha256"], "host9", runtime._connection.fetch_file)
        runtime.answers = [seen()]
        assert run(runtime, state="present", wheelhouse=str(house.folder), builders=["host2"])["failed"]

    def test_a_host_that_waited_installs_what_the_builder_left(
        self, tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        house, compiled = Wheelhouse(tmp_path / "house"), self.compiled(tmp_path)
        monkeypatch.setattr(wheelhouse_module, "WAIT_SECONDS", 0.01)
        runtime.answers = [seen(), {"changed": True}]
        with ExitStack() as builder:
            builder.enter_context(house.building(KEY, "host2", lambda who: None))

            def finish(line: str, stderr: bool) -> None:
                assert line == "  host1: waiting for host2's build"
                house.keep(KEY, compiled["wheel"], compiled["wheel_sha256"], "host2", runtime._connection.fetch_file)
                builder.close()

            monkeypatch.setattr(runtime._display, "display", finish)
            assert run(runtime, state="present", wheelhouse=str(house.folder)) == {"changed": True}
        assert runtime.calls[-1]["wheel_sha256"] == compiled["wheel_sha256"]


class TestPackages:
    """What else an environment holds: resolved once for a kind of host, and brought where no index is."""

    LOCK = "stack-cpu-py3.11-linux_x86_64-glibc2.36-abcdef01"

    @pytest.fixture
    def runtime(self, tmp_path: Path) -> Runtime:
        (tmp_path / "transfer").mkdir()
        return Runtime(tmp_path / "transfer")

    def lacking(self) -> dict[str, Any]:
        return {**seen(build=False), "lock": {"key": self.LOCK, "required": True, "path": None, "sha256": None}}

    def resolved(self, folder: Path) -> dict[str, Any]:
        lock = folder / "requirements.txt"
        lock.write_text("torch==2.13.0 --hash=sha256:0\n")
        return {"key": self.LOCK, "required": False, "path": str(lock), "sha256": sha256(lock)}

    def test_the_lock_of_the_first_is_kept_and_brought_to_the_next(self, tmp_path: Path, runtime: Runtime) -> None:
        house, lock = tmp_path / "house", self.resolved(tmp_path)
        runtime.answers = [self.lacking(), {"changed": True, "lock": lock}, self.lacking(), {"changed": True}]
        run(runtime, state="present", wheelhouse=str(house), compile=False)
        assert "lock_path" not in runtime.calls[-1]
        assert sorted(os.listdir(house / self.LOCK)) == [
            *("requirements.txt", "requirements.txt.json", "requirements.txt.sha256")
        ]
        run(runtime, state="present", wheelhouse=str(house), builders=["host1"])
        assert runtime.calls[-1]["lock_sha256"] == lock["sha256"]
        assert Path(runtime.calls[-1]["lock_path"]).read_text() == Path(lock["path"]).read_text()

    def test_nobody_but_a_builder_resolves(self, tmp_path: Path, runtime: Runtime) -> None:
        runtime.answers = [self.lacking()]
        result = run(runtime, state="present", wheelhouse=str(tmp_path / "house"), builders=["host2"])
        assert result["failed"] and result["msg"].startswith(f"there is no {self.LOCK} in ")

    def test_inspect_knows_the_lock(self, tmp_path: Path, runtime: Runtime) -> None:
        lock = self.resolved(tmp_path)
        house = Wheelhouse(tmp_path / "house")
        house.keep(self.LOCK, lock["path"], lock["sha256"], "host1", runtime._connection.fetch_file)
        runtime.answers = [self.lacking()]
        assert run(runtime, state="inspect", wheelhouse=str(house.folder))["lock"]["required"] is False

    def test_kept_packages_are_brought_and_nothing_else_is_asked(self, tmp_path: Path, runtime: Runtime) -> None:
        wheels = tmp_path / "house" / self.LOCK / "wheels"
        wheels.mkdir(parents=True)
        (wheels / "numpy-2.0.2-py3-none-any.whl").write_bytes(b"numpy")
        runtime.answers = [{**seen(build=False), "packages_key": self.LOCK}, {"changed": True}]
        run(runtime, state="present", wheelhouse=str(tmp_path / "house"))
        call = runtime.calls[-1]
        assert call["offline"] is True
        assert [path.read_bytes() for path in Path(call["packages_path"]).iterdir()] == [b"numpy"]

    def test_a_way_back_brings_nothing(self, runtime: Runtime) -> None:
        runtime.answers = [{"changed": True}]
        assert run(runtime, state="rollback", wheelhouse="/nowhere") == {"changed": True}
        assert runtime.calls == [{"state": "rollback"}] and os.listdir(runtime._connection._shell.tmpdir) == []
