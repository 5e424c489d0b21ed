"""Which profiles of packages a host's models need."""

from typing import Iterable, Tuple

from .resolver.releases import PROFILES

AUTO = "auto"
_OF_FORMAT = {"gguf": "gguf", "onnx": "onnx"}
_OF_CATEGORY = {"embeddings": "embeddings", "image": "diffusion"}
# Nothing of this environment runs ggml's older files (whisper.cpp does).
_NONE = ("ggml",)


def profiles_of(models: Iterable[str]) -> Tuple[str, ...]:
    """Return the profiles that serve ``models``, each as ``FORMAT CATEGORY`` of a plan; gguf where there are none.

    A format that one library alone reads decides; else what the category is for; what is left takes torch.
    """
    found = set()
    for model in models:
        form, _, category = model.partition(" ")
        if form not in _NONE:
            found.add(_OF_FORMAT.get(form) or _OF_CATEGORY.get(category.split("/")[0], "torch"))
    return tuple(name for name in PROFILES if name in found) or ("gguf",)
