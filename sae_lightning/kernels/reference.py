"""What is done with sparse entries, in plain PyTorch: always there, and what every other backend is held equal to.

An entry is (row, latent, value). Entries stand row by row: `offsets[i]` is where row i begins. Sorted by latent instead, they turn both
weight gradients into the same weighted sum over rows.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_lightning.kernels import memory
from sae_lightning.shapes import Bool, Float, Int


class Entries(NamedTuple):
    """Where the entries of a sparse [batch, d_sae] array stand."""

    rows: Int[Tensor, " n"]
    latents: Int[Tensor, " n"]
    offsets: Int[Tensor, " batch"]
    d_sae: int


class ByLatent(NamedTuple):
    """The same entries in the order of their latents: latent j's begin at `offsets[j]` of `order`."""

    order: Int[Tensor, " n"]
    rows: Int[Tensor, " n"]
    offsets: Int[Tensor, " d_sae"]


def encode(x: Float[Tensor, "batch d"], W: Float[Tensor, "d_sae d"], b: Float[Tensor, " d_sae"]) -> Float[Tensor, "batch d_sae"]:
    """x Wᵀ + b."""
    return torch.addmm(b, x, W.T, out=memory.empty((len(x), len(W)), like=x))


def top_k(h: Float[Tensor, "batch d_sae"], k: int) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
    """The k largest h of each row, 0 in place of what is negative, and their latents (of values that are 0: any others)."""
    values, latents = h.topk(k, dim=1, sorted=False)
    return values.relu(), latents


def keep_top_k_(h: Float[Tensor, "batch n"], k: int) -> Float[Tensor, "batch n"]:
    """Sets everything to 0, in place, but the k largest positive h of each row."""
    values, latents = top_k(h, k)
    return h.zero_().scatter_(1, latents, values)


def above(
    h: Float[Tensor, "batch d_sae"], threshold: Float[Tensor, " d_sae"], most: int
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " batch"]] | None:
    """Every h over its latent's threshold, or a NaN: (values, rows, latents, offsets). None where there are more than `most`."""
    over = (h <= threshold).logical_not_()
    if int(over.count_nonzero()) > most:
        return None
    at = _places(over)
    rows, latents = at // h.shape[1], at % h.shape[1]
    per_row = torch.bincount(rows, minlength=len(h))
    return h[rows, latents], rows, latents, per_row.cumsum(0) - per_row


def _places(mask: Bool[Tensor, "batch d_sae"]) -> Int[Tensor, " n"]:
    """Where it is true, row by row. Eight bytes at a time: nearly all are false."""
    flat = mask.flatten()
    if len(flat) % 8:
        return flat.nonzero()[:, 0]
    words = flat.view(torch.int64).nonzero()[:, 0]
    which, byte = flat.view(-1, 8).index_select(0, words).nonzero(as_tuple=True)
    return words[which] * 8 + byte


def by_latent(entries: Entries) -> ByLatent:
    """Sorts entries by latent, stably, so that sums over them have one order."""
    latents, order = entries.latents.sort(stable=True)
    starts = torch.searchsorted(latents, torch.arange(entries.d_sae, device=latents.device))
    return ByLatent(order, entries.rows[order], starts)


def weighted_sum(
    weights: Float[Tensor, " n"], index: Int[Tensor, " n"], table: Float[Tensor, "m d"], offsets: Int[Tensor, " bags"]
) -> Float[Tensor, "bags d"]:
    """out[b] = Σ over the entries i of bag b of weights[i] · table[index[i]]; bags stand one after another, b begins at offsets[b]."""
    if len(index) == 0:
        return table.new_zeros(len(offsets), table.shape[1])
    return F.embedding_bag(index, table, offsets, mode="sum", per_sample_weights=weights)


def products(a: Float[Tensor, "batch d"], W: Float[Tensor, "d_sae d"], entries: Entries) -> Float[Tensor, " n"]:
    """⟨a[row], W[latent]⟩ at every entry: the gradient that a weighted sum hands to its weights."""
    if len(entries.rows) == 0:
        return a.new_zeros(0)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(a, W, entries.latents, entries.offsets, entries.rows, 0)


def positive(values: Float[Tensor, "batch n"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " batch"]]:
    """How many values of each column and of each row are positive. A block of rows at a time: a sum of booleans first makes integers of all of them."""
    per_row = torch.empty(len(values), dtype=torch.int64, device=values.device)
    per_column = torch.zeros(values.shape[1], dtype=torch.int64, device=values.device)
    for first in range(0, len(values), 256):
        is_positive = values[first : first + 256] > 0
        per_column += is_positive.sum(0)
        per_row[first : first + 256] = is_positive.sum(1)
    return per_column, per_row


def sum_per_latent(values: Tensor, latents: Int[Tensor, " n"], d_sae: int) -> Tensor:
    """Σ of the values of each latent."""
    return values.new_zeros(d_sae).index_add(0, latents, values)


def project_(gradient: Float[Tensor, "d_sae d"], W: Float[Tensor, "d_sae d"]) -> None:
    """Takes from each row of the gradient its part along the same row of W."""
    gradient -= (gradient * W).sum(1, keepdim=True) / W.square().sum(1, keepdim=True) * W


def normalise_(W: Float[Tensor, "d_sae d"]) -> None:
    """Divides each row by its norm."""
    F.normalize(W, dim=1, out=W)
