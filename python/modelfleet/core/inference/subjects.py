"""What can be proved of a host's plan, how, and what cannot, with the reason and the command that proves it.

A model's kind (what it does) and its format decide which module of the child proves it. A check of the catalog says
what has to come out; kinds whose outcome is judged by its form alone (a finite result, an image, a sound) have one
that serves every model.
"""

import os
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from .speech import foreign

VERIFY = "./modelfleet verify -l HOST"

SIMILAR = ("A man is eating food.", "A man is eating a piece of bread.")
DISSIMILAR = "The girl is carrying a baby."
"""From the examples of sentence-transformers (semantic search): any model of sentences puts the first two closer."""

DEFAULT_CHECKS: Dict[str, Dict[str, Any]] = {
    "embedding": {"similar": list(SIMILAR), "dissimilar": DISSIMILAR},
    # The smallest that a UNet of Stable Diffusion takes well, and one step: it shows that the model computes.
    "diffusion": {"prompt": "a lighthouse on a cliff", "size": 128, "steps": 1},
    "onnx": {},
    "tts": {"text": "Good morning."},
    "stt": {},
}

# By kind and format: the child's kind. What is not here has no proof.
_PROVED_BY: Dict[Tuple[str, str], str] = {
    ("chat", "gguf"): "gguf",
    ("chat", "safetensors"): "transformers",
    ("chat", "pickle"): "transformers",
    ("embedding", "safetensors"): "embedding",
    ("embedding", "pickle"): "embedding",
    ("diffusion", "safetensors"): "diffusion",
    ("diffusion", "pickle"): "diffusion",
    **{(kind, "onnx"): "onnx" for kind in ("chat", "embedding", "diffusion", "controlnet", "tts", "stt")},
    **{(kind, form): "speech" for kind in ("tts", "stt") for form in ("safetensors", "pickle", "ggml")},
}


class Subject(NamedTuple):
    """What is to be proved: a model of the plan, what proves it, and what its result has to be.

    ``path`` is its file or folder, ``files`` the pinned SHA-256 of every file,
    both by path relative to the store; '' for bytes that nothing pins.
    """

    model: str
    kind: str
    path: str
    files: Dict[str, str]
    check: Dict[str, Any]
    placement: Optional[Dict[str, Any]] = None
    allow_pickle: bool = False
    file: str = ""
    """Its first file: the name that its record is kept under."""

    @property
    def prompt(self) -> str:
        """What it is asked, as one text."""
        return str(self.check.get("prompt") or self.check.get("text") or " | ".join(self.check.get("similar", [])))

    def request(self, root: str, output_folder: Optional[str]) -> Dict[str, Any]:
        """Return what the child is asked; ``root`` is the store's path."""
        return {
            "kind": self.kind,
            "path": f"{root}/{self.path}",
            "check": self.check,
            "placement": self.placement,
            "allow_pickle": self.allow_pickle,
            "output_folder": output_folder,
        }


class Unproved(NamedTuple):
    """A model that is not proved on this host: why, and what would prove it."""

    model: str
    reason: str
    command: str


def subjects(planned: Sequence[Mapping[str, Any]]) -> Tuple[List[Subject], List[Unproved]]:
    """Return what can be proved of a HostPlan's models, and what cannot; what is to be removed is neither."""
    found: List[Subject] = []
    unproved: List[Unproved] = []
    for model in planned:
        if model.get("action") == "remove":
            continue
        name = str(model.get("model"))
        reason, command = _why_not(model)
        if reason:
            unproved.append(Unproved(name, reason, command))
            continue
        kind, form = kind_and_format(model)
        files = {str(file["path"]): str(file.get("sha256") or "") for file in model["files"]}
        first = next(iter(files))
        found.append(
            Subject(
                *(name, _PROVED_BY[kind, form], str(model.get("unit") or first), files),
                check=_check(model, kind, form),
                placement=_placement(model),
                allow_pickle=model.get("allow_pickle") is True,
                file=first,
            )
        )
    return found, unproved


def kind_and_format(model: Mapping[str, Any]) -> Tuple[str, str]:
    """Return what a planned model does and the format of its weights; a plan of an earlier release tells less."""
    files = model.get("files") or [{"path": ""}]
    form = str(model.get("format") or ("gguf" if str(files[0].get("path")).endswith(".gguf") else ""))
    return str(model.get("kind") or ("chat" if form == "gguf" else "")), form


def _why_not(model: Mapping[str, Any]) -> Tuple[str, str]:
    kind, form = kind_and_format(model)
    if model.get("action") == "refuse":
        return "the plan refuses it", "./modelfleet plan -l HOST says why"
    if not model.get("files"):
        return "the plan names no files of it", "./modelfleet plan -l HOST"
    if (kind, form) not in _PROVED_BY:
        if kind == "controlnet":
            return "a ControlNet computes only beside the diffusion model that it steers", "load both with diffusers"
        return f"nothing here proves {kind or 'a model of unknown kind'} in format {form or 'unknown'}", VERIFY
    names = [str(file["path"]) for file in model["files"]]
    if _PROVED_BY[kind, form] == "speech":
        found = foreign(os.path.dirname(names[0]), map(os.path.basename, names))
        if found:
            return found
    alone = not model.get("unit") and names[0].endswith(".safetensors")
    if kind == "diffusion" and alone and not (model.get("check") or {}).get("configuration"):
        return (
            "it is one file of weights, without tokenizer and configuration",
            f"add check: {{configuration: FOLDER}}, the model's repository without its weights, then {VERIFY}",
        )
    if _check(model, kind, form) is None:
        return (
            "its catalog entry has no check",
            f"add check: {{prompt, expected}} to the entry in models_catalog_extra, then {VERIFY}",
        )
    return "", ""


def _check(model: Mapping[str, Any], kind: str, form: str) -> Any:
    default = DEFAULT_CHECKS.get("onnx" if form == "onnx" else kind)
    stated = model.get("check")
    if stated is None:
        return default
    return {**(default or {}), **stated}


def _placement(model: Mapping[str, Any]) -> Optional[Dict[str, Any]]:
    planned = model.get("placement")
    if not planned:
        return None
    return {
        "device": planned.get("device"),
        "backend": planned.get("backend"),
        "gpu_layers": planned.get("gpu_layers") or 0,
        "split": list(planned.get("split") or ()),
        "context": model.get("context"),
        "kv_type": model.get("kv_type"),
    }
