"""The inference stack of a host: what computes, what is compiled with which flags, which packages from which index.

A stack is decided from a HardwareProfile alone; the same profile and settings give the same stack. A GPU that is not
brought to work yet counts as what it will be after ``prepare`` (``driver_pending`` says so), because the runtime is
built after the driver is installed, and a stack for the processor would have to be replaced at once. Where a GPU is
there and nothing serves it as it is wished, that is an error with its cure, never a quiet stack for the processor.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ...errors import StackError
from ...hardware.facts_view import Facts, version_numbers
from . import cuda, pythons
from .backend import Choice, Host, choose, read_host
from .build import Build, processor_arguments
from .releases import (
    CUDA_12,
    CUDA_13,
    GENERATIONS,
    GGUF_ONLY,
    LEAST_GLIBC,
    LEAST_GLIBC_ONNX_AARCH64,
    LEAST_MACOS,
    PROFILES,
    ROCM,
    TORCH_PROFILES,
    Generation,
    Package,
    Torch,
)
from .settings import StackSettings

SCHEMA_VERSION = 1
SOURCE, WHEEL = "source", "wheel"
WHEEL_MACHINES = ("x86_64", "aarch64")
# What upstream's wheels take for granted on x86: ggml's defaults where GGML_NATIVE is off.
_OF_UPSTREAM_WHEELS = ("avx", "avx2", "fma", "f16c", "bmi2")
# ggml-hip/CMakeLists.txt refuses an older one.
_LEAST_ROCM = "6.1"
# Debian's and Ubuntu's names of what ggml-vulkan/CMakeLists.txt looks for.
_VULKAN_PACKAGES = ("libvulkan-dev", "glslc", "spirv-headers")
# NCCL is linked where the builder happens to have it (ggml-cuda/CMakeLists.txt): a wheel must not depend on that.
_NO_NCCL = "-DGGML_CUDA_NCCL=OFF"


@dataclass(frozen=True)
class LlamaCpp:
    """How llama-cpp-python comes to the host.

    ``source`` is source or wheel; ``tag`` that of upstream's wheel index. ``toolkit`` says what compiling needs
    beside a compiler, ``packages`` name it where that is known for Debian and Ubuntu.
    """

    source: str
    reason: str
    cmake_arguments: Tuple[str, ...] = ()
    tag: str = ""
    toolkit: str = ""
    packages: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Stack:
    """Everything that is decided for a host. ``devices`` are the GPUs that it serves, ``left_out`` the others."""

    backend: str
    reason: str
    platform: str
    profiles: Tuple[str, ...]
    python: pythons.PythonChoice
    devices: Tuple[str, ...] = ()
    left_out: Tuple[str, ...] = ()
    driver: str = ""
    driver_pending: bool = False
    toolkit: str = ""
    llama: Optional[LlamaCpp] = None
    packages: Tuple[Package, ...] = ()
    environment: Dict[str, str] = field(default_factory=dict)
    warnings: Tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def version_of(self, name: str) -> Optional[str]:
        """Return the version of a package in the stack, None where it is not in it."""
        return next((one.version for one in self.packages if one.name == name), None)

    def build(self, version: str, libc: str) -> Build:
        """Return the build of llama-cpp-python ``version`` for hosts with a C library such as ``glibc2.36``.

        Raises:
            StackError: the profile gguf is not among those of the stack.
        """
        if self.llama is None:
            raise StackError("this stack has no llama-cpp-python", "add the profile gguf")
        return Build(version, self.backend, self.llama.cmake_arguments, self.platform, libc)


def stack_to_dict(stack: Stack) -> Dict[str, Any]:
    """Return a stack as plain data."""
    document = asdict(stack)
    document["python"] = stack.python._asdict()
    document["packages"] = [{**one._asdict(), "requirement": one.requirement} for one in stack.packages]
    return document


def resolve_stack(profile: Mapping[str, Any], settings: Optional[StackSettings] = None) -> Stack:
    """Return the stack of a host.

    Args:
        profile: a HardwareProfile as plain data; nothing of it is trusted to be there.
        settings: what is wished.

    Raises:
        StackError: a setting cannot be meant, or nothing serves the host as it is wished; with the cure.
    """
    settings = settings or StackSettings()
    settings.check()
    host = read_host(Facts(profile), settings)
    choice = choose(host, settings)
    with_packages = any(name != "gguf" for name in settings.profiles)
    if with_packages:
        _refuse_platform(host, settings, choice)
    python, generation = pythons.choose_python(
        settings.python,
        host.facts.text("python.version"),
        _system(host),
        GENERATIONS if with_packages else (GGUF_ONLY,),
    )
    torch = _torch_of(choice, generation, python) if with_packages else None
    line = _line_of(choice, torch[0] if torch else "")
    packages, warnings = _packages(settings, host, generation, torch) if torch else ((), ())
    packages = _with_versions(packages, settings.versions)
    gguf = "gguf" in settings.profiles
    if gguf and host.machine == "x86_64" and not host.instruction_sets:
        warnings += ("the processor's instruction sets are not known: compiled for the oldest",)
    if line is not None and line.kind == CUDA_12 and cuda.lines(choice.capabilities, cuda.NEWEST_DRIVER)[0] != line:
        warnings += (_why_not_newest(choice),)
    return Stack(
        backend=choice.backend,
        reason=choice.reason + (f", CUDA {cuda.MAJORS[line.kind]}" if line else ""),
        platform=host.platform,
        profiles=tuple(name for name in PROFILES if name in settings.profiles),
        python=python,
        devices=tuple(one.name for one in choice.served.cards),
        left_out=choice.served.left_out,
        driver=choice.driver,
        driver_pending=choice.pending,
        toolkit=torch[1].toolkit if torch else "",
        llama=_llama(host, choice, line, settings) if gguf else None,
        packages=packages,
        environment=dict(choice.served.environment),
        warnings=(*choice.warnings, *warnings),
    )


def _system(host: Host) -> Tuple[Optional[str], Optional[str], Optional[str]]:
    family = "darwin" if host.darwin else host.facts.text("os.family")
    return family, host.facts.text("os.distribution"), host.facts.text("os.version")


def _line_of(choice: Choice, kind: str) -> Optional[cuda.Line]:
    """Return the CUDA to compile with: torch's where it is in the same environment, else the newest that serves."""
    return next((one for one in choice.lines if kind in ("", one.kind)), None)


