"""The runtime's action plugin: what the controller brings to a host, who compiles, and what is kept of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean

from .actions import BackgroundAction, Result, Teller, clean
from .packaging import build_wheel
from .wheelhouse import Wheelhouse


class RuntimeAction(BackgroundAction):
    """Brings the modelfleet package and kept wheels to the host; keeps the wheel that is compiled there.

    Of the hosts of one kind that run at the same time one compiles; the others wait and install its wheel.
    """

    def execute(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> Result:
        """See BackgroundAction."""
        named = str(arguments.pop("wheelhouse", "") or "")
        builders = list(arguments.pop("builders", None) or [])
        wheelhouse = Wheelhouse(Path(named).expanduser()) if named else None
        host = str(task_vars.get("inventory_hostname", ""))
        compiles = boolean(arguments.pop("compile", True))
        allowed = compiles and (not builders or host in builders)
        package = build_wheel()
        arguments["package_sha256"] = package.sha256
        seen = self.call({**arguments, "state": "inspect"}, task_vars)
        if seen.get("failed") or seen.get("unreachable"):
            return seen
        key = str(seen["build_key"])
        kept = wheelhouse.find(key, builders) if wheelhouse and seen["build_required"] else None
        if arguments.get("state") == "inspect":
            if kept:
                seen.update(build_required=False, missing_build_tools=[])
            return seen
        if self._task.check_mode or not seen["update_required"]:
            return self.call(arguments, task_vars)
        arguments["package_path"] = self.bring(package.filename, package.content)
        if kept or not seen["build_required"]:
            return self._install(arguments, kept, task_vars)
        if wheelhouse is None:
            return self._install(arguments, None, task_vars) if allowed else refusal(host, builders, "no wheelhouse")
        teller = Teller(host, self._task.get_name(), self._display)
        with wheelhouse.building(key, host, lambda who: teller.tell({"step": f"waiting for {who}'s build"})):
            kept = wheelhouse.find(key, builders)
            if kept is None:
                if not allowed:
                    return refusal(host, builders, f"no wheel of {key} in {named}")
                result = self._install(arguments, None, task_vars)
                if result.get("compiled"):
                    self._keep(wheelhouse, result, host)
                return result
        return self._install(arguments, kept, task_vars)

    def _install(self, arguments: dict[str, Any], kept: Path | None, task_vars: dict[str, Any]) -> Result:
        if kept:
            brought = {
                "wheel_path": self.bring(kept.name, kept.read_bytes()),
                "wheel_sha256": Wheelhouse.pin(kept),
            }
            arguments = {**arguments, **brought}
        return super().execute(arguments, task_vars)

    def _keep(self, wheelhouse: Wheelhouse, result: Result, host: str) -> None:
        try:
            wheelhouse.keep(
                str(result["build_key"]),
                str(result["wheel"]),
                str(result["wheel_sha256"]),
                host,
                self._connection.fetch_file,
            )
        except AnsibleConnectionFailure:
            raise
        except (AnsibleError, OSError) as error:
            # The environment is there all the same; a later host compiles once more.
            reason = clean(" ".join(str(error).split()))
            self._display.warning(f"the compiled wheel was not kept in {wheelhouse.folder}: {reason}")


def refusal(host: str, builders: Sequence[str], lacking: str) -> Result:
    """Return the failure of a host that needs a wheel and may not compile one."""
    who = f"the builders are {', '.join(builders)}" if builders else "the first of its kind in this run does"
    return {
        "failed": True,
        "msg": f"there is {lacking}, and {host} compiles none: {who}; "
        f"run that one first, see why it failed, or add {host} to runtime_builders",
    }
