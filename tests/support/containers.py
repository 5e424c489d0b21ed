"""Systemd containers on podman that the tests reach over real SSH, like hosts of a fleet.

Used as a library by the tests and as a script by molecule's create and destroy playbooks::

    python3 tests/support/containers.py create --folder DIR --prefix modelfleet-default- debian12:debian12:root
    python3 tests/support/containers.py destroy --prefix modelfleet-default- debian12

``create`` leaves ``ssh_config`` and ``known_hosts`` in DIR: ``ssh -F DIR/ssh_config debian12`` works with the host's
key checked, because the key is read from the container itself. Images and the SSH key pair are cached outside the
repository: images in podman's own storage, the key in ``~/.cache/modelfleet/test``.

A container knows nothing of the machine's package settings. It gets them the way a site's own hosts would have them:
pip's settings in ``/etc/pip.conf``, local package folders at the same path, and the certificate bundle at
``CA_BUNDLE``, where no program looks by itself: who needs it must be told (``modelfleet_ca_bundle``).
"""

import argparse
import ast
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple
from urllib.parse import urlparse
from urllib.request import url2pathname

SUITES = {"debian12": "bookworm", "debian13": "trixie"}
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "python3",
    "sudo",
    "openssh-server",
    "iproute2",
    "ca-certificates",
    "git",
)
SUDO_USER = "operator"
CA_BUNDLE = "/srv/modelfleet-test/ca-bundle.pem"
STANDARD_CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
# What must be found on this machine, and the package of Debian and Ubuntu that brings it.
NEEDED = {
    "podman": "podman",
    "runc": "runc",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "ssh": "openssh-client",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
}
# pip's settings that say where packages come from. `cert` is left out on purpose, see the module's text.
PIP_SOURCES = ("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "proxy")
PROXIES = ("http_proxy", "https_proxy", "no_proxy")


@dataclass(frozen=True)
class Container:
    """A running container: its name for podman, its name for ssh and its own address."""

    name: str
    alias: str
    address: str

    def run(
        self, *command: str, check: bool = True, timeout: Optional[float] = 1800
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command inside as root, without SSH; output is captured as text.

        Raises:
            RuntimeError: with ``check``, when the command fails; with what it said.
        """
        done = subprocess.run(
            ["podman", "exec", self.name, *command],
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if check and done.returncode:
            raise RuntimeError(
                f"{self.name}: {' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done


def why_unavailable() -> str:
    """Say in one line why containers cannot be used on this machine; empty where they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "containers need root on Linux"
    missing = " ".join(missing_packages())
    return f"containers need {missing}; './modelfleet test' installs them on Debian and Ubuntu" if missing else ""


def missing_packages() -> List[str]:
    """Return the packages of Debian and Ubuntu that containers need and this machine lacks."""
    return [package for what, package in NEEDED.items() if not (os.path.exists(what) or shutil.which(what))]


def prepare() -> str:
    """Install what is missing, as root on Debian or Ubuntu, and build the images; return why there can be none.

    Raises:
        subprocess.CalledProcessError: a package could not be installed or an image not built.
    """
    if sys.platform == "linux" and os.geteuid() == 0 and shutil.which("apt-get") and missing_packages():
        apt = ["apt-get", "--quiet", "--quiet", "--option", "DPkg::Lock::Timeout=120"]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "--yes", "--no-install-recommends", *missing_packages()]):
            subprocess.run([*apt, *words], check=True, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    reason = why_unavailable()
    if not reason:
        for release in SUITES:
            build_image(release)
    return reason


def pip_settings() -> Dict[str, str]:
    """Return pip's settings on this machine, from its files and its environment, by pip's own order of precedence."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    ).stdout
    found: Dict[str, Tuple[int, str]] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        # pip merges its files itself; the environment wins over the files, `install` over `global`.
        if section in ("global", "install", ":env:"):
            rank = ("global", "install", ":env:").index(section)
            found[key] = max(found.get(key, (-1, "")), (rank, str(ast.literal_eval(value))))
    return {key: value for key, (_, value) in found.items()}


def pip_configuration(settings: Mapping[str, str]) -> str:
    """Return settings as the text of a pip.conf."""
    return "".join(["[global]\n"] + ["{} = {}\n".format(*item) for item in sorted(settings.items())])


def local_package_folders(settings: Mapping[str, str]) -> List[Path]:
    """Return the folders of this machine that pip's settings name, as paths or as file URLs."""
    folders = []
    for word in " ".join(settings.get(key, "") for key in ("index-url", "extra-index-url", "find-links")).split():
        url = urlparse(word)
        path = Path(url2pathname(url.path)) if url.scheme == "file" else Path(word)
        if path.is_absolute() and path.is_dir():
            # An index at DIR/simple commonly links to files beside it, in DIR.
            folders.append(path.parent if path.name == "simple" else path)
    return sorted(set(folders))


def machine_ca_bundle() -> Optional[Path]:
    """Return the certificate bundle that this machine trusts; None where only Python's built-in search finds one."""
    named = [os.environ.get(name, "") for name in ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE")]
    return next((Path(path) for path in [*named, STANDARD_CA_BUNDLE] if path and Path(path).is_file()), None)


def build_image(release: str) -> str:
    """Build a release's base image unless podman has it, and return its name.

    Args:
        release: a key of ``SUITES``.

    Raises:
        subprocess.CalledProcessError: mmdebstrap or podman failed; their own words are on stderr.
    """
    image = f"localhost/modelfleet-test:{release}"
    recipe = hashlib.sha256(" ".join((SUITES[release], *PACKAGES)).encode()).hexdigest()[:16]
    found = _podman("image", "inspect", "--format", '{{index .Labels "recipe"}}', image, check=False)
    if found == recipe:
        return image
    with tempfile.TemporaryDirectory(prefix="modelfleet-image-") as folder:
        archive = os.path.join(folder, "root.tar")
        included = "--include={}".format(",".join(PACKAGES))
        subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=minbase", included, SUITES[release], archive],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
        )
        _podman("import", "--quiet", "--change", f"LABEL recipe={recipe}", archive, image)
    return image


def key_pair() -> Path:
    """Return the private key that opens the containers, made on first use; the public one lies beside it."""
    key = Path.home() / ".cache" / "modelfleet" / "test" / "id_ed25519"
    if not key.exists():
        key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "modelfleet-test", "-f", str(key)],
            check=True,
            stdin=subprocess.DEVNULL,
        )
    return key