def _why_not_newest(choice: Choice) -> str:
    floor = cuda.DRIVER_FLOORS[CUDA_13]
    if choice.branch < floor:
        return f"CUDA 12 because of driver {choice.driver}: CUDA 13 needs branch {floor} or newer"
    return "CUDA 12 because of the Python: CUDA 13's packages need 3.11 or newer"


def _refuse_platform(host: Host, settings: StackSettings, choice: Choice) -> None:
    """Refuse a system or cards that the wheels of torch and onnxruntime are not for (see releases.py)."""
    version = version_numbers(host.facts.text("os.version"))
    if host.machine not in WHEEL_MACHINES:
        raise StackError(f"torch and onnxruntime have no wheels for {host.machine}", "wish the profile gguf alone")
    if host.darwin and host.machine == "x86_64":
        raise StackError(
            "torch and onnxruntime have no wheels for Intel's Macs any more", "wish the profile gguf alone"
        )
    if host.darwin and version and version[0] < LEAST_MACOS:
        raise StackError(
            f"torch and onnxruntime need macOS {LEAST_MACOS}, this is {version[0]}",
            "update macOS, or wish the profile gguf alone",
        )
    if host.facts.text("os.distribution") == "alpine" or settings.libc.startswith("musl"):
        raise StackError(
            "torch and onnxruntime have no wheels for musl", "use a distribution with glibc, or the profile gguf alone"
        )
    libc = _glibc(settings.libc)
    if libc and libc < LEAST_GLIBC:
        raise StackError(
            f"torch and onnxruntime need glibc {LEAST_GLIBC[0]}.{LEAST_GLIBC[1]}, this is {settings.libc[:20]}",
            "move to a newer release of the system, or wish the profile gguf alone",
        )
    if not choice.kinds:
        names = " and ".join(f"CUDA {cuda.MAJORS[one.kind]}" for one in choice.lines)
        floor = cuda.DRIVER_FLOORS[CUDA_13]
        newer = f"install NVIDIA's driver of branch {floor} or newer, or " if choice.branch < floor else ""
        raise StackError(
            f"PyTorch's wheels of {names} have no code for all of these cards: {choice.reason}",
            f"{newer}wish the profile gguf alone",
        )


def _glibc(libc: str) -> Tuple[int, ...]:
    return version_numbers(libc[len("glibc") :]) if libc.startswith("glibc") else ()


def _torch_of(choice: Choice, generation: Generation, python: pythons.PythonChoice) -> Tuple[str, Torch]:
    found = next((kind for kind in choice.kinds if kind in generation.torch), None)
    if found is None:
        newest = GENERATIONS[0]
        raise StackError(
            f"for Python {python.version} there is no set of packages that serves {choice.reason}",
            f"name a Python from {pythons.dotted(newest.first)} to {pythons.dotted(newest.last)}"
            " with inference_runtime_python",
        )
    return found, generation.torch[found]


