"""The proof that an environment works, before anything uses it: its packages are imported, and its GPU is found."""

import os
from typing import List

from ..errors import RuntimeBuildError
from .environment import Wanted
from .lock import pins_of
from .workshop import Workshop

# By the name of the package, where the module has another than that.
_MODULES = {"onnxruntime-gpu": "onnxruntime", "pip": ""}
_PROGRAM = """
import importlib, platform, sys
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        sys.exit(f"{name} cannot be imported: {type(error).__name__}: {str(error).strip() or 'it says nothing'}")
if sys.argv[1] != "cpu":
    llama, torch = sys.modules.get("llama_cpp"), sys.modules.get("torch")
    if llama and not llama.llama_supports_gpu_offload():
        sys.exit(f"llama_cpp finds no GPU through {sys.argv[1]}: it would compute on the processor")
    mps = sys.argv[1] == "metal"
    if torch and not (torch.backends.mps if mps else torch.cuda).is_available():
        sys.exit(f"torch {torch.__version__} finds no GPU through {sys.argv[1]}: it would compute on the processor")
print("proved", platform.python_version())
"""


def prove(shop: Workshop, environment: str, wanted: Wanted) -> str:
    """Prove that an environment works as ``wanted`` asks; returns the version of its Python.

    A GPU is asked for where the stack has one and its driver works (``wanted.gpu``): a build for it that computes on
    the processor is never switched to.

    Raises:
        RuntimeBuildError: a package cannot be imported, or the GPU is not found.
    """
    names: List[str] = ["modelfleet"]
    if wanted.build:
        names.append("llama_cpp")
    for package in pins_of(wanted.packages.requirements) if wanted.packages else ():
        names.append(_MODULES.get(package, package.replace("-", "_")))
    backend = wanted.backend if wanted.gpu else "cpu"
    command = [os.path.join(environment, "bin", "python"), "-I", "-c", _PROGRAM, backend, *filter(None, names)]
    status, said = shop.run(command, check=False)
    last = (said.strip().splitlines() or ["it printed nothing"])[-1]
    if status != 0 or not last.startswith("proved "):
        raise RuntimeBuildError(
            f"the new environment does not work, and is not used: {last[:400]}", "correct that, and run again"
        )
    return last.split()[1]
