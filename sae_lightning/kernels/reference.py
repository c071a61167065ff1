"""Sparse decoding and its gradients in plain PyTorch: what every other backend is held equal to.

An entry is (row, latent, value). Entries stand row by row: `offsets[i]` is where row i begins. Sorted by latent instead, they turn both
weight gradients into the same weighted sum over rows: that sort is made once (`ByLatent`) and shared.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


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


def by_latent(entries: Entries) -> ByLatent:
    """Sorts entries by latent, stably, so that sums over them have one order."""
    latents, order = entries.latents.sort(stable=True)
    starts = torch.searchsorted(latents, torch.arange(entries.d_sae, device=latents.device))
    return ByLatent(order, entries.rows[order], starts)


def weighted_sum(
    weights: Float[Tensor, " n"], index: Int[Tensor, " n"], table: Float[Tensor, "m d"], offsets: Int[Tensor, " bags"]
) -> Tensor:
    """out[b] = Σ over the entries i of bag b of weights[i] · table[index[i]]; bags stand one after another, b begins at offsets[b]."""
    if len(index) == 0:
        return table.new_zeros(len(offsets), table.shape[1])
    return F.embedding_bag(index, table, offsets, mode="sum", per_sample_weights=weights)


def products(a: Float[Tensor, "batch d"], W: Float[Tensor, "d_sae d"], entries: Entries) -> Float[Tensor, " n"]:
    """⟨a[row], W[latent]⟩ at every entry: the gradient that a weighted sum hands to its weights."""
    if len(entries.rows) == 0:
        return a.new_zeros(0)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(a, W, entries.latents, entries.offsets, entries.rows, 0)


def sum_per_latent(values: Float[Tensor, " n"], entries: Entries) -> Float[Tensor, " d_sae"]:
    """Σ of the values of each latent."""
    return values.new_zeros(entries.d_sae).index_add(0, entries.latents, values)


class Decode(torch.autograd.Function):
    """out[row] = Σ value · W_dec[latent]."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, entries: Entries, sort: Any) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.entries, ctx.sort = entries, sort
        return weighted_sum(values, entries.latents, W_dec, entries.offsets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, W_dec = ctx.saved_tensors
        grad = grad.contiguous()
        d_values = products(grad, W_dec, ctx.entries) if ctx.needs_input_grad[0] else None
        d_W = None
        if ctx.needs_input_grad[1]:
            sort = ctx.sort()
            d_W = weighted_sum(values[sort.order], sort.rows, grad, sort.offsets)
        return d_values, d_W, None, None


class Pick(torch.autograd.Function):
    """h[row, latent] of an h = (x − b_dec) W_encᵀ + b_enc that is off the tape; the gradient goes straight to what h was made of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, h: Tensor, entries: Entries, sort: Any) -> Tensor:
        ctx.save_for_backward(x, W_enc)
        ctx.entries, ctx.sort = entries, sort
        return h[entries.rows, entries.latents].to(b_enc.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, W_enc = ctx.saved_tensors
        needs_x, needs_W, needs_b, *_ = ctx.needs_input_grad
        d_x = weighted_sum(grad, ctx.entries.latents, W_enc, ctx.entries.offsets) if needs_x else None
        d_W = None
        if needs_W:
            sort = ctx.sort()
            d_W = weighted_sum(grad[sort.order], sort.rows, x, sort.offsets)
        return d_x, d_W, sum_per_latent(grad, ctx.entries) if needs_b else None, None, None, None


class Attach(torch.autograd.Function):
    """All of h: the dense counterpart of `Pick`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, h: Tensor) -> Tensor:
        ctx.save_for_backward(x, W_enc)
        return h.to(b_enc.dtype, copy=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, W_enc = ctx.saved_tensors
        needs_x, needs_W, needs_b, *_ = ctx.needs_input_grad
        return grad @ W_enc if needs_x else None, grad.T @ x if needs_W else None, grad.sum(0) if needs_b else None, None
