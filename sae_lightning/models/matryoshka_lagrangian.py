"""Lagrangian SAE whose prefixes reconstruct on their own (prefixes: Bussmann et al. 2025, arXiv:2503.17547)."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_lightning.inference import InferenceSAE
from sae_lightning.models.auxk import no_revival
from sae_lightning.models.base import SAE, MakeDictionary, Revival, Step
from sae_lightning.models.calibration import calibrated_thresholds
from sae_lightning.models.constraint import ascend_, check_constraint, constrained, constraint_terms
from sae_lightning.models.prefixes import GROUPS, group_ends, prefix_losses
from sae_lightning.models.threshold_revival import check_weight, dead_thresholds


class MatryoshkaLagrangian(SAE):
    """min (1/M) Σ_m E‖y − ŷ_m‖² subject to E[L0] = L0* (`inequality`: ≤ L0*), with one learned threshold θ_j ≥ 0 per latent.

        f = h ⟦h > θ⟧               ŷ_m = Σ_{j in the first m groups} f_j W_dec,j + b_dec
        v = (mean Σ_j ⟦h_j > θ_j⟧ − L0*) / L0*, of the whole dictionary           (inequality: its positive part)
        L = (1/M) Σ_m mean ‖y − ŷ_m‖² + α v + ρ v² + revival on y − ŷ_M
        after each optimizer step   m ← β m + (1 − β) mean L0,   α ← clamp(α + η c),   θ ← max(θ, 0)
            c = (m − L0*)/L0*  (`absolute`: m − L0*);   α in [−α_max, α_max], inequality: [0, α_max]

    θ learns through a kernel of width ε = `bandwidth` · RMS(h), measured at calibration; θ starts at the (1 − L0*/d_sae) quantile of
    each h_j. `groups`: shares of the dictionary, from the first latent on. `threshold_revival`: weight of mean Σ relu(θ_j − h_j) ‖W_dec,j‖
    over dead latents. Buffers: `target_l0` L0*, `dual` α, `running_l0` m, `width` ε. Errors: InputError for a target outside (0, d_sae),
    a negative constant, shares that do not sum to 1, a group without a latent.
    """

    target_l0: Float[Tensor, ""]
    dual: Float[Tensor, ""]
    running_l0: Float[Tensor, ""]
    width: Float[Tensor, ""]
    is_divisible = True

    def __init__(self, dictionary: MakeDictionary, target_l0: float, *, groups: Sequence[float] = GROUPS, inequality: bool = False,
                 absolute: bool = False, rho: float = 0.1, dual_rate: float = 0.01, dual_max: float = 1.0, momentum: float = 0.9,
                 bandwidth: float = 0.5, threshold_revival: float = 0.0, revival: Revival | None = None):  # fmt: skip
        super().__init__()
        self.dictionary = dictionary(unit_norm=True)
        d_sae = self.dictionary.d_sae
        check_constraint(d_sae, target_l0, rho=rho, dual_rate=dual_rate, dual_max=dual_max, momentum=momentum, bandwidth=bandwidth)
        check_weight(threshold_revival)
        self.ends = group_ends(d_sae, groups)
        self.inequality, self.absolute, self.rho = inequality, absolute, rho
        self.dual_rate, self.dual_max, self.momentum, self.bandwidth = dual_rate, dual_max, momentum, bandwidth
        self.threshold_revival, self.revival = threshold_revival, revival or no_revival
        self.threshold = nn.Parameter(torch.zeros(d_sae))
        self.register_buffer("target_l0", torch.tensor(float(target_l0)))
        self.register_buffer("dual", torch.zeros(()))
        self.register_buffer("running_l0", torch.tensor(float(target_l0)))
        self.register_buffer("width", torch.tensor(float(bandwidth)))

    def step(self, x: Tensor, y: Tensor) -> Step:
        h = self.dictionary.encode(x)
        f, v = constrained(self.dictionary, h, self.threshold, self.width, self.target_l0, self.inequality)
        y_hat, e, losses = prefix_losses(self.dictionary, f, x, y, self.ends)
        losses |= constraint_terms(v, self.dual, self.rho)
        losses |= dead_thresholds(self.dictionary, h, self.threshold, self.threshold_revival)
        return Step(f, y_hat, losses | dict(self.revival(self.dictionary, h, e)))

    def calibration_rows(self) -> int:
        return math.ceil(32 * self.dictionary.d_sae / float(self.target_l0))

    @torch.no_grad()
    def calibrate_(self, x: Tensor) -> None:
        """θ_j so that each latent fires in a share L0*/d_sae of the rows; ε from the root mean square of h."""
        threshold, rms = calibrated_thresholds(self.dictionary, x, float(self.target_l0) / self.dictionary.d_sae)
        self.threshold.copy_(threshold)
        self.running_l0.copy_(self.target_l0)
        self.width.copy_(self.bandwidth * rms)

    @torch.no_grad()
    def after_step_(self, sums: Mapping[str, Tensor]) -> None:
        ascend_(self.dictionary, self.dual, self.running_l0, self.target_l0, sums, momentum=self.momentum, rate=self.dual_rate,
                most=self.dual_max, inequality=self.inequality, absolute=self.absolute)  # fmt: skip
        self.threshold.clamp_(min=0)

    @torch.no_grad()
    def after_revival_(self, latents: Int[Tensor, " n"], alive: Bool[Tensor, " d_sae"]) -> None:
        self.threshold[latents] = self.threshold[alive].median() if alive.any() else 0.0

    def to_inference(self) -> InferenceSAE:
        return self.dictionary.to_inference(threshold=self.threshold)
