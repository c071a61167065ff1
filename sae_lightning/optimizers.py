"""What an architecture has to say about its optimizer."""

from collections.abc import Callable
from functools import partial

from torch.optim import Optimizer


def with_beta1(make: Callable[..., Optimizer], beta1: float) -> Callable[..., Optimizer]:
    """`make` with this β₁ where its `betas` leave it open: [null, β₂] in a configuration. Any other `make` as it is."""
    betas = make.keywords.get("betas") if isinstance(make, partial) else None
    return make if not betas or betas[0] is not None else partial(make, betas=(beta1, *betas[1:]))
