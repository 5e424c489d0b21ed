"""From a host's hardware to the flags that llama-cpp-python is compiled with."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelfleet.core.runtime.resolver import Build
from support.machines import processor_build

MODERN = ["sse4_2", "avx", "avx2", "fma", "f16c", "bmi2", "avx512f"]
ALWAYS = ("-DGGML_NATIVE=OFF", "-DGGML_OPENMP=OFF")


def resolve(
    machine: str = "x86_64", instruction_sets: list[str] = MODERN, system: str = "Linux", libc: str = "glibc2.36"
) -> Build:
    return processor_build("0.3.36", system, machine, libc, instruction_sets)


def test_a_modern_processor_switches_nothing_off() -> None:
    build = resolve()
    assert build.cmake_arguments == ALWAYS
    assert (build.backend, build.platform, build.libc) == ("cpu", "linux_x86_64", "glibc2.36")


def test_the_key_of_a_processor_build_stays_as_it_is() -> None:
    """Wheels are kept under this name: another one would have every host compile again, seven minutes each."""
    assert resolve().key == "llama_cpp_python-0.3.36-cpu-linux_x86_64-glibc2.36-8cd95cfc"
    # Xeon E5 v2: AVX and F16C, neither AVX2 nor FMA nor BMI2.
    assert resolve(instruction_sets=["sse4_2", "avx", "f16c"]).key.endswith("-776c05da")


def test_an_old_processor_gets_no_instruction_that_it_lacks() -> None:
    """Ggml bakes all of these in where GGML_NATIVE is off, and its code then dies of SIGILL."""
    off = {f"-DGGML_{name}=OFF" for name in ("AVX", "AVX2", "FMA", "F16C", "BMI2")}
    assert set(resolve(instruction_sets=[]).cmake_arguments) == {*ALWAYS, *off, "-DGGML_SSE42=OFF"}
    assert set(resolve(instruction_sets=["sse4_2"]).cmake_arguments) == {*ALWAYS, *off}
    assert set(resolve(instruction_sets=["sse4_2", "avx"]).cmake_arguments) == {*ALWAYS, *off - {"-DGGML_AVX=OFF"}}


@pytest.mark.parametrize("missing", ["avx", "avx2", "fma", "f16c", "bmi2"])
def test_each_is_switched_off_alone(missing: str) -> None:
    build = resolve(instruction_sets=[name for name in MODERN if name != missing])
    assert build.cmake_arguments == (*ALWAYS, f"-DGGML_{missing.upper()}=OFF")
    assert build.key != resolve().key


@pytest.mark.parametrize("machine", ["aarch64", "arm64", "ppc64le", "riscv64"])
def test_other_machines_have_no_switches_of_x86(machine: str) -> None:
    build = resolve(machine, [])
    assert build.cmake_arguments == ALWAYS and build.platform == f"linux_{machine}"


def test_windows_and_macos_name_x86_their_own_way() -> None:
    assert "-DGGML_AVX2=OFF" in resolve("AMD64", []).cmake_arguments
    assert resolve("arm64", [], "Darwin", "25.1.0").platform == "darwin_arm64"


def test_equal_keys_mean_interchangeable_wheels() -> None:
    assert resolve().key == resolve(instruction_sets=[*reversed(MODERN), "amx"]).key
    others = [
        resolve("aarch64"),
        resolve(libc="glibc2.41"),
        resolve(instruction_sets=[]),
        resolve(system="Darwin"),
        processor_build("0.3.37", "Linux", "x86_64", "glibc2.36", MODERN),
    ]
    assert len({resolve().key, *(build.key for build in others)}) == len(others) + 1


@given(st.lists(st.sampled_from([*MODERN, "sse2", ""])), st.sampled_from(["x86_64", "aarch64", "AMD64"]))
def test_a_key_is_a_plain_name(instruction_sets: list[str], machine: str) -> None:
    key = resolve(machine, instruction_sets).key
    assert re.fullmatch(r"llama_cpp_python-[A-Za-z0-9][A-Za-z0-9_.+-]{0,150}", key)
