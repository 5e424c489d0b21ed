"""Proof of a diffusion model through diffusers: few steps at a small size, the image kept for the report.

A folder in diffusers' layout (``model_index.json``) says all there is to know. A single file has weights and neither
tokenizer nor configuration: the check names a folder of them (``configuration``: the model's repository without its
weights), since there is no network to get them from.
Check: ``prompt``, ``size`` (pixels of each side, default 64), ``steps`` (default 1), ``configuration`` (optional).
"""

import os
import time
from typing import Any, Dict

from ..errors import ConfigurationError
from .computing import Meter, choose, options, weight_files
from .request import Request, UnprovenError, texts, versions

DEFAULT_SIZE, MAXIMUM_SIZE = 64, 2048
DEFAULT_STEPS, MAXIMUM_STEPS = 1, 100
SEED = 0


def prove(request: Request) -> Dict[str, Any]:
    """Draw the check's ``prompt``: pixels that are numbers, not all the same, in an image of the size asked for.

    Raises ConfigurationError for a check without sense, UnprovenError where the memory or a configuration is missing.
    """
    import torch
    from diffusers import DiffusionPipeline

    (prompt,) = texts(request, "prompt")
    size = _number(request, "size", DEFAULT_SIZE, MAXIMUM_SIZE)
    steps = _number(request, "steps", DEFAULT_STEPS, MAXIMUM_STEPS)
    files = weight_files(request)
    device = choose(request)
    command = f"modelfleet verify on a host with more memory: {request.path}"
    meter = Meter(request, device, "diffusion", files, command)
    kept: Dict[str, Any] = {
        **options(files),
        # Half precision computes nothing on most processors.
        "torch_dtype": torch.float32 if device.torch == "cpu" else torch.float16,
    }
    started = time.monotonic()
    if os.path.isdir(request.path):
        pipeline = DiffusionPipeline.from_pretrained(request.path, **kept)
    else:
        pipeline = _single_file(request, kept)
    pipeline = pipeline.to(device.torch)
    pipeline.set_progress_bar_config(disable=True)
    load_seconds = time.monotonic() - started
    # A filter would black out what it takes for harmful: a proof of one step is noise.
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None
    started = time.monotonic()
    # On the CPU whatever the device: the same noise everywhere.
    noise = torch.Generator("cpu").manual_seed(SEED)
    pixels = pipeline(
        prompt, height=size, width=size, num_inference_steps=steps, generator=noise, output_type="np"
    ).images[0]
    seconds = time.monotonic() - started
    finite, varied = bool((pixels == pixels).all()), float(pixels.max() - pixels.min())
    image = _keep(request, pixels) if finite else None
    return request.answer(
        backend=device.backend,
        device=device.name,
        output=f"{pixels.shape[1]} x {pixels.shape[0]} pixels, values from {pixels.min():.3f} to {pixels.max():.3f}",
        expected=f"{size} x {size} pixels, all of them numbers, not all the same",
        passed=finite and varied > 0 and pixels.shape[:2] == (size, size),
        load_seconds=load_seconds,
        memory=meter.read(),
        versions=versions("diffusers", "transformers", "torch", "accelerate"),
        details={
            "image": image,
            "pipeline": type(pipeline).__name__,
            "steps": steps,
            "seconds_per_step": round(seconds / steps, 3),
            "mean": round(float(pixels.mean()), 6) if finite else None,
        },
    )


def _single_file(request: Request, kept: Dict[str, Any]) -> Any:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

    folder = request.check.get("configuration")
    name = os.path.basename(request.path)
    if not folder:
        raise UnprovenError(
            f"{name} has weights alone, and its tokenizer and configuration are not there",
            "modelfleet verify, with the check's configuration naming the model's repository without its weights",
        )
    index = os.path.join(str(folder), "model_index.json")
    try:
        with open(index, encoding="utf-8") as source:
            text = source.read()
    except OSError as error:
        raise ConfigurationError(f"{index} cannot be read: {error.strerror}", "name a folder that has it") from None
    classes = (StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline, StableDiffusionPipeline)
    found = next((one for one in classes if f'"{one.__name__}"' in text), None)
    if found is None:
        known = ", ".join(one.__name__ for one in classes)
        raise ConfigurationError(f"{index} is of no pipeline that the proof knows", f"it knows {known}")
    return found.from_single_file(request.path, config=str(folder), **kept)


def _keep(request: Request, pixels: Any) -> "str | None":
    """Write the image into the request's folder and return its path; None where there is no folder."""
    if not request.output_folder:
        return None
    from PIL import Image

    name = os.path.splitext(os.path.basename(request.path.rstrip("/")))[0]
    path = os.path.join(request.output_folder, f"{name}.png")
    Image.fromarray((pixels.clip(0, 1) * 255).round().astype("uint8")).save(path)
    # For whoever reads the report, as the store's other files are.
    os.chmod(path, 0o644)
    return path


def _number(request: Request, name: str, default: int, most: int) -> int:
    value = request.check.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ConfigurationError(f"{name} in the check of {request.path}: found {value!r}, wanted 1 to {most}")
    return value
