"""A gated model, fetched for real with a token that is then looked for everywhere, in every form it could have.

While a run goes on, a thread reads the arguments and environments of all processes, and all files where a run writes;
afterwards the output is searched, and what lies there then. The one place that may hold the token, for moments, is a
file of memory that its owner alone can read.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import stat
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.vault import VaultLib, VaultSecret
from modelfleet.core.privilege import Account
from modelfleet.models_action import _HANDED
from support.fault_server import make_certificate
from support.grounds import ground, owner
from support.hub import Handler, HubServer, serve, sha256_of
from support.models import gguf

__all__ = ["ground", "owner"]

# Each form is another text: quoting changes it, and so does base64, by where it begins. Each process of the tests has
# one of its own: what they look through belongs to all of them.
TOKEN = f"hf_Canary+0/Kx7%Lm?{secrets.token_hex(8)}Zq9=Rw"
CONTENT = gguf(b"gated" * 100)
FILE = "chat/7b/mine.q8_0.gguf"
HOSTS = ("first", "second")
ROLES = ["model_store", "models"]
MEMORY = Path("/dev/shm")

pytestmark = pytest.mark.skipif(not MEMORY.is_dir(), reason="needs a folder in memory: /dev/shm")


def forms(token: str) -> list[bytes]:
    """Return what to look for: plain, quoted, hexadecimal, and base64 from each of the three places in a group."""
    plain = token.encode()
    found = [plain, urllib.parse.quote(token, safe="").encode(), plain.hex().encode(), plain.hex().upper().encode()]
    for before in range(3):
        text = base64.b64encode(bytes(before) + plain)
        # The characters at both ends depend on what stands beside the token.
        found.append(text[4 * bool(before) : (before + len(plain)) // 3 * 4])
    return [*found, *(form.translate(bytes.maketrans(b"+/", b"-_")) for form in found[4:])]


FORMS = forms(TOKEN)


def shows(content: bytes) -> bool:
    """Tell whether the token is in ``content``, in any form."""
    return any(form in content for form in FORMS)


class Watch:
    """Looks for the token in processes and files as long as it is entered."""

    def __init__(self, *folders: Path, environments: bool = True) -> None:
        self.folders = folders
        self.names = ("cmdline", "environ") if environments else ("cmdline",)
        self.hits: set[str] = set()
        self.rounds = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def look(self) -> None:
        """Look once."""
        for process in os.listdir("/proc"):
            if process.isdigit():
                for name in self.names:
                    self._judge(Path("/proc", process, name))
        for folder in self.folders:
            for inside, _, names in os.walk(folder):
                for name in names:
                    self._judge(Path(inside, name))
        for path in MEMORY.glob("modelfleet*"):
            self._judge(path)
        self.rounds += 1

    def handed(self) -> list[Path]:
        """Return the files of memory that have the token now."""
        found = []
        for path in MEMORY.glob("modelfleet-token-*"):
            with contextlib.suppress(OSError):
                if shows(path.read_bytes()):
                    found.append(path)
        return found

    def _judge(self, path: Path) -> None:
        # Processes end and files go while they are looked at.
        with contextlib.suppress(OSError), open(path, "rb", opener=_regular) as source:
            if not shows(source.read()):
                return
            status = os.fstat(source.fileno())
            private = stat.S_IMODE(status.st_mode) == 0o600 and status.st_uid == os.geteuid()
            if not (_HANDED.fullmatch(str(path)) and private):
                self.hits.add(str(path))

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            self.look()


def _regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError("not a file")


class Desk:
    """A gated model on a Hub that speaks TLS, an inventory with a vault, and the commands that are run on them."""

    def __init__(self, checkout: Path, ground: Path, owner: Account) -> None:
        self.checkout, self.ground = checkout, ground
        self.stores = [ground / host / "models" for host in HOSTS]
        for store in self.stores:
            store.parent.mkdir()
            os.chown(store.parent, owner.uid, owner.gid)
        for name in ("home", "temporary"):
            (ground / name).mkdir()
        self.certificate = make_certificate(ground, "DNS:localhost", "IP:127.0.0.1")
        (ground / "ca.pem").write_bytes((ground / "certificate.pem").read_bytes())
        file = {"name": "mine.q8_0.gguf", "source": "hf://owner/mine/mine.gguf"}
        catalog = [{"id": "mine", "category": "chat/7b", "variants": {"q8_0": {"files": [file]}}}]
        self.variables: dict[str, Any] = {
            "model_store_path": f"{ground}/{{{{ inventory_hostname }}}}/models",
            "model_store_owner": owner.name,
            "model_store_link": "",
            "modelfleet_ca_bundle": str(ground / "ca.pem"),
            "models_lock_file": str(ground / "lock.json"),
            "models_catalog_extra": catalog,
            "models_wanted": [{"model": "mine"}],
            "models_hub_token": "{{ vault_hub_tokens[inventory_hostname] }}",
        }
        self.host_variables: dict[str, dict[str, Any]] = {}

    def serve(self, server: HubServer) -> None:
        """Lock the model to what the Hub has, and name the Hub."""
        commit = server.repositories["owner/mine"].names["main"]
        file = self.variables["models_catalog_extra"][0]["variants"]["q8_0"]["files"][0]
        pin = {**file, "commit": commit, "size": len(CONTENT), "sha256": sha256_of(CONTENT)}
        lock = {"schema_version": 1, "models": {"mine": {"q8_0": {"files": [pin]}}}}
        (self.ground / "lock.json").write_text(json.dumps(lock))
        self.variables["models_hub_endpoints"] = [server.endpoint]

    def command(self, tokens: Sequence[str], verb: str) -> list[str]:
        """Write playbook and inventory, the hosts' tokens in a vault of it, and return the command line."""
        inventory = self.ground / "inventory"
        (inventory / "group_vars" / "all").mkdir(parents=True, exist_ok=True)
        host = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
        hosts = {name: {**host, **self.host_variables.get(name, {})} for name, _ in zip(HOSTS, tokens)}
        (inventory / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
        (inventory / "group_vars" / "all" / "all.yml").write_text(yaml.safe_dump(self.variables))
        vault = VaultLib([("default", VaultSecret(b"password"))])
        secrets = {"vault_hub_tokens": dict(zip(HOSTS, tokens))}
        (inventory / "group_vars" / "all" / "vault.yml").write_bytes(vault.encrypt(yaml.safe_dump(secrets)))
        (self.ground / "password").write_text("password")
        play = {"name": "Keep the models", "hosts": "all", "gather_facts": False, "roles": ROLES}
        (self.ground / "play.yml").write_text(yaml.safe_dump([play]))
        if verb:
            command = [sys.executable, "-P", "-m", "modelfleet.cli", *verb.split()]
        else:
            command = [str(Path(sys.executable).with_name("ansible-playbook")), str(self.ground / "play.yml")]
        return [*command, "-i", str(inventory), "-vvvv", "--diff"]

    def run(self, *tokens: str, verb: str = "", **environment: str) -> tuple[subprocess.CompletedProcess[bytes], Watch]:
        """Run a command with a host for each token, watched."""
        known = {
            **os.environ,
            "NO_COLOR": "1",
            "PYTHONPATH": str(self.checkout / "python"),
            "ANSIBLE_ROLES_PATH": str(self.checkout / "roles"),
            "ANSIBLE_VAULT_PASSWORD_FILE": str(self.ground / "password"),
            "ANSIBLE_LOG_PATH": str(self.ground / "ansible.log"),
            "HOME": str(self.ground / "home"),
            "TMPDIR": str(self.ground / "temporary"),
            **environment,
        }
        folders = [self.ground, *(path for path in (Path("/run/modelfleet"),) if path.exists())]
        with Watch(*folders, environments="HF_TOKEN" not in environment) as watch:
            done = subprocess.run(
                self.command(tokens, verb),
                cwd=self.checkout,
                env=known,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=600,
            )
        watch.look()
        return done, watch


@pytest.fixture
def desk(checkout: Path, ground: Path, owner: Account) -> Desk:
    return Desk(checkout, ground, owner)


@pytest.fixture
def hub(desk: Desk) -> Iterator[HubServer]:
    """Run the Hub; it takes its time, so that there is something to look at."""
    with serve(desk.certificate) as server:
        server.tokens.add(TOKEN)
        server.add("owner/mine", {"mine.gguf": CONTENT}, gated=True)
        server.lie = _slowly
        desk.serve(server)
        yield server


def _slowly(handler: Handler) -> bool:
    threading.Event().wait(0.2)
    return False


def nowhere(done: subprocess.CompletedProcess[bytes], watch: Watch) -> str:
    """Assert that the token is not in the output and was in no place that was watched; returns the output."""
    assert watch.rounds > 3
    assert watch.hits == set()
    assert not shows(done.stdout) and not shows(done.stderr)
    assert watch.handed() == [], "it is gone when the run ends"
    return (done.stdout + done.stderr).decode(errors="replace")


def test_the_search_finds_each_form(tmp_path: Path) -> None:
    """Without this, no hits would prove nothing."""
    plain = TOKEN.encode()
    texts = [plain, urllib.parse.quote_plus(TOKEN).encode(), plain.hex().encode()]
    texts += [base64.b64encode(b"x" * before + plain + b"y" * after) for before in range(6) for after in range(3)]
    texts += [base64.urlsafe_b64encode(b"Bearer " + plain), json.dumps({"a": TOKEN}).encode()]
    assert [text for text in texts if not shows(b"..." + text + b"...")] == []
    assert not shows(b"hf_Canary") and not shows(base64.b64encode(b"hf_Canary"))
    for number, text in enumerate(texts):
        (tmp_path / f"{number}").write_bytes(text)
    other = MEMORY / f"modelfleet-other-{os.getpid()}"
    other.write_bytes(plain)
    with subprocess.Popen(["sleep", "60"], env={**os.environ, "X": TOKEN}) as first, subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)", TOKEN]
    ) as second:
        watch = Watch(tmp_path)
        try:
            # The kernel lets the parent go on before it has written down what the new program was started with.
            while not all(
                Path(f"/proc/{process.pid}/{name}").read_bytes() for process in (first, second) for name in watch.names
            ):
                time.sleep(0.01)
            watch.look()
        finally:
            first.kill()
            second.kill()
            other.unlink()
    expected = {*(str(tmp_path / f"{number}") for number in range(len(texts))), str(other)}
    assert watch.hits == {*expected, f"/proc/{first.pid}/environ", f"/proc/{second.pid}/cmdline"}