def _packages(
    settings: StackSettings, host: Host, generation: Generation, found: Tuple[str, Torch]
) -> Tuple[Tuple[Package, ...], Tuple[str, ...]]:
    """Return the packages of the profiles, and warnings."""
    kind, torch = found
    packages: List[Package] = []
    warnings: List[str] = []
    if any(name in TORCH_PROFILES for name in settings.profiles):
        packages += [torch.torch, torch.torchvision, torch.torchaudio]
        names = {name for profile in settings.profiles for name in TORCH_PROFILES.get(profile, ())}
        packages += [Package(name, version) for name, version in generation.libraries.items() if name in names]
    if "onnx" in settings.profiles:
        gpu = torch.onnxruntime
        if gpu and host.machine == "aarch64" and not _onnxruntime_on_aarch64(kind, settings.libc):
            gpu = ""
            warnings.append("onnxruntime-gpu has no wheel for this machine and CUDA: ONNX models use the processor")
        if kind == ROCM:
            warnings.append("no onnxruntime for ROCm is known here: ONNX models use the processor")
        # The extras bring the libraries of CUDA and cuDNN; where torch is there too, they are the same ones.
        own = Package("onnxruntime-gpu", gpu, "", "cuda,cudnn") if gpu else None
        packages.append(own or Package("onnxruntime", generation.libraries["onnxruntime"]))
    if not host.darwin and host.machine == "x86_64" and "avx2" not in host.instruction_sets:
        warnings.append("torch and onnxruntime are unproven on a processor without AVX2, or that does not tell")
    return tuple(packages), tuple(warnings)


def _with_versions(packages: Sequence[Package], versions: Mapping[str, str]) -> Tuple[Package, ...]:
    """Return the packages in the versions that the user named; an empty one leaves a package out."""
    replaced = []
    for one in packages:
        version, _, tag = versions.get(one.name, one.version).partition("+")
        if version:
            replaced.append(one._replace(version=version, tag=tag or one.tag))
    return tuple(replaced)


def _onnxruntime_on_aarch64(kind: str, libc: str) -> bool:
    return kind != CUDA_12 and (_glibc(libc) or LEAST_GLIBC_ONNX_AARCH64) >= LEAST_GLIBC_ONNX_AARCH64


def _llama(host: Host, choice: Choice, line: Optional[cuda.Line], settings: StackSettings) -> LlamaCpp:
    arguments = [*processor_arguments(host.machine, host.instruction_sets)]
    toolkit = ""
    packages: Tuple[str, ...] = ()
    tag: Optional[str] = "cpu"
    if line is not None:
        architectures = ";".join(map(cuda.architecture, choice.capabilities))
        arguments += ["-DGGML_CUDA=ON", f"-DCMAKE_CUDA_ARCHITECTURES={architectures}", _NO_NCCL]
        toolkit = f"CUDA toolkit >={line.toolkit[0]}.{line.toolkit[1]},<{line.below}"
        tag = cuda.wheel_tag(line, choice.capabilities, choice.branch)
    elif choice.backend == "rocm":
        arguments += ["-DGGML_HIP=ON", f"-DGPU_TARGETS={';'.join(choice.served.targets)}"]
        toolkit, tag = f"ROCm >={_LEAST_ROCM} with hipBLAS and rocBLAS", "rocm72"
    elif choice.backend == "vulkan":
        arguments.append("-DGGML_VULKAN=ON")
        toolkit, packages, tag = "Vulkan headers, glslc, SPIR-V headers", _VULKAN_PACKAGES, "vulkan"
    elif choice.backend == "metal":
        arguments.append("-DGGML_METAL=ON")
        toolkit, tag = "Xcode's command line tools", "metal"
    elif host.darwin:
        # ggml/CMakeLists.txt turns it on by default on every Mac.
        arguments.append("-DGGML_METAL=OFF")
    reason = "compiled once for all hosts of its kind, from the archive that a hash pins"
    if settings.upstream_wheels:
        refused = _why_no_wheel(host, tag, settings.extra_cmake_arguments)
        if not refused and tag is not None:
            libraries = f"libcudart and libcublas of CUDA {line.below - 1}, as torch brings them" if line else ""
            return LlamaCpp(WHEEL, "ready and allowed; no hash pins it", tag=tag, toolkit=libraries)
        reason = f"compiled: {refused}"
    arguments += settings.extra_cmake_arguments
    return LlamaCpp(SOURCE, reason, tuple(arguments), "", toolkit, packages)


def _why_no_wheel(host: Host, tag: Optional[str], extra: Sequence[str]) -> str:
    """Return why upstream's wheel does not serve, '' where it does."""
    if tag is None:
        return "no ready wheel has code for these cards that this driver can run"
    if extra:
        return "a ready wheel cannot have the flags that were added"
    if host.machine == "x86_64" and any(name not in host.instruction_sets for name in _OF_UPSTREAM_WHEELS):
        return "ready wheels take AVX2, FMA, F16C and BMI2 for granted"
    if host.machine != "x86_64" and not host.darwin:
        return f"that there are ready wheels for Linux on {host.machine} is not verified"
    return ""
