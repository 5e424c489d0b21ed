"""The profiles embeddings and onnx for real: torch for the processor, transformers, onnxruntime, resolved and proved.

Needs a package index and, for this machine's Python, the wheel of torch that VERSIONS names, in a folder of
PIP_FIND_LINKS; the index has only torch for CUDA, some gigabytes of it.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.fetch.package_index import PackageIndexSettings
from modelfleet.core.runtime.build import NOTHING, PIP_WHEEL, Builder
from modelfleet.core.runtime.environment import inspect
from modelfleet.core.runtime.lock import packages_of_stack, parse_lock
from modelfleet.core.runtime.resolver.settings import StackSettings
from modelfleet.core.runtime.resolver.stack import Stack, resolve_stack
from support.machines import machine
from support.runtime_host import fetch_pip, make_host

SYSTEM = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
VERSIONS = {"torch": "2.13.0", "torchvision": "", "torchaudio": ""}


def stack_of(python: str) -> Stack:
    """Return the stack of a machine without a GPU."""
    libc = "".join(platform.libc_ver())
    settings = StackSettings(profiles=("embeddings", "onnx"), versions=VERSIONS, libc=libc, python=python)
    return resolve_stack(machine(), settings)


@pytest.mark.long
def test_embeddings_and_onnx(tmp_path: Path) -> None:
    asked = "import sys; print('%d.%d' % sys.version_info[:2])"
    python = subprocess.check_output([SYSTEM, "-c", asked], text=True).strip()
    name = f"torch-{VERSIONS['torch']}+cpu-cp{python.replace('.', '')}-*.whl"
    if not any(list(Path(one).glob(name)) for one in PackageIndexSettings.from_environment(os.environ).find_links):
        pytest.skip(f"no folder of PIP_FIND_LINKS has {name}")
    pip = tmp_path / PIP_WHEEL
    fetch_pip(pip)
    host = make_host(pip)
    try:
        stack = stack_of(python)
        packages = packages_of_stack(stack, "", "".join(platform.libc_ver()))
        parts: dict[str, Any] = {"packages": packages, "requirements": "", "build": None, "python": SYSTEM}
        wanted = host.wanted(**parts)
        settings = PackageIndexSettings.from_environment(os.environ)
        done = Builder(wanted, host.owner, settings, host.progress).converge(host.package(), NOTHING)
        assert done.lock is not None
        pins = {pin.name: pin.version for pin in parse_lock(Path(done.lock).read_text())}
        assert pins["torch"] == "2.13.0+cpu" and {"sentence-transformers", "onnxruntime", "numpy"} <= set(pins)
        assert inspect(wanted).findings == ()
        program = "import torch, onnxruntime; print(torch.ones(2).sum().item(), onnxruntime.get_available_providers())"
        assert host.run(program).startswith("2.0 ") and "CPUExecutionProvider" in host.run(program)
        library = next(Path(host.in_use()).glob("lib/python3*/site-packages/torch/lib/libtorch_cpu.so"))
        library.unlink()
        assert [one.id for one in inspect(wanted).findings] == ["MF-RUN-008"]
    finally:
        shutil.rmtree(host.root)
