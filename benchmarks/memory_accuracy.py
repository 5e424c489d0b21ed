"""What ``modelfleet estimate`` predicts, beside the buffers that llama.cpp logs when it really loads the model.

Needs a Python with llama-cpp-python 0.3.36 (``--python``; default: the managed environment's) and the package ``gguf``
(the extra ``test``). Each model is a sparse GGUF file with the real shape's tensor table and vocabulary: llama.cpp
loads it like the real one. What main memory cannot hold is a dry run, marked ``dry``. Where llmfit is installed
(``--llmfit PATH``), what it says of the same model stands beside.

A row fails where weights or KV cache are not exact, the compute buffer is off by more than 10 % and 32 MiB, or the
tier measured by more than 0.5 %; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

import gguf
from modelfleet.core.formats.gguf_types import TENSOR_TYPES
from modelfleet.core.formats.judge import describe
from modelfleet.core.memory import dry_run_child
from modelfleet.core.memory.dry_run import measure
from modelfleet.core.memory.estimate import DeviceShare, EstimateOptions, estimate
from modelfleet.core.memory.shape import shape_of
from modelfleet.core.memory.synthesis import tensors_of
from modelfleet.core.store.layout import resolve_runtime_path, resolve_store_path

MIB = 1024 * 1024


def llama(
    layers: int, embedding: int, inner: int, heads: int, heads_kv: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    """Return a catalog shape."""
    return {
        "architecture": "llama",
        "layers": layers,
        "embedding_length": embedding,
        "feed_forward_length": inner,
        "heads": heads,
        "heads_kv": heads_kv,
        "key_length": embedding // heads,
        "value_length": embedding // heads,
        "vocabulary_size": vocabulary,
        "context_length": 32768,
        **more,
    }


# From the models' config.json on the Hub.
SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": llama(30, 576, 1536, 9, 3, 49152, tied_embeddings=True),
    "Llama-3.2-1B": llama(16, 2048, 8192, 32, 8, 128256, tied_embeddings=True, rope_factors=True),
    "Qwen2.5-7B": llama(28, 3584, 18944, 28, 4, 152064, architecture="qwen2"),
    "Qwen3-8B": llama(36, 4096, 12288, 32, 8, 151936, architecture="qwen3"),
    "Mistral-7B-v0.3": llama(32, 4096, 14336, 32, 8, 32768),
    "Mistral-Nemo-12B": llama(40, 5120, 14336, 32, 8, 131072, key_length=128, value_length=128),
    "Llama-2-7B": llama(32, 4096, 11008, 32, 32, 32000),
    "Llama-3.1-8B": llama(32, 4096, 14336, 32, 8, 128256, rope_factors=True),
    "Llama-2-13B": llama(40, 5120, 13824, 40, 40, 32000),
    "Mixtral-8x7B": llama(32, 4096, 14336, 32, 8, 32000, experts=8, experts_used=2),
    "Gemma-2-9B": llama(
        42, 3584, 14336, 16, 8, 256000, architecture="gemma2", key_length=256, value_length=256, sliding_window=4096,
        tied_embeddings=True,
    ),
    "Gemma-3-4B": llama(
        34, 2560, 10240, 8, 4, 262208, architecture="gemma3", key_length=256, value_length=256, sliding_window=1024,
        tied_embeddings=True,
    ),
    "Phi-3-mini": llama(32, 3072, 8192, 32, 32, 32064, architecture="phi3", rope_factors=True),
    "Qwen3-30B-A3B": llama(
        48, 2048, 768, 32, 4, 151936, architecture="qwen3moe", key_length=128, value_length=128, experts=128,
        experts_used=8,
    ),
}  # fmt: skip
LLMFIT = {
    "Llama-3.1-8B": "meta-llama/Llama-3.1-8B-Instruct",
    "Qwen2.5-7B": "Qwen/Qwen2.5-7B-Instruct",
    "Mixtral-8x7B": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "Qwen3-8B": "Qwen/Qwen3-8B",
    "Gemma-2-9B": "google/gemma-2-9b-it",
    "Mistral-7B-v0.3": "mistralai/Mistral-7B-Instruct-v0.3",
}
LLMFIT_QUANTIZATIONS = {"fp16": "F16", "q8_0": "Q8_0", "q4_k_m": "Q4_K_M", "q4_0": "Q4_0"}

# Shape, quantization, context, KV type, flash attention, more options.
ROWS: list[tuple[str, str, int, str, str, dict[str, int]]] = [
    ("SmolLM2-135M", "q4_0", 2048, "f16", "on", {}),
    ("SmolLM2-135M", "fp16", 32768, "f16", "off", {}),
    ("Llama-3.2-1B", "q8_0", 8192, "q8_0", "on", {}),
    ("Llama-3.2-1B", "q4_k_m", 8192, "f16", "auto", {"micro_batch": 2048}),
    ("Qwen2.5-7B", "q4_k_m", 8192, "f16", "on", {}),
    ("Qwen2.5-7B", "q4_0", 32768, "q8_0", "auto", {}),
    ("Qwen3-8B", "q4_k_m", 8192, "f16", "off", {}),
    ("Mistral-7B-v0.3", "q8_0", 32768, "f16", "on", {}),
    ("Mistral-Nemo-12B", "q4_k_m", 8192, "f16", "auto", {}),
    ("Llama-2-7B", "q4_0", 2048, "f16", "off", {}),
    ("Llama-2-7B", "fp16", 2048, "f16", "auto", {}),
    ("Llama-3.1-8B", "q4_k_m", 8192, "f16", "auto", {}),
    ("Llama-3.1-8B", "q4_k_m", 8192, "f16", "off", {}),
    ("Llama-3.1-8B", "q8_0", 32768, "q8_0", "on", {}),
    ("Llama-3.1-8B", "q4_0", 8192, "f16", "on", {"parallel": 4}),
    ("Llama-3.1-8B", "fp16", 2048, "f16", "off", {}),
    ("Llama-2-13B", "q4_k_m", 2048, "f16", "on", {}),
    ("Llama-2-13B", "q8_0", 8192, "q8_0", "auto", {}),
    ("Llama-2-13B", "fp16", 32768, "f16", "off", {}),
    ("Mixtral-8x7B", "q4_k_m", 8192, "f16", "on", {}),
    ("Mixtral-8x7B", "q4_0", 32768, "q8_0", "auto", {}),
    ("Mixtral-8x7B", "q8_0", 2048, "f16", "off", {}),
    ("Gemma-2-9B", "q4_k_m", 8192, "f16", "on", {}),
    ("Gemma-2-9B", "q8_0", 32768, "f16", "off", {}),
    ("Gemma-3-4B", "q4_0", 32768, "q8_0", "on", {}),
    ("Gemma-3-4B", "q4_k_m", 8192, "f16", "off", {"parallel": 2}),
    ("Phi-3-mini", "q4_k_m", 8192, "f16", "on", {}),
    ("Qwen3-30B-A3B", "q4_k_m", 8192, "f16", "on", {}),
]


def write(path: str, hyper: dict[str, Any], quantization: str) -> None:
    """Write the model's header with gguf's own writer, and nothing behind it but room."""
    architecture = hyper["architecture"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(hyper["context_length"])
    writer.add_block_count(hyper["layers"])
    writer.add_embedding_length(hyper["embedding_length"])
    writer.add_feed_forward_length(hyper["feed_forward_length"])
    writer.add_head_count(hyper["heads"])
    writer.add_head_count_kv(hyper["heads_kv"])
    writer.add_key_length(hyper["key_length"])
    writer.add_value_length(hyper["value_length"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hyper["key_length"])
    if hyper.get("sliding_window"):
        writer.add_sliding_window(hyper["sliding_window"])
    if hyper.get("experts"):
        writer.add_expert_count(hyper["experts"])
        writer.add_expert_used_count(hyper["experts_used"])
        writer.add_expert_feed_forward_length(hyper["feed_forward_length"])
    if architecture == "phi3":
        writer.add_rope_scaling_orig_ctx_len(4096)
    count = hyper["vocabulary_size"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{number}" for number in range(count)])
    writer.add_token_scores([0.0] * count)
    writer.add_token_types([1] * count)
    numbers = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}
    import numpy

    tensors = tensors_of(hyper, quantization)
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType(numbers[tensor.type])
        block, size = gguf.GGML_QUANT_SIZES[kind]
        # The writer takes a quantized tensor's first dimension in bytes.
        first = tensor.shape[0] // block * size if block > 1 else tensor.shape[0]
        plain = numpy.dtype(numpy.float16 if kind == gguf.GGMLQuantizationType.F16 else numpy.float32)
        writer.add_tensor_info(
            tensor.name,
            (*reversed(tensor.shape[1:]), first),
            numpy.dtype(numpy.uint8) if block > 1 else plain,
            tensor.size,
            kind,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = -(-os.path.getsize(path) // 32) * 32
    last = tensors[-1]
    os.truncate(path, start + -(-(last.offset + last.size) // 32) * 32)


def load(python: str, path: str, options: EstimateOptions, real: bool) -> dict[str, float]:
    """Load the model, or make a dry run of it, and return what llama.cpp logged, in MiB (weights in bytes)."""
    settings = {**asdict(options), "gpu_layers": 0, "parts": [], "allocate": real}
    done = subprocess.run(
        [python, "-I", dry_run_child.__file__, path, json.dumps(settings)], capture_output=True, text=True, check=False
    )
    if dry_run_child.DONE not in done.stdout:
        sys.exit(f"{path}: llama.cpp failed:\n{done.stdout[-1500:]}{done.stderr[-500:]}")
    log = done.stdout

    def total(pattern: str) -> float:
        return sum(float(one) for one in re.findall(pattern, log))

    return {
        "weights": total(r"modelfleet: weights (\d+)"),
        "repack": total(r"CPU_REPACK model buffer size = +([\d.]+)"),
        "kv": total(r"kv_cache\S*: size = +([\d.]+) MiB"),
        "compute": total(r"compute buffer size = +([\d.]+)"),
        "output": total(r"output buffer size = +([\d.]+)"),
    }


def llmfit_says(program: str | None, name: str, quantization: str, context: int, kind: str) -> float | None:
    """Return the GPU memory in bytes that llmfit wants for its own record of this model, None where it tells none."""
    if not program or name not in LLMFIT or quantization not in LLMFIT_QUANTIZATIONS:
        return None
    command = [program, "plan", LLMFIT[name], "--context", str(context), "--json"]
    command += ["--quant", LLMFIT_QUANTIZATIONS[quantization], "--kv-quant", "fp16" if kind == "f16" else kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        document = json.loads(done.stdout)
        return float(document["minimum"]["vram_gb"]) * 1e9
    except (ValueError, KeyError, TypeError):
        return None


def main() -> int:
    """Run all rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    store = resolve_store_path("")
    parser.add_argument("--python", default=os.path.join(resolve_runtime_path("", store), "current/bin/python"))
    parser.add_argument("--llmfit", help="the program of the package llmfit")
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    parser.add_argument("--most-gib", type=float, default=0.8 * available, help="load really what needs no more")
    parser.add_argument("--only", help="rows whose model has this in its name")
    given = parser.parse_args()
    heads = (
        "model",
        "type",
        "context",
        "KV",
        "FA",
        "load",
        "weights",
        "KV MiB",
        "compute",
        "logged",
        "error",
        "measured",
    )
    print("{:17}{:8}{:>8} {:5}{:5}{:5}{:>15}{:>10}{:>10}{:>10}{:>8}{:>9}  llmfit".format(*heads))  # noqa: T201
    failed = 0
    share = (DeviceShare("CPU", "cpu"),)
    for name, quantization, context, kind, flash, more in ROWS:
        if given.only and given.only not in name:
            continue
        options = EstimateOptions(context, kv_type_k=kind, kv_type_v=kind, flash_attention=flash, **more)
        with tempfile.TemporaryDirectory(prefix="memory-accuracy-") as folder:
            path = os.path.join(folder, "model.gguf")
            write(path, SHAPES[name], quantization)
            model = describe(path)
            told = estimate(shape_of(model), options, share).devices[0]
            real = told.total <= given.most_gib * 1024 * MIB
            logged = load(given.python, path, options, real)
            measured = measure(path, model, options, given.python).devices[0]
        error = told.compute / MIB - logged["compute"]
        off = abs(error) > 32 and abs(error) > 0.1 * logged["compute"]
        exact = shape_of(model).weight_bytes == logged["weights"] and abs(told.kv_cache / MIB - logged["kv"]) < 0.006
        exact = exact and (not real or abs(told.repack / MIB - logged["repack"]) < 0.006)
        exact = exact and abs(told.output / MIB - logged["output"]) < 0.006
        close = abs(measured.compute / MIB - logged["compute"]) <= 0.005 * logged["compute"]
        bad = off or not exact or not close
        failed += bad
        peer = llmfit_says(given.llmfit, name, quantization, context, kind)
        whole = logged["weights"] + MIB * (logged["kv"] + logged["compute"] + logged["output"])
        settings = "".join(f" {key.replace('_', ' ')} {value}" for key, value in more.items())
        print(  # noqa: T201
            f"{name:17}{quantization:8}{context:8} {kind:5}{flash:5}{'real' if real else 'dry':5}"
            f"{int(logged['weights']):15}{logged['kv']:10.2f}{told.compute / MIB:10.2f}{logged['compute']:10.2f}"
            f"{error / logged['compute']:8.1%}{(measured.compute / MIB - logged['compute']) / logged['compute']:9.2%}  "
            + (f"{peer / whole - 1:+.0%}" if peer else "")
            + settings
            + ("  FAILED" if bad else "")
        )
    print(f"{len(ROWS)} rows, {failed} failed")  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
