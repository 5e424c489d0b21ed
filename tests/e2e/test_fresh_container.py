"""The main job in two commands, on a machine that has python3, git and ca-certificates, and nothing else to offer."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import containers

WHEELHOUSE = ".cache/modelfleet/wheelhouse"
# In the image for other tests; a machine that is fresh from its installer may have none of them.
NOT_NEEDED = ("sudo", "openssh-server", "openssh-sftp-server", "iproute2")

pytestmark = pytest.mark.containers


@pytest.fixture(scope="module")
def repository(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bare clone of what is committed."""
    if not (checkout / ".git").exists():
        pytest.skip("this checkout is no git repository")
    clone = tmp_path_factory.mktemp("repository") / "modelfleet.git"
    subprocess.run(["git", "clone", "--quiet", "--bare", str(checkout), str(clone)], check=True)
    return clone


@pytest.fixture(params=sorted(containers.SUITES))
def machine(request: pytest.FixtureRequest, repository: Path, tmp_path: Path) -> Iterator[containers.Container]:
    """Start a fresh machine; it shares this machine's wheelhouse, so that its runtime is compiled once only."""
    wheelhouse = Path.home() / WHEELHOUSE
    wheelhouse.mkdir(parents=True, exist_ok=True)
    trusted = containers.STANDARD_CA_BUNDLE
    name = f"modelfleet-fresh-{request.param}-{tmp_path.parent.name}"
    try:
        machine = containers.create(
            name,
            request.param,
            tmp_path,
            alias="workstation",
            ca_bundle=trusted,
            environment={"SSL_CERT_FILE": trusted, "PIP_CERT": trusted},
            volumes=[f"{repository}:/srv/modelfleet.git:ro", f"{wheelhouse}:/root/{WHEELHOUSE}"],
        )
        # sudo does not go without being told that root has other ways in.
        machine.run("env", "SUDO_FORCE_REMOVE=yes", "dpkg", "--purge", *NOT_NEEDED)
        yield machine
    finally:
        containers.destroy(name)


def test_clone_and_apply(machine: containers.Container) -> None:
    machine.run("git", "clone", "--quiet", "/srv/modelfleet.git", "/root/modelfleet")
    apply = ("env", "--chdir=/root/modelfleet", "./modelfleet", "apply")

    first = machine.run(*apply, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    for said in ("proved", "The capital of France is", "Paris", "tokens/s", "cpu", "/opt/ashley-ai/models"):
        assert said in first.stdout, first.stdout

    second = machine.run(*apply, "--json", check=False)
    assert second.returncode == 0, second.stdout + second.stderr
    answer = json.loads(second.stdout)
    assert answer["changed"] == {"localhost": []}
    assert answer["hosts"]["localhost"]["recap"]["changed"] == 0
    assert [(proof["passed"], proof["ran"]) for proof in answer["proofs"]] == [(True, False)]
