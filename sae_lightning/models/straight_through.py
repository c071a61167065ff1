"""Thresholds that learn: functions with a jump, and the gradient that a kernel of width ε lends it (Rajamanoharan et al. 2024, arXiv:2407.14435).

rect(u) = ⟦|u| < ½⟧; everything float32, whatever the precision of the encoder.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, threshold: Tensor, width: Tensor, to_input: bool) -> Tensor:
        ctx.save_for_backward(h, threshold, width)
        ctx.to_input = to_input
        return (h > threshold).to(h.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, threshold, width = ctx.saved_tensors
        slope = grad * _kernel(h, threshold, width)
        return slope if ctx.to_input else None, (-slope).sum_to_size(threshold.shape), None, None


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, threshold: Tensor, width: Tensor) -> Tensor:
        ctx.save_for_backward(h, threshold, width)
        return h * (h > threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, threshold, width = ctx.saved_tensors
        return grad * (h > threshold), (-grad * threshold * _kernel(h, threshold, width)).sum_to_size(threshold.shape), None


def heaviside(h: Tensor, threshold: Tensor, width: Tensor, to_input: bool = False) -> Tensor:
    """⟦h > θ⟧;   ∂/∂θ = −rect((h − θ)/ε)/ε,   ∂/∂h = 0, or −∂/∂θ with `to_input`.   θ broadcasts against h."""
    return _Step.apply(h, threshold, width, to_input)  # type: ignore[return-value]


def jump_relu(h: Tensor, threshold: Tensor, width: Tensor) -> Tensor:
    """h ⟦h > θ⟧;   ∂/∂θ = −(θ/ε) rect((h − θ)/ε),   ∂/∂h = ⟦h > θ⟧.   θ broadcasts against h."""
    return _JumpReLU.apply(h, threshold, width)  # type: ignore[return-value]


def _kernel(h: Tensor, threshold: Tensor, width: Tensor) -> Tensor:
    return ((h - threshold).abs() < width / 2).to(h.dtype) / width
