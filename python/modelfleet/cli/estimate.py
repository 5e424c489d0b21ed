"""``modelfleet estimate``: what a model needs, by device and part, beside what this or another machine has."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import click

from ..core.errors import ConfigurationError, InferenceError, ModelfleetError
from ..core.fetch.remote import is_url, open_url
from ..core.formats.judge import describe, describe_source
from ..core.formats.model import ModelFile
from ..core.memory.catalog_tier import BITS_PER_WEIGHT, PERPLEXITY_RISE, TUTORIAL, estimate_parameters
from ..core.memory.estimate import DeviceShare, Estimate, EstimateOptions, estimate, shares_for
from ..core.memory.kv_cache import CACHE_TYPES
from ..core.memory.plain import estimate_weights
from ..core.memory.shape import ModelShape, shape_from_dict, shape_of
from ..core.memory.synthesis import QUANTIZATIONS, shape_from_catalog
from ..core.reading import nearest
from ..core.units import GIB, KIB, MIB, format_bytes
from .text import clean, complain, say, say_json, table

SCHEMA_VERSION = 1
TIERS = ("auto", "measured", "header", "catalog")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:(K|M|G|T)(?:iB|B)?)?", re.IGNORECASE)
_UNITS = {"K": KIB, "M": MIB, "G": GIB, "T": 1024 * GIB}
_BACKENDS = (("cuda", "cuda"), ("rocm", "rocm"), ("hip", "rocm"), ("vulkan", "vulkan"), ("metal", "metal"))


class Device(NamedTuple):
    """A device and its bytes: in all, and free at the moment, None where that is not known."""

    name: str
    backend: str
    capacity: int | None
    free: int | None


class Subject(NamedTuple):
    """What is estimated: how it was named, its shape if it is GGUF, its file, and what else is known."""

    title: str
    shape: ModelShape | None
    path: str | None = None
    model: ModelFile | None = None
    weight_bytes: int | None = None
    kind: str = "other"
    parameters: int | None = None
    quantization: str | None = None


@click.command()
@click.argument("file", metavar="FILE|FOLDER|URL|MODEL", required=False)
@click.option("-q", "--quantization", help="Of a MODEL of the catalog. Default: the model's own.")
@click.option("-c", "--context", type=click.IntRange(1), default=8192, show_default=True, help="Tokens, all sequences.")
@click.option("-b", "--batch", type=click.IntRange(1), default=2048, show_default=True, help="Tokens of a batch.")
@click.option("-u", "--ubatch", type=click.IntRange(1), default=512, show_default=True, help="Tokens computed at once.")
@click.option("--kv-type", default="f16", show_default=True, metavar="KEYS[,VALUES]", help="Types of the KV cache.")
@click.option(
    "--flash-attention",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Of llama.cpp.",
)
@click.option("-g", "--gpu-layers", type=click.IntRange(0), help="Layers on accelerators, the output counts as one.")
@click.option("--device", "devices", multiple=True, metavar="NAME:SIZE", help="Instead of this machine: CUDA0:24GiB.")
@click.option("--split", metavar="PART,...", help="How layers are divided among accelerators. Default: by memory.")
@click.option("--parallel", type=click.IntRange(1), default=1, show_default=True, help="Sequences at once.")
@click.option("--unified", is_flag=True, help="The sequences share one cache.")
@click.option("--swa-full", "full_window", is_flag=True, help="Sliding-window layers keep the whole context.")
@click.option("--tier", type=click.Choice(TIERS), default="auto", show_default=True, help="How the answer is found.")
@click.option("--python", "python", metavar="PATH", help="A Python with llama-cpp-python, for the tier measured.")
@click.option(
    "--compare", is_flag=True, help="Show the quantizations: the tutorial's figures beside the measured ones."
)
@click.option("--json", "as_json", is_flag=True, help="Answer with one JSON document.")
def command(file: str | None, compare: bool, as_json: bool, **given: Any) -> int:
    """Tell the memory that a model needs on each device: weights, KV cache, compute buffers, overhead.

    Of a GGUF file only the header is read, from disk, an address (https://…) or the Hub (hf://OWNER/NAME@REVISION/FILE);
    of a MODEL of the catalog nothing, not even a network. The answer names its tier. measured: llama.cpp itself told
    its buffers in a dry run of the managed environment. header: from the file's header or the catalog's
    hyperparameters. catalog: from published figures alone.
    """
    if compare:
        return _compare(as_json)
    if file is None:
        raise click.UsageError("name a FILE, FOLDER, URL or MODEL, or give --compare")
    subject = _subject(file, given["quantization"])
    options = _options(given)
    devices = _devices(given["devices"])
    answer = _answer(subject, options, devices, given)
    shown = {device.name: device for device in devices}
    if as_json:
        say_json(_document(subject, answer, options, shown))
        return 0
    say(click.style(clean(subject.title), bold=True) + f", {options.context} tokens, tier {answer.tier}")
    for line in table(list(_rows(answer, shown))):
        say(line)
    for warning in answer.warnings:
        complain(f"{click.style('warning', fg='yellow')}: {clean(warning)}")
    return 0


def _subject(file: str, quantization: str | None) -> Subject:
    if not is_url(file) and not os.path.exists(file) and os.sep not in file:
        return _of_catalog(file, quantization)
    if quantization is not None:
        raise click.UsageError("--quantization is for a MODEL of the catalog; a file has its own")
    try:
        model = describe_source(open_url(file)) if is_url(file) else describe(file)
    except OSError as error:
        raise ModelfleetError(f"{clean(file)}: {error.strerror or error}") from None
    # What follows a question mark may be a signature, which is a secret.
    title = os.path.basename(file.split("?")[0].rstrip("/")) or file
    if model.format == "gguf":
        path = None if is_url(file) else _first_file(file, model)
        return Subject(title, shape_of(model), path, model, quantization=model.quantization)
    return Subject(title, None, None, model, model.tensor_bytes or model.size, _kind_of(model, title))


def _first_file(path: str, model: ModelFile) -> str:
    return (
        os.path.join(path, sorted(one for one in model.files if one.endswith(".gguf"))[0])
        if os.path.isdir(path)
        else path
    )


def _kind_of(model: ModelFile, title: str) -> str:
    if model.format == "ggml":
        return "speech"
    if any(tensor.name.startswith(("first_stage_model.", "model.diffusion_model.")) for tensor in model.tensors):
        return "diffusion"
    return "embedding" if model.architecture in ("bert", "xlm-roberta", "mpnet", "nomic_bert") else "other"


def _of_catalog(name: str, quantization: str | None) -> Subject:
    from ..catalog_files import SHIPPED, load_entries, read_located
    from ..lockfile import read_lock
    from .options import checkout

    root = checkout()
    catalog = read_located(load_entries(root / SHIPPED), read_lock(root / "models.lock.json"))
    entry = catalog.entries.get(name)
    if entry is None:
        raise ConfigurationError(
            f"{clean(name)} is neither a file nor a model of the catalog{nearest(name, catalog.entries)}",
            "name a file that is there, or a model's id",
        )
    chosen = quantization or entry.default_quantization
    variant = entry.variants.get(chosen)
    if variant is None and not (entry.shape and chosen in QUANTIZATIONS):
        offered = sorted({*entry.variants, *(QUANTIZATIONS if entry.shape else ())})
        raise ConfigurationError(
            f"{name} has no quantization {clean(chosen)!r}{nearest(chosen, offered)}",
            f"use one of {', '.join(offered)}",
        )
    shape = None
    if variant is not None and variant.shape is not None:
        shape = shape_from_dict(variant.shape)
    elif entry.shape is not None and chosen in QUANTIZATIONS:
        shape = shape_from_catalog(entry.shape, chosen)
    sizes = [pinned.size for pinned in variant.files] if variant is not None else []
    known = sum(size for size in sizes if size is not None) if sizes and None not in sizes else None
    return Subject(
        f"{name} {chosen}", shape, weight_bytes=known, kind=entry.kind, parameters=entry.parameters, quantization=chosen
    )


def _options(given: dict[str, Any]) -> EstimateOptions:
    keys, _, values = given["kv_type"].lower().partition(",")
    for kind in (keys, values or keys):
        if kind not in CACHE_TYPES:
            raise click.UsageError(f"--kv-type: {clean(kind)} is none of {', '.join(CACHE_TYPES)}")
    return EstimateOptions(
        context=given["context"],
        batch=given["batch"],
        micro_batch=given["ubatch"],
        kv_type_k=keys,
        kv_type_v=values or keys,
        flash_attention=given["flash_attention"],
        parallel=given["parallel"],
        unified=given["unified"],
        full_window=given["full_window"],
    )


def _devices(given: tuple[str, ...]) -> list[Device]:
    """Return the accelerators and, last, the CPU: those that are given, else this machine's."""
    if given:
        found = [_device(text) for text in given]
        cpus = [one for one in found if one.backend == "cpu"]
        return [*(one for one in found if one.backend != "cpu"), *(cpus[:1] or [Device("CPU", "cpu", None, None)])]
    from ..core.hardware.probe import probe
    from ..core.hardware.profile import profile_to_dict
    from ..core.planning.budgets import read_machine

    machine = read_machine(profile_to_dict(probe(os.path.expanduser("~"))), 0, 0)
    accelerators = [
        Device(one.device, one.backend, one.capacity_bytes, machine.free.get(one.device))
        for one in machine.accelerators
        if one.capacity_bytes
    ]
    return [*accelerators, Device("CPU", "cpu", machine.cpu.capacity_bytes, machine.free.get(machine.cpu.device))]


def _device(text: str) -> Device:
    name, _, size = text.rpartition(":")
    match = _SIZE.fullmatch(size.strip())
    backend = next((known for prefix, known in _BACKENDS if name.lower().startswith(prefix)), None)
    if name.lower() in ("cpu", "ram"):
        name, backend = "CPU", "cpu"
    if match is None or backend is None:
        raise click.UsageError(f"--device: {clean(text)} is not like CUDA0:24GiB (CUDA, ROCm, Vulkan, Metal or CPU)")
    number, unit = match.groups()
    return Device(clean(name), backend, int(float(number) * (_UNITS[unit.upper()] if unit else 1)), None)


def _answer(subject: Subject, options: EstimateOptions, devices: list[Device], given: dict[str, Any]) -> Estimate:
    tier = given["tier"]
    whole = devices[0]
    if subject.shape is None or tier == "catalog":
        return _published(subject, options, whole, tier)
    shares = _shares(subject.shape, devices, given)
    if tier in ("auto", "measured") and subject.path is not None and subject.model is not None:
        measured = _measured(subject, options, shares, given)
        if measured is not None:
            return measured
    if tier == "measured":
        raise ConfigurationError("only a GGUF file on this machine can be measured", "fetch it, or use --tier header")
    return estimate(subject.shape, options, shares)


def _shares(shape: ModelShape, devices: list[Device], given: dict[str, Any]) -> tuple[DeviceShare, ...]:
    accelerators = devices[:-1]
    wanted = given["gpu_layers"]
    if wanted and not accelerators:
        raise click.UsageError("--gpu-layers: there is no accelerator; name one with --device")
    parts: list[float] = [float(one.free or one.capacity or 1) for one in accelerators]
    if given["split"]:
        try:
            parts = [float(part) for part in given["split"].split(",")]
        except ValueError:
            raise click.UsageError(f"--split: {clean(given['split'])} is not like 3,1") from None
        if len(parts) != len(accelerators) or min(parts) < 0 or not 0 < sum(parts) < float("inf"):
            raise click.UsageError(f"--split: {len(parts)} parts for {len(accelerators)} accelerators")
    named = [(one.name, one.backend, part) for one, part in zip(accelerators, parts)]
    return shares_for(shape.layers, shape.layers + 1 if wanted is None else wanted, named, devices[-1].name)


def _measured(
    subject: Subject, options: EstimateOptions, shares: tuple[DeviceShare, ...], given: dict[str, Any]
) -> Estimate | None:
    """Return the answer of a dry run; None where none can be made and none was asked for by name."""
    from ..core.memory.dry_run import measure

    asked = given["tier"] == "measured"
    python = given["python"] or _managed_python()
    real = not given["devices"]
    if python is None or not real:
        if asked and not real:
            raise click.UsageError("--tier measured: a dry run tells of this machine's devices, not of --device")
        if asked:
            raise ConfigurationError("there is no managed environment on this machine", "run apply, or name --python")
        return None
    assert subject.path is not None and subject.model is not None
    layers = sum(share.layers + share.output for share in shares[:-1])
    parts = [float(share.layers + share.output) for share in shares[:-1]]
    try:
        return measure(subject.path, subject.model, options, python, layers, parts)
    except InferenceError as error:
        if asked:
            raise
        complain(f"{click.style('warning', fg='yellow')}: {clean(error)}")
        return None


def _managed_python() -> str | None:
    from ..core.store.layout import resolve_runtime_path, resolve_store_path

    path = os.path.join(resolve_runtime_path("", resolve_store_path("")), "current", "bin", "python")
    return path if os.access(path, os.X_OK) else None


def _published(subject: Subject, options: EstimateOptions, device: Device, tier: str) -> Estimate:
    if tier in ("measured", "header") and subject.shape is None:
        raise ConfigurationError(f"{subject.title} is no GGUF model whose shape is known", "use --tier catalog")
    if subject.shape is not None or (subject.kind == "chat" and subject.parameters):
        parameters = subject.shape.parameters if subject.shape is not None else subject.parameters
        quantization = (subject.quantization or "").lower().replace("f16", "fp16") or "fp16"
        if quantization not in BITS_PER_WEIGHT:
            raise ConfigurationError(f"no bits per weight are published of {quantization}", "use --tier header")
        assert parameters is not None
        return estimate_parameters(parameters, quantization, options.context, device.name, device.backend)
    if subject.weight_bytes is None:
        raise ConfigurationError(f"nothing tells how large {subject.title} is", "run modelfleet lock, or name its file")
    model = subject.model
    hidden = (model.embedding_length if model else None) or 1024
    heads = (model.heads if model else None) or 16
    return estimate_weights(subject.weight_bytes, subject.kind, device.name, device.backend, hidden, heads)


def _rows(answer: Estimate, devices: dict[str, Device]) -> Iterator[list[str]]:
    names = ("DEVICE", "WEIGHTS", "REPACK", "KV CACHE", "COMPUTE", "OUTPUT", "OVERHEAD", "TOTAL", "FREE", "OF", "")
    yield [click.style(name, bold=True) for name in names]
    for one in answer.devices:
        device = devices.get(one.name) or next((d for d in devices.values() if d.backend == "cpu"), None)
        capacity, free = (device.capacity, device.free) if device else (None, None)
        fits = ""
        if capacity is not None:
            if one.total > capacity:
                fits = click.style("does not fit", fg="red")
            elif free is not None and one.total > free:
                fits = click.style("fits, but not now", fg="yellow")
            else:
                fits = click.style("fits", fg="green")
        parts = [format_bytes(size) for size in (*one[1:], one.total)]
        have = [format_bytes(size) if size is not None else "?" for size in (free, capacity)]
        yield [clean(one.name), *parts, *have, fits]


def _document(
    subject: Subject, answer: Estimate, options: EstimateOptions, devices: dict[str, Device]
) -> dict[str, Any]:
    document = answer.to_dict()
    for one in document["devices"]:
        device = devices.get(one["name"])
        one["free"] = device.free if device else None
        one["capacity"] = device.capacity if device else None
    return {
        "schema_version": SCHEMA_VERSION,
        "verb": "estimate",
        "model": subject.title,
        "quantization": subject.quantization,
        "options": {**vars(options)},
        **{key: value for key, value in document.items() if key != "schema_version"},
    }


def _compare(as_json: bool) -> int:
    """Show the quantizations: the tutorial's estimates, and what was measured (sources: core.memory.catalog_tier)."""
    if as_json:
        rows = [
            {
                "quantization": name,
                "tutorial_quality_percent": TUTORIAL[name][0] if name in TUTORIAL else None,
                "tutorial_speed": TUTORIAL[name][1] if name in TUTORIAL else None,
                "tutorial_memory_percent": TUTORIAL[name][2] if name in TUTORIAL else None,
                "bits_per_weight": bits,
                "memory_percent_of_fp16": round(100 * bits / BITS_PER_WEIGHT["fp16"], 1),
                "perplexity_rise": PERPLEXITY_RISE[name],
            }
            for name, bits in BITS_PER_WEIGHT.items()
        ]
        say_json({"schema_version": SCHEMA_VERSION, "verb": "estimate", "compare": rows})
        return 0
    heads = ("", "TUTORIAL: QUALITY", "SPEED", "MEMORY", "MEASURED: BITS/WEIGHT", "MEMORY", "SAVED", "PERPLEXITY")
    rows_shown = [[click.style(head, bold=True) for head in heads]]
    for name, bits in BITS_PER_WEIGHT.items():
        quality, speed, memory = TUTORIAL.get(name, (None, None, None))
        share = bits / BITS_PER_WEIGHT["fp16"]
        rows_shown.append(
            [
                name,
                f"{quality} %" if quality is not None else "",
                f"{speed:g}x" if speed is not None else "",
                f"{memory} %" if memory is not None else "",
                f"{bits:.4g}",
                f"{share:.1%}",
                f"{1 - share:.1%}",
                f"+{PERPLEXITY_RISE[name]:.4f}",
            ]
        )
    for line in table(rows_shown):
        say(line)
    say()
    say("The tutorial's columns are its estimates; its savings are those of ideal 8- and 4-bit numbers against F32.")
    say("Measured: Llama-3.1-8B (llama.cpp's quantize README); perplexity: Llama-3-8B (quantize.cpp).")
    return 0
