"""Weights that rise at the start of a run."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def risen(done: Int[Tensor, ""], over: Int[Tensor, ""]) -> Float[Tensor, ""]:
    """done/over, at most 1: how far a linear warm-up over so many steps is; 1 where it has no steps."""
    return torch.where(over > 0, done / over.clamp(min=1), 1.0).clamp(max=1.0)
