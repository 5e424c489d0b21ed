"""Building and installing the managed environment: real venv, real pip, hash-checked, from a folder of tiny packages.

A source archive that builds itself stands for llama-cpp-python's; all else is what a host does.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from modelfleet import packaging
from modelfleet.core.errors import FetchError, IntegrityError, ModelfleetError, RuntimeBuildError, UnsafePathError
from modelfleet.core.fetch.package_index import PackageIndexSettings
from modelfleet.core.jobs import Progress
from modelfleet.core.privilege import Account, acting_as, find_account
from modelfleet.core.runtime import build as build_module
from modelfleet.core.runtime import workshop
from modelfleet.core.runtime.build import PIP_SHA256, PIP_WHEEL, Builder, Package
from modelfleet.core.runtime.environment import STATE, inspect, kept_wheel, read_state
from modelfleet.core.runtime.workshop import Workshop
from support.grounds import account_folder, needs_root
from support.index import make_source, make_wheel, sha256
from support.runtime_host import BUILD, FLAGS, Host, fetch_pip, make_host


@pytest.fixture(scope="session")
def pip_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the pip that hosts install with, from the index that this machine is set to use."""
    path = tmp_path_factory.mktemp("pip") / PIP_WHEEL
    fetch_pip(path)
    return path


@pytest.fixture(scope="module")
def host(pip_wheel: Path) -> Iterator[Host]:
    """Return a host with everything to install from; what the tests install stays for the next."""
    host = make_host(pip_wheel)
    make_wheel(host.index, "tiny-needy", requires="not-there>=1")
    yield host
    shutil.rmtree(host.root)


@pytest.fixture(scope="module")
def built(host: Host) -> Host:
    """Return the host after its first run, under the worst umask, with a secret in the environment of the run."""
    before = os.umask(0)
    os.environ["SECRET"] = "canary"
    try:
        wheel, compiled, _ = host.converge()
    finally:
        os.umask(before)
        del os.environ["SECRET"]
    assert compiled and wheel == kept_wheel(host.wanted().wheel_folder)
    return host


class TestFirstRun:
    def test_it_is_as_wanted_then(self, built: Host) -> None:
        assert inspect(built.wanted()).reasons == ()
        assert os.readlink(built.runtime / "current") == f"environments/{built.wanted().key}"

    def test_the_record_says_what_was_installed_and_from_what(self, built: Host) -> None:
        state = read_state(str(built.runtime / "current"))
        assert state is not None and state["distributions"] == [
            "llama_cpp_python-0.0.1",
            f"modelfleet-{packaging.__version__}",
            "tiny_dep-1.0",
        ]
        assert (state["backend"], state["profiles"], state["cmake_arguments"]) == ("cpu", ["gguf"], list(FLAGS))
        assert state["key"] == built.wanted().key and state["build"] == BUILD.key

    def test_it_was_compiled_with_the_flags_by_an_account_without_rights_or_secrets(self, built: Host) -> None:
        program = "import llama_cpp, pathlib; p = pathlib.Path(llama_cpp.__file__).parent; "
        assert built.run(program + "print((p / 'flags.txt').read_text())") == " ".join(FLAGS)
        assert built.run(program + "print((p / 'built.txt').read_text())") == f"{built.owner.uid} no secret"

    def test_applications_import_modelfleet_from_it(self, built: Host) -> None:
        assert built.run("from modelfleet.config import ModelConfig; print(ModelConfig.__name__)") == "ModelConfig"
        assert built.run("import modelfleet.core.inference.proof, modelfleet; print(modelfleet.__version__)") == (
            packaging.__version__
        )

    def test_everything_is_the_owners_and_nobody_else_can_write_there(self, built: Host) -> None:
        found = list(built.runtime.rglob("*"))
        assert len(found) > 100
        for path in [built.runtime, *found]:
            status = path.lstat()
            assert status.st_uid == built.owner.uid, path
            assert path.is_symlink() or status.st_mode & 0o022 == 0, (path, oct(status.st_mode))
            assert path.is_symlink() or status.st_mode & 0o004, f"nobody else can read {path}"

    def test_nothing_of_the_work_is_left(self, built: Host) -> None:
        assert sorted(os.listdir(built.runtime)) == ["current", "environments", "lock", "wheelhouse"]
        assert os.listdir(built.runtime / "environments") == [os.path.basename(built.in_use())]

    def test_the_environment_has_no_pip(self, built: Host) -> None:
        assert not [name for name in os.listdir(Path(built.in_use()) / "bin") if name.startswith("pip")]


