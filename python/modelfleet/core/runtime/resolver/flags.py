"""CMake arguments that a user adds to the build: what does nothing, or undoes the decision, is refused by name.

Sources: llama.cpp's CMakeLists.txt (``llama_option_depr``: LLAMA_CUBLAS stops the build, the others of its list only
warn) and ggml/CMakeLists.txt, which knows no GGML_CUBLAS, GGML_HIPBLAS or LLAMA_HIPBLAS: CMake ignores what nobody
asks for, and the build is one for the processor.
"""

import re
from typing import Sequence, Tuple

from ...errors import StackError

LEGACY = {
    "LLAMA_CUBLAS": "GGML_CUDA",
    "LLAMA_CUDA": "GGML_CUDA",
    "GGML_CUBLAS": "GGML_CUDA",
    "LLAMA_HIPBLAS": "GGML_HIP",
    "GGML_HIPBLAS": "GGML_HIP",
    "LLAMA_METAL": "GGML_METAL",
    "LLAMA_VULKAN": "GGML_VULKAN",
    "LLAMA_NATIVE": "GGML_NATIVE",
    "LLAMA_RPC": "GGML_RPC",
    "LLAMA_SYCL": "GGML_SYCL",
    "LLAMA_CANN": "GGML_CANN",
    "LLAMA_OPENMP": "GGML_OPENMP",
    "LLAMA_BLAS": "GGML_BLAS",
    "AMDGPU_TARGETS": "GPU_TARGETS",
}
# What the hardware decides, and the setting that says otherwise.
DECIDED = {
    **{f"GGML_{name}": "choose the backend instead" for name in ("CUDA", "HIP", "METAL", "VULKAN")},
    **{
        f"GGML_{name}": "the processor's instruction sets decide it"
        for name in ("SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2")
    },
    "GGML_NATIVE": "a wheel must run on every host of its kind",
    "CMAKE_CUDA_ARCHITECTURES": "the cards decide it",
    "GPU_TARGETS": "the cards decide it",
    "CMAKE_HIP_ARCHITECTURES": "the cards decide it",
}
# They travel in one environment variable that is split at spaces.
_ARGUMENT = re.compile(r"-D([A-Za-z][A-Za-z0-9_]{0,99})(?::[A-Z]+)?=([A-Za-z0-9_./;:+,-]{0,500})", re.ASCII)


def checked_arguments(arguments: Sequence[str]) -> Tuple[str, ...]:
    """Return ``arguments`` as they are where all may be added to a build.

    Raises:
        StackError: one is not of the form ``-DNAME=VALUE``, is a legacy flag, or sets what the hardware decides.
    """
    for argument in arguments:
        match = _ARGUMENT.fullmatch(argument) if isinstance(argument, str) else None
        if match is None:
            raise StackError(
                f"the CMake argument {str(argument)[:80]!r} is not of the form -DNAME=VALUE",
                "write one per entry, without spaces or quotes",
            )
        name = match.group(1).upper()
        if name in LEGACY:
            right = LEGACY[name]
            cure = f"{right} is the right name; take the flag out: {DECIDED.get(right, f'or write -D{right}')}"
            raise StackError(f"the CMake flag {name} is a legacy name that llama.cpp does not build with", cure)
        if name in DECIDED:
            raise StackError(f"the CMake flag {name} is not the user's to set", DECIDED[name])
    return tuple(arguments)
