"""Rows of a real, tiny transformer, and SAEs that are put in the place of what is trained."""

from functools import cached_property
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from sae_lightning.data.batch import Batch, Hooks, Shape
from sae_lightning.data.rows import RowsDataModule
from sae_lightning.inference import InferenceSAE
from sae_lightning.transformers.hooks import read
from sae_lightning.transformers.huggingface import HuggingFace
from tests.transformers.tiny_gpt2 import save_tiny_gpt2

D = 16
LAYER, MLP, LAYERS = ("transformer.h.0",), ("transformer.h.1.mlp:in", "transformer.h.1.mlp"), ("transformer.h.0", "transformer.h.1")
KINDS = {"autoencoder": Hooks(LAYER, LAYER), "transcoder": Hooks(MLP[:1], MLP[1:]), "crosscoder": Hooks(LAYERS, LAYERS)}


def tiny(folder: Path) -> HuggingFace:
    """A GPT-2 with random weights, large enough that what stands at its layers matters."""
    save_tiny_gpt2(folder)
    return Lively(str(folder), hooks=list(LAYER))


class Lively(HuggingFace):
    def _load(self):
        model = super()._load()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "wpe" not in name:
                parameter.mul_(8)
        return model


class TextRows(RowsDataModule):
    """12 held-out sequences of 10 tokens, BOS first and once in the middle; training rows are theirs."""

    def __init__(self, transformer: HuggingFace, kind: str = "autoencoder"):
        super().__init__(batch_size=16)
        self.transformer, self.kind, self.hook = transformer, kind, KINDS[kind].x[0]
        self.ids = torch.randint(1, 300, (12, 10), generator=torch.Generator().manual_seed(0))
        self.ids[:, 0], self.ids[3, 5] = 0, 0
        self.special = self.ids == 0

    @property
    def hooks(self) -> Hooks:
        return KINDS[self.kind]

    @property
    def shape(self) -> Shape:
        return Shape((D,) * len(self.hooks.x), (D,) * len(self.hooks.y))

    @property
    def scale(self):
        return torch.ones(self.shape.d_in), torch.ones(self.shape.d_out)

    @cached_property
    def rows(self) -> Batch:
        found = read(self.transformer.load(), [*self.hooks.x, *self.hooks.y], self.ids)
        x, y = (torch.cat([found[hook][~self.special] for hook in side], dim=1) for side in self.hooks)
        return Batch(x, x if self.kind != "transcoder" else y)

    def train_batch(self, index: int, rank: int = 0, ranks: int = 1) -> Batch:
        own = slice(index % 5 * 16 + rank, index % 5 * 16 + 16, ranks)
        x = self.rows.x[own]
        return Batch(x, x if self.rows.y is self.rows.x else self.rows.y[own])

    def held_out(self):
        yield self.rows

    def sample(self, n: int, seed: int) -> Batch:
        return self.rows

    def tokens_held_out(self, n: int):
        return self.ids[:n], self.special[:n]


class Instead(L.Callback):
    """What is trained is looked at as if it were this SAE."""

    def __init__(self, sae: InferenceSAE):
        self.sae = sae

    def on_fit_start(self, trainer, pl_module):
        pl_module.inference = lambda: self.sae


def given(W_enc: Tensor, W_dec: Tensor, b_dec: Tensor | None = None, k: int | None = None) -> InferenceSAE:
    """An SAE of these weights: relu, or top-k."""
    b_dec = torch.zeros(W_dec.shape[1]) if b_dec is None else b_dec
    weights = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": torch.zeros(len(W_enc)), "b_dec": b_dec}
    if k is None:
        weights["threshold"] = torch.zeros(len(W_enc))
    return InferenceSAE(weights, subtract=False, k=k)


def identity(d: int = D) -> InferenceSAE:
    """x = relu(x) − relu(−x), exactly."""
    W = torch.cat([torch.eye(d), -torch.eye(d)])
    return given(W, W)


def lossy(d: int = D, d_out: int | None = None) -> InferenceSAE:
    """48 random latents, of which the last 4 never fire, 8 active in each row; with a bias."""
    g = torch.Generator().manual_seed(1)
    W_enc, W_dec = torch.randn(48, d, generator=g), torch.randn(48, d_out or d, generator=g)
    W_enc[-4:] = 0
    return given(W_enc, W_dec, torch.randn(d_out or d, generator=g), k=8)
