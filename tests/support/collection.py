"""Lay the modules and the code they ship out as an Ansible collection, for tools that check nothing else.

::

    DIR/ansible_collections/modelfleet/modelfleet/
      galaxy.yml  meta/runtime.yml
      plugins/modules/        library/
      plugins/action/         plugins/action/
      plugins/module_utils/modelfleet/    what of python/modelfleet ships to hosts
      tests/sanity/ignore-X.Y.txt

As a script: ``python3 tests/support/collection.py DIR`` prints the collection's path.
"""

import re
import shutil
import sys
from pathlib import Path

from ansible.release import __version__ as ansible_version

CHECKOUT = Path(__file__).resolve().parents[2]
SHARED_CODE = re.compile(r"\bansible\.module_utils\.modelfleet\b")
MODULE_NAME = re.compile(r"\bM\((?=modelfleet_)")
SHARED_CODE_IN_COLLECTION = "ansible_collections.modelfleet.modelfleet.plugins.module_utils.modelfleet"


def write_collection(root: Path) -> Path:
    """Write the collection tree below a folder and return the collection's own folder.

    Args:
        root: an existing folder; a tree from an earlier call is replaced.
    """
    collection = root / "ansible_collections" / "modelfleet" / "modelfleet"
    shutil.rmtree(collection, ignore_errors=True)
    plugins = collection / "plugins"
    leave_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(CHECKOUT / "library", plugins / "modules", ignore=leave_out)
    shutil.copytree(CHECKOUT / "plugins" / "action", plugins / "action", ignore=leave_out)
    shared = plugins / "module_utils" / "modelfleet"
    shutil.copytree(CHECKOUT / "python" / "modelfleet" / "core", shared / "core", ignore=leave_out)
    shutil.copy(CHECKOUT / "python" / "modelfleet" / "__init__.py", shared)
    for path in [*plugins.glob("modules/*.py"), *plugins.glob("action/*.py")]:
        text = SHARED_CODE.sub(SHARED_CODE_IN_COLLECTION, path.read_text())
        path.write_text(MODULE_NAME.sub("M(modelfleet.modelfleet.", text))
    modules = sorted(path.name for path in (plugins / "modules").glob("*.py"))
    _write(
        collection / "galaxy.yml",
        "namespace: modelfleet\nname: modelfleet\nversion: 1.0.0\nreadme: README.md\nauthors: [modelfleet]\n",
    )
    _write(collection / "meta" / "runtime.yml", 'requires_ansible: ">=2.19.0"\n')
    # The one rule that cannot hold: the project's licence is Apache-2.0.
    ignored = "".join(f"plugins/modules/{name} validate-modules:missing-gplv3-license\n" for name in modules)
    version = ".".join(ansible_version.split(".")[:2])
    _write(collection / "tests" / "sanity" / f"ignore-{version}.txt", ignored)
    return collection


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    sys.stdout.write(f"{write_collection(Path(sys.argv[1]))}\n")
