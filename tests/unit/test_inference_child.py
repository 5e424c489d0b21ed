"""The child process of a proof, whatever it proves: what it is asked, what it says, and what it is kept from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modelfleet.core.errors import ConfigurationError, InferenceError
from modelfleet.core.inference.llama import loading_of, shares_of
from modelfleet.core.inference.request import Placement, read_request, refuse_pickle, versions
from modelfleet.core.memory.estimate import DeviceShare
from modelfleet.core.units import MIB

Ask = Callable[..., "dict[str, Any]"]


@pytest.fixture
def ask(checkout: Path, tmp_path: Path) -> Ask:
    """Return a function that runs the child with a library of the test's, and returns its answer."""

    def run(request: Any, **modules: str) -> dict[str, Any]:
        libraries = tmp_path / "libraries"
        for name, text in modules.items():
            (libraries / name).mkdir(parents=True, exist_ok=True)
            (libraries / name / "__init__.py").write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "modelfleet.core.inference"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            env={"PYTHONPATH": f"{checkout / 'python'}:{libraries}", "PATH": os.defpath, "TMPDIR": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        assert not list(tmp_path.glob("modelfleet-proof-*"))
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        assert isinstance(answer, dict)
        return answer

    return run


class TestRequest:
    def test_of_a_plan(self) -> None:
        placement = {"device": "CUDA0+CUDA1", "backend": "cuda", "gpu_layers": 33, "split": [20, 13], "context": 8192}
        request = read_request({"kind": "gguf", "path": "/m.gguf", "check": {"prompt": "a"}, "placement": placement})
        assert request.placement == Placement(("CUDA0", "CUDA1"), "cuda", 33, (20, 13), 8192, "f16")
        assert not request.allow_pickle and request.output_folder is None and request.memory_limit_bytes is None

    def test_the_processor_has_no_layers_of_an_accelerator(self) -> None:
        placement = {"device": "CPU", "backend": "cpu", "gpu_layers": 0, "context": 512, "kv_type": "q8_0"}
        request = read_request({"kind": "gguf", "path": "/m.gguf", "placement": placement})
        assert request.placement == Placement((), "cpu", 0, (), 512, "q8_0")

    @pytest.mark.parametrize(
        "document", [None, [], {}, {"kind": "os"}, {"kind": "gguf"}, {"kind": "gguf", "path": "m"}]
    )
    def test_what_is_none(self, document: Any) -> None:
        with pytest.raises(ConfigurationError):
            read_request(document)

    def test_a_pickle_is_refused_unless_it_is_allowed(self) -> None:
        request = read_request({"kind": "transformers", "path": "/m"})
        with pytest.raises(InferenceError, match="is a pickle"):
            refuse_pickle(request, ["pytorch_model.bin"])
        refuse_pickle(request, [])
        refuse_pickle(request._replace(allow_pickle=True), ["pytorch_model.bin"])

    def test_versions_of_what_is_installed(self) -> None:
        found = versions("pytest", "modelfleet-no-such-package")
        assert list(found) == ["pytest"] and found["pytest"] == pytest.__version__


class TestProcess:
    GGUF = {"kind": "gguf", "path": "/nowhere/x.gguf", "check": {"prompt": "a", "expected": "b"}}  # noqa: RUF012

    def test_what_it_cannot_read_is_one_line(self, ask: Ask) -> None:
        assert "one of gguf" in ask({"kind": "os"})["error"]

    @pytest.mark.parametrize(
        ("library", "line"),
        [
            ("import no_such_library", "the managed environment is incomplete"),
            ("raise RuntimeError('first\\nsecond')", "RuntimeError: first"),
            ("raise MemoryError", "more memory than it may have"),
        ],
    )
    def test_an_error_of_a_library_is_one_line(self, ask: Ask, library: str, line: str) -> None:
        (message,) = ask(self.GGUF, llama_cpp=library).values()
        assert line in message and "\n" not in message

    def test_what_a_library_prints_is_no_answer(self, ask: Ask) -> None:
        library = 'import os\nprint("{}")\nos.write(1, b"{}")\nraise RuntimeError("told")'
        assert ask(self.GGUF, llama_cpp=library) == {"error": "RuntimeError: told"}

    def test_libraries_are_told_that_there_is_no_network(self, ask: Ask) -> None:
        names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY")
        library = f"import os\nraise RuntimeError([os.environ[name] for name in {names}])"
        assert ask(self.GGUF, llama_cpp=library)["error"] == f"RuntimeError: {['1'] * 4}"

    def test_their_caches_go_with_the_process(self, ask: Ask) -> None:
        library = "import os\nopen(os.environ['HF_HOME'] + '/cached', 'w').close()\nraise RuntimeError('cached')"
        assert ask(self.GGUF, llama_cpp=library)["error"] == "RuntimeError: cached"

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds mappings to RLIMIT_DATA")
    def test_memory_is_limited_and_addresses_are_not(self, ask: Ask) -> None:
        """Half a gibibyte may be reserved, as CUDA does, and not be filled."""
        request = {**self.GGUF, "memory_limit_bytes": 256 * MIB}
        reserve = "import mmap\nmmap.mmap(-1, 512 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ)\n"
        assert ask(request, llama_cpp=reserve + "raise RuntimeError('reserved')") == {"error": "RuntimeError: reserved"}
        assert "more memory than it may have" in ask(request, llama_cpp="bytearray(512 << 20)")["error"]


class TestSpeech:
    """Files of other programs: nothing is wrong with them, and what proves them is told."""

    @pytest.mark.parametrize(
        ("name", "command"),
        [("ggml-base.bin", "whisper-cli --model"), ("model.pth", "tts --model_path"), ("text_2.pt", "-m bark")],
    )
    def test_they_are_unproven(self, ask: Ask, tmp_path: Path, name: str, command: str) -> None:
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / name).write_bytes(b"")
        answer = ask({"kind": "speech", "path": str(folder), "check": {"text": "a"}})
        assert answer["unproven"] and command in answer["command"] and str(folder) in answer["command"]
        assert answer["error"].startswith("unproven here: ") and "\n" not in answer["error"]

    def test_a_type_that_the_proof_does_not_know(self, ask: Ask, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "parrot"}')
        assert "'parrot'" in ask({"kind": "speech", "path": str(tmp_path)})["error"]


