"""What llama.cpp decides by architecture: which layers keep what, and for how long.

Source: llama.cpp as llama-cpp-python 0.3.36 carries it, src/models/*.cpp (``load_arch_hparams``), llama-model.cpp
(``create_memory``), llama-hparams.cpp. Names are those of the key ``general.architecture``.
"""

from typing import Dict, FrozenSet, NamedTuple, Optional


class Window(NamedTuple):
    """How an architecture attends: every ``period``-th layer looks at all tokens, the others at a window of them.

    ``full_first``: the full layer is the first of each period, not the last. ``default`` is the window in tokens where
    the file gives none; ``fixed`` overrides the file. ``period`` 0: only the file's own pattern says.
    """

    period: int
    full_first: bool = False
    default: Optional[int] = None
    fixed: Optional[int] = None


WINDOWS: Dict[str, Window] = {
    "afmoe": Window(4),
    "cohere2": Window(4),
    "cohere2moe": Window(4, full_first=True),
    "exaone-moe": Window(4, default=128),
    "exaone4": Window(4, default=4096),
    "gemma2": Window(2, default=4096),
    "gemma3": Window(6),
    "gemma3n": Window(5),
    "gemma4": Window(0),
    "gpt-oss": Window(2),
    "granite_swa": Window(0),
    "laguna": Window(4, full_first=True),
    "llama4": Window(4, default=8192, fixed=8192),
    "maple": Window(0),
    "mellum": Window(4),
    "mimo2": Window(0),
    "muse-glimmer": Window(4),
    "olmo2": Window(4),
    "plamo3": Window(8),
    "smallthinker": Window(4, full_first=True, fixed=4096),
    "spark2_5": Window(0),
    "step35": Window(0),
}

# All layers keep a state of fixed size instead of keys and values.
RECURRENT: FrozenSet[str] = frozenset(("mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"))
# Layers without KV heads keep such a state, the others keys and values.
HYBRID_BY_HEADS: FrozenSet[str] = frozenset(
    ("jamba", "granitehybrid", "plamo2", "kimi-linear", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe")
)
# Every n-th layer keeps keys and values, the others a state.
HYBRID_BY_INTERVAL: Dict[str, int] = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "minimax-01": 8}
# Every layer keeps both.
HYBRID_BOTH: FrozenSet[str] = frozenset(("falcon-h1",))
# Nothing is kept between batches: embedding models and diffusion language models.
WITHOUT_CACHE: FrozenSet[str] = frozenset(
    (
        "bert",
        "dream",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "llada",
        "llada-moe",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "rnd1",
    )
)
# The softmax of attention is capped between matrix product and softmax, which flash attention does inside.
WITHOUT_FLASH_ATTENTION: FrozenSet[str] = frozenset(("grok",))

# Architectures whose compute buffers were compared with llama.cpp's own, over contexts, batches, cache types and
# sequences (benchmarks/memory_accuracy.py). Of others the graph is reckoned like a Llama's, and the answer says so.
COMPARED: FrozenSet[str] = frozenset(
    (
        "baichuan",
        "bloom",
        "cohere2",
        "command-r",
        "dbrx",
        "deepseek2",
        "ernie4_5",
        "exaone4",
        "falcon",
        "falcon-h1",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3n",
        "glm4",
        "glm4moe",
        "gpt-oss",
        "gpt2",
        "gptneox",
        "granite",
        "granitehybrid",
        "granitemoe",
        "hunyuan-dense",
        "internlm2",
        "jamba",
        "lfm2",
        "llama",
        "llama4",
        "mamba",
        "mamba2",
        "minicpm",
        "mistral3",
        "mpt",
        "nemotron",
        "nemotron_h",
        "olmo2",
        "olmoe",
        "phi2",
        "phi3",
        "phimoe",
        "qwen2",
        "qwen2moe",
        "qwen3",
        "qwen3moe",
        "qwen3next",
        "rwkv7",
        "seed_oss",
        "smollm3",
        "stablelm",
        "starcoder2",
    )
)