def test_a_vaults_token_and_that_of_the_environment(desk: Desk, hub: HubServer) -> None:
    """One host has the right token, the other one a wrong one; then the command line repairs with HF_TOKEN."""
    hub.tokens = {f"{TOKEN}right"}
    done, watch = desk.run(f"{TOKEN}right", TOKEN)
    said = nowhere(done, watch)
    assert done.returncode == 2 and said.count("the server answers 401") >= 1, said
    assert {headers.get("Authorization") for _, _, headers in hub.requests} >= {
        f"Bearer {TOKEN}",
        f"Bearer {TOKEN}right",
    }
    first, second = (store / FILE for store in desk.stores)
    assert first.read_bytes() == CONTENT and not second.exists()

    # Whoever sets HF_TOKEN has it in the environment of what is started; beside that it is nowhere.
    first.write_bytes(CONTENT[::-1])
    hub.requests.clear()
    hub.tokens = {TOKEN}
    desk.variables["models_hub_token"] = "{{ lookup('ansible.builtin.env', 'HF_TOKEN') }}"
    done, watch = desk.run("", verb="audit --repair", HF_TOKEN=TOKEN)
    said = nowhere(done, watch)
    assert done.returncode == 0 and first.read_bytes() == CONTENT, said
    assert any(headers.get("Authorization") == f"Bearer {TOKEN}" for _, _, headers in hub.requests)


