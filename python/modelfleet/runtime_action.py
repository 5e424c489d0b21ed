"""The runtime's action plugin: what the controller brings to a host, who compiles, and what is kept of it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean

from .actions import BackgroundAction, Result, Teller, clean, undisturbed
from .core.errors import ModelfleetError
from .packaging import build_wheel
from .wheelhouse import Wheelhouse


class Supplies(NamedTuple):
    """What the wheelhouse has of that which a host lacks: the compiled wheel, and the lock of the packages."""

    wheel: Path | None = None
    lock: Path | None = None


class RuntimeAction(BackgroundAction):
    """Brings the modelfleet package and what is kept to the host; keeps what is made there for all of its kind.

    Of the hosts of one kind that run at the same time one compiles, and one resolves the packages; the others wait.
    """

    def execute(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> Result:
        """See BackgroundAction."""
        named = str(arguments.pop("wheelhouse", "") or "")
        builders = [str(name) for name in arguments.pop("builders", None) or []]
        compiles = boolean(arguments.pop("compile", True))
        if arguments.get("state") == "rollback":
            return self.call(arguments, task_vars)
        house = Wheelhouse(Path(named).expanduser()) if named else None
        package = build_wheel()
        arguments["package_sha256"] = package.sha256
        seen = self.call({**arguments, "state": "inspect"}, task_vars)
        if seen.get("failed") or seen.get("unreachable"):
            return seen
        supplies = find(house, seen, builders)
        if arguments.get("state") == "inspect":
            return supplied(seen, supplies)
        collects = arguments.get("state") == "collected"
        if self._task.check_mode or not (seen["update_required"] or collects):
            return self.call(arguments, task_vars)
        arguments["package_path"] = self.bring(package.filename, package.content)
        if house is not None and not collects:
            self._bring_packages(house.packages(str(seen.get("packages_key", ""))), arguments)
        host = str(task_vars.get("inventory_hostname", ""))
        trusted = not builders or host in builders
        with ExitStack() as held:
            lacking = lacks(seen, supplies)
            if house is not None and lacking:
                teller = Teller(host, self._task.get_name(), self._display)
                # Always in the same order, so that no two wait for each other.
                for key in sorted(lacking):
                    waiting = partial(_tell_waiting, teller)
                    held.enter_context(house.building(key, host, waiting))
                supplies = find(house, seen, builders)
                lacking = lacks(seen, supplies)
            if lacking:
                if not trusted or (not compiles and seen["build_key"] in lacking):
                    return refusal(host, builders, f"no {lacking[0]} in {named}" if named else "no wheelhouse")
                result = self._install(arguments, supplies, task_vars)
                if house is not None and not result.get("failed"):
                    self._keep(house, result, host)
                return self._collect(house, result, arguments, host if trusted else "")
        # What waits goes on side by side.
        return self._collect(house, self._install(arguments, supplies, task_vars), arguments, host if trusted else "")

    def _install(self, arguments: dict[str, Any], supplies: Supplies, task_vars: dict[str, Any]) -> Result:
        for name, kept in (("wheel", supplies.wheel), ("lock", supplies.lock)):
            if kept is not None:
                arguments[f"{name}_path"] = self.bring(kept.name, kept.read_bytes())
                arguments[f"{name}_sha256"] = Wheelhouse.pin(kept)
        return super().execute(arguments, task_vars)

    def _bring_packages(self, wheels: Sequence[Path], arguments: dict[str, Any]) -> None:
        """Copy wheels for an installation without any package index to the host."""
        if not wheels:
            return
        shell = self._connection._shell
        folder = shell.join_path(shell.tmpdir or self._make_tmp_path(), "packages")
        self._low_level_execute_command(f"mkdir -p {shlex.quote(folder)}", sudoable=False)
        for wheel in wheels:
            self._transfer_file(str(wheel), shell.join_path(folder, wheel.name))
        self._fixup_perms2((shell.tmpdir, folder, *(shell.join_path(folder, wheel.name) for wheel in wheels)))
        arguments.update(packages_path=folder, offline=True)

    def _keep(self, house: Wheelhouse, result: Result, host: str) -> None:
        """Take from the host what it made; that it cannot be kept does not undo the work."""
        lock = result.get("lock") or {}
        made = [(result["build_key"], result["wheel"], result["wheel_sha256"])] if result.get("compiled") else []
        if lock.get("path") and house.find(str(lock["key"])) is None:
            made.append((lock["key"], lock["path"], lock["sha256"]))
        for key, path, sha256 in made:
            try:
                house.keep(str(key), str(path), str(sha256), host, self._connection.fetch_file)
            except AnsibleConnectionFailure:
                raise
            except (AnsibleError, OSError) as error:
                # The environment is there all the same; a later host makes it once more.
                reason = clean(" ".join(str(error).split()))
                with undisturbed():
                    self._display.warning(f"{clean(str(key))} was not kept in {house.folder}: {reason}")

    def _collect(self, house: Wheelhouse | None, result: Result, arguments: dict[str, Any], host: str) -> Result:
        """Take from the host the packages that it collected, where it collected any, and its wheel and lock."""
        if result.get("collected") is None or result.get("failed"):
            return result
        if house is None or not host:
            return {"failed": True, "msg": "what is collected needs a wheelhouse, and a host that may build for it"}
        fetch, lock = self._connection.fetch_file, result.get("lock") or {}
        files = [(str(one["path"]), str(one["sha256"])) for one in result["collected"]]
        try:
            if result.get("wheel") and house.find(str(result["build_key"])) is None:
                house.keep(str(result["build_key"]), str(result["wheel"]), str(result["wheel_sha256"]), host, fetch)
            requirements = "" if lock else str(arguments["requirements"])
            house.keep_packages(str(result["packages_key"]), requirements, files, fetch)
        except (AnsibleError, ModelfleetError, OSError) as error:
            reason = clean(" ".join(str(error).split()))
            return {"failed": True, "msg": f"what was collected was not kept in {house.folder}: {reason}"}
        folder = files[0][0].rpartition("/")[0]
        self._low_level_execute_command(f"rm -rf {shlex.quote(folder)}", sudoable=True)
        return {**result, "collected": len(files)}


def find(house: Wheelhouse | None, seen: Result, builders: Sequence[str]) -> Supplies:
    """Return what the wheelhouse has of that which a host lacks."""
    if house is None:
        return Supplies()
    lock = seen.get("lock") or {}
    return Supplies(
        house.find(str(seen["build_key"]), builders) if seen["build_required"] else None,
        house.find(str(lock["key"]), builders) if lock.get("required") else None,
    )


def lacks(seen: Result, supplies: Supplies) -> list[str]:
    """Return the keys of what has to be made on the host."""
    lock = seen.get("lock") or {}
    build = [str(seen["build_key"])] if seen["build_required"] and supplies.wheel is None else []
    return build + ([str(lock["key"])] if lock.get("required") and supplies.lock is None else [])


def supplied(seen: Result, supplies: Supplies) -> Result:
    """Return what was seen of a host, less what the wheelhouse has."""
    if supplies.wheel:
        seen.update(build_required=False, missing_build_tools=[], system_packages=[])
    if supplies.lock:
        seen["lock"]["required"] = False
    return seen


def _tell_waiting(teller: Teller, who: str) -> None:
    teller.tell({"step": f"waiting for {who}'s build"})


def refusal(host: str, builders: Sequence[str], lacking: str) -> Result:
    """Return the failure of a host that lacks what it may not make."""
    who = f"the builders are {', '.join(builders)}" if builders else "the first of its kind in this run does"
    return {
        "failed": True,
        "msg": f"there is {lacking}, and {host} does not make it: {who}; "
        f"run that one first, see why it failed, or add {host} to runtime_builders",
    }
