"""Proof of an embedding model: of three sentences, the two that mean alike are nearer to each other than to the third.

Through sentence-transformers where it is installed, else through transformers with the pooling that the model's own
``1_Pooling/config.json`` names (mean or first token), scaled to length one.
Check: ``similar`` (two sentences), ``dissimilar`` (one), ``dimension`` (how many numbers a vector has; optional).
"""

import json
import math
import os
import time
from typing import Any, Callable, Dict, List, Tuple

from ..errors import ConfigurationError, InferenceError
from .computing import Meter, choose, options, weight_files
from .request import Request, texts, versions

Vectors = List[List[float]]
Embed = Callable[[List[str]], Vectors]
Count = Callable[[List[str]], int]


def prove(request: Request) -> Dict[str, Any]:
    """Embed the check's sentences and compare their angles.

    Raises ConfigurationError for a check without sense, InferenceError where the model cannot be loaded.
    """
    similar = request.check.get("similar")
    if not (isinstance(similar, list) and len(similar) == 2 and all(isinstance(one, str) for one in similar)):
        raise ConfigurationError(f"the check of {request.path} needs similar: two sentences", "add them to it")
    (dissimilar,) = texts(request, "dissimilar")
    files = weight_files(request)
    _refuse_code(request)
    device = choose(request)
    used = versions("sentence-transformers", "transformers", "torch")
    # Imported before the meter: what the library itself takes is not the model's memory.
    if "sentence-transformers" in used:
        import sentence_transformers  # noqa: F401

        load = _sentence_transformers
    else:
        import transformers  # noqa: F401

        load = _transformers
    meter = Meter(request, device, "embedding", files, f"modelfleet verify on a host with more memory: {request.path}")
    started = time.monotonic()
    embed, count = load(request, device.torch, options(files))
    load_seconds = time.monotonic() - started
    sentences = [*similar, dissimilar]
    embed(sentences)
    started = time.monotonic()
    first, second, third = embed(sentences)
    seconds = time.monotonic() - started
    alike = cosine(first, second)
    unlike = max(cosine(first, third), cosine(second, third))
    wanted = request.check.get("dimension")
    right = wanted in (None, len(first))
    return request.answer(
        backend=device.backend,
        device=device.name,
        output=f"similar {alike:.4f}, dissimilar {unlike:.4f}, dimension {len(first)}",
        expected=f"similar above dissimilar, dimension {'any' if wanted is None else wanted}",
        # A number that is none is above nothing.
        passed=right and alike > unlike,
        load_seconds=load_seconds,
        prompt_tokens_per_second=round(count(sentences) / seconds, 1),
        memory=meter.read(),
        versions=used,
        details={
            "dimension": len(first),
            "similarity": {"similar": round(alike, 6), "dissimilar": round(unlike, 6)}
            if math.isfinite(alike) and math.isfinite(unlike)
            else None,
            "library": "sentence-transformers" if load is _sentence_transformers else "transformers",
        },
    )


def cosine(one: List[float], other: List[float]) -> float:
    """Return the cosine of the angle between two vectors; not a number where one of them has no direction."""
    lengths = math.sqrt(sum(x * x for x in one)) * math.sqrt(sum(x * x for x in other))
    return sum(x * y for x, y in zip(one, other)) / lengths if lengths else math.nan


def _sentence_transformers(request: Request, device: str, kept: Dict[str, Any]) -> Tuple[Embed, Count]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        request.path,
        device=device,
        local_files_only=True,
        trust_remote_code=False,
        model_kwargs={"use_safetensors": kept["use_safetensors"]},
    )

    def embed(sentences: List[str]) -> Vectors:
        return [vector.tolist() for vector in model.encode(sentences, show_progress_bar=False)]

    return embed, lambda sentences: _tokens(model.tokenizer, sentences)


def _transformers(request: Request, device: str, kept: Dict[str, Any]) -> Tuple[Embed, Count]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request.path, **kept)
    model = AutoModel.from_pretrained(request.path, **kept)
    model = model.to(device).eval()
    pooling = _document(os.path.join(request.path, "1_Pooling", "config.json")) or {}
    first_token = bool(pooling.get("pooling_mode_cls_token")) if isinstance(pooling, dict) else False

    def embed(sentences: List[str]) -> Vectors:
        batch = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt").to(device)
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state
        if first_token:
            pooled = hidden[:, 0]
        else:
            mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * mask).sum(1) / mask.sum(1)
        return [vector.tolist() for vector in torch.nn.functional.normalize(pooled, dim=1).float().cpu()]

    return embed, lambda sentences: _tokens(tokenizer, sentences)


def _tokens(tokenizer: Any, sentences: List[str]) -> int:
    return sum(len(ids) for ids in tokenizer(sentences)["input_ids"])


def _refuse_code(request: Request) -> None:
    """Raise InferenceError where the model wants classes of its own: older sentence-transformers run them unasked."""
    modules = _document(os.path.join(request.path, "modules.json")) or []
    for module in modules if isinstance(modules, list) else []:
        name = str(module.get("type")) if isinstance(module, dict) else "?"
        if not name.startswith("sentence_transformers."):
            raise InferenceError(f"{request.path}: modules.json wants code of its own: {name[:100]}", "do not load it")


def _document(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as source:
            return json.load(source)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InferenceError(f"{path} is not JSON: {error}", "run audit to see whether the file is whole") from None
