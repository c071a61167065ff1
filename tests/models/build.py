"""Small SAEs in float64, with parameters away from their starting values."""

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sae_lightning.data.batch import Shape
from sae_lightning.models.base import SAE
from sae_lightning.models.dictionary import Dictionary

D, F, BATCH = 6, 24, 16


def small(make: Callable[..., SAE], sparse: bool | None = None, seed: int = 0, **dictionary) -> SAE:
    """An SAE of 24 latents on rows of width 6, nothing at its initial value; every tenth latent is long dead."""
    torch.manual_seed(seed)
    sae = make(partial(Dictionary, Shape((D,), (D,)), d_sae=F, dead_after=100, sparse=sparse, **dictionary)).double()
    d = sae.dictionary
    with torch.no_grad():
        d.b_dec.copy_(0.3 * torch.randn(D))
        d.b_enc.copy_(0.1 * torch.randn(F))
        d.W_enc.add_(0.1 * torch.randn(F, D))
        d.rows_since_fired[::10] = 1000
    return sae


def rows(seed: int = 1) -> Tensor:
    return torch.randn(BATCH, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradients(sae: SAE, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
    """Of the loss, by parameter; zeros where none came."""
    sae.zero_grad()
    sae.step(x, x if y is None else y).loss.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in sae.named_parameters()}


def cases() -> dict[str, Callable[[bool | None], SAE]]:
    """By name, form of the latents → SAE: the `CASES` of every file in cases/, which are called like the architectures."""
    found: dict[str, Callable[[bool | None], SAE]] = {}
    for path in sorted((Path(__file__).parent / "cases").glob("*.py")):
        found |= importlib.import_module(f"tests.models.cases.{path.stem}").CASES
    return found
