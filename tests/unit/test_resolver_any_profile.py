"""Whatever a profile says, the resolver gives a stack whose parts fit together, or its own error.

What fits together is stated here anew, from the packages' metadata and the vendors' tables, not from the resolver's.
"""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelfleet.core.errors import StackError
from modelfleet.core.runtime.resolver.flags import checked_arguments
from modelfleet.core.runtime.resolver.settings import StackSettings
from modelfleet.core.runtime.resolver.stack import Stack, resolve_stack, stack_to_dict
from support.machines import MODERN, machine, nvidia

# Python's first and last version with wheels, by package version.
PYTHONS = {
    ("torch", "2.15.0"): ((3, 11), (3, 15)),
    ("torch", "2.14.1"): ((3, 10), (3, 14)),
    ("torchvision", "0.29.2"): ((3, 10), (3, 99)),
    ("torchaudio", "2.11.0"): ((3, 10), (3, 14)),
    ("transformers", "5.23.0"): ((3, 11), (3, 99)),
    ("transformers", "5.20.2"): ((3, 10), (3, 99)),
    ("accelerate", "1.15.0"): ((3, 10), (3, 99)),
    ("bitsandbytes", "0.50.2"): ((3, 10), (3, 99)),
    ("diffusers", "0.42.1"): ((3, 11), (3, 99)),
    ("diffusers", "0.41.0"): ((3, 10), (3, 99)),
    ("sentence-transformers", "6.2.0"): ((3, 10), (3, 99)),
    ("onnxruntime", "1.32.0"): ((3, 11), (3, 14)),
    ("onnxruntime", "1.23.2"): ((3, 10), (3, 13)),
    ("onnxruntime-gpu", "1.31.1"): ((3, 11), (3, 14)),
    ("onnxruntime-gpu", "1.26.0"): ((3, 11), (3, 14)),
    ("onnxruntime-gpu", "1.23.2"): ((3, 10), (3, 13)),
}
# The CUDA of each build.
CUDA = {
    ("torch", "2.15.0", "cu132"): 13,
    ("torch", "2.14.1", "cu126"): 12,
    ("torchvision", "0.29.2", "cu132"): 13,
    ("torchvision", "0.29.2", "cu126"): 12,
    ("torchaudio", "2.11.0", "cu130"): 13,
    ("torchaudio", "2.11.0", "cu126"): 12,
    ("onnxruntime-gpu", "1.31.1", ""): 13,
    ("onnxruntime-gpu", "1.26.0", ""): 12,
    ("onnxruntime-gpu", "1.23.2", ""): 12,
}
DRIVER_FLOOR = {12: 525, 13: 580}
# Cubins in PyTorch's wheels, and what a driver's branch must be to know a card.
CODE = {12: "5.0 6.0 7.0 7.5 8.0 8.6 9.0", 13: "7.5 8.0 8.6 9.0 10.0 12.0"}
CAPABILITIES = "3.5 5.0 5.2 6.0 6.1 7.0 7.2 7.5 8.0 8.6 8.7 8.9 9.0 10.0 10.3 11.0 12.0 12.1 13.0"
TARGETS = "gfx803 gfx900 gfx906 gfx908 gfx90a gfx942 gfx1010 gfx1030 gfx1031 gfx1032 gfx1036 gfx1100 gfx1151 gfx1201"

DRIVERS = ("418.43", "470.256.02", "525.60.13", "550.1", "570.1", "575.1", "580.9", "610.1")
# The least branch that knows a card: that of the first toolkit that does (CUDA Toolkit Release Notes).
FIRST_BRANCH = {"10.0": 570, "12.0": 570, "10.3": 575, "12.1": 575, "11.0": 580}

NOISE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.text(max_size=3), max_size=2)
)


