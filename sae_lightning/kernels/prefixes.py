"""What is left of rows after the first one, two, … groups of latents: everything but one pass over [batch, groups, d] is shared."""

import torch
from torch import Tensor

from sae_lightning.kernels import memory


@torch.library.custom_op("sae_lightning::prefix_errors", mutates_args=())
def prefix_errors(parts: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """e_m = target − Σ_{i ≤ m} parts_i of parts [batch, M, d]: Σ e_m² [M] over rows and d, the last e [batch, d], and all of them.

    Gradients flow back from the first two.
    """
    errors = memory.empty(tuple(parts.shape), parts)
    before = target
    for m in range(parts.shape[1]):
        torch.sub(before, parts[:, m], out=errors[:, m])
        before = errors[:, m]
    squares = torch.stack([torch.linalg.vector_norm(errors[:, m]).square() for m in range(parts.shape[1])])
    return squares, before.clone(), errors


@prefix_errors.register_fake
def _(parts: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return parts.new_empty(parts.shape[1]), torch.empty_like(target), torch.empty_like(parts)


@torch.library.custom_op("sae_lightning::prefix_gradients", mutates_args=())
def prefix_gradients(errors: Tensor, d_squares: Tensor, d_last: Tensor | None) -> Tensor:
    """Of `parts`: − Σ_{m ≥ i} 2 e_m d_squares_m − d_last."""
    gradient = memory.empty(tuple(errors.shape), errors)
    after = torch.zeros_like(errors[:, 0]) if d_last is None else -d_last
    for m in reversed(range(errors.shape[1])):
        torch.addcmul(after, errors[:, m], d_squares[m], value=-2, out=gradient[:, m])
        after = gradient[:, m]
    return gradient


@prefix_gradients.register_fake
def _(errors: Tensor, d_squares: Tensor, d_last: Tensor | None) -> Tensor:
    return torch.empty_like(errors)


def _save(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[2])
    ctx.mark_non_differentiable(output[2])


def _backward(ctx, d_squares: Tensor | None, d_last: Tensor | None, _):
    (errors,) = ctx.saved_tensors
    d_squares = errors.new_zeros(errors.shape[1]) if d_squares is None else d_squares
    gradient = prefix_gradients(errors, d_squares, d_last)
    return gradient, -gradient[:, 0]


prefix_errors.register_autograd(_backward, setup_context=_save)
