"""Real models without training: configurations of the libraries' own classes, small, with random weights of one seed.

A program for the interpreter that has the libraries: ``tiny_models.py KIND FOLDER``. What a test has to know besides is
the JSON that it prints last.
"""

import json
import sys
from pathlib import Path
from typing import Any, Callable, Dict

SENTENCE = "one and one is two"
# Characters only, as the tokenizers of CLIP and Whisper have them before any merge.
CHARACTERS = "abcdefghijklmnopqrstuvwxyz"


def language(folder: Path) -> Dict[str, Any]:
    """A Llama of two layers; tells how it goes on after ``SENTENCE``, reckoned without cache or generate()."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<unk>", *sorted(set(SENTENCE.split())), *(f"w{number}" for number in range(60))]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=None,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    ids = torch.tensor([[words.index(word) for word in SENTENCE.split()]])
    with torch.inference_mode():
        for _ in range(4):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return {"expected": fast.decode(ids[0, -4:])}


def pickled(folder: Path) -> Dict[str, Any]:
    """The same as a pickle alone."""
    import torch
    from transformers import AutoModelForCausalLM

    told = language(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return told


def whisper(folder: Path) -> Dict[str, Any]:
    """A Whisper of one layer on either side."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

    vocabulary = _vocabulary(folder, ["<|endoftext|>", "<|startoftranscript|>"])
    tokenizer = WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    config = WhisperConfig(
        vocab_size=len(vocabulary),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        decoder_start_token_id=1,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "WhisperProcessor"}))
    return {"vocabulary": len(vocabulary)}


def vits(folder: Path) -> Dict[str, Any]:
    """A VITS that speaks letters."""
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    (folder / "vocab.json").write_text(json.dumps({letter: place for place, letter in enumerate(" " + CHARACTERS)}))
    VitsTokenizer(str(folder / "vocab.json"), pad_token="a", phonemize=False).save_pretrained(folder)
    config = VitsConfig(
        vocab_size=27,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=32,
        flow_size=16,
        spectrogram_bins=9,
        upsample_initial_channel=32,
        upsample_rates=[8, 8],
        upsample_kernel_sizes=[16, 16],
        prior_encoder_num_flows=1,
        prior_encoder_num_wavenet_layers=1,
        posterior_encoder_num_wavenet_layers=1,
        duration_predictor_num_flows=2,
        depth_separable_num_layers=1,
        wavenet_kernel_size=3,
    )
    VitsModel(config).save_pretrained(folder)
    return {}


def diffusion(folder: Path) -> Dict[str, Any]:
    """A Stable Diffusion whose parts have their real classes."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        norm_num_groups=16,
    )
    autoencoder = AutoencoderKL(
        block_out_channels=(16, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
        latent_channels=4,
    )
    words = folder / "words"
    words.mkdir()
    vocabulary = _vocabulary(words, ["<|startoftext|>", "<|endoftext|>"], "</w>")
    tokenizer = CLIPTokenizer(str(words / "vocab.json"), str(words / "merges.txt"), model_max_length=77)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    StableDiffusionPipeline(
        unet=unet,
        vae=autoencoder,
        text_encoder=text,
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)
    return {}


def graphs(folder: Path) -> Dict[str, Any]:
    """Graphs of ONNX: one that is right, and some that are not."""
    import numpy
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def save(name: str, nodes: Any, inputs: Any, outputs: Any, constants: Any = ()) -> None:
        graph = helper.make_graph(nodes, name, inputs, outputs, list(constants))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model)
        onnx.save(model, folder / f"{name}.onnx")

    weights = numpy.random.default_rng(0).standard_normal((8, 4), dtype=numpy.float32)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "tokens"])
    mask = helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", "tokens", 4])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "tokens", 4])
    save(
        "classifier",
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"]),
            helper.make_node("Mul", ["rows", "mask"], ["masked"]),
            helper.make_node("Softmax", ["masked"], ["scores"], axis=-1),
        ],
        [ids, mask],
        [scores],
        [numpy_helper.from_array(weights, "table")],
    )
    one = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    save(
        "infinite",
        [helper.make_node("Sub", ["x", "x"], ["zero"]), helper.make_node("Div", ["x", "zero"], ["y"])],
        [one],
        [result],
    )
    wide = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1 << 20, 1 << 10])
    save(
        "wide",
        [helper.make_node("Relu", ["x"], ["y"])],
        [wide],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b"])],
    )
    return {}


def _vocabulary(folder: Path, special: "list[str]", end: str = "") -> Dict[str, int]:
    """Write vocab.json and merges.txt of a byte-level tokenizer that knows letters only."""
    words = [*special, *CHARACTERS, "Ġ"] + ([letter + end for letter in CHARACTERS] if end else [])
    vocabulary = {word: place for place, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return vocabulary


KINDS: Dict[str, Callable[[Path], Dict[str, Any]]] = {
    "language": language,
    "pickled": pickled,
    "whisper": whisper,
    "vits": vits,
    "diffusion": diffusion,
    "graphs": graphs,
}


if __name__ == "__main__":
    target = Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    if sys.argv[1] != "graphs":
        import torch

        torch.manual_seed(0)
    sys.stdout.write("\n" + json.dumps(KINDS[sys.argv[1]](target)) + "\n")