def create(
    name: str,
    release: str,
    folder: Path,
    *,
    alias: str = "",
    ca_bundle: str = CA_BUNDLE,
    environment: Optional[Mapping[str, str]] = None,
    volumes: Sequence[str] = (),
) -> Container:
    """Start a container and wait until its systemd is up; one of the same name is replaced.

    Args:
        name: podman's name for it.
        release: a key of ``SUITES``.
        folder: where its pip.conf is written; must outlive the container.
        alias: its host name; the default is ``name``.
        ca_bundle: where this machine's certificate bundle lies inside.
        environment: for its processes, SSH sessions excepted.
        volumes: more mounts, as podman writes them (SOURCE:TARGET:OPTIONS).

    Raises:
        subprocess.CalledProcessError: podman failed.
        RuntimeError: systemd did not come up within a minute.
    """
    alias = alias or name
    settings = {key: value for key, value in pip_settings().items() if key in PIP_SOURCES}
    pip_conf = folder / f"{name}.pip.conf"
    pip_conf.write_text(pip_configuration(settings))
    mounts = [f"{pip_conf}:/etc/pip.conf:ro"]
    mounts += [f"{path}:{path}:ro" for path in local_package_folders(settings)]
    bundle = machine_ca_bundle()
    if bundle:
        mounts.append(f"{bundle.resolve()}:{ca_bundle}:ro")
    arguments = ["--name", name, "--replace", "--hostname", alias, "--runtime", "runc", "--systemd=always"]
    # Without these podman asks for the limits of this process, which may be more than the kernel lets it give.
    arguments += ["--ulimit", "nofile=20000:20000", "--ulimit", "nproc=10000:10000"]
    for mount in [*mounts, *volumes]:
        arguments += ["--volume", mount]
    for key, value in (environment or {}).items():
        arguments += ["--env", f"{key}={value}"]
    _podman("run", "--detach", *arguments, build_image(release), "/sbin/init")
    address = _podman("inspect", "--format", "{{.NetworkSettings.IPAddress}}", name)
    container = Container(name, alias, address)
    _wait_for_systemd(container)
    _write_proxies(container)
    return container


def destroy(name: str) -> None:
    """Remove a container with all that it holds; none of that name is no error."""
    _podman("rm", "--force", "--volumes", "--time", "0", name, check=False)


