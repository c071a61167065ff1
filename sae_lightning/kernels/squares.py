"""Squared errors and norms of rows, with one array of their size on the way back where autograd's own way makes several."""

import torch
from torch import Tensor

from sae_lightning.kernels import memory


@torch.library.custom_op("sae_lightning::squared_error", mutates_args=())
def squared_error(y: Tensor, y_hat: Tensor) -> tuple[Tensor, Tensor]:
    """mean over rows of ‖y − ŷ‖² [], and the residual y − ŷ [batch, d], which is off the tape."""
    e = torch.sub(y, y_hat, out=memory.empty(tuple(y.shape), y))
    return torch.linalg.vector_norm(e, dim=1).square().mean(), e


@squared_error.register_fake
def _(y: Tensor, y_hat: Tensor) -> tuple[Tensor, Tensor]:
    return y.new_empty(()), torch.empty_like(y)


@torch.library.custom_op("sae_lightning::scaled", mutates_args=())
def scaled(array: Tensor, factor: Tensor) -> Tensor:
    """factor · array; a factor for all of it or for each row."""
    return torch.mul(array, factor, out=memory.empty(tuple(array.shape), array))


@scaled.register_fake
def _(array: Tensor, factor: Tensor) -> Tensor:
    return torch.empty_like(array)


def _save_error(ctx, inputs, output) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _error_backward(ctx, grad: Tensor, _):
    (e,) = ctx.saved_tensors
    to_y_hat = scaled(e, grad * (-2 / len(e)))
    return -to_y_hat if ctx.needs_input_grad[0] else None, to_y_hat


squared_error.register_autograd(_error_backward, setup_context=_save_error)


@torch.library.custom_op("sae_lightning::row_norms", mutates_args=())
def row_norms(W: Tensor) -> Tensor:
    """‖W_j‖ of each row; a row of zeros has the gradient 0."""
    return torch.linalg.vector_norm(W, dim=1)


@row_norms.register_fake
def _(W: Tensor) -> Tensor:
    return W.new_empty(W.shape[0])


def _save_norms(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[0], output)


def _norms_backward(ctx, grad: Tensor):
    W, norms = ctx.saved_tensors
    return scaled(W, torch.where(norms > 0, grad / norms, 0.0)[:, None])


row_norms.register_autograd(_norms_backward, setup_context=_save_norms)
