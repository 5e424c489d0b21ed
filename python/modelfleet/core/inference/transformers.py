"""Proof of a language model in safetensors through transformers: greedy generation, as ``llama`` has it for GGUF.

Check: ``prompt``; ``expected``, what has to come first (optional: without it two ways to the same tokens have to
agree, with the cache and without it).
"""

import time
from typing import Any, Dict, List

from ..errors import ConfigurationError
from .computing import Meter, choose, options, weight_files
from .request import Request, texts, versions

MAXIMUM_TOKENS = 16


def prove(request: Request) -> Dict[str, Any]:
    """Continue the check's ``prompt`` greedily. Raises ConfigurationError for a check without one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (prompt,) = texts(request, "prompt")
    expected = request.check.get("expected") or ""
    files = weight_files(request)
    device = choose(request)
    meter = Meter(request, device, "other", files, f"modelfleet verify on a host with more memory: {request.path}")
    kept = options(files)
    started = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(request.path, **kept)
    model = AutoModelForCausalLM.from_pretrained(request.path, dtype="auto", **kept)
    model = model.to(device.torch).eval()
    load_seconds = time.monotonic() - started
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(device.torch)
    if not ids.shape[1]:
        raise ConfigurationError(f"the prompt {prompt!r} has no tokens in {request.path}", "choose another")
    with torch.inference_mode():
        started = time.monotonic()
        logits = model(ids).logits[0, -1]
        finite = bool(torch.isfinite(logits).all())
        prompt_seconds = time.monotonic() - started
        started = time.monotonic()
        whole = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MAXIMUM_TOKENS,
            do_sample=False,
            num_beams=1,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        )[0]
        seconds = time.monotonic() - started
        new = [int(one) for one in whole[ids.shape[1] :]]
        again = _without_cache(model, ids, len(new)) if not expected else new
    output = tokenizer.decode(new, skip_special_tokens=True)
    more = seconds - prompt_seconds
    return request.answer(
        backend=device.backend,
        device=device.name,
        output=output,
        expected=expected or "finite, and the same tokens with the cache and without it",
        passed=finite and (output.startswith(expected) if expected else bool(new) and new == again),
        load_seconds=load_seconds,
        prompt_tokens_per_second=round(ids.shape[1] / prompt_seconds, 1),
        generation_tokens_per_second=round((len(new) - 1) / more, 1) if len(new) > 1 and more > 0 else None,
        memory=meter.read(),
        versions=versions("transformers", "torch", "safetensors", "tokenizers"),
        details={"tokens": new, "dtype": str(model.dtype).replace("torch.", ""), "finite": finite},
    )


def _without_cache(model: Any, ids: Any, count: int) -> List[int]:
    """Return the ``count`` likeliest tokens one after the other, each from all before it reckoned anew."""
    import torch

    new: List[int] = []
    for _ in range(count):
        following = model(ids, use_cache=False).logits[0, -1].argmax()
        new.append(int(following))
        ids = torch.cat([ids, following.view(1, 1)], dim=1)
    return new
