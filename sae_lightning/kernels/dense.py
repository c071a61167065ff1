"""A product and a relu of arrays [batch, d_sae], there and back, in memory that is used again. Plain CPU arrays; autograd's own otherwise."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_lightning.kernels import memory, ops


def _is_plain(*arrays: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling() and all(array.device.type == "cpu" for array in arrays) and not torch.is_autocast_enabled("cpu")
    )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return ops.product(a, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        need_a, need_b = ctx.needs_input_grad
        return ops.product(grad, b.T) if need_a else None, ops.product(a.T, grad) if need_b else None


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        f = torch.clamp_min(h, 0, out=memory.empty(tuple(h.shape), h))
        ctx.save_for_backward(f)
        return f

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (f,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward.grad_input(grad, f, 0, grad_input=memory.empty(tuple(f.shape), f))


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b."""
    return _Product.apply(a, b) if _is_plain(a, b) and a.dtype == b.dtype else a @ b  # type: ignore[return-value]


def relu(h: Tensor) -> Tensor:
    """max(h, 0)."""
    return _ReLU.apply(h) if _is_plain(h) else h.relu()  # type: ignore[return-value]


@torch.no_grad()
def positive(values: Tensor) -> tuple[Tensor, Tensor]:
    """How many values of each column and of each row are positive, int64."""
    if torch.compiler.is_compiling() or not _is_plain(values):
        return (values > 0).sum(0), (values > 0).sum(1)
    return ops.backend(values).positive(values)