class TestLaterRuns:
    """Each starts from an environment that works."""

    @pytest.fixture(autouse=True)
    def intact(self, built: Host) -> Iterator[None]:
        """After each test the environment still works and no work is left."""
        yield
        assert built.run("import llama_cpp, tiny_dep, modelfleet; print('works')") == "works"
        assert sorted(os.listdir(built.runtime)) == ["current", "environments", "lock", "wheelhouse"]

    def refused(self, host: Host, kind: type[ModelfleetError] = RuntimeBuildError, **arguments: Any) -> str:
        """Return the one line about a run that fails; nothing may have changed."""
        before = (host.in_use(), sorted(os.listdir(host.runtime / "environments")))
        with pytest.raises(kind) as caught:
            host.converge(**arguments)
        assert (host.in_use(), sorted(os.listdir(host.runtime / "environments"))) == before
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_a_wrong_hash_of_a_requirement(self, built: Host) -> None:
        wrong = built.requirement("tiny-dep==1.0", "", "0" * 64)
        message = self.refused(built, requirements=wrong)
        assert message.startswith("pip install failed with status 1: ERROR: THESE PACKAGES DO NOT MATCH THE HASHES")

    @pytest.mark.long
    def test_a_requirement_without_a_hash(self, built: Host) -> None:
        message = self.refused(built, requirements="tiny-dep==1.0\n")
        assert "Hashes are required in --require-hashes mode" in message

    def test_a_requirement_that_no_index_has(self, built: Host) -> None:
        missing = built.requirement("not-there==1.0", "", "0" * 64)
        message = self.refused(built, requirements=missing)
        assert message == (
            "pip install failed with status 1: ERROR: No matching distribution found for not-there==1.0; "
            "correct that, and run again"
        )

    @pytest.mark.long
    def test_a_requirement_whose_own_are_not_met(self, built: Host) -> None:
        needy = built.requirement("tiny-needy==1.0", "tiny_needy-1.0-py3-none-any.whl")
        assert "not-there" in self.refused(built, requirements=needy)

    def test_a_wrong_hash_of_the_source(self, built: Host) -> None:
        other = BUILD._replace(version="0.0.2")
        wrong = built.requirement("llama-cpp-python==0.0.1", "", "0" * 64)
        message = self.refused(built, build=other, source_requirement=wrong)
        assert "THESE PACKAGES DO NOT MATCH THE HASHES" in message
        assert not os.path.exists(built.wanted(build=other).wheel_folder)

    @pytest.mark.long
    def test_a_wrong_hash_of_a_tool(self, built: Host) -> None:
        wrong = built.requirement("tiny-tool==1.0", "", "0" * 64)
        message = self.refused(built, build=BUILD._replace(version="0.0.2"), build_requirements=wrong)
        assert "THESE PACKAGES DO NOT MATCH THE HASHES" in message

    def test_a_source_that_does_not_compile(self, built: Host) -> None:
        make_source(built.index, "llama-cpp-python", "0.0.3", broken=True)
        requirement = built.requirement("llama-cpp-python==0.0.3", "llama_cpp_python-0.0.3.tar.gz")
        message = self.refused(built, build=BUILD._replace(version="0.0.3"), source_requirement=requirement)
        assert message == (
            "pip wheel failed with status 1: fatal error: ggml.h: No such file or directory; "
            "correct that, and run again"
        )
        steps = [told for told in built.progress.told if told[-1:] == ("steps",)]
        assert steps == [("compiling llama-cpp-python 0.0.3 for cpu", None, n, 3, "steps") for n in (1, 2, 3)]

    def test_modelfleets_own_wheel_is_another(self, built: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        package = built.package()
        monkeypatch.setattr(built, "package", lambda: package._replace(sha256="0" * 64))
        message = self.refused(built, IntegrityError)
        assert message.startswith(f"modelfleet-{packaging.__version__}-py3-none-any.whl: expected sha256 {'0' * 64}")

    def test_no_pip_to_be_had(self, built: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        moved = (built.index / PIP_WHEEL).rename(built.root / PIP_WHEEL)
        try:
            message = self.refused(built, FetchError)
        finally:
            moved.rename(built.index / PIP_WHEEL)
        assert message.startswith(f"{PIP_WHEEL} of the package pip could not be fetched (no index is configured)")

    @pytest.mark.parametrize("python", ["/no/such/python", "no-such-python", "/bin/false", "/etc/passwd"])
    def test_no_python(self, built: Host, python: str) -> None:
        assert self.refused(built, python=python) == (
            f"{built.owner.name} can run no Python 3.9 or newer with venv (tried {python}); "
            "install one, or name it with inference_runtime_python"
        )

    def test_a_kept_wheel_that_was_changed(self, built: Host) -> None:
        wheel = Path(built.wanted().wheel_folder) / "llama_cpp_python-0.0.1-py3-none-any.whl"
        content = wheel.read_bytes()
        wheel.write_bytes(content + b"x")
        try:
            message = self.refused(built, python="python3")
        finally:
            wheel.write_bytes(content)
        assert message == f"{wheel} was changed since it was kept; remove it, and run again"

    @needs_root
    def test_a_runtime_of_a_strangers(self, built: Host, stranger: Account) -> None:
        os.chown(built.runtime, stranger.uid, stranger.gid)
        try:
            with pytest.raises(UnsafePathError, match=f"belongs to uid {stranger.uid}"):
                built.converge()
        finally:
            os.chown(built.runtime, built.owner.uid, built.owner.gid)

    def test_what_was_installed_by_hand_is_put_right_without_compiling(self, built: Host) -> None:
        before = built.in_use()
        stray = Path(before) / f"lib/{os.listdir(Path(before) / 'lib')[0]}/site-packages/stray-1.0.dist-info"
        stray.mkdir()
        os.chown(stray, built.owner.uid, built.owner.gid)
        assert inspect(built.wanted()).reasons == ("MF-RUN-006: stray 1.0 was installed by hand",)
        # The damaged one serves until the new one is complete.
        self.refused(built, IntegrityError, brought=Package(str(built.index / PIP_WHEEL), "0" * 64))
        _, compiled, _ = built.converge()
        assert not compiled and built.in_use() != before
        assert inspect(built.wanted()).reasons == ()
        assert not any(step.startswith("compiling") for step in built.progress.steps)


class TestBroughtWheel:
    """A wheel from the controller's wheelhouse is installed instead of being compiled."""

    def test_it_is_kept_and_installed(self, built: Host) -> None:
        wheel = make_wheel(
            built.root / "brought",
            "llama-cpp-python",
            "0.0.1",
            {"llama_cpp/__init__.py": b"", "llama_cpp/brought.txt": b""},
        )
        build = BUILD._replace(libc="glibc9.9")
        with pytest.raises(IntegrityError, match=f"^{wheel.name}: expected sha256 {'0' * 64}, found"):
            built.converge(Package(str(wheel), "0" * 64), build=build)
        assert kept_wheel(built.wanted(build=build).wheel_folder) is None
        kept, compiled, _ = built.converge(Package(str(wheel), sha256(wheel)), build=build)
        assert not compiled and Path(kept).read_bytes() == wheel.read_bytes()
        assert os.stat(os.path.dirname(kept)).st_uid == built.owner.uid
        program = "import llama_cpp, os; print(os.listdir(os.path.dirname(llama_cpp.__file__)))"
        assert "brought.txt" in built.run(program)

    def test_two_environments_are_kept(self, built: Host) -> None:
        """The one in use, and the one before it; whatever else lies there is no obstacle."""
        before = built.in_use()
        (built.runtime / "environments" / "stray").touch()
        os.chown(built.runtime / "environments" / "stray", built.owner.uid, built.owner.gid)
        # A Python that is named without its path is found now, and is the same in every later run.
        built.converge(python="python3")
        state = json.loads((built.runtime / "current" / STATE).read_text())
        assert os.path.isabs(state["python"]["executable"])
        assert inspect(built.wanted(python="python3")).reasons == ()
        assert len(os.listdir(built.runtime / "environments")) == 2
        built.converge()
        assert os.path.isdir(built.in_use()) and built.in_use() != before
        assert len(os.listdir(built.runtime / "environments")) == 2


def test_another_runs_build_is_waited_for(built: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(Builder, "_choose_python", lambda self: pytest.fail("enough"))
    reader, writer = os.pipe()
    holder = os.fork()
    if holder == 0:
        try:
            with acting_as(built.owner), build_module.hold(str(built.runtime / "lock")):
                os.write(writer, b"held")
                time.sleep(60)
        finally:
            os._exit(0)
    os.close(writer)
    os.read(reader, 4)

    class LetGo(Progress):
        def update(self, step: str, *_: Any) -> None:
            told.append(step)
            os.kill(holder, 9)

    settings = PackageIndexSettings((), (str(built.index),))
    with pytest.raises(pytest.fail.Exception, match="enough"):
        Builder(built.wanted(), built.owner, settings, LetGo()).converge(built.package())
    os.waitpid(holder, 0)
    os.close(reader)
    assert told == ["waiting for another run's build"]


def test_nothing_is_built_as_root(host: Host) -> None:
    with pytest.raises(RuntimeBuildError) as caught:
        Builder(host.wanted(), find_account("root"), PackageIndexSettings(()), Progress())
    assert str(caught.value) == (
        "the inference runtime would be compiled and installed as root; set model_store_owner to another account"
    )


@needs_root
def test_an_owner_who_plants_a_symlink_gains_nothing(host: Host, ground: Path, owner: Account) -> None:
    (ground / "treasure").mkdir(mode=0o700)
    account_folder(ground / "base", owner)
    (ground / "base/runtime").symlink_to(ground / "treasure")
    os.lchown(ground / "base/runtime", owner.uid, owner.gid)
    wanted = host.wanted(path=str(ground / "base/runtime"))
    with pytest.raises(UnsafePathError, match="is a symlink that another account"):
        Builder(wanted, owner, PackageIndexSettings(()), Progress()).converge(host.package())
    assert stat.S_IMODE((ground / "treasure").stat().st_mode) == 0o700 and os.listdir(ground / "treasure") == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (PackageIndexSettings(("https://a", "https://b", "https://c")), ("", "https://a", "https://b https://c")),
        (PackageIndexSettings(()), ("1", None, None)),
    ],
)
def test_pip_asks_where_we_ask(settings: PackageIndexSettings, expected: tuple[str | None, ...]) -> None:
    environment = Workshop("/none", find_account("nobody"), settings).index_environment()
    names = ("PIP_NO_INDEX", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
    assert tuple(environment.get(name) or (None if name != "PIP_NO_INDEX" else "") for name in names) == expected
    assert environment["PIP_CONFIG_FILE"] == os.devnull


def test_the_named_certificates_reach_every_tool() -> None:
    settings = PackageIndexSettings(("https://a",), ("/wheels", "/more"), "/ca.pem", "http://proxy:1")
    environment = Workshop("/none", find_account("nobody"), settings).index_environment()
    assert {name for name, value in environment.items() if value == "/ca.pem"} == {
        "PIP_CERT",
        "SSL_CERT_FILE",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
    }
    assert environment["PIP_PROXY"] == "http://proxy:1" and environment["PIP_FIND_LINKS"] == "/wheels /more"


def test_the_size_of_pip_is_its_size(pip_wheel: Path) -> None:
    assert pip_wheel.stat().st_size == build_module.PIP_SIZE
    assert hashlib.sha256(pip_wheel.read_bytes()).hexdigest() == PIP_SHA256


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("", "it printed nothing"),
        ("one\n\n two \n\n", "two"),
        (
            "ERROR: Could not find a version that satisfies x\nERROR: No matching distribution found for x\n",
            "ERROR: No m",
        ),
        (
            "/build/ggml.c:1:10: fatal error: x.h: No such file or directory\n"
            "[2/9] cc -Werror=vla -c ggml-error.cpp\nninja: build stopped: subcommand failed.\n"
            "*** CMake build failed\nerror: subprocess-exited-with-error\n"
            "x Building wheel for llama-cpp-python (pyproject.toml) did not run successfully.\n"
            "ERROR: Failed building wheel for llama-cpp-python\n",
            "/build/ggml.c:1:10: fatal error: x.h: No such file or directory",
        ),
        (
            "CMake Error at CMakeLists.txt:5 (message):\n  A newer compiler is needed.\n\n",
            "CMake Error at CMakeLists.txt:5 (message): A newer compiler is needed.",
        ),
        ("ERROR: [Errno 28] No space left on device\nWARNING: retry\n", "ERROR: [Errno 28] No space left on device"),
    ],
)
def test_the_cause_of_a_failure_is_told_not_its_consequences(said: str, cause: str) -> None:
    assert workshop._cause(said.splitlines()).startswith(cause)


@pytest.mark.parametrize("said", ["release 12.8, V12.8.1", "release 12.0", "release 12.99"])
def test_a_toolkit_that_serves(said: str) -> None:
    build_module.check_toolkit(f"Cuda compilation tools, {said}\n", "CUDA toolkit >=12.0,<13")


@pytest.mark.parametrize(
    ("said", "version"), [("release 13.0, V13.0.88", "13.0"), ("release 11.8", "11.8"), ("", "a v")]
)
def test_a_toolkit_that_does_not(said: str, version: str) -> None:
    with pytest.raises(RuntimeBuildError) as caught:
        build_module.check_toolkit(said, "CUDA toolkit >=12.0,<13")
    assert caught.value.message.startswith(f"nvcc is of CUDA {version}")
    assert caught.value.message.endswith("this host's cards and driver take CUDA toolkit >=12.0,<13")
