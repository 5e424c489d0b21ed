"""Versions that fit together, as of November 2026.

V: read in the packages' own metadata or files; S: from a secondary source; U: not verified.

- torch 2.15.0 needs Python 3.11 and has wheels up to 3.15, torch 2.14.1 needs 3.10 and goes to 3.14 (V). torchaudio
  2.11.0 and onnxruntime 1.32.0 end at 3.14 (V), so everything does.
- torchvision 0.29.2 needs torch >= 2.14.0 and not Python 3.14.1 (V). torchaudio ends at 2.11.0 and pins no torch (V).
  Their Linux wheels link libcudart of torch's CUDA (V: libcudart.so.13 in those of the registry), so all three come
  from an index of one CUDA. That 2.11.0 is in the index of CUDA 13.0 and not in that of 13.2: U.
- transformers 5.23.0 and diffusers 0.42.1 need Python 3.11; 5.20.2 and 0.41.0 are the last for 3.10 (V).
  sentence-transformers 6.2.0 needs transformers 5 (V). pip's own resolution of all of CUDA 13's for Python 3.12, from
  the registry, gives 82 distributions with huggingface-hub 2.4.0, that of 3.10's libraries huggingface-hub 1.33.0 (V).
- onnxruntime-gpu 1.31.1 is the last, for CUDA 13; 1.26.0 the last for CUDA 12; 1.23.2 the last for Python 3.10, for
  CUDA 12 (V). Of those only 1.31.1 has a wheel for aarch64, from glibc 2.34 on (V).
- bitsandbytes 0.50.2 carries libraries for CUDA 12.6 and 13.2 and for ROCm 7.2 on x86-64 (V); on aarch64: U.
- Plain wheels for macOS are for arm64 and macOS 14 or newer; for Intel's Macs torch ended with 2.2.2 (V).
- The indexes' names, and that 2.14 is the last torch in that of CUDA 12.6: S. torch 2.15.0 in that of ROCm 7.2: U.
"""

from typing import Dict, NamedTuple, Optional, Tuple

PythonVersion = Tuple[int, int]
CUDA_13, CUDA_12, ROCM, CPU, METAL = "cuda13", "cuda12", "rocm", "cpu", "metal"


class Package(NamedTuple):
    """A distribution at one version; ``tag`` is that of PyTorch's wheel indexes, empty for the usual registry."""

    name: str
    version: str
    tag: str = ""
    extras: str = ""

    @property
    def requirement(self) -> str:
        """Return it as pip wants it. A build's local version is part of it: ``+cpu`` must not pass for ``+cu132``."""
        extras = f"[{self.extras}]" if self.extras else ""
        return f"{self.name}{extras}=={self.version}{'+' + self.tag if self.tag else ''}"


class Torch(NamedTuple):
    """torch, torchvision and torchaudio of one kind of build, and the CUDA or ROCm that its wheels carry."""

    torch: Package
    torchvision: Package
    torchaudio: Package
    toolkit: str = ""
    onnxruntime: str = ""
    """The version of onnxruntime-gpu for the same CUDA; empty where its plain package serves."""


class Generation(NamedTuple):
    """Versions for one range of Pythons, both ends in it."""

    first: PythonVersion
    last: PythonVersion
    libraries: Dict[str, str]
    torch: Dict[str, Torch]


def _torch(version: str, tag: str, toolkit: str = "", onnxruntime: str = "", audio_tag: Optional[str] = None) -> Torch:
    audio = Package("torchaudio", "2.11.0", tag if audio_tag is None else audio_tag)
    return Torch(Package("torch", version, tag), Package("torchvision", "0.29.2", tag), audio, toolkit, onnxruntime)


CURRENT = Generation(
    (3, 11),
    (3, 14),
    {
        "transformers": "5.23.0",
        "accelerate": "1.15.0",
        "bitsandbytes": "0.50.2",
        "diffusers": "0.42.1",
        "sentence-transformers": "6.2.0",
        "onnxruntime": "1.32.0",
    },
    {
        CUDA_13: _torch("2.15.0", "cu132", "13.2", "1.31.1", "cu130"),
        CUDA_12: _torch("2.14.1", "cu126", "12.6", "1.26.0"),
        ROCM: _torch("2.15.0", "rocm7.2", "7.2"),
        CPU: _torch("2.15.0", "cpu"),
        METAL: _torch("2.15.0", ""),
    },
)
PYTHON_3_10 = Generation(
    (3, 10),
    (3, 10),
    {
        "transformers": "5.20.2",
        "accelerate": "1.15.0",
        "bitsandbytes": "0.50.2",
        "diffusers": "0.41.0",
        "sentence-transformers": "6.2.0",
        "onnxruntime": "1.23.2",
    },
    # Not CUDA 13: torch 2.14.1 has it for this Python, onnxruntime-gpu does not.
    {
        CUDA_12: _torch("2.14.1", "cu126", "12.6", "1.23.2"),
        ROCM: _torch("2.14.1", "rocm7.2", "7.2"),
        CPU: _torch("2.14.1", "cpu"),
        METAL: _torch("2.14.1", ""),
    },
)
GENERATIONS = (CURRENT, PYTHON_3_10)
# llama-cpp-python's wheels are for every Python 3; of what it needs, numpy ends at 3.9 (requirements-gguf.txt).
GGUF_ONLY = Generation((3, 9), (3, 99), {}, {})
PYTHONS_REFUSED = ((3, 14, 1),)
"""torchvision's own exception (V)."""

# What each profile installs beside what it needs itself.
TORCH_PROFILES: Dict[str, Tuple[str, ...]] = {
    "torch": ("transformers", "accelerate", "bitsandbytes"),
    "diffusion": ("diffusers", "transformers", "accelerate"),
    "embeddings": ("sentence-transformers", "transformers"),
}
PROFILES = ("gguf", *TORCH_PROFILES, "onnx")

PACKAGES = ("torch", "torchvision", "torchaudio", *CURRENT.libraries, "onnxruntime-gpu")
"""Every package that a stack may have."""

# The wheels are manylinux_2_28 (V), but onnxruntime-gpu for aarch64 is manylinux_2_34 (V).
LEAST_GLIBC = (2, 28)
LEAST_GLIBC_ONNX_AARCH64 = (2, 34)
LEAST_MACOS = 14

# Compute capabilities that the wheels have code for. PyTorch's build scripts for CUDA 12.6 (V); 13.2: S. Code of one
# major version runs on later minors of it (CUDA Programming Guide, "Binary Compatibility").
CODE_FOR = {
    CUDA_12: ((5, 0), (6, 0), (7, 0), (7, 5), (8, 0), (8, 6), (9, 0)),
    CUDA_13: ((7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0)),
}
# gfx targets that PyTorch's wheels for ROCm 7 have code for (S: PyTorch's .ci/docker/libtorch/build.sh), without
# gfx900, which ROCm's own libraries do not have any more (S).
ROCM_TARGETS = frozenset(
    [
        *("gfx906", "gfx908", "gfx90a", "gfx942", "gfx950"),
        *("gfx1030", "gfx1100", "gfx1101", "gfx1102", "gfx1150", "gfx1151", "gfx1200", "gfx1201"),
    ]
)
