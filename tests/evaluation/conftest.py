"""Sources of rows that say themselves what they hold."""

import os

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture
def rows():
    """rows(x, y=x, directions=None, transformer=None, hook="", tokens=None, special=None) → RowsDataModule with exactly these held out."""
    from sae_lightning.data.batch import Batch, Shape
    from sae_lightning.data.rows import RowsDataModule

    class Given(RowsDataModule):
        def __init__(self, x: Tensor, y: Tensor | None = None, directions=None, transformer=None, hook="", tokens=None, special=None):
            super().__init__(batch_size=7)
            self.x, self.y, self.transformer, self.hook, self.tokens, self.special = (
                x,
                x if y is None else y,
                transformer,
                hook,
                tokens,
                special,
            )
            if directions is not None:
                self.directions = directions

        @property
        def shape(self) -> Shape:
            return Shape((self.x.shape[1],), (self.y.shape[1],))

        @property
        def scale(self):
            return torch.ones(self.x.shape[1]), torch.ones(self.y.shape[1])

        def train_batch(self, index: int, rank: int = 0, ranks: int = 1) -> Batch:
            return Batch(self.x, self.y)

        def held_out(self):
            for x, y in zip(self.x.split(7), self.y.split(7), strict=True):
                yield Batch(x, x if self.y is self.x else y)

        def sample(self, n: int, seed: int) -> Batch:
            return Batch(self.x[:n], self.y[:n])

        def tokens_held_out(self, n: int):
            assert self.tokens is not None
            assert self.special is not None
            return self.tokens[:n], self.special[:n]

    return Given


@pytest.fixture
def sae():
    """sae(W_enc, W_dec=W_enc, k=None, threshold=0) → InferenceSAE without biases."""
    from sae_lightning.inference import InferenceSAE

    def make(W_enc, W_dec=None, k=None, threshold=0.0):
        W_enc = torch.as_tensor(W_enc, dtype=torch.float32)
        W_dec = W_enc.clone() if W_dec is None else torch.as_tensor(W_dec, dtype=torch.float32)
        weights = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": torch.zeros(len(W_enc)), "b_dec": torch.zeros(W_dec.shape[1])}
        if k is None:
            weights["threshold"] = torch.full((len(W_enc),), threshold)
        return InferenceSAE(weights, subtract=W_enc.shape == W_dec.shape, k=k)

    return make


@pytest.fixture
def tiny_transformer():
    """A causal model with random weights, vocabulary 20, d 8, two layers."""
    from sae_lightning.transformers.base import Transformer

    class Tiny(Transformer):
        name = "tiny"
        loads = 0

        def identity(self):
            return {"name": self.name}

        def config(self):
            from transformers import LlamaConfig

            return LlamaConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=20,
                               max_position_embeddings=32, bos_token_id=0, eos_token_id=1, initializer_range=0.5)  # fmt: skip

        def tokenizer(self):
            raise NotImplementedError

        def load(self, device="cpu") -> nn.Module:
            from transformers import LlamaForCausalLM

            self.loads += 1
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = LlamaForCausalLM(self.config())
            return nn.Module.to(model, device).eval().requires_grad_(False)

    return Tiny(["model.layers.0"])


@pytest.fixture(scope="session")
def glassllm():
    """The real transformer, fetched once."""
    from sae_lightning.transformers.glassllm import GlassLLM

    return GlassLLM(cache=os.environ["SAE_LIGHTNING_TEST_CACHE"], hooks=["model.layers.1"])
