"""Which packages a host's models need, and in which versions where the user says so."""

from __future__ import annotations

import pytest
from modelfleet.core.errors import StackError
from modelfleet.core.runtime.lock import packages_of_stack
from modelfleet.core.runtime.profiles import profiles_of
from modelfleet.core.runtime.resolver.settings import StackSettings
from modelfleet.core.runtime.resolver.stack import resolve_stack
from support.machines import machine, nvidia


@pytest.mark.parametrize(
    ("models", "profiles"),
    [
        ([], ("gguf",)),
        (["gguf chat/7b"], ("gguf",)),
        (["gguf embeddings"], ("gguf",)),
        (["safetensors embeddings"], ("embeddings",)),
        (["safetensors image/stable-diffusion", "safetensors image/controlnet"], ("diffusion",)),
        (["onnx embeddings"], ("onnx",)),
        (["safetensors voice/tts", "pickle voice/tts", "safetensors chat/7b"], ("torch",)),
        (["ggml voice/stt"], ("gguf",)),
        (["onnx voice/tts", "safetensors embeddings", "gguf chat/13b"], ("gguf", "embeddings", "onnx")),
    ],
)
def test_profiles_of_models(models: list[str], profiles: tuple[str, ...]) -> None:
    assert profiles_of(models) == profiles


def requirements(**versions: str) -> tuple[str, ...]:
    stack = resolve_stack(machine(nvidia("8.6")), StackSettings(profiles=("embeddings",), versions=versions))
    return tuple(one.requirement for one in stack.packages)


def test_versions_in_place_of_the_chosen_ones() -> None:
    assert "torch==2.15.0+cu132" in requirements() and "torch==2.13.0+cu132" in requirements(torch="2.13.0")
    assert "torch==2.13.0+cu128" in requirements(torch="2.13.0+cu128")
    assert not any(one.startswith("torchaudio") for one in requirements(torchaudio=""))


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({"requests": "2.0"}, "'requests' is no package of a stack"),
        ({"torch": "2.13.0 --index-url=http://evil"}, "is no version of torch"),
        ({"torch": "latest"}, "'latest' is no version of torch"),
    ],
)
def test_versions_that_are_none(versions: dict[str, str], message: str) -> None:
    with pytest.raises(StackError) as caught:
        requirements(**versions)
    assert message in caught.value.message


def test_each_kind_of_build_has_its_index() -> None:
    stack = resolve_stack(machine(nvidia("8.6")), StackSettings(profiles=("torch",)))
    asked = packages_of_stack(stack, "", "glibc2.39", "https://wheels.example/whl/")
    assert asked.indexes == ("https://wheels.example/whl/cu132", "https://wheels.example/whl/cu130")
    assert packages_of_stack(stack, "", "glibc2.39").indexes == ()


def test_equal_keys_mean_equal_packages() -> None:
    def key(libc: str = "glibc2.39", requirements: str = "numpy==2.0\n", **settings: object) -> str:
        stack = resolve_stack(machine(), StackSettings(**settings))  # type: ignore[arg-type]
        return packages_of_stack(stack, requirements, libc).key

    embeddings = ("embeddings",)
    keys = [
        key(),
        key(requirements="numpy==2.1\n"),
        key(libc="glibc2.31"),
        key(profiles=embeddings),
        key(profiles=embeddings, python="3.13"),
        key(profiles=embeddings, versions={"torch": "2.13.0"}),
    ]
    assert len(set(keys)) == len(keys)
    assert key(profiles=embeddings).startswith("stack-cpu-py3.12-linux_x86_64-glibc2.39-")
