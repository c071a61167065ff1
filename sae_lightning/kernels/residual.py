"""How much of a residual a few latents explain, with the gradient made on the way: a block of rows at a time, nothing of a batch's size is kept."""

import torch
from torch import Tensor

from sae_lightning.kernels import ops

BLOCK = 1024
"""Rows that are worked on together."""


@torch.no_grad()
def _explain(h: Tensor, latents: Tensor, k: int, e: Tensor, centred: Tensor, W_dec: Tensor, need: bool) -> list[Tensor]:
    """Σ‖e − ê‖² over the batch, ê = f W_dec with f the k largest relu(h) of each row among `latents`, whose decoder rows W_dec are.

    Where there is `need`, also its gradients with respect to the latents' encoder rows, biases and decoder rows.
    """
    n, d = len(latents), e.shape[1]
    total = e.new_zeros((), dtype=torch.float64)
    d_W_enc, d_b, d_W_dec = e.new_zeros(n, centred.shape[1]), e.new_zeros(n), e.new_zeros(n, d)
    rows = min(BLOCK, len(e))
    chosen, left, to_f = h.new_empty(rows, n), e.new_empty(rows, d), e.new_empty(rows, n)
    for first in range(0, len(e), BLOCK):
        part = slice(first, first + BLOCK)
        m = len(e[part])
        f = torch.index_select(h[part], 1, latents, out=chosen[:m]).to(e.dtype)
        ops.backend(f).keep_top_k_(f, k)
        residual = torch.addmm(e[part], f, W_dec, alpha=-1, out=left[:m])
        total += torch.linalg.vector_norm(residual, dim=1).square().sum(dtype=torch.float64)
        if need:
            d_W_dec.addmm_(f.T, residual, alpha=-2)
            d_f = torch.mm(residual, W_dec.T, out=to_f[:m])
            d_f = torch.ops.aten.threshold_backward.grad_input(d_f, f, 0, grad_input=d_f)
            d_W_enc.addmm_(d_f.T, centred[part], alpha=-2)
            d_b.sub_(d_f.sum(0), alpha=2)
    return [total.to(e.dtype), d_W_enc, d_b, d_W_dec]


class _Unexplained(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, latents, k, e, centred, W_enc, b_enc, b_dec, W_dec) -> Tensor:
        need = any(ctx.needs_input_grad)
        with torch.autocast(h.device.type, enabled=False):
            total, *gradients = _explain(h, latents, k, e.to(W_dec.dtype), centred, W_dec.index_select(0, latents), need)
        ctx.save_for_backward(latents, W_enc, *gradients)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        latents, W_enc, d_W_enc, d_b, d_W_dec = ctx.saved_tensors
        d_b_dec = -grad * (d_b @ W_enc.index_select(0, latents)) if ctx.needs_input_grad[7] else None
        d_W_enc, d_b, d_W_dec = (ops.put_rows(grad * rows, latents, len(W_enc)) for rows in (d_W_enc, d_b, d_W_dec))
        return None, None, None, None, None, d_W_enc, d_b, d_b_dec, d_W_dec


def unexplained(h: Tensor, latents: Tensor, k: int, e: Tensor, centred: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None,
                W_dec: Tensor) -> Tensor:  # fmt: skip
    """Σ‖e − ê‖² with the gradient to what h = centred W_encᵀ + b_enc, centred = x − b_dec, was made of, and to W_dec. Not under torch.compile."""
    return _Unexplained.apply(h, latents, k, e, centred, W_enc, b_enc, b_dec, W_dec)  # type: ignore[return-value]
