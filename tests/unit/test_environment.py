"""The state of a managed environment: why it is not as wanted, from a few small files."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.runtime.environment import (
    BUILD_TOOLS,
    STATE,
    Wanted,
    inspect,
    installed_distributions,
    kept_wheel,
    pin_of,
    pinned_version,
    read_state,
)
from support.machines import processor_build

DISTRIBUTIONS = ["llama_cpp_python-0.3.36", "numpy-2.0.2"]


def wanted_at(path: Path, **changes: Any) -> Wanted:
    build = processor_build("0.3.36", "Linux", "x86_64", "glibc2.36", ["avx2"])
    return Wanted(str(path), "", "numpy==2.0.2", "cmake==4", "llama-cpp-python==0.3.36", build, "0" * 64)._replace(
        **changes
    )


@pytest.fixture(params=["runtime", "run[t]ime *?"], ids=["plain", "odd characters"])
def wanted(tmp_path: Path, request: pytest.FixtureRequest) -> Wanted:
    """Return what is wanted, with an environment there that is just that."""
    wanted = wanted_at(tmp_path / request.param)
    environment = Path(wanted.environments, wanted.key)
    for name in DISTRIBUTIONS:
        (environment / "lib/python3.11/site-packages" / f"{name}.dist-info").mkdir(parents=True)
    (environment / "bin").mkdir()
    (environment / "bin/python").symlink_to(sys.executable)
    write_state(
        environment,
        {
            "key": wanted.key,
            "python": {"executable": sys.executable, "real_executable": os.path.realpath(sys.executable)},
            "distributions": DISTRIBUTIONS,
        },
    )
    Path(wanted.current).symlink_to(f"environments/{wanted.key}")
    return wanted


def write_state(environment: Path, state: Any) -> None:
    (environment / STATE).write_text(json.dumps(state))


def state_of(wanted: Wanted) -> dict[str, Any]:
    return dict(read_state(wanted.current) or {})


def reasons(wanted: Wanted) -> list[str]:
    return list(inspect(wanted).reasons)


def test_as_wanted(wanted: Wanted) -> None:
    assert reasons(wanted) == []


def test_nothing_is_there(tmp_path: Path) -> None:
    assert reasons(wanted_at(tmp_path / "none")) == ["MF-RUN-001: there is no environment yet"]


def test_current_leads_nowhere(wanted: Wanted) -> None:
    shutil.rmtree(wanted.environments)
    assert reasons(wanted) == ["MF-RUN-001: there is no environment yet"]


@pytest.mark.parametrize(
    "change",
    [{"requirements": "numpy==2.1"}, {"package_sha256": "1" * 64}, {"python": "/usr/bin/python3"}],
    ids=["requirements", "modelfleet itself", "interpreter"],
)
def test_something_else_is_asked_for(wanted: Wanted, change: dict[str, Any]) -> None:
    assert reasons(wanted._replace(**change)) == ["MF-RUN-003: another environment is in use"]


def test_another_build_is_asked_for(wanted: Wanted) -> None:
    other = wanted._replace(build=wanted.build._replace(cmake_arguments=("-DGGML_AVX2=OFF",)))
    assert reasons(other) == ["MF-RUN-003: another environment is in use"]


@pytest.mark.parametrize("state", [None, "{", "[]", "5", "{}", '{"python": 5}', '{"key": "x", "python": null}'])
def test_the_record_is_missing_or_damaged(wanted: Wanted, state: str | None) -> None:
    path = Path(wanted.current, STATE)
    path.unlink()
    if state is not None:
        path.write_text(state)
    assert reasons(wanted) == ["MF-RUN-002: the environment has no record"]


def test_its_python_is_gone(wanted: Wanted) -> None:
    Path(wanted.current, "bin/python").unlink()
    assert reasons(wanted) == [f"MF-RUN-004: its Python {sys.executable} is gone or another"]


def test_its_python_leads_nowhere(wanted: Wanted) -> None:
    Path(wanted.current, "bin/python").unlink()
    Path(wanted.current, "bin/python").symlink_to("/no/such/python")
    assert reasons(wanted) == [f"MF-RUN-004: its Python {sys.executable} is gone or another"]


def test_its_python_was_replaced_by_another_version(wanted: Wanted) -> None:
    """An upgrade of the system leaves /usr/bin/python3, which then is another."""
    state = state_of(wanted)
    state["python"]["real_executable"] = "/usr/bin/python3.9"
    write_state(Path(wanted.current), state)
    assert reasons(wanted) == [f"MF-RUN-004: its Python {sys.executable} is gone or another"]


def test_distributions_by_hand(wanted: Wanted) -> None:
    packages = Path(wanted.current, "lib/python3.11/site-packages")
    (packages / "numpy-2.0.2.dist-info").rename(packages / "numpy-2.1.0.dist-info")
    (packages / "requests-2.0.dist-info").mkdir()
    (packages / "llama_cpp_python-0.3.36.dist-info").rmdir()
    assert reasons(wanted) == [
        "MF-RUN-005: llama-cpp-python 0.3.36 is missing",
        "MF-RUN-006: numpy is 2.1.0, not 2.0.2: installed by hand",
        "MF-RUN-006: requests 2.0 was installed by hand",
    ]


def test_distributions_by_name(wanted: Wanted) -> None:
    assert installed_distributions(wanted.current) == DISTRIBUTIONS


def test_an_environment_that_was_made_anew(wanted: Wanted) -> None:
    again = Path(wanted.environments, f"{wanted.key}-2")
    Path(wanted.environments, wanted.key).rename(again)
    Path(wanted.current).unlink()
    Path(wanted.current).symlink_to(again)
    assert reasons(wanted) == []


class TestWheel:
    def test_only_one_with_its_hash_counts(self, wanted: Wanted) -> None:
        folder = Path(wanted.wheel_folder)
        assert kept_wheel(wanted.wheel_folder) is None
        folder.mkdir(parents=True)
        (folder / "b.whl").touch()
        assert kept_wheel(wanted.wheel_folder) is None and inspect(wanted).wheel is None
        (folder / "b.whl.sha256").write_text("abc\n")
        assert inspect(wanted).wheel == str(folder / "b.whl")
        assert pin_of(str(folder / "b.whl")) == "abc"

    def test_a_wheel_belongs_to_a_build(self, wanted: Wanted) -> None:
        assert os.path.basename(wanted.wheel_folder) == wanted.build.key


def test_missing_tools(wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert inspect(wanted).missing_tools == tuple(sorted(BUILD_TOOLS))
    for name in ("cc", "ninja"):
        (tmp_path / name).touch(mode=0o755)
    assert inspect(wanted).missing_tools == ("c++", "cmake")


@pytest.mark.parametrize(
    ("requirement", "version"),
    [
        ("llama-cpp-python==0.3.36 \\\n    --hash=sha256:0\n", "0.3.36"),
        ("# the source\nllama-cpp-python == 0.3.36;python_version>'3'\n", "0.3.36"),
        ("llama-cpp-python", ""),
        ("", ""),
    ],
)
def test_pinned_version(requirement: str, version: str) -> None:
    assert pinned_version(requirement) == version


def test_the_shipped_source_is_pinned_by_version_and_hash(checkout: Path) -> None:
    text = (checkout / "roles/inference_runtime/files/requirements-llama-cpp-python.txt").read_text()
    assert pinned_version(text) and "--hash=sha256:" in text