def or_noise(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return mostly ``usual``, sometimes what no probe says."""
    return st.one_of(usual, usual, usual, NOISE)


def record(required: bool, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return dictionaries with the fields; where not ``required``, some of them."""
    return st.fixed_dictionaries(fields) if required else st.fixed_dictionaries({}, optional=fields)


def profiles(wild: bool) -> st.SearchStrategy[dict[str, Any]]:
    """Return machines; ``wild`` ones lack fields, and have what is none."""
    some = or_noise if wild else (lambda usual: usual)
    memory = record(not wild, total_bytes=some(st.sampled_from([None, 2**31, 2**34])), unified=some(st.booleans()))
    cards = [
        record(
            not wild,
            vendor=st.just("nvidia"),
            name=some(st.sampled_from(["card a", "card b"])),
            driver=some(st.sampled_from(["nvidia", "nouveau", "vfio-pci", None])),
            compute_capability=some(st.sampled_from([*CAPABILITIES.split(), None])),
            pci=some(st.sampled_from([None, {"vendor_id": "10de", "device_id": "2684"}])),
            mig=some(st.sampled_from([None, {"enabled": True, "slices": []}])),
            memory=some(memory),
        ),
        record(
            not wild,
            vendor=st.just("amd"),
            name=some(st.sampled_from(["card c", "card d"])),
            driver=some(st.sampled_from(["amdgpu", "radeon", "vfio-pci", None])),
            gfx_target=some(st.sampled_from([*TARGETS.split(), None])),
            memory=some(memory),
        ),
        record(not wild, vendor=st.sampled_from(["intel", "apple", "other"]), name=st.just("card e"), memory=memory),
    ]
    versions = st.sampled_from([None, *DRIVERS])
    return record(
        not wild,
        accelerators=some(st.lists(some(st.one_of(*cards)), max_size=3)),
        accelerator_driver=some(
            record(
                not wild,
                vendor=some(st.just("nvidia")),
                loaded_version=some(versions),
                flavour=some(st.sampled_from(["open", "proprietary", None])),
            )
        ),
        cpu=some(
            record(
                not wild,
                architecture=some(st.sampled_from(["x86_64", "x86_64", "aarch64", "arm64"])),
                instruction_sets=some(st.lists(st.sampled_from(MODERN), unique=True)),
            )
        ),
        os=some(
            st.sampled_from(
                [
                    {"family": "debian", "distribution": "ubuntu", "version": "22.04"},
                    {"family": "debian", "distribution": "debian", "version": "12"},
                    {"family": "redhat", "distribution": "rocky", "version": "9.6"},
                    {"family": "darwin", "distribution": "macos", "version": "15.1"},
                    {"family": None, "distribution": "alpine", "version": "3.22"},
                ]
            )
        ),
        python=some(record(not wild, version=some(st.sampled_from([f"3.{minor}.2" for minor in range(8, 17)])))),
    )


WISHES = st.builds(
    StackSettings,
    profiles=st.sampled_from([("gguf",), ("torch", "gguf"), ("onnx",), ("diffusion", "embeddings", "onnx", "gguf")]),
    backend=st.sampled_from(["", "", "", "cuda", "rocm", "metal", "vulkan", "cpu"]),
    python=st.sampled_from(["", "", "3.10", "3.12", "3.15"]),
    driver_branch=st.sampled_from([0, 0, 535, 580]),
    libc=st.sampled_from(["", "", "", "glibc2.17", "glibc2.28", "glibc2.39", "musl1.2"]),
    upstream_wheels=st.booleans(),
)


def numbers(text: str) -> tuple[int, int]:
    """Return the first two numbers of a version."""
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def capabilities_of(stack: Stack, profile: dict[str, Any]) -> list[tuple[int, int]]:
    """Return the compute capabilities that a stack's flags are for."""
    assert stack.llama is not None
    listed = "".join(one for one in stack.llama.cmake_arguments if "CUDA_ARCHITECTURES" in one).partition("=")[2]
    found = [re.fullmatch(r"(\d+)(\d)a?-real", one) for one in listed.split(";")]
    return [(int(one.group(1)), int(one.group(2))) for one in found if one is not None]


def assert_fits(stack: Stack, profile: dict[str, Any]) -> None:
    """Assert the constraints between a stack's parts."""
    versions = {one.name: one.version for one in stack.packages}
    assert len(versions) == len(stack.packages)
    for one in stack.packages:
        first, last = PYTHONS[(one.name, one.version)]
        assert first <= numbers(str(stack.python.version)) <= last
    if "transformers" in versions or "diffusers" in versions or "sentence-transformers" in versions:
        assert numbers(versions["torch"]) >= (2, 6)
    assert ("torch" in versions) == ("torchvision" in versions) == ("torchaudio" in versions)
    assert not {"onnxruntime", "onnxruntime-gpu"} <= set(versions)
    majors = {
        CUDA[(one.name, one.version, one.tag)] for one in stack.packages if (one.name, one.version, one.tag) in CUDA
    }
    tags = {re.sub(r"[\d.]+", "", one.tag) for one in stack.packages if one.name.startswith("torch")}
    on_mac = stack.platform.startswith("darwin")
    assert tags <= {{"cuda": "cu", "rocm": "rocm"}.get(stack.backend, "" if on_mac else "cpu")}
    if stack.backend != "cuda":
        assert not majors and "onnxruntime-gpu" not in versions
    if stack.llama is not None:
        flags = {one.partition("=")[0][2:]: one.partition("=")[2] for one in stack.llama.cmake_arguments}
        assert len(flags) == len(stack.llama.cmake_arguments)
        wanted = {"cuda": "GGML_CUDA", "rocm": "GGML_HIP", "metal": "GGML_METAL", "vulkan": "GGML_VULKAN"}
        if stack.llama.source == "source":
            switched_on = {name for name, value in flags.items() if value == "ON"}
            assert switched_on == ({wanted[stack.backend]} if stack.backend in wanted else set())
            assert flags["GGML_NATIVE"] == "OFF"
        toolkit = re.search(r"CUDA toolkit >=(\d+)\.(\d+),<(\d+)", stack.llama.toolkit)
        if toolkit:
            majors.add(int(toolkit.group(1)))
            assert int(toolkit.group(3)) == int(toolkit.group(1)) + 1
            compiled = capabilities_of(stack, profile)
            assert compiled
            least, is_13 = (int(toolkit.group(1)), int(toolkit.group(2))), toolkit.group(1) == "13"
            for capability in compiled:
                assert not (is_13 and capability < (7, 5)) and capability >= (5, 0)
                assert not (capability == (12, 1) and least < (12, 9)) and not (
                    capability == (12, 0) and least < (12, 8)
                )
                if "torch" in versions:
                    code = map(numbers, CODE[int(toolkit.group(1))].split())
                    assert any(major == capability[0] and minor <= capability[1] for major, minor in code)
            # No one driver serves cards before Turing and Blackwell.
            assert not (min(compiled) < (7, 5) and max(compiled) >= (10, 0))
    assert len(majors) <= 1
    if stack.backend == "cuda":
        assert stack.devices and stack.driver
        branch = numbers(stack.driver + ".0")[0]
        assert all(branch >= DRIVER_FLOOR[major] for major in majors)


# What is never served: cards older than Maxwell, newer than this release, and what PyTorch has no code for.
@pytest.mark.parametrize(
    ("profiles", "python", "never"),
    [
        (("gguf",), "3.12", "3.5 13.0"),
        (("gguf", "torch", "onnx"), "3.12", "3.5 13.0 11.0"),
        (("gguf", "torch", "onnx"), "3.10", "3.5 13.0 11.0 10.0 10.3 12.0 12.1"),
    ],
)
@pytest.mark.parametrize("flavour", ["open", "proprietary", None])
def test_all_pairs_of_cards_under_all_drivers(
    flavour: str | None, profiles: tuple[str, ...], python: str, never: str
) -> None:
    wishes = StackSettings(profiles=profiles, python=python)
    served: set[str] = set()
    for pair in itertools.combinations_with_replacement(CAPABILITIES.split(), 2):
        for driver in DRIVERS:
            profile = machine(*map(nvidia, pair), driver=driver, flavour=flavour)
            try:
                stack = resolve_stack(profile, wishes)
            except StackError as error:
                assert error.cure
                continue
            assert_fits(stack, profile)
            if stack.backend == "cuda":
                told = {name.partition(" ")[2] for name in stack.devices}
                assert all(numbers(driver)[0] >= FIRST_BRANCH.get(capability, 525) for capability in told)
                served |= told
    assert served == set(CAPABILITIES.split()) - set(never.split())


@settings(max_examples=300, deadline=None)
@given(profiles(wild=False), WISHES)
def test_the_parts_of_a_stack_fit_together(profile: dict[str, Any], wishes: StackSettings) -> None:
    try:
        stack = resolve_stack(profile, wishes)
    except StackError as error:
        assert error.cure and "\n" not in str(error)
        return
    assert_fits(stack, profile)
    assert stack == resolve_stack(json.loads(json.dumps(profile)), wishes)


@settings(max_examples=200, deadline=None)
@given(profiles(wild=True), WISHES)
def test_no_profile_raises_anything_but_the_resolvers_error(profile: dict[str, Any], wishes: StackSettings) -> None:
    try:
        json.dumps(stack_to_dict(resolve_stack(profile, wishes)))
    except StackError as error:
        assert "\n" not in str(error)


@given(st.lists(st.one_of(st.text(max_size=40), st.from_regex(r"-D\w{1,8}=\w{0,8}", fullmatch=True)), max_size=3))
def test_arguments_pass_unchanged_or_not_at_all(arguments: list[str]) -> None:
    try:
        assert checked_arguments(arguments) == tuple(arguments)
        assert " ".join(arguments).split() == arguments
    except StackError as error:
        assert "\n" not in str(error)
