"""Proof of a speech model through transformers: a synthetic tone is transcribed, a sentence is spoken.

Folders with safetensors of the model types below are proved. The catalog's other files are another program's:
whisper.cpp's ``ggml-*.bin``, and XTTS and Bark as pickle of their own packages, which no part of the managed
environment reads. They are answered as unproven, with the command that proves them.
Check: text to speech ``text``; speech to text nothing.
"""

import json
import math
import os
import time
from typing import Any, Dict, Iterable, List, Optional, Tuple

from ..errors import InferenceError
from .computing import Meter, choose, options, weight_files
from .request import Request, UnprovenError, texts, versions

RATE = 16000
TONE_SECONDS, TONE_HERTZ = 2, 440
MAXIMUM_TOKENS = 16
# Model types of transformers, by what they do.
TRANSCRIBING = ("whisper",)
SPEAKING = ("vits", "bark")


def prove(request: Request) -> Dict[str, Any]:
    """Transcribe or speak. Raises UnprovenError for files that nothing in the environment reads."""
    _refuse_foreign(request)
    path = os.path.join(request.path, "config.json")
    try:
        with open(path, encoding="utf-8") as source:
            kind = json.load(source).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise InferenceError(f"{path} cannot be read: {error}", "run audit to see whether the model is whole") from None
    if kind not in TRANSCRIBING + SPEAKING:
        raise UnprovenError(
            f"a model of type {str(kind)[:50]!r} is none of {', '.join(TRANSCRIBING + SPEAKING)}",
            "the program that the model was made for",
        )
    files = weight_files(request)
    device = choose(request)
    does = "stt" if kind in TRANSCRIBING else "tts"
    meter = Meter(request, device, does, files, f"modelfleet verify on a host with more memory: {request.path}")
    started = time.monotonic()
    output, expected, passed, details = (_transcribe if does == "stt" else _speak)(
        request, device.torch, options(files)
    )
    seconds = time.monotonic() - started
    load_seconds = details.pop("load_seconds")
    return request.answer(
        backend=device.backend,
        device=device.name,
        output=output,
        expected=expected,
        passed=passed,
        load_seconds=load_seconds,
        memory=meter.read(),
        versions=versions("transformers", "torch", "safetensors"),
        details={**details, "run_seconds": round(seconds - load_seconds, 3)},
    )


def foreign(folder: str, names: Iterable[str]) -> Optional[Tuple[str, str]]:
    """Return why files of these names are another program's, and the command that proves them; None: they are not."""
    names = sorted(names)
    if any(name.endswith(".safetensors") for name in names):
        return None
    for name in names:
        if name.startswith("ggml-") and name.endswith(".bin"):
            return f"{name} is whisper.cpp's", f"whisper-cli --model {folder}/{name} --file SPEECH.wav"
        if name.endswith(".pth"):
            return (
                f"{name} is a pickle of Coqui's own package",
                f'tts --model_path {folder} --config_path {folder}/config.json --text "One, two." --out_path x.wav',
            )
        if name.endswith("_2.pt"):
            return (
                f"{name} is a pickle of Suno's own package",
                f'python -m bark --text "One, two." --output_filename x.wav, with {folder} as its folder of models',
            )
    return None


def _refuse_foreign(request: Request) -> None:
    whole = os.path.isdir(request.path)
    folder = request.path if whole else os.path.dirname(request.path)
    found = foreign(folder, os.listdir(folder) if whole else [os.path.basename(request.path)])
    if found:
        raise UnprovenError(*found)


def _transcribe(request: Request, device: str, kept: Dict[str, Any]) -> Tuple[str, str, bool, Dict[str, Any]]:
    """Let the model hear a tone: tokens of its vocabulary come out, and the same when it hears it again."""
    import numpy
    import torch
    from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

    started = time.monotonic()
    processor = AutoProcessor.from_pretrained(request.path, **kept)
    model = AutoModelForSpeechSeq2Seq.from_pretrained(request.path, **kept)
    model = model.to(device).eval()
    load_seconds = time.monotonic() - started
    tone = numpy.array(_tone(), dtype="float32")
    heard = processor(tone, sampling_rate=RATE, return_tensors="pt")["input_features"].to(device)
    with torch.inference_mode():
        start = torch.tensor([[model.config.decoder_start_token_id]], device=device)
        finite = bool(torch.isfinite(model(input_features=heard, decoder_input_ids=start).logits).all())
        runs: List[List[int]] = [
            model.generate(heard, max_new_tokens=MAXIMUM_TOKENS, do_sample=False, num_beams=1)[0].tolist()
            for _ in range(2)
        ]
    tokens = runs[0]
    inside = bool(tokens) and all(0 <= one < model.config.vocab_size for one in tokens)
    text = processor.batch_decode([tokens], skip_special_tokens=True)[0]
    return (
        text,
        "finite, tokens of the vocabulary, the same when it is heard again",
        finite and inside and runs[0] == runs[1],
        {"tokens": tokens, "sample": f"{TONE_SECONDS} s of {TONE_HERTZ} Hz", "load_seconds": load_seconds},
    )


def _speak(request: Request, device: str, kept: Dict[str, Any]) -> Tuple[str, str, bool, Dict[str, Any]]:
    """Let the model say the check's ``text``: sound that is finite and no silence."""
    import torch
    from transformers import AutoModelForTextToWaveform, AutoTokenizer

    (text,) = texts(request, "text")
    started = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(request.path, **kept)
    model = AutoModelForTextToWaveform.from_pretrained(request.path, **kept)
    model = model.to(device).eval()
    load_seconds = time.monotonic() - started
    torch.manual_seed(0)
    inputs = tokenizer(text, return_tensors="pt").to(device)
    with torch.inference_mode():
        wave = (model.generate(**inputs) if model.config.model_type == "bark" else model(**inputs).waveform)[0]
    finite, loudest = bool(torch.isfinite(wave).all()), float(wave.abs().max()) if wave.numel() else 0.0
    rate = int(getattr(model.config, "sampling_rate", 0) or getattr(model.generation_config, "sample_rate", RATE))
    return (
        f"{wave.numel() / rate:.2f} s of sound, loudest {loudest:.4f}",
        "sound that is finite and no silence",
        finite and loudest > 0,
        {"samples": int(wave.numel()), "rate": rate, "load_seconds": load_seconds},
    )


def _tone() -> List[float]:
    return [0.5 * math.sin(2 * math.pi * TONE_HERTZ * number / RATE) for number in range(RATE * TONE_SECONDS)]
