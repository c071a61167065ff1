"""A transformer and a text that cost nothing, to make stores of."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sae_lightning.data.harvest import Harvest
from sae_lightning.data.rows import generator
from sae_lightning.data.text import Text
from sae_lightning.transformers.base import Transformer

BOS, EOS = 0, 1
NAN, LOUD = 62, 63
"""Tokens that a `spoilt` transformer embeds as NaN, and with a norm beyond float16."""
HOOKS = ["model.layers.0", "model.layers.1.mlp:in"]
D, VOCABULARY = 16, 64


class TinyLlama(Transformer):
    """Two layers, random but fixed weights. `loads` counts how often its weights were asked for."""

    name = "tiny"

    def __init__(self, spoilt: bool = False):
        super().__init__(HOOKS)
        self.spoilt, self.loads = spoilt, 0

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "spoilt": self.spoilt, "dtype": self.dtype}

    def config(self):
        from transformers import LlamaConfig

        return LlamaConfig(
            hidden_size=D,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=VOCABULARY,
            max_position_embeddings=64,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )

    def tokenizer(self):
        raise NotImplementedError

    def special_ids(self) -> set[int]:
        return {BOS, EOS}

    def load(self, device: str | torch.device = "cpu") -> nn.Module:
        from transformers import LlamaForCausalLM

        self.loads += 1
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = LlamaForCausalLM(self.config()).eval().requires_grad_(False)
        if self.spoilt:
            model.model.embed_tokens.weight[NAN] = float("nan")
            model.model.embed_tokens.weight[LOUD] *= 1e8
        return nn.Module.to(model, device)


class RandomText(Text):
    """Sequence i is BOS and ordinary tokens drawn by (seed, i); `length` sequences. `rare` stands in one sequence of ten, at its end."""

    name = "random"

    def __init__(self, length: int = 10**9, rare: int | None = None, highest: int = 62):
        self.length, self.rare, self.highest = length, rare, highest

    def identity(self) -> dict[str, Any]:
        return {"length": self.length, "rare": self.rare, "highest": self.highest}

    def check(self) -> None:
        pass

    def sequences(self, transformer: Transformer, context_length: int, start: int, seed: int) -> Iterator[list[int]]:
        for i in range(start, self.length):
            tokens = torch.randint(2, self.highest, (context_length - 1,), generator=generator(seed, i)).tolist()
            if self.rare is not None and i % 10 == 3:
                tokens[-1] = self.rare
            yield [BOS, *tokens]


def harvest(stores: Path, **settings: Any) -> Harvest:
    """4 shards of 16 sequences of 16 tokens, unless told otherwise."""
    transformer, text = settings.pop("transformer", None) or TinyLlama(), settings.pop("text", None) or RandomText()
    defaults = {"context_length": 16, "max_tokens": 1024, "shard_rows": 256, "forward_batch_size": 8, "dtype": "float32"}
    return Harvest(transformer, text, **{**defaults, "stores": stores, **settings})


def files(folder: Path) -> dict[str, bytes]:
    """Content of all files of a store but the stamps, the lock and what the lock says: those are this machine's."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in (".verified.json", ".lock")}
