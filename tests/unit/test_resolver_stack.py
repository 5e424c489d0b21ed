"""The stack of a host: a table of cards and processors, and each rule with the hosts on both of its sides."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from modelfleet.core.errors import StackError
from modelfleet.core.runtime.resolver.cards import DEFAULT_BRANCH, PLANNED_BRANCHES
from modelfleet.core.runtime.resolver.releases import GENERATIONS
from modelfleet.core.runtime.resolver.settings import StackSettings
from modelfleet.core.runtime.resolver.stack import Stack, resolve_stack, stack_to_dict
from support.machines import MODERN, amd, mac, machine, nvidia, processor_build

ALL = ("gguf", "torch", "diffusion", "embeddings", "onnx")
PLAIN = ("-DGGML_NATIVE=OFF", "-DGGML_OPENMP=OFF")


def stack_of(profile: dict[str, Any], **settings: Any) -> Stack:
    """Return the stack for all profiles, unless ``settings`` say otherwise."""
    return resolve_stack(profile, StackSettings(**{"profiles": ALL, **settings}))


def flag(stack: Stack, name: str) -> str | None:
    """Return the value of a CMake flag, None where it is not set."""
    assert stack.llama is not None
    found = [one.split("=", 1)[1] for one in stack.llama.cmake_arguments if one.startswith(f"-D{name}=")]
    assert len(found) <= 1
    return found[0] if found else None


def requirements(stack: Stack) -> dict[str, str]:
    """Return what follows the name of each package."""
    return {one.name: one.requirement.split("==")[1] for one in stack.packages}


# Compute capabilities: https://developer.nvidia.com/cuda-gpus. Stack A is torch 2.15 of CUDA 13.2, B 2.14 of CUDA 12.6.
NVIDIA = [
    ("Quadro M2000", "5.2", "580.95.05", "52-real", "B"),
    ("GeForce GTX 1080 Ti", "6.1", "580.95.05", "61-real", "B"),
    ("Tesla P100", "6.0", "535.309.01", "60-real", "B"),
    ("Tesla V100", "7.0", "580.95.05", "70-real", "B"),
    ("GeForce RTX 2080", "7.5", "580.65.06", "75-real", "A"),
    ("A100", "8.0", "595.71.05", "80-real", "A"),
    ("GeForce RTX 3090", "8.6", "580.65.06", "86-real", "A"),
    ("GeForce RTX 3090", "8.6", "550.54.15", "86-real", "B"),
    ("GeForce RTX 3090", "8.6", "525.60.13", "86-real", "B"),
    ("GeForce RTX 4090", "8.9", "595.71.05", "89-real", "A"),
    ("GeForce RTX 4090", "8.9", "535.309.01", "89-real", "B"),
    ("H100", "9.0", "590.48.01", "90-real", "A"),
    ("B200", "10.0", "595.71.05", "100-real", "A"),
    ("B300", "10.3", "595.71.05", "103-real", "A"),
    ("GeForce RTX 5090", "12.0", "595.71.05", "120a-real", "A"),
]
EXPECTED = {
    "A": ("2.15.0+cu132", "0.29.2+cu132", "1.31.1", "13.2"),
    "B": ("2.14.1+cu126", "0.29.2+cu126", "1.26.0", "12.6"),
}


@pytest.mark.parametrize(("name", "capability", "driver", "architecture", "expected"), NVIDIA)
def test_nvidia_cards(name: str, capability: str, driver: str, architecture: str, expected: str) -> None:
    stack = stack_of(machine(nvidia(capability, name), driver=driver))
    found = requirements(stack)
    assert (stack.backend, stack.devices, stack.left_out) == ("cuda", (name,), ())
    assert (found["torch"], found["torchvision"], found["onnxruntime-gpu"], stack.toolkit) == EXPECTED[expected]
    assert flag(stack, "CMAKE_CUDA_ARCHITECTURES") == architecture and flag(stack, "GGML_CUDA") == "ON"
    assert not stack.driver_pending and stack.driver == driver


@pytest.mark.parametrize(
    ("capabilities", "driver", "toolkit"),
    [
        (["8.6"], "580.65.06", ">=13.0,<14"),
        (["8.6"], "535.54.03", ">=12.0,<13"),
        # The last toolkit that knows cards before Turing is 12.9.
        (["6.1"], "580.95.05", ">=12.0,<13"),
        # 120a begins with 12.8, 121a and 103 with 12.9: their drivers are 570 and 575.
        (["12.0"], "570.124.06", ">=12.8,<13"),
        (["12.0", "12.1"], "575.57.08", ">=12.9,<13"),
        (["11.0"], "580.95.05", ">=13.0,<14"),
    ],
)
def test_the_toolkit_knows_the_cards_and_the_driver_its_code(
    capabilities: list[str], driver: str, toolkit: str
) -> None:
    stack = stack_of(machine(*map(nvidia, capabilities), driver=driver), profiles=("gguf",))
    assert stack.llama is not None and stack.llama.toolkit == f"CUDA toolkit {toolkit}"


def test_gb10_compiles_for_121a_on_sbsa() -> None:
    gpu = nvidia("12.1", "NVIDIA GB10", memory={"total_bytes": None, "unified": True})
    stack = stack_of(machine(gpu, driver="580.95.05", architecture="aarch64", instruction_sets=["asimd", "sve2"]))
    assert (stack.backend, stack.platform) == ("cuda", "linux_aarch64")
    assert flag(stack, "CMAKE_CUDA_ARCHITECTURES") == "121a-real"
    assert requirements(stack)["torch"] == "2.15.0+cu132" and "onnxruntime-gpu" in requirements(stack)
    assert not any("AVX" in one for one in stack.llama.cmake_arguments) if stack.llama else False


# gfx targets: https://llvm.org/docs/AMDGPUUsage.html#processors.
@pytest.mark.parametrize(
    ("card", "target", "compiled", "override"),
    [
        ("MI100", "gfx908", "gfx908", None),
        ("MI210", "gfx90a", "gfx90a", None),
        ("MI300X", "gfx942", "gfx942", None),
        ("RX 6800 XT, RDNA2", "gfx1030", "gfx1030", None),
        ("RX 6700 XT, RDNA2", "gfx1031", "gfx1030", "10.3.0"),
        ("RX 6600, RDNA2", "gfx1032", "gfx1030", "10.3.0"),
        ("RX 7900 XTX, RDNA3", "gfx1100", "gfx1100", None),
        ("RX 7800 XT, RDNA3", "gfx1101", "gfx1101", None),
        ("RX 7600, RDNA3", "gfx1102", "gfx1102", None),
        ("RX 9060 XT, RDNA4", "gfx1200", "gfx1200", None),
        ("RX 9070 XT, RDNA4", "gfx1201", "gfx1201", None),
    ],
)
def test_amd_cards(card: str, target: str, compiled: str, override: str | None) -> None:
    stack = stack_of(machine(amd(target, name=card)))
    assert (stack.backend, stack.devices) == ("rocm", (card,))
    assert (flag(stack, "GGML_HIP"), flag(stack, "GPU_TARGETS")) == ("ON", compiled)
    assert requirements(stack)["torch"] == "2.15.0+rocm7.2" and requirements(stack)["onnxruntime"] == "1.32.0"
    assert stack.environment == ({"HSA_OVERRIDE_GFX_VERSION": override} if override else {})


@pytest.mark.parametrize("target", ["gfx1010", "gfx1034", "gfx900", None])
def test_other_cards_of_amd_use_vulkan_and_torch_is_told_to_be_on_the_processor(target: str | None) -> None:
    stack = stack_of(machine(amd(target)))
    assert stack.backend == "vulkan" and flag(stack, "GGML_VULKAN") == "ON"
    assert stack.llama is not None and stack.llama.packages == ("libvulkan-dev", "glslc", "spirv-headers")
    assert requirements(stack)["torch"] == "2.15.0+cpu"
    assert any("use the processor" in one for one in stack.warnings)


def test_graphics_in_a_processor_is_left_idle_unasked() -> None:
    ryzen = amd("gfx1036", unified=True)
    intel = {"vendor": "intel", "name": "UHD 770", "driver": "i915", "memory": {"unified": True}}
    for gpu in (ryzen, intel):
        stack = stack_of(machine(gpu))
        assert stack.backend == "cpu" and len(stack.left_out) == 1 and stack.devices == ()
        assert stack_of(machine(gpu), backend="vulkan").backend == "vulkan"
    # Strix Halo is one that ROCm has code for.
    assert stack_of(machine(amd("gfx1151", unified=True))).backend == "rocm"
    arc = {"vendor": "intel", "name": "Arc A770", "driver": "xe", "memory": {"unified": False, "total_bytes": 1 << 34}}
    assert stack_of(machine(arc)).backend == "vulkan"


@pytest.mark.parametrize("name", ["Apple M1", "Apple M2 Pro", "Apple M3 Max", "Apple M4", "Apple M5"])
def test_apple(name: str) -> None:
    stack = stack_of(mac(name))
    assert (stack.backend, stack.platform, stack.devices) == ("metal", "darwin_arm64", (name,))
    assert stack.llama is not None and stack.llama.cmake_arguments == (*PLAIN, "-DGGML_METAL=ON")
    found = requirements(stack)
    # Plain wheels: there is no local version on macOS.
    assert (found["torch"], found["onnxruntime"], found["bitsandbytes"]) == ("2.15.0", "1.32.0", "0.50.2")


def test_a_mac_is_refused_what_it_has_no_wheels_for() -> None:
    with pytest.raises(StackError, match=r"Rosetta.*arm64"):
        stack_of(mac(architecture="x86_64"), profiles=("gguf",))
    with pytest.raises(StackError, match="macOS 14"):
        stack_of(mac(distribution="macos-13.6"))
    intel = machine(amd("gfx1030"), distribution="macos-14.2")
    with pytest.raises(StackError, match="Intel's Macs"):
        stack_of(intel)
    # ggml builds Metal on every Mac unless told not to.
    stack = stack_of(intel, profiles=("gguf",))
    assert stack.backend == "cpu" and flag(stack, "GGML_METAL") == "OFF"
    assert requirements(stack_of(mac(), backend="cpu"))["torch"] == "2.15.0"


# Instruction sets by processor: https://en.wikipedia.org/wiki/Advanced_Vector_Extensions#CPUs_with_AVX.
@pytest.mark.parametrize(
    ("processor", "instruction_sets", "off"),
    [
        ("Ryzen 9, Core i9", [*MODERN, "avx512f"], set()),
        ("Xeon E5 v2 (Ivy Bridge)", ["sse4_2", "avx", "f16c"], {"AVX2", "FMA", "BMI2"}),
        ("Xeon E5 (Sandy Bridge)", ["sse4_2", "avx"], {"AVX2", "FMA", "BMI2", "F16C"}),
        ("Xeon X5650 (Westmere)", ["sse4_2"], {"AVX", "AVX2", "FMA", "BMI2", "F16C"}),
        ("Core 2", ["ssse3"], {"AVX", "AVX2", "FMA", "BMI2", "F16C", "SSE42"}),
    ],
)
def test_processors(processor: str, instruction_sets: list[str], off: set[str]) -> None:
    profile = machine(instruction_sets=instruction_sets)
    stack = stack_of(profile)
    assert stack.llama is not None
    assert set(stack.llama.cmake_arguments) == {*PLAIN, *(f"-DGGML_{name}=OFF" for name in off)}
    assert any("AVX2" in one for one in stack.warnings) is ("avx2" not in instruction_sets)
    # What the module names today and what the stack names is one build.
    now = processor_build("0.3.36", "Linux", "x86_64", "glibc2.36", instruction_sets)
    assert stack.build("0.3.36", "glibc2.36") == now
    # The same switches where a GPU computes: layers that do not fit still run on the processor.
    with_gpu = stack_of(machine(nvidia("8.6"), instruction_sets=instruction_sets))
    assert with_gpu.llama is not None and set(stack.llama.cmake_arguments) <= set(with_gpu.llama.cmake_arguments)


def test_a_processor_that_is_not_known_is_taken_for_the_oldest() -> None:
    profile = machine(instruction_sets=None)
    assert flag(stack_of(profile), "GGML_SSE42") == "OFF"
    assert any("instruction sets are not known" in one for one in stack_of(profile).warnings)
    with pytest.raises(StackError, match="architecture is not known"):
        stack_of(machine(architecture=None))
    with pytest.raises(StackError, match="no wheels for riscv64; wish the profile gguf alone"):
        stack_of(machine(architecture="riscv64"))
    gguf = stack_of(machine(architecture="riscv64", instruction_sets=[]), profiles=("gguf",))
    now = processor_build("0.3.36", "Linux", "riscv64", "glibc2.41", [])
    assert gguf.build("0.3.36", "glibc2.41") == now


class TestDriver:
    def test_too_old_is_refused_with_the_branch_to_install(self) -> None:
        for capability, driver, least in (("7.5", "515.105.01", 525), ("12.0", "550.54.15", 570)):
            with pytest.raises(StackError, match=rf"{driver} is too old .* {least} or newer; install branch 580"):
                stack_of(machine(nvidia(capability), driver=driver))

    def test_what_will_be_installed_counts_where_there_is_none(self) -> None:
        card = nvidia("8.6", driver="nouveau", driver_version="6.8.0")
        ubuntu = stack_of(machine(card, driver=None))
        debian = stack_of(machine(card, driver=None, distribution="debian-12", python="3.11.2"))
        assert ubuntu.driver_pending and debian.driver_pending
        assert (ubuntu.driver, ubuntu.toolkit) == ("580", "13.2") and (debian.driver, debian.toolkit) == ("535", "12.6")
        assert any("no driver yet" in one for one in debian.warnings)
        named = stack_of(machine(card, driver=None, distribution="debian-12", python="3.11.2"), driver_branch=580)
        assert named.toolkit == "13.2"

    def test_a_card_is_known_by_its_device_id_before_it_has_a_driver(self) -> None:
        stack = stack_of(machine(nvidia(None, device_id="2684", driver=None), driver=None))
        assert flag(stack, "CMAKE_CUDA_ARCHITECTURES") == "89-real"
        with pytest.raises(StackError, match="compute capability"):
            stack_of(machine(nvidia(None, device_id="3fff", driver=None), driver=None))

    def test_a_branch_that_does_not_know_the_card_is_refused_before_it_is_installed(self) -> None:
        with pytest.raises(StackError, match="branch 535, which this host is to get"):
            stack_of(machine(nvidia("12.0", driver=None), driver=None, distribution="debian-12", python="3.11.2"))

    def test_installed_and_not_loaded_counts_as_there(self) -> None:
        profile = machine(nvidia("8.6", driver=None))
        profile["accelerator_driver"] = {"vendor": "nvidia", "loaded_version": None, "installed_version": "580.95.05"}
        assert not stack_of(profile).driver_pending and stack_of(profile).toolkit == "13.2"

    def test_planned_branches_are_those_of_the_role(self, checkout: Path) -> None:
        platforms = checkout / "roles/accelerator/vars/platforms"
        for path in platforms.glob("*.yml"):
            branch = yaml.safe_load(path.read_text(encoding="utf-8"))["__accelerator_platform_branch"]
            assert PLANNED_BRANCHES.get(path.stem, DEFAULT_BRANCH) == int(branch or 580), path.stem

    def test_blackwell_on_cuda_12_has_a_build_and_no_torch(self) -> None:
        profile = machine(nvidia("12.0"), driver="570.124.06")
        assert stack_of(profile, profiles=("gguf",)).backend == "cuda"
        with pytest.raises(StackError, match=r"no code for all of these cards.*580"):
            stack_of(profile, profiles=("torch",))
        # Jetson Thor: a newer driver would not help.
        with pytest.raises(StackError, match=r"no code for all of these cards.*; wish the profile gguf alone"):
            stack_of(machine(nvidia("11.0"), architecture="aarch64"), profiles=("torch",))


class TestMixed:
    def test_cards_that_one_driver_serves_are_all_served(self) -> None:
        stack = stack_of(machine(nvidia("6.1"), nvidia("8.9"), driver="580.95.05"))
        assert flag(stack, "CMAKE_CUDA_ARCHITECTURES") == "61-real;89-real" and stack.toolkit == "12.6"
        # It travels in an environment variable that is split as a shell would.
        assert stack.llama is not None
        assert shlex.split(" ".join(stack.llama.cmake_arguments)) == list(stack.llama.cmake_arguments)

    @pytest.mark.parametrize(
        ("flavour", "served", "toolkit"),
        [("open", "12.0", "13.2"), ("proprietary", "6.1", "12.6"), (None, "12.0", "13.2")],
    )
    def test_pascal_and_blackwell(self, flavour: str | None, served: str, toolkit: str) -> None:
        profile = machine(nvidia("6.1"), nvidia("12.0"), driver="580.95.05", flavour=flavour)
        stack = stack_of(profile)
        assert (stack.devices, stack.toolkit) == ((f"card {served}",), toolkit)
        assert len(stack.left_out) == 1 and "no one driver serves both" in stack.left_out[0]

    def test_one_vendor_in_one_environment(self) -> None:
        radeon, geforce = amd("gfx1100", 24), nvidia("8.6", gib=24)
        assert stack_of(machine(geforce, radeon)).backend == "cuda"
        assert stack_of(machine(radeon, geforce)).backend == "cuda"
        assert stack_of(machine(nvidia("7.5", gib=2), radeon)).backend == "rocm"
        # Graphics in the processor shares all of main memory, and is no match.
        assert stack_of(machine(amd("gfx1151", unified=True), nvidia("7.5", gib=8))).backend == "cuda"
        for backend in ("cuda", "rocm"):
            stack = stack_of(machine(geforce, radeon), backend=backend)
            assert stack.backend == backend and len(stack.left_out) == 1 and len(stack.devices) == 1

    def test_the_override_does_not_break_another_card(self) -> None:
        both = stack_of(machine(amd("gfx1031"), amd("gfx1100")))
        assert (both.devices, both.environment) == (("card gfx1100",), {})
        same = stack_of(machine(amd("gfx1031"), amd("gfx1030")))
        assert len(same.devices) == 2 and flag(same, "GPU_TARGETS") == "gfx1030" and same.environment

    def test_a_card_of_a_virtual_machine_is_not_ours(self) -> None:
        stack = stack_of(machine(nvidia("8.6", driver="vfio-pci"), driver=None))
        assert stack.backend == "cpu" and "virtual machine" in stack.left_out[0]

    @pytest.mark.parametrize("card", [nvidia("3.5"), nvidia(None, device_id="1004"), nvidia(None, device_id="0de1")])
    def test_kepler_and_older_leave_the_processor(self, card: dict[str, Any]) -> None:
        stack = stack_of(machine(card, driver="470.256.02"))
        assert stack.backend == "cpu" and "before Maxwell" in stack.left_out[0]
        with pytest.raises(StackError, match=r"cuda: .*before Maxwell"):
            stack_of(machine(card), backend="cuda")


def test_mig_is_told() -> None:
    cut = nvidia("9.0", mig={"enabled": True, "slices": [{"profile": "3g.40gb"}]})
    assert any("one process sees one slice" in one for one in stack_of(machine(cut)).warnings)
    empty = nvidia("9.0", mig={"enabled": True, "slices": []})
    assert any("no slice" in one for one in stack_of(machine(empty)).warnings)


class TestPython:
    @pytest.mark.parametrize(
        ("distribution", "host", "version", "packages"),
        [
            ("ubuntu-24.04", "3.12.3", "3.12.3", ()),
            ("debian-13", "3.13.5", "3.13.5", ()),
            ("ubuntu-22.04", "3.10.12", "3.11", ("python3.11", "python3.11-venv")),
            ("rhel-9.6", "3.9.21", "3.12", ("python3.12",)),
            ("rocky-9.6", "3.9.21", "3.12", ("python3.12",)),
            # torchvision refuses this one.
            ("fedora-44", "3.14.1", "3.14", ("python3.14",)),
            ("fedora-44", "3.15.0", "3.14", ("python3.14",)),
        ],
    )
    def test_the_hosts_or_the_newest_that_the_platform_offers(
        self, distribution: str, host: str, version: str, packages: tuple[str, ...]
    ) -> None:
        stack = stack_of(machine(distribution=distribution, python=host))
        assert (stack.python.version, stack.python.packages) == (version, packages)
        assert stack.python.origin == ("platform" if packages else "host")

    def test_none_is_refused_with_the_cure(self) -> None:
        for distribution in ("debian-11", "ubuntu-20.04", "slackware-15"):
            with pytest.raises(
                StackError, match=r"does not take.*install Python 3\.10 to 3\.14.*inference_runtime_python"
            ):
                stack_of(machine(distribution=distribution, python="3.9.2"))

    def test_gguf_takes_what_is_there_from_3_9_on(self) -> None:
        for host in ("3.9.2", "3.10.12", "3.15.0"):
            assert stack_of(machine(distribution="debian-11", python=host), profiles=("gguf",)).python.version == host
        old = stack_of(machine(distribution="ubuntu-20.04", python="3.8.10"), profiles=("gguf",))
        assert (old.python.version, old.python.origin) == ("3.9", "platform")

    def test_3_10_has_packages_of_its_own(self) -> None:
        stack = stack_of(machine(nvidia("8.6"), python="3.10.12"), python="3.10")
        found = requirements(stack)
        assert (found["torch"], found["transformers"], found["diffusers"]) == ("2.14.1+cu126", "5.20.2", "0.41.0")
        # onnxruntime-gpu for this Python is for CUDA 12, so everything is, though the driver has 13.
        assert found["onnxruntime-gpu"] == "1.23.2" and "CUDA 12 because of the Python" in "".join(stack.warnings)
        assert stack.llama is not None and stack.llama.toolkit.endswith("<13")
        with pytest.raises(StackError, match=r"3\.10.*name a Python from 3\.11 to 3\.14"):
            stack_of(machine(nvidia("12.0"), python="3.10.12"), python="3.10")

    @pytest.mark.parametrize("named", ["3.9", "3.15", "2.7", "nonsense", "3.14.1"])
    def test_one_that_was_named_and_takes_nothing(self, named: str) -> None:
        with pytest.raises(StackError, match=f"Python {named} takes none"):
            stack_of(machine(), python=named)


class TestFlags:
    @pytest.mark.parametrize(
        ("legacy", "right"),
        [
            ("LLAMA_CUBLAS", "GGML_CUDA"),
            ("GGML_CUBLAS", "GGML_CUDA"),
            ("LLAMA_METAL", "GGML_METAL"),
            ("LLAMA_HIPBLAS", "GGML_HIP"),
            ("GGML_HIPBLAS", "GGML_HIP"),
        ],
    )
    def test_legacy_names_are_refused_with_the_right_one(self, legacy: str, right: str) -> None:
        for spelling in (f"-D{legacy}=on", f"-D{legacy.lower()}=1", f"-D{legacy}:BOOL=ON"):
            with pytest.raises(StackError, match=f"{legacy} is a legacy name.*{right} is the right name"):
                stack_of(machine(), extra_cmake_arguments=(spelling,))

    @pytest.mark.parametrize(
        "argument",
        [
            *("-DGGML_CUDA=ON", "-DGGML_NATIVE=ON", "-DCMAKE_CUDA_ARCHITECTURES=native", "-DGGML_AVX2=ON"),
            *("-DX=a b", "-DX=$(id)", "--preset=x", "", "GGML_CUDA=1", "-DX=\n"),
        ],
    )
    def test_what_the_hardware_decides_and_what_is_no_flag(self, argument: str) -> None:
        with pytest.raises(StackError):
            stack_of(machine(), extra_cmake_arguments=(argument,))

    def test_others_are_added_and_make_another_build(self) -> None:
        wished = ("-DGGML_CUDA_FA_ALL_QUANTS=ON", "-DGGML_LTO=ON")
        stack = stack_of(machine(nvidia("8.6")), extra_cmake_arguments=wished)
        assert stack.llama is not None and stack.llama.cmake_arguments[-2:] == wished
        assert (
            stack.build("0.3.36", "glibc2.39").key != stack_of(machine(nvidia("8.6"))).build("0.3.36", "glibc2.39").key
        )


class TestUpstreamWheels:
    @pytest.mark.parametrize(
        ("profile", "tag"),
        [
            (machine(), "cpu"),
            # The wheels carry PTX, which a driver older than their toolkit cannot translate.
            (machine(nvidia("8.6"), driver="595.71.05"), "cu132"),
            (machine(nvidia("8.6"), driver="580.95.05"), "cu130"),
            (machine(nvidia("8.6"), driver="560.35.05"), "cu125"),
            (machine(nvidia("8.6"), driver="535.54.03"), "cu122"),
            (machine(amd("gfx1100")), "rocm72"),
            (mac(), "metal"),
        ],
    )
    def test_where_one_serves(self, profile: dict[str, Any], tag: str) -> None:
        wheel = stack_of(profile, upstream_wheels=True).llama
        assert wheel is not None and (wheel.source, wheel.tag) == ("wheel", tag)
        # Unasked it is compiled: no hash pins those wheels.
        built = stack_of(profile).llama
        assert built is not None and (built.source, built.tag) == ("source", "")

    @pytest.mark.parametrize(
        ("profile", "reason"),
        [
            (machine(nvidia("12.0")), "no ready wheel has code"),
            (machine(nvidia("6.1"), driver="580.95.05"), "no ready wheel has code"),
            (machine(nvidia("8.6"), driver="525.60.13"), "no ready wheel has code"),
            (machine(instruction_sets=["avx"]), "AVX2"),
            (machine(architecture="aarch64"), "aarch64"),
        ],
    )
    def test_where_none_does(self, profile: dict[str, Any], reason: str) -> None:
        built = stack_of(profile, upstream_wheels=True).llama
        assert built is not None and built.source == "source" and reason in built.reason


def test_profiles_bring_what_they_need_and_no_more() -> None:
    profile = machine(nvidia("8.6"))
    gguf = stack_of(profile, profiles=("gguf",))
    assert gguf.packages == () and gguf.llama is not None
    onnx = stack_of(profile, profiles=("onnx",))
    assert [one.requirement for one in onnx.packages] == ["onnxruntime-gpu[cuda,cudnn]==1.31.1"] and onnx.llama is None
    with pytest.raises(StackError, match="add the profile gguf"):
        onnx.build("0.3.36", "glibc2.39")
    torch = {"torch", "torchvision", "torchaudio"}
    names = {
        name: set(requirements(stack_of(profile, profiles=(name,)))) for name in ("torch", "diffusion", "embeddings")
    }
    assert names["torch"] == torch | {"transformers", "accelerate", "bitsandbytes"}
    assert names["diffusion"] == torch | {"diffusers", "transformers", "accelerate"}
    assert names["embeddings"] == torch | {"sentence-transformers", "transformers"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"profiles": ()}, "no profile"),
        ({"profiles": ("gguf", "tensorrt")}, "'tensorrt' is no profile"),
        ({"backend": "opencl"}, "'opencl' is no backend"),
        ({"backend": "cuda"}, "no GPU of this host can be used with cuda"),
        ({"backend": "rocm"}, "no GPU of this host can be used with rocm"),
        ({"backend": "vulkan"}, "no GPU of this host can be used with Vulkan"),
        ({"backend": "metal"}, "on macOS only"),
        ({"libc": "glibc2.17"}, "need glibc 2.28"),
        ({"libc": "musl1.2"}, "musl"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(StackError, match=re.escape(told)):
        stack_of(machine(), **settings)


def test_the_user_may_choose_the_processor() -> None:
    stack = stack_of(machine(nvidia("8.6")), backend="cpu")
    assert stack.backend == "cpu" and stack.left_out == ("card 8.6: the user chose the processor",)
    assert requirements(stack)["torch"] == "2.15.0+cpu" and flag(stack, "GGML_CUDA") is None


def test_onnxruntime_on_aarch64_needs_its_glibc() -> None:
    profile = machine(nvidia("9.0"), architecture="aarch64", driver="595.71.05")
    assert "onnxruntime-gpu" in requirements(stack_of(profile, libc="glibc2.39"))
    for old in (
        stack_of(profile, libc="glibc2.31"),
        stack_of(machine(nvidia("9.0"), architecture="aarch64", driver="550.1")),
    ):
        assert requirements(old)["onnxruntime"] == "1.32.0" and any(
            "ONNX models use the processor" in w for w in old.warnings
        )


def test_as_plain_data() -> None:
    document = stack_to_dict(stack_of(machine(nvidia("8.6"))))
    assert document["packages"][0]["requirement"] == "torch==2.15.0+cu132"
    assert document["python"]["origin"] == "host" and document["schema_version"] == 1


def test_the_document_has_the_versions_that_are_chosen(checkout: Path) -> None:
    text = (checkout / "docs" / "runtime.md").read_text(encoding="utf-8")
    for generation in GENERATIONS:
        versions = set(generation.libraries.values())
        for torch in generation.torch.values():
            versions |= {torch.torch.version, torch.torchvision.version, torch.torchaudio.version, torch.onnxruntime}
            assert f"`{torch.torch.tag}`" in text or not torch.torch.tag
        assert [version for version in versions if version not in text] == []
