"""The measured tier: llama.cpp's own figures, and one line where there are none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from modelfleet.core.errors import ConfigurationError, InferenceError
from modelfleet.core.formats.judge import describe
from modelfleet.core.memory import dry_run
from modelfleet.core.memory.dry_run import measure
from modelfleet.core.memory.estimate import DeviceShare, EstimateOptions, estimate
from modelfleet.core.memory.shape import shape_of
from modelfleet.core.memory.synthesis import tensors_of
from modelfleet.core.store.layout import resolve_runtime_path, resolve_store_path

HYPER = {
    "architecture": "llama",
    "layers": 3,
    "embedding_length": 512,
    "feed_forward_length": 1536,
    "heads": 8,
    "heads_kv": 2,
    "key_length": 64,
    "value_length": 64,
    "vocabulary_size": 1000,
    "context_length": 4096,
}
CPU = (DeviceShare("CPU", "cpu"),)


def write(path: Path, **more: int) -> Path:
    """Write a small model's header, and room behind it, with gguf's own writer."""
    gguf = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    writer = gguf.GGUFWriter(str(path), "llama")
    for key, value in (
        ("block_count", HYPER["layers"]),
        ("context_length", HYPER["context_length"]),
        ("embedding_length", HYPER["embedding_length"]),
        ("feed_forward_length", HYPER["feed_forward_length"]),
        ("attention.head_count", HYPER["heads"]),
        ("attention.head_count_kv", HYPER["heads_kv"]),
        ("rope.dimension_count", HYPER["key_length"]),
        *more.items(),
    ):
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    count = 1000
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{number}" for number in range(count)])
    writer.add_token_scores([0.0] * count)
    writer.add_token_types([1] * count)
    tensors = tensors_of(HYPER, "fp16")
    for tensor in tensors:
        half = tensor.type == "F16"
        kind = gguf.GGMLQuantizationType.F16 if half else gguf.GGMLQuantizationType.F32
        plain = numpy.dtype(numpy.float16 if half else numpy.float32)
        writer.add_tensor_info(tensor.name, tuple(reversed(tensor.shape)), plain, tensor.size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    last = tensors[-1]
    os.truncate(path, -(-path.stat().st_size // 32) * 32 + -(-(last.offset + last.size) // 32) * 32)
    return path


@pytest.fixture(scope="module")
def llama_python() -> str:
    """Return a Python with llama-cpp-python: MODELFLEET_LLAMA_PYTHON, else the managed environment's."""
    managed = os.path.join(resolve_runtime_path("", resolve_store_path("")), "current", "bin", "python")
    python = os.environ.get("MODELFLEET_LLAMA_PYTHON") or managed
    if not os.access(python, os.X_OK):
        pytest.skip("no managed environment here: run apply, or set MODELFLEET_LLAMA_PYTHON")
    if subprocess.run([python, "-I", "-c", "import llama_cpp"], capture_output=True, check=False).returncode:
        pytest.skip(f"{python} has no llama-cpp-python")
    return python


@pytest.mark.parametrize(
    "options",
    [
        EstimateOptions(context=4096),
        EstimateOptions(context=4096, flash_attention="off", micro_batch=1024),
        EstimateOptions(context=2048, kv_type_k="q8_0", kv_type_v="q8_0", parallel=2),
    ],
)
def test_what_llama_cpp_logs(tmp_path: Path, llama_python: str, options: EstimateOptions) -> None:
    path = write(tmp_path / "small.gguf")
    model = describe(str(path))
    answer = measure(str(path), model, options, llama_python)
    assert answer.tier == "measured"
    (told,) = answer.devices
    (reckoned,) = estimate(shape_of(model), options, CPU).devices
    assert told._replace(compute=0) == reckoned._replace(compute=0)
    assert told.compute == pytest.approx(reckoned.compute, rel=0.01)
    assert not answer.warnings


def test_a_file_that_llama_cpp_refuses(tmp_path: Path, llama_python: str) -> None:
    path = write(tmp_path / "small.gguf", **{"rope.scaling.original_context_length": 4096, "expert_count": 2000})
    model = describe(str(path))
    model.metadata.pop("llama.expert_count")
    with pytest.raises(InferenceError, match="the dry run failed") as caught:
        measure(str(path), model, EstimateOptions(), llama_python)
    assert "\n" not in str(caught.value)


def test_an_environment_without_llama_cpp(tmp_path: Path) -> None:
    path = write(tmp_path / "small.gguf")
    empty = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(empty)], check=True)
    with pytest.raises(InferenceError, match="no llama-cpp-python"):
        measure(str(path), describe(str(path)), EstimateOptions(), str(empty / "bin" / "python"))


def test_a_python_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "small.gguf")
    with pytest.raises(InferenceError, match="cannot be started"):
        measure(str(path), describe(str(path)), EstimateOptions(), str(tmp_path / "nothing"))


def test_a_child_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "small.gguf")
    child = tmp_path / "child.py"
    child.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(dry_run, "_CHILD", str(child))
    with pytest.raises(InferenceError, match="took longer than 1 second"):
        measure(str(path), describe(str(path)), EstimateOptions(), sys.executable, timeout_seconds=1)


def test_a_child_that_takes_too_much_memory_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "small.gguf")
    child = tmp_path / "child.py"
    child.write_text("block = bytearray(16 * 2**30)\n")
    monkeypatch.setattr(dry_run, "_CHILD", str(child))
    with pytest.raises(InferenceError, match="the dry run failed"):
        measure(str(path), describe(str(path)), EstimateOptions(), sys.executable)


def test_a_log_with_several_devices_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "small.gguf")
    model = describe(str(path))
    log = (
        "load_tensors: layer   0 assigned to device CPU, is_swa = 0\n"
        "load_tensors: layer   1 assigned to device CUDA0, is_swa = 0\n"
        "load_tensors: layer   2 assigned to device CUDA1, is_swa = 0\n"
        "load_tensors: layer   3 assigned to device CUDA1, is_swa = 0\n"
        "llama_kv_cache: size =    6.00 MiB (  4096 cells,   3 layers,  1/1 seqs), K (f16):    3.00 MiB\n"
        "sched_reserve:      CUDA0 compute buffer size =    10.00 MiB\n"
        "sched_reserve:      CUDA1 compute buffer size =    20.00 MiB\n"
        "sched_reserve:  CUDA_Host compute buffer size =     5.00 MiB\n"
        "sched_reserve:        CPU compute buffer size =     1.00 MiB\n"
    )
    answer = dry_run._read(log, model, EstimateOptions(context=4096))
    assert [(one.name, one.compute // 2**20, one.kv_cache // 2**20) for one in answer.devices] == [
        ("CUDA0", 10, 2),
        ("CUDA1", 20, 2),
        ("CPU", 6, 2),
    ]
    assert not answer.warnings


def test_a_cache_that_llama_cpp_makes_otherwise_counts_as_logged(tmp_path: Path) -> None:
    path = write(tmp_path / "small.gguf")
    log = "llama_kv_cache: size =   10.00 MiB (  4096 cells)\nsched_reserve: CPU compute buffer size = 1.00 MiB\n"
    answer = dry_run._read(log, describe(str(path)), EstimateOptions(context=4096))
    assert answer.devices[0].kv_cache == 10 * 2**20
    assert len(answer.warnings) == 1


def test_a_device_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "small.gguf")
    with pytest.raises(ConfigurationError, match="Abacus0"):
        dry_run._read(
            "load_tensors: layer   0 assigned to device Abacus0, is_swa = 0\n", describe(str(path)), EstimateOptions()
        )
