"""Small SAEs in float64, with parameters away from their starting values."""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sae_lightning.data.batch import Shape
from sae_lightning.models.base import SAE, MakeDictionary
from sae_lightning.models.crosscoder import crosscoder
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.models.transcoder import transcoder

D, D_OUT, F, BATCH = 6, 5, 24, 16


class Kind(NamedTuple):
    """What any architecture can be."""

    make: MakeDictionary
    shape: Shape


KINDS = {
    "autoencoder": Kind(Dictionary, Shape((D,), (D,))),
    "transcoder": Kind(transcoder, Shape((D,), (D_OUT,))),
    "transcoder, skip": Kind(partial(transcoder, skip=True), Shape((D,), (D_OUT,))),
    "crosscoder": Kind(crosscoder, Shape((D // 2, D // 2), (D // 2, D // 2))),
}
OTHERS = [kind for kind in KINDS if kind != "autoencoder"]
_small_is = ["autoencoder"]


@contextlib.contextmanager
def every_small_one_is(kind: str) -> Iterator[None]:
    """Inside, what `small` makes is of this kind."""
    _small_is.append(kind)
    try:
        yield
    finally:
        _small_is.pop()


def small(make: Callable[..., SAE], sparse: bool | None = None, seed: int = 0, **dictionary) -> SAE:
    """An SAE of 24 latents on rows of width 6, nothing at its initial value; every tenth latent is long dead."""
    torch.manual_seed(seed)
    kind = KINDS[_small_is[-1]]
    sae = make(partial(kind.make, kind.shape, d_sae=F, dead_after=100, sparse=sparse, **dictionary)).double()
    d = sae.dictionary
    with torch.no_grad():
        d.b_dec.copy_(0.3 * torch.randn(kind.shape.d_out))
        d.b_enc.copy_(0.1 * torch.randn(F))
        d.W_enc.add_(0.1 * torch.randn(F, D))
        if d.W_skip is not None:
            d.W_skip.copy_(0.3 * torch.randn(D_OUT, D))
        d.rows_since_fired[::10] = 1000
    return sae


def rows(seed: int = 1) -> Tensor:
    return torch.randn(BATCH, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pair(kind: str, seed: int = 1) -> tuple[Tensor, Tensor]:
    """x and y; the same tensor where y is x."""
    x = rows(seed)
    y = torch.randn(BATCH, D_OUT, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1000))
    return x, y if KINDS[kind].shape.d_out == D_OUT else x


def gradients(sae: SAE, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
    """Of the loss, by parameter; zeros where none came."""
    sae.zero_grad()
    sae.step(x, x if y is None else y).loss.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in sae.named_parameters()}


def cases(kind: str = "autoencoder") -> dict[str, Callable[[bool | None], SAE]]:
    """By name, form of the latents → SAE: the `CASES` of every file in cases/, which are called like the architectures."""
    found: dict[str, Callable[[bool | None], SAE]] = {}
    for path in sorted((Path(__file__).parent / "cases").glob("*.py")):
        found |= importlib.import_module(f"tests.models.cases.{path.stem}").CASES

    def of_kind(make: Callable[[bool | None], SAE], sparse: bool | None) -> SAE:
        with every_small_one_is(kind):
            return make(sparse)

    return {name: partial(of_kind, make) for name, make in found.items()}
