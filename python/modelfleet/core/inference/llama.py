"""Proof of a GGUF model through llama-cpp-python: greedy completion, timed by llama.cpp itself.

Runs in the child process that core.inference.proof starts, in the managed environment.
"""

import resource
import sys
import time
from typing import Any, Dict

from ..errors import InferenceError

CONTEXT_TOKENS = 512
MAXIMUM_TOKENS = 16


def prove(path: str, prompt: str, expected: str) -> Dict[str, Any]:
    """Load the model at ``path``, continue ``prompt`` greedily, and return what happened.

    The result's keys are those of a verification record: output, passed,
    load_seconds, prompt_tokens_per_second, generation_tokens_per_second,
    measured_bytes (the process's peak of resident memory). Raises
    InferenceError where the model cannot be loaded.
    """
    import llama_cpp

    started = time.monotonic()
    try:
        model = llama_cpp.Llama(model_path=path, n_ctx=CONTEXT_TOKENS, n_gpu_layers=0, seed=0, verbose=False)
    except ValueError as error:
        raise InferenceError(
            f"{path} cannot be loaded: {error}", "run audit to see whether the file is whole"
        ) from None
    load_seconds = time.monotonic() - started
    context = model.ctx
    llama_cpp.llama_perf_context_reset(context)
    answer = model.create_completion(prompt, max_tokens=MAXIMUM_TOKENS, temperature=0.0)
    timings = llama_cpp.llama_perf_context(context)
    output = answer["choices"][0]["text"]
    return {
        "backend": "cpu",
        "device": "CPU",
        "output": output,
        "passed": output.startswith(expected),
        "load_seconds": round(load_seconds, 3),
        "prompt_tokens_per_second": _rate(timings.n_p_eval, timings.t_p_eval_ms),
        "generation_tokens_per_second": _rate(timings.n_eval, timings.t_eval_ms),
        "measured_bytes": _peak_bytes(),
        "versions": {"llama_cpp_python": llama_cpp.__version__},
    }


def _rate(tokens: int, milliseconds: float) -> "float | None":
    return round(tokens * 1000 / milliseconds, 1) if tokens and milliseconds > 0 else None


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
