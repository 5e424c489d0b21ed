"""Two hosts of one kind in one run of the real playbook: one compiles, the other installs what was compiled.

Both are this machine, with a store and a runtime of their own each. A source archive that builds itself stands for
llama-cpp-python's; the real one is compiled in molecule/long/two-hosts.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from modelfleet.core.errors import FetchError
from modelfleet.core.fetch.package_index import PackageIndexSettings, download_distribution
from modelfleet.core.privilege import current_account, find_account
from modelfleet.core.runtime.build import PIP_SHA256, PIP_WHEEL
from modelfleet.core.store.tree import Tree, converge
from modelfleet.runner import Progress, RunResult, run_playbook
from modelfleet.wheelhouse import made_by
from support.index import make_source, make_wheel, sha256

HOSTS = ("one", "two")


class Fleet:
    """Two hosts, and a controller with the role as it is but for what is installed."""

    def __init__(self, checkout: Path, root: Path) -> None:
        self.checkout = checkout
        self.root = root
        self.index = root / "index"
        self.wheelhouse = root / "wheelhouse"
        owner = find_account("nobody") if os.geteuid() == 0 else current_account()
        hosts = {}
        for name in HOSTS:
            converge(Tree(str(root / name / "models"), owner, owner.gid, 0o755, None))
            hosts[name] = {"model_store_path": str(root / name / "models")}
        common = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        self.inventory = root / "hosts.yml"
        self.inventory.write_text(yaml.safe_dump({"all": {"vars": common, "hosts": hosts}}))
        self._make_role()
        # What compiling needs is there, and no more is made of it.
        (root / "bin").mkdir()
        for tool in ("cc", "c++", "cmake", "ninja"):
            (root / "bin" / tool).touch(mode=0o755)

    def _make_role(self) -> None:
        role = self.root / "roles" / "inference_runtime"
        shutil.copytree(self.checkout / "roles" / "inference_runtime", role)
        self.index.mkdir()
        source = make_source(self.index, "llama-cpp-python", "0.0.1")
        for file, requirement, archive in (
            ("gguf", "tiny-dep==1.0", make_wheel(self.index, "tiny-dep")),
            ("build", "tiny-tool==1.0", make_wheel(self.index, "tiny-tool")),
            ("llama-cpp-python", "llama-cpp-python==0.0.1", source),
        ):
            path = role / "files" / f"requirements-{file}.txt"
            assert path.is_file()
            path.write_text(f"{requirement} --hash=sha256:{sha256(archive)}\n")

    def apply(self, *more: str, strategy: str = "linear", **variables: Any) -> tuple[RunResult, list[Progress]]:
        """Run playbooks/runtime.yml; returns what it came to, and what the hosts said of their progress."""
        given = json.dumps({"inference_runtime_wheelhouse": str(self.wheelhouse), **variables})
        environment = {
            "ANSIBLE_CONFIG": str(self.checkout / "ansible.cfg"),
            "ANSIBLE_STRATEGY": strategy,
            "ANSIBLE_ROLES_PATH": f"{self.root / 'roles'}:{self.checkout / 'roles'}",
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": "",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.index),
        }
        said: list[Progress] = []
        arguments = ["-i", str(self.inventory), "-e", given, *more, str(self.checkout / "playbooks/runtime.yml")]
        result = run_playbook(
            arguments, environment, lambda event: said.append(event) if isinstance(event, Progress) else None
        )
        return result, said

    def flags(self, host: str) -> str:
        """Return what the environment in use on a host was built with."""
        (found,) = (self.root / host / "runtime/current/lib").glob("python3*/site-packages/*/flags.txt")
        return found.read_text()


@pytest.fixture
def fleet(checkout: Path) -> Iterator[Fleet]:
    """Return two hosts that have a store and nothing else, in a folder that any account may enter."""
    root = Path(tempfile.mkdtemp(prefix="modelfleet-e2e-", dir=os.path.realpath("/tmp")))
    root.chmod(0o755)
    try:
        fleet = Fleet(checkout, root)
        try:
            settings = PackageIndexSettings.from_environment(os.environ)
            download_distribution("pip", PIP_WHEEL, PIP_SHA256, str(fleet.index / PIP_WHEEL), settings)
        except FetchError as error:
            pytest.skip(f"no package index that has pip can be reached: {error}")
        yield fleet
    finally:
        shutil.rmtree(root)


def failures(result: RunResult) -> dict[str, str]:
    """Return the reason of each host that failed."""
    return {task.host: task.message for task in result.results if task.status == "failed"}


def compiled(result: RunResult) -> list[str]:
    """Return the hosts that compiled."""
    return [task.host for task in result.results if task.result.get("compiled")]


def test_one_compiles_and_a_second_run_changes_nothing(fleet: Fleet) -> None:
    foretold, _ = fleet.apply("--check")
    assert failures(foretold) == {} and {name: recap.changed for name, recap in foretold.recap.items()} == {
        "one": 1,
        "two": 1,
    }
    assert not fleet.wheelhouse.exists()

    first, said = fleet.apply()
    assert failures(first) == {} and compiled(first) == ["one"]
    assert {name: recap.changed for name, recap in first.recap.items()} == {"one": 1, "two": 1}
    assert {progress.host for progress in said if progress.step.startswith("compiling")} == {"one"}
    assert fleet.flags("one") == fleet.flags("two") != ""
    (wheel,) = fleet.wheelhouse.glob("llama_cpp_python-0.0.1-*/*.whl")
    assert made_by(wheel) == "one"

    second, said = fleet.apply()
    assert failures(second) == {} and not said
    assert {name: recap.changed for name, recap in second.recap.items()} == {"one": 0, "two": 0}


@pytest.mark.long
def test_only_a_builder_compiles(fleet: Fleet) -> None:
    """Nor is what another left used; the builder is not in this run."""
    result, said = fleet.apply("--limit", "one", runtime_builders=["two"])
    assert compiled(result) == [] and not said
    assert failures(result)["one"].endswith(
        " and one does not make it: the builders are two; "
        "run that one first, see why it failed, or add one to runtime_builders"
    )
    # Listed after the host that needs its wheel, and with one fork, the builder comes first all the same.
    result, _ = fleet.apply("--forks", "1", runtime_builders=["two"])
    assert failures(result) == {} and compiled(result) == ["two"]
    assert fleet.flags("one") == fleet.flags("two")


@pytest.mark.long
def test_hosts_that_go_each_at_their_own_pace(fleet: Fleet) -> None:
    """Both take themselves for the first of their kind then, and the wheelhouse's lock decides."""
    result, said = fleet.apply(strategy="free")
    assert failures(result) == {} and len(compiled(result)) == 1
    assert {progress.host for progress in said if progress.step.startswith("compiling")} == set(compiled(result))
