"""Proof of an ONNX graph: one run through onnxruntime, held against a plain run of the same graph on the CPU.

Inputs have their declared shapes with 1 for what is left open, and are filled with ones: a valid token, a mask that
hides nothing. The plain run has no optimizations, so that a provider or an optimization that reckons wrong shows.
Check: nothing is needed.
"""

import math
import time
from typing import Any, Dict, List, Tuple

from ..errors import InferenceError
from ..units import MIB
from .request import CPU, Request, resident_peak_bytes, versions

# The most numbers that an input may have: a graph is what its author says, and may say anything.
MAXIMUM_ELEMENTS = 64 * MIB
# Another provider reckons in another order, and some in fewer bits; results that agree point in one direction.
AGREEMENT = 0.99
_PROVIDERS: Dict[str, Tuple[str, ...]] = {
    "cuda": ("CUDAExecutionProvider",),
    "rocm": ("MIGraphXExecutionProvider", "ROCMExecutionProvider"),
    "metal": ("CoreMLExecutionProvider",),
}
# Without an option that says another, a provider takes its first device.
_DEVICES = {"cuda": "CUDA0", "rocm": "ROCm0", "metal": "MTL0", "cpu": CPU}
_CPU_PROVIDER = "CPUExecutionProvider"


def prove(request: Request) -> Dict[str, Any]:
    """Run the graph once and judge: every number of the output finite, and the plain run's within ``AGREEMENT``.

    Raises InferenceError for a graph that cannot be loaded or run.
    """
    import numpy
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    onnxruntime.disable_telemetry_events()
    available = onnxruntime.get_available_providers()
    wanted = [name for name in _PROVIDERS.get(request.placement.backend, ()) if name in available]
    resident = resident_peak_bytes()
    started = time.monotonic()
    session = _session(onnxruntime, request.path, [*wanted, _CPU_PROVIDER], True)
    load_seconds = time.monotonic() - started
    feeds = {one.name: ones(numpy, one.name, one.type, one.shape) for one in session.get_inputs()}
    started = time.monotonic()
    outputs = _run(session, request.path, feeds)
    seconds = time.monotonic() - started
    # Sessions fall back by themselves; what is first is what the graph is on, as far as it can be.
    provider = session.get_providers()[0]
    plain = _run(_session(onnxruntime, request.path, [_CPU_PROVIDER], False), request.path, feeds)
    numbers = [numpy.asarray(one) for one in outputs if numpy.asarray(one).dtype.kind in "fiub"]
    finite = all(bool(numpy.isfinite(one).all()) for one in numbers)
    agreement = _agreement(numpy, outputs, plain) if finite else 0.0
    names = [one.name for one in session.get_outputs()]
    shapes = {name: list(numpy.asarray(one).shape) for name, one in zip(names, outputs)}
    backend = next((name for name, providers in _PROVIDERS.items() if provider in providers), "cpu")
    return request.answer(
        backend=backend,
        device=_DEVICES[backend],
        output=f"{'finite' if finite else 'not finite'}, agreement {agreement:.6f}, "
        + ", ".join(f"{name} {'x'.join(map(str, shape)) or 'one number'}" for name, shape in shapes.items()),
        expected=f"finite, agreement with a plain run on the CPU at least {AGREEMENT}",
        passed=bool(numbers) and finite and agreement >= AGREEMENT,
        load_seconds=load_seconds,
        memory={
            "devices": [
                {
                    "name": CPU,
                    # No rule is known for what onnxruntime takes.
                    "predicted_bytes": None,
                    "measured_bytes": max(0, resident_peak_bytes() - resident),
                    "risen_bytes": None,
                }
            ],
            "resident_bytes": resident_peak_bytes(),
        },
        versions={"onnxruntime": onnxruntime.__version__, **versions("numpy")},
        details={
            "provider": provider,
            "outputs": shapes,
            "agreement": round(agreement, 9),
            "run_seconds": round(seconds, 4),
        },
    )


def ones(numpy: Any, name: str, kind: str, shape: List[Any]) -> Any:
    """Return an array of ones for the input ``name``, of onnxruntime's type ``kind`` (``tensor(float)``) and shape.

    Raises InferenceError for a type that cannot be filled and a shape beyond all measure.
    """
    sides = [side if isinstance(side, int) and side > 0 else 1 for side in shape]
    if math.prod(sides) > MAXIMUM_ELEMENTS:
        raise InferenceError(f"input {name[:100]!r} wants {'x'.join(map(str, sides))} numbers", "do not run this graph")
    inner = kind[len("tensor(") : -1] if kind.startswith("tensor(") else kind
    types = {"float": "float32", "double": "float64", "float16": "float16", "bool": "bool", "string": "object"}
    known = types.get(inner, inner if inner.lstrip("u").startswith("int") else "")
    if not known:
        raise InferenceError(f"input {name[:100]!r} is a {kind[:100]}, which the proof cannot make", "prove it by hand")
    return numpy.full(sides, "a", dtype=object) if known == "object" else numpy.ones(sides, dtype=known)


def _session(onnxruntime: Any, path: str, providers: List[str], optimized: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:
        # onnxruntime raises many types, and a part of them straight from its C++ code.
        raise InferenceError(
            f"{path} cannot be loaded: {_line(error)}", "run audit to see whether the file is whole"
        ) from None


def _run(session: Any, path: str, feeds: Dict[str, Any]) -> List[Any]:
    try:
        outputs: List[Any] = session.run(None, feeds)
    except Exception as error:
        raise InferenceError(
            f"{path} cannot be run with ones of its declared shapes: {_line(error)}", "prove it by hand"
        ) from None
    return outputs


def _agreement(numpy: Any, outputs: List[Any], plain: List[Any]) -> float:
    """Return the least cosine between the outputs of two runs: 1 where both are zero, 0 where only one is."""
    least = 1.0
    for one, other in zip(outputs, plain):
        first, second = numpy.asarray(one), numpy.asarray(other)
        if first.dtype.kind not in "fiub":
            continue
        if first.shape != second.shape:
            return 0.0
        first, second = first.astype("float64").ravel(), second.astype("float64").ravel()
        lengths = float(numpy.linalg.norm(first) * numpy.linalg.norm(second))
        if lengths:
            least = min(least, float(first @ second) / lengths)
        elif first.any() or second.any():
            return 0.0
    return least


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
