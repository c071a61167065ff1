"""The largest latents of a batch, and the one threshold τ that takes their place where rows are on their own (Bussmann et al. 2024, arXiv:2412.06410).

Latents are compared by u_j = relu(h_j), of a crosscoder by u_j = relu(h_j) Σ_l ‖W_dec,j,l‖ (`Dictionary.selection_weight`).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lightning import ranks
from sae_lightning.errors import InputError
from sae_lightning.latents import Latents, PreActivations
from sae_lightning.models.dictionary import Dictionary

EXPORT_ROWS = 16_384
"""Held-out rows that τ is estimated on: L0 of a row spreads by about half of its mean, which leaves 0.4 % here."""
BLOCK = 1 << 22
"""Pre-activations that are looked at at a time."""


def check_k(k: float, d_sae: int) -> None:
    """Errors: InputError where k, which may be a fraction, cannot be the mean number of active latents."""
    if not 0 < k <= d_sae:
        raise InputError(f"model.k is {k}, and the dictionary has {d_sae} latents: choose 0 < k ≤ {d_sae}")


def largest_of_batch(dictionary: Dictionary, h: PreActivations, k: Float[Tensor, ""]) -> tuple[Latents, dict[str, Tensor]]:
    """f of the ⌊k·B⌋ largest u of the batch, B rows over all ranks (at least one), and the sums that `follow_` takes."""
    rows, processes = len(h.h), ranks.count()
    n = (k.double() * (rows * processes) + 1e-3).long().clamp(min=1)  # float32 holds a k of 0.3 as a little less than that
    f, smallest = h.top_k_of_batch(n, dictionary.selection_weight())
    return f, {"smallest": smallest / processes, "selections": (smallest > 0).to(smallest.dtype) / processes}


def over_threshold(dictionary: Dictionary, h: PreActivations, tau: Float[Tensor, ""]) -> Latents:
    """f = h ⟦u > τ⟧, row by row."""
    threshold = per_latent(dictionary, tau)
    f = h.above(threshold)
    return f.with_values(f.values * (f.values > f.at(threshold)))


def per_latent(dictionary: Dictionary, tau: Float[Tensor, ""]) -> Float[Tensor, " d_sae"]:
    """The threshold of h_j that τ means."""
    weight = dictionary.selection_weight()
    return tau.expand_as(dictionary.b_enc).contiguous() if weight is None else tau / weight.clamp(min=1e-12)


def follow_(tau: Float[Tensor, ""], updates: Int[Tensor, ""], sums: Mapping[str, Tensor]) -> None:
    """τ ← m τ + (1 − m) · smallest u that was chosen,   m = min(0.999, 1 − 1/t),   t = updates, this one included.

    Of several micro-batches: the mean of theirs. Nothing moves where nothing positive was chosen.
    """
    found = sums["selections"] > 0
    t = updates + 1
    follow = tau.lerp((sums["smallest"] / sums["selections"]).to(tau), (1 / t).clamp(min=0.001).to(tau))
    tau.copy_(torch.where(found, follow, tau))
    updates.add_(found)


@torch.no_grad()
def take_over_(tau: Float[Tensor, ""], dictionary: Dictionary, threshold: Float[Tensor, " d_sae"] | None) -> None:
    """τ ← the one τ that the positive thresholds of another SAE mean; it stays as it is where they mean several, or there are none."""
    if threshold is None:
        return
    weight = dictionary.selection_weight()
    u = threshold if weight is None else threshold * weight
    if 0 < float(u.max()) <= (1 + 1e-3) * float(u.min()):
        tau.copy_(u.mean())


@torch.no_grad()
def threshold_for(dictionary: Dictionary, x: Float[Tensor, "rows d_in"], k: float) -> Float[Tensor, ""]:
    """τ so that on the rows x of this process k of the u of a row exceed it on average: between number k·rows and the next largest.

    0 where not more are positive. A block of rows at a time; a number that already has k·rows larger ones is forgotten.
    """
    n, weight = max(1, round(k * len(x))), dictionary.selection_weight()
    largest, least = dictionary.b_enc.new_zeros(0), dictionary.b_enc.new_zeros(())
    for rows in x.split(max(1, BLOCK // dictionary.d_sae)):
        f = dictionary.encode(rows).above(per_latent(dictionary, least * (1 - 1e-6)))
        u = f.values if weight is None else f.values * f.at(weight)
        largest = torch.cat([largest, u[u > least]])
        if len(largest) > n:
            largest = largest.topk(n + 1).values
            least = largest[-1]
    if dictionary.shards.parts > 1:
        largest = dictionary.shards.joined(largest)
        largest, least = largest.topk(min(n + 1, len(largest))).values, least.new_zeros(())
    return least if len(largest) <= n else (largest[n - 1] + largest[n]) / 2
