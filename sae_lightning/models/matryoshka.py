"""Matryoshka BatchTopK (Bussmann et al. 2025, arXiv:2503.17547)."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lightning.inference import InferenceSAE
from sae_lightning.models.auxk import no_revival
from sae_lightning.models.base import SAE, MakeDictionary, Revival, Step
from sae_lightning.models.batch_selection import (
    EXPORT_ROWS,
    check_k,
    follow_,
    largest_of_batch,
    over_threshold,
    per_latent,
    take_over_,
    threshold_for,
)
from sae_lightning.models.prefixes import GROUPS, group_ends, prefix_losses


class Matryoshka(SAE):
    """f = the ⌊k·B⌋ largest of relu(h) among the B rows of the batch, chosen once over the whole dictionary.

        ŷ_m = Σ_{j in the first m groups} f_j W_dec,j + b_dec,    L = (1/M) Σ_m mean ‖y − ŷ_m‖² + revival on y − ŷ_M
        row by row      f = h ⟦h > τ⟧,   τ = running mean of the smallest h that was chosen (`batch_selection.follow_`)
        exported        the same with the τ that makes the mean L0 of held-out rows k

    `groups`: shares of the dictionary, from the first latent on. Buffers: `k`, which may be a fraction; `tau`; `updates` of it.
    Errors: InputError for a k outside (0, d_sae], shares that do not sum to 1, a group without a latent.
    """

    k: Float[Tensor, ""]
    tau: Float[Tensor, ""]
    updates: Int[Tensor, ""]
    is_divisible = True

    def __init__(self, dictionary: MakeDictionary, k: float, groups: Sequence[float] = GROUPS, revival: Revival | None = None):
        super().__init__()
        self.dictionary = dictionary(unit_norm=True)
        check_k(k, self.dictionary.d_sae)
        self.ends = group_ends(self.dictionary.d_sae, groups)
        self.revival = revival or no_revival
        self.register_buffer("k", torch.tensor(float(k)))
        self.register_buffer("tau", torch.zeros(()))
        self.register_buffer("updates", torch.tensor(0))

    def step(self, x: Tensor, y: Tensor) -> Step:
        h = self.dictionary.encode(x)
        f, sums = largest_of_batch(self.dictionary, h, self.k) if self.training else (over_threshold(self.dictionary, h, self.tau), {})
        y_hat, e, losses = prefix_losses(self.dictionary, f, x, y, self.ends)
        return Step(f, y_hat, losses | dict(self.revival(self.dictionary, h, e)), sums)

    def calibrate_(self, x: Tensor) -> None:
        self.tau.copy_(threshold_for(self.dictionary, x[:8192], float(self.k)))

    def after_start_(self, threshold: Float[Tensor, " d_sae"] | None) -> None:
        take_over_(self.tau, self.dictionary, threshold)

    @torch.no_grad()
    def after_step_(self, sums: Mapping[str, Tensor]) -> None:
        follow_(self.tau, self.updates, sums)

    def to_inference(self) -> InferenceSAE:
        return self.dictionary.to_inference(threshold=per_latent(self.dictionary, self.tau))

    def export_rows(self) -> int:
        return EXPORT_ROWS

    def to_export(self, x: Tensor) -> InferenceSAE:
        tau = threshold_for(self.dictionary, x, float(self.k)) if len(x) else self.tau
        return self.dictionary.to_inference(threshold=per_latent(self.dictionary, tau))
