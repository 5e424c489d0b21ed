"""The child process of a proof: a request as JSON on standard input, its result as the last line of standard output."""

import json
import platform
import sys
from typing import Any, Dict

from ... import __version__
from ..errors import ModelfleetError
from . import llama


def main() -> None:
    """Read the request, run the proof, print the result: ``{"error": …}`` where it cannot be run."""
    request = json.load(sys.stdin)
    try:
        result: Dict[str, Any] = llama.prove(request["path"], request["prompt"], request["expected"])
        result["versions"].update(modelfleet=__version__, python=platform.python_version())
    except ModelfleetError as error:
        result = {"error": str(error)}
    except ImportError as error:
        result = {"error": f"the managed environment is incomplete: {error}; run apply to repair it"}
    sys.stdout.write("\n" + json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