def test_a_traceback_that_has_it_shows_stars(desk: Desk, hub: HubServer) -> None:
    """Faults of ours, made in a copy: an exception that nobody expects with the token in its text.

    On one host the module ends with it, on the other one the work in the background does.
    """
    for name in ("library", "python", "plugins"):
        shutil.copytree(desk.checkout / name, desk.ground / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file, line, limited in (
        ("library/modelfleet_models.py", "    def work(progress: Progress) -> dict:", "is None"),
        ("python/modelfleet/core/publishing.py", "    units = units_of(plan)\n    owner", "is not None"),
    ):
        text = (desk.ground / file).read_text()
        assert text.count(line) == 1
        fault = (
            f"    if settings.rate_limit {limited}:\n        raise RuntimeError(settings.credential.token.reveal())\n"
        )
        (desk.ground / file).write_text(text.replace(line, fault + line))
    desk.host_variables = {"second": {"models_rate_limit": 10**9}}
    done, watch = desk.run(
        TOKEN,
        TOKEN,
        ANSIBLE_LIBRARY=str(desk.ground / "library"),
        ANSIBLE_MODULE_UTILS=str(desk.ground / "python"),
        ANSIBLE_ACTION_PLUGINS=str(desk.ground / "plugins" / "action"),
    )
    said = nowhere(done, watch)
    assert done.returncode == 2
    assert "RuntimeError: ********" in said and "unexpected RuntimeError: ********" in said, said
