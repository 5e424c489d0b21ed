"""Run ansible-test's validate-modules on the generated collection tree: ``cd tests && python3 -m support.sanity``.

ansible-test makes a virtual environment of its own and drops nearly all of the environment on the way, pip's settings
included, and it takes pip itself from a server that many networks do not reach. So it gets a home folder of its own,
kept in the cache, with this machine's settings of pip and, at the place that ansible-test names for one, with a
bootstrap script that lets the pip of the running environment do the work.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from ansible_test._internal.python_requirements import get_venv_packages  # type: ignore[import-untyped]

from support.collection import write_collection
from support.containers import pip_configuration, pip_settings

BOOTSTRAP = """
import subprocess
import sys

packages = [word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.call([{pip_python!r}, "-m", "pip", "--python", sys.executable, "install", *packages]))
"""


def prepare_home(home: Path) -> None:
    """Write what ansible-test and its pip look for in their home folder."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    version = get_venv_packages(SimpleNamespace(version=python))["pip"].replace(".", "_")
    bootstrap = home / ".ansible" / "test" / "cache" / f"get_pip_{version}.py"
    pip_conf = home / ".config" / "pip" / "pip.conf"
    for path, text in (
        (bootstrap, BOOTSTRAP.format(pip_python=sys.executable)),
        (pip_conf, pip_configuration(pip_settings())),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def main() -> int:
    """Write the tree, run the check and return its exit status."""
    ansible_test = str(Path(sys.executable).with_name("ansible-test"))
    home = Path.home() / ".cache" / "modelfleet" / "test" / "ansible-test-home"
    prepare_home(home)
    with tempfile.TemporaryDirectory(prefix="modelfleet-sanity-") as folder:
        return subprocess.call(
            [ansible_test, "sanity", "--test", "validate-modules", "--color", "no"],
            cwd=write_collection(Path(folder)),
            env={**os.environ, "HOME": str(home)},
            stdin=subprocess.DEVNULL,
        )


if __name__ == "__main__":
    sys.exit(main())