class TestPlacement:
    """How llama-cpp-python is asked to place a model; that it does is proved where it is installed."""

    WHOLE = Placement(("CUDA1",), "cuda", 33, (), 8192, "q8_0")
    DIVIDED = Placement(("CUDA0", "CUDA2"), "cuda", 33, (20, 13), 8192, "f16")
    CARDS = ["CUDA0", "CUDA1", "CUDA2"]  # noqa: RUF012

    def test_on_one_card_of_many(self) -> None:
        loading = loading_of("/nowhere.gguf", self.WHOLE, self.CARDS)
        assert loading.arguments["n_gpu_layers"] == 33 and "tensor_split" not in loading.arguments
        assert (loading.arguments["split_mode"], loading.arguments["main_gpu"]) == (0, 1)
        assert loading.options.kv_type_k == loading.options.kv_type_v == "q8_0"
        assert loading.arguments["n_ctx"] == loading.options.context == 8192 and not loading.options.full_window

    def test_divided_among_some(self) -> None:
        loading = loading_of("/nowhere.gguf", self.DIVIDED, self.CARDS)
        assert loading.arguments["tensor_split"] == [20, 0, 13] and "main_gpu" not in loading.arguments

    @pytest.mark.parametrize(
        ("planned", "there", "picked"),
        [
            (("GPU1",), CARDS, ["CUDA1"]),
            (("GPU0", "GPU2"), CARDS, ["CUDA0", "CUDA2"]),
            (("CUDA2",), CARDS, ["CUDA2"]),
            # The processor's own graphics are number 0 of the machine, and none of CUDA's.
            (("GPU1",), ["CUDA0"], ["CUDA0"]),
            (("GPU0/MIG1",), ["CUDA0"], ["CUDA0"]),
            (("GPU0", "GPU1"), ["CUDA0"], None),
            (("GPU0",), [], None),
        ],
    )
    def test_the_plans_names_and_the_librarys(
        self, planned: tuple[str, ...], there: list[str], picked: list[str] | None
    ) -> None:
        assert Placement(planned, "cuda", 33).pick(there) == picked

    def test_the_plans_card_is_the_main_one(self) -> None:
        placement = self.WHOLE._replace(devices=("GPU2",))
        assert loading_of("/nowhere.gguf", placement, self.CARDS).arguments["main_gpu"] == 2

    def test_a_card_that_is_not_there_is_not_asked_for(self) -> None:
        assert loading_of("/nowhere.gguf", self.WHOLE, []).arguments["n_gpu_layers"] == 0

    def test_without_a_plan_it_is_small(self) -> None:
        loading = loading_of("/nowhere.gguf", Placement(), self.CARDS)
        assert loading.arguments["n_gpu_layers"] == 0 and loading.options.context == 512

    def test_what_llama_cpp_does_not_know(self) -> None:
        with pytest.raises(ConfigurationError, match="q9_9"):
            loading_of("/nowhere.gguf", self.WHOLE._replace(kv_type="q9_9"), self.CARDS)
        with pytest.raises(ConfigurationError, match="how many layers"):
            shares_of(self.DIVIDED._replace(split=()))

    def test_shares_are_the_plans(self) -> None:
        """The output counts as the last device's last layer, and goes first: one layer alone is the output."""
        cpu = DeviceShare("CPU", "cpu")
        assert shares_of(self.DIVIDED) == [
            DeviceShare("CUDA0", "cuda", 20),
            DeviceShare("CUDA2", "cuda", 12, True),
            cpu,
        ]
        assert shares_of(self.WHOLE._replace(gpu_layers=1)) == [DeviceShare("CUDA1", "cuda", 0, True), cpu]
        assert shares_of(Placement()) == [cpu]


