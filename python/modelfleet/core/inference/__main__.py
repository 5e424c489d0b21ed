"""The child process of a proof: a request as JSON on standard input, its answer as the last line of standard output.

What runs here reads files that others made, with libraries that fetch, cache and report home when they may. So before
any of them is imported: standard output is kept for the answer, the libraries are told that there is no network, their
caches are a folder that goes with the process, and memory is limited.

The limit is RLIMIT_DATA: it counts what a process allocates for itself (Linux since 4.7: all private writable
mappings). RLIMIT_AS counts addresses as well: of a model that is only mapped, and the many that CUDA reserves beyond
the machine's memory, so that nothing on a GPU starts under it. A control group would count the page cache of a mapped
model, which the system takes back when it needs it, and making one takes rights that an unprivileged run has not.
macOS knows the limit, and does not hold mappings to it.
"""

import json
import os
import platform
import resource
import shutil
import sys
import tempfile
from typing import Any, Callable, Dict

from ... import __version__
from ..errors import ModelfleetError
from . import diffusion, embeddings, installation, llama, onnx, speech, transformers
from .request import Request, UnprovenError, read_request

# Each of these modules imports its library when it is called.
_PROVERS: Dict[str, Callable[[Request], Dict[str, Any]]] = {
    "gguf": llama.prove,
    "embedding": embeddings.prove,
    "transformers": transformers.prove,
    "diffusion": diffusion.prove,
    "onnx": onnx.prove,
    "speech": speech.prove,
    "installation": installation.prove,
}

_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_CACHES = ("HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "NUMBA_CACHE_DIR", "TRITON_CACHE_DIR")


def main() -> None:
    """Read the request, run the proof, print the answer: ``{"error": …}`` where it cannot be run."""
    answer_to = os.dup(1)
    # Whatever a library prints is no answer.
    os.dup2(2, 1)
    os.umask(0o077)
    caches = tempfile.mkdtemp(prefix="modelfleet-proof-")
    os.environ.update(_OFFLINE)
    os.environ.update(dict.fromkeys(_CACHES, caches))
    result = _run(sys.stdin.read())
    shutil.rmtree(caches, ignore_errors=True)
    with os.fdopen(answer_to, "w", encoding="utf-8") as answer:
        answer.write("\n" + json.dumps(result) + "\n")


def _run(text: str) -> Dict[str, Any]:
    try:
        request = read_request(json.loads(text))
        _limit(request)
        result = _PROVERS[request.kind](request)
    except UnprovenError as error:
        about = {"reason": error.reason, "command": error.command, "passing": error.passing}
        return {"error": str(error), "unproven": True, **about}
    except ModelfleetError as error:
        return {"error": str(error)}
    except ImportError as error:
        return {"error": f"the managed environment is incomplete: {_line(error)}; run apply to repair it"}
    except MemoryError:
        return {"error": "the proof needs more memory than it may have; raise the limit, or choose a smaller model"}
    except Exception as error:
        # The edge of the process: what a library raises is as manifold as the libraries.
        return {"error": f"{type(error).__name__}: {_line(error)}"}
    if request.kind != "installation":
        result["versions"].update(modelfleet=__version__, python=platform.python_version())
    return result


def _limit(request: Request) -> None:
    # A crash leaves no image of a model's memory behind.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if request.memory_limit_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (request.memory_limit_bytes, request.memory_limit_bytes))


def _line(error: BaseException) -> str:
    """Return what ``error`` says first, as one line of sensible length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else "no message"


if __name__ == "__main__":
    main()
