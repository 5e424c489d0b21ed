"""The build of llama-cpp-python that serves a host, and its name in a wheelhouse.

The flags are those of llama-cpp-python 0.3.36 (its CMakeLists.txt and vendor/llama.cpp/ggml/CMakeLists.txt).
"""

import hashlib
from typing import NamedTuple, Sequence, Tuple

# With GGML_NATIVE off, ggml still builds x86 code for these unless each is switched off
# (ggml/CMakeLists.txt: they default to on where GGML_NATIVE is off).
_X86_SWITCHES = (
    ("avx2", "GGML_AVX2"),
    ("fma", "GGML_FMA"),
    ("f16c", "GGML_F16C"),
    ("bmi2", "GGML_BMI2"),
    ("avx", "GGML_AVX"),
    ("sse4_2", "GGML_SSE42"),
)
X86 = ("x86_64", "amd64")


class Build(NamedTuple):
    """How llama-cpp-python is compiled: its version, the backend, CMake arguments, and what it then runs on."""

    version: str
    backend: str
    cmake_arguments: Tuple[str, ...]
    platform: str
    libc: str

    @property
    def key(self) -> str:
        """The name of this build in a wheelhouse: equal keys mean interchangeable wheels."""
        flags = hashlib.sha256(" ".join(self.cmake_arguments).encode()).hexdigest()[:8]
        return f"llama_cpp_python-{self.version}-{self.backend}-{self.platform}-{self.libc}-{flags}"


def processor_arguments(machine: str, instruction_sets: Sequence[str]) -> Tuple[str, ...]:
    """Return the CMake arguments that every build has, whatever computes, for one kind of processor.

    ``machine`` as ``platform.machine()`` tells it, ``instruction_sets`` as in /proc/cpuinfo. The compiler's
    ``native`` is never used: a wheel serves every host of its key, not only the
    machine that built it. OpenMP is off because its library (libgomp) comes with
    compilers only, and a host that installs the wheel need not have one.
    """
    switches = _X86_SWITCHES if machine.lower() in X86 else ()
    missing = tuple(f"-D{switch}=OFF" for name, switch in switches if name not in instruction_sets)
    return ("-DGGML_NATIVE=OFF", "-DGGML_OPENMP=OFF", *missing)