def allow_ssh(container: Container, user: str, folder: Path) -> None:
    """Let the test key in as a user and add the container to the folder's ssh_config and known_hosts.

    Args:
        container: a running one.
        user: ``root``, or the name of an account that is made, with sudo that asks for no password.
        folder: where ``ssh_config`` and ``known_hosts`` are; entries of the same alias are replaced.
    """
    key = key_pair()
    public = key.with_suffix(".pub").read_text().strip()
    script = """
set -eu
if ! id "$1" >/dev/null 2>&1; then
    # Debian ships a group of this name.
    if getent group "$1" >/dev/null; then set -- "$1" "$2" --gid "$1"; fi
    account=$1 key=$2; shift 2
    useradd --create-home --shell /bin/bash "$@" "$account"
    set -- "$account" "$key"
    echo "$1 ALL=(ALL) NOPASSWD: ALL" >"/etc/sudoers.d/$1"
    chmod 0440 "/etc/sudoers.d/$1"
fi
home=$(getent passwd "$1" | cut -d: -f6)
install -d -m 0700 -o "$1" -g "$(id -g "$1")" "$home/.ssh"
echo "$2" >"$home/.ssh/authorized_keys"
chown "$1:" "$home/.ssh/authorized_keys"
# An image's containers must not share their host keys.
rm -f /etc/ssh/ssh_host_*
ssh-keygen -q -A
systemctl restart ssh
"""
    container.run("sh", "-c", script, "sh", user, public)
    host_key = container.run("cat", "/etc/ssh/ssh_host_ed25519_key.pub").stdout.split()
    _replace_block(folder / "known_hosts", container.alias, "{} {} {}\n".format(container.alias, *host_key[:2]))
    lines = [
        f"Host {container.alias}",
        f"  HostName {container.address}",
        f"  HostKeyAlias {container.alias}",
        f"  User {user}",
        f"  IdentityFile {key}",
        "  IdentitiesOnly yes",
        "  UserKnownHostsFile {}".format(folder / "known_hosts"),
        "  StrictHostKeyChecking yes",
    ]
    _replace_block(folder / "ssh_config", container.alias, "\n".join(lines) + "\n")


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Create or destroy containers from the command line; see the module's text."""
    parser = argparse.ArgumentParser(description="Systemd containers for the tests.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    creating = verbs.add_parser("create", help="start containers and write ssh_config and known_hosts")
    creating.add_argument("--folder", type=Path, required=True)
    creating.add_argument("--prefix", default="modelfleet-")
    creating.add_argument("specs", nargs="+", metavar="NAME:RELEASE:USER")
    destroying = verbs.add_parser("destroy", help="remove containers")
    destroying.add_argument("--prefix", default="modelfleet-")
    destroying.add_argument("names", nargs="+", metavar="NAME")
    verbs.add_parser("prepare", help="install what containers need, build their images; print why there can be none")
    verbs.add_parser("reason", help="print why there can be no containers here")
    options = parser.parse_args(arguments)
    if options.verb in ("prepare", "reason"):
        sys.stdout.write(prepare() if options.verb == "prepare" else why_unavailable())
        return 0
    if options.verb == "destroy":
        for name in options.names:
            destroy(options.prefix + name)
        return 0
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for spec in options.specs:
        alias, release, user = spec.split(":")
        container = create(options.prefix + alias, release, folder, alias=alias)
        allow_ssh(container, user, folder)
    return 0


def _podman(*arguments: str, check: bool = True) -> str:
    """Run podman and return its output; its complaints go to stderr unless failing is an answer."""
    done = subprocess.run(
        ["podman", *arguments],
        check=check,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=None if check else subprocess.DEVNULL,
        text=True,
    )
    return done.stdout.strip()


def _wait_for_systemd(container: Container) -> None:
    deadline = time.monotonic() + 60
    state = ""
    while time.monotonic() < deadline:
        state = container.run("systemctl", "is-system-running", check=False).stdout.strip()
        # "degraded": a unit failed that a container cannot have; the system is up all the same.
        if state in ("running", "degraded"):
            return
        time.sleep(0.2)
    raise RuntimeError("systemd in {} is not up after a minute: {}".format(container.name, state or "no answer"))


def _write_proxies(container: Container) -> None:
    """Name this machine's proxies where every session of a host finds them."""
    lines = [f"{name}={os.environ[name]}\n" for name in PROXIES if os.environ.get(name)]
    if lines:
        container.run("sh", "-c", 'printf %s "$1" >>/etc/environment', "sh", "".join(lines))


def _replace_block(path: Path, alias: str, block: str) -> None:
    """Write a host's entry in place of its earlier one; an entry starts at the line that names the host."""
    kept: List[str] = []
    ours = False
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        if not line.startswith(" "):
            ours = alias in line.split()[:2]
        if not ours:
            kept.append(line)
    path.write_text("".join(kept) + block)


if __name__ == "__main__":
    sys.exit(main())
