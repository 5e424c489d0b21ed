"""The child of ``dry_run``: makes a model and a context without memory for them, and lets llama.cpp tell their sizes.

Runs as a file of its own under the managed environment's Python, which may hold another modelfleet or none. Its
arguments: the model's path and the options as JSON; with ``allocate`` the model is really loaded. llama.cpp's log
goes to standard output as it comes, since a failed assertion ends the process.
"""

import ctypes
import json
import os
import sys

CACHE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
LOAD_MODE_NONE = 0
MARK = "modelfleet:"
DONE = f"{MARK} made"


def say(text: str) -> None:
    """Tell the parent ``text`` on a line of its own."""
    os.write(1, f"\n{MARK} {text}\n".encode())


def main() -> int:
    """Make model and context; return 0 where both could be made."""
    path, options = sys.argv[1], json.loads(sys.argv[2])
    try:
        import llama_cpp
    except ImportError as error:
        say(f"no llama-cpp-python: {error}")
        return 3
    log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(
        lambda level, text, data: os.write(1, text or b"") and None
    )
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model_settings = llama_cpp.llama_model_default_params()
    for name in ("no_alloc", "load_mode"):
        if not hasattr(model_settings, name):
            say(f"llama-cpp-python {llama_cpp.__version__} has no {name}")
            return 3
    if not options.get("allocate"):
        model_settings.no_alloc = True
        model_settings.load_mode = LOAD_MODE_NONE
    model_settings.n_gpu_layers = options["gpu_layers"]
    model_settings.use_extra_bufts = options["repack"]
    parts = options["parts"]
    if parts:
        split = (ctypes.c_float * max(len(parts), llama_cpp.llama_max_devices()))(*parts)
        model_settings.tensor_split = ctypes.cast(split, ctypes.POINTER(ctypes.c_float))
    model = llama_cpp.llama_model_load_from_file(path.encode(), model_settings)
    if not model:
        return 1
    say(f"weights {llama_cpp.llama_model_size(model)}")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = options["context"]
    settings.n_batch = options["batch"]
    settings.n_ubatch = options["micro_batch"]
    settings.type_k = CACHE_TYPES[options["kv_type_k"]]
    settings.type_v = CACHE_TYPES[options["kv_type_v"]]
    settings.flash_attn_type = FLASH_ATTENTION[options["flash_attention"]]
    settings.n_seq_max = options["parallel"]
    settings.kv_unified = options["unified"]
    settings.swa_full = options["full_window"]
    context = llama_cpp.llama_init_from_model(model, settings)
    if not context:
        return 1
    say(f"made with {llama_cpp.__version__}")
    # Taking apart what was never allocated is not worth the risk.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
