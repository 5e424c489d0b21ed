"""What all tests share: options, the reasons to skip, and the place where modules find the shared code."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import ansible.module_utils
import pytest
from hypothesis import settings
from support import containers

# A module imports ansible.module_utils.modelfleet; AnsiballZ finds it through ansible.cfg, a unit test through this.
ansible.module_utils.__path__.append(str(Path(__file__).resolve().parents[1] / "python"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --long."""
    parser.addoption("--long", action="store_true", help="run the tests that take minutes, too")


def pytest_configure(config: pytest.Config) -> None:
    """Let the normal run try the same examples every time; the long one looks for others."""
    settings.register_profile("same", derandomize=True)
    if not config.getoption("--long"):
        settings.load_profile("same")


def why_skip(item: pytest.Item) -> str:
    """Say in one line why a test cannot or shall not run here; empty where it runs."""
    if item.get_closest_marker("long") and not item.config.getoption("--long"):
        return "takes minutes: give --long"
    if item.get_closest_marker("gpu") and not (glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/kfd")):
        return "needs a GPU, and this machine shows none"
    if item.get_closest_marker("containers"):
        return containers.why_unavailable()
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is skipped, each with its reason."""
    for item in items:
        reason = why_skip(item)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def checkout() -> Path:
    """Return the repository's root."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def captures(checkout: Path) -> Path:
    """Return the folder of recorded hardware: MODELFLEET_CAPTURES, else the one beside the repository."""
    folder = Path(os.environ.get("MODELFLEET_CAPTURES") or checkout.parent / "shared" / "captures")
    if not folder.is_dir():
        pytest.skip(f"recorded hardware is not at {folder}")
    return folder
