"""Learning rates over a run: (optimizer, steps) → LRScheduler, stepped after every optimizer step.

`warmup` and `decay` are shares of the run; the first step of a warm-up already has a rate above 0.
"""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sae_lightning.errors import InputError


def constant(optimizer: Optimizer, steps: int, warmup: float = 0.05) -> LambdaLR:
    """Linear warm-up, then the full rate."""
    return _schedule(optimizer, steps, warmup, 0.0, lambda share: 1.0)


def linear(optimizer: Optimizer, steps: int, warmup: float = 0.05, decay: float = 0.2, final: float = 0.0) -> LambdaLR:
    """Linear warm-up, the full rate, and a linear fall to `final` times the rate over the last share `decay`."""
    return _schedule(optimizer, steps, warmup, decay, lambda share: 1 - (1 - final) * share)


def cosine(optimizer: Optimizer, steps: int, warmup: float = 0.05, final: float = 0.1) -> LambdaLR:
    """Linear warm-up, then half a cosine down to `final` times the rate."""
    return _schedule(optimizer, steps, warmup, 1 - warmup, lambda share: final + (1 - final) * (1 + math.cos(math.pi * share)) / 2)


def _schedule(optimizer: Optimizer, steps: int, warmup: float, decay: float, fall: Callable[[float], float]) -> LambdaLR:
    if not (0 <= warmup <= 1 and 0 <= decay <= 1 and warmup + decay <= 1 + 1e-9):
        raise InputError(
            f"scheduler.warmup={warmup} and scheduler.decay={decay} are shares of the run: between 0 and 1, together at most 1"
        )
    rise, start = warmup * steps, steps * (1 - decay)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        return fall(min(1.0, (step - start) / (steps - start))) if step > start else 1.0

    return LambdaLR(optimizer, factor)
