"""Where thresholds start, and how wide the kernel is through which they learn."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lightning.models.dictionary import Dictionary


@torch.no_grad()
def calibrated_thresholds(
    dictionary: Dictionary, x: Float[Tensor, "sample d_in"], share: float
) -> tuple[Float[Tensor, " d_sae"], Float[Tensor, ""]]:
    """θ_j ≥ 0 so that each latent fires in a `share` of the rows x, and RMS(h) over all of them. A block of latents at a time."""
    d, squares = dictionary, torch.zeros((), dtype=torch.float64, device=x.device)
    threshold = torch.zeros_like(d.b_enc)
    x = x - d.b_dec if d.subtract else x
    for block in torch.arange(len(d.b_enc), device=x.device).split(max(1, (1 << 25) // len(x))):
        h = x @ d.W_enc[block].T + d.b_enc[block]
        squares += h.square().sum(dtype=torch.float64)
        threshold[block] = upper_quantile(h, share).clamp(min=0)
    return threshold, (d.total(squares) / (len(x) * d.d_sae)).sqrt()


def upper_quantile(h: Float[Tensor, "rows latents"], share: float) -> Float[Tensor, " latents"]:
    """Per column the value that a new row exceeds with probability `share`: the order statistic number share·(rows + 1) from the top.

    Interpolated between neighbours. (The usual position share·(rows − 1) + 1 lets about one row too many through.)
    """
    rank = min(max(share * (len(h) + 1), 1.0), float(len(h)))
    below = math.floor(rank)
    top = h.topk(min(below + 1, len(h)), dim=0).values
    return torch.lerp(top[below - 1], top[min(below, len(top) - 1)], rank - below)