class TestInstallation:
    def test_missing_broken_and_whole(self, ask: Ask) -> None:
        found = ask(
            {"kind": "installation"},
            onnxruntime="__version__ = '1.2'\ndef get_available_providers(): return ['CPUExecutionProvider']",
            diffusers="raise OSError('libcudart.so.13: cannot open shared object file\\nmore')",
            accelerate="import os, signal\nos.kill(os.getpid(), signal.SIGILL)",
            bitsandbytes="import os\nos._exit(0)",
            transformers="__version__ = '5.0'",
        )
        assert found["onnxruntime"] == {"version": "1.2", "providers": ["CPUExecutionProvider"]}
        assert found["transformers"] == {"version": "5.0"}
        assert found["diffusers"] == {"error": "OSError: libcudart.so.13: cannot open shared object file"}
        assert found["accelerate"] == {"error": "it ended with SIGILL when it was imported"}
        assert found["bitsandbytes"] == {"error": "it ended without an answer when it was imported"}
        assert found["sentence_transformers"] is None
        assert found["python"].startswith("3.") and found["kernel"] == os.uname().release

    def test_torch_on_a_card(self, ask: Ask) -> None:
        """As torch answers on a machine with one; what it says of this machine is proved with the real library."""
        torch = """
class cuda:
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    get_arch_list = staticmethod(lambda: ["sm_90"])
    class _Properties:
        name, major, minor, total_memory = "NVIDIA H100", 9, 0, 85000000000
    get_device_properties = staticmethod(lambda number: cuda._Properties)
class version:
    cuda, hip = "13.0", None
class backends: pass
__version__ = "2.13.0+cu130"
get_num_threads = lambda: 2
"""
        found = ask({"kind": "installation"}, torch=torch)["torch"]
        assert found["version"] == "2.13.0+cu130" and found["cuda"] == "13.0" and not found["mps_available"]
        assert found["architectures"] == ["sm_90"]
        assert found["devices"] == [
            {
                "name": "NVIDIA H100",
                "compute_capability": "9.0",
                "architecture": None,
                "memory_total": 85000000000,
            }
        ]
