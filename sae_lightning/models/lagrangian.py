"""Lagrangian SAE: L0 as a constraint, held by dual ascent."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_lightning.errors import InputError
from sae_lightning.inference import InferenceSAE
from sae_lightning.models.auxk import no_revival
from sae_lightning.models.base import SAE, MakeDictionary, Revival, Step, Term
from sae_lightning.models.calibration import calibrated_thresholds
from sae_lightning.models.straight_through import heaviside, jump_relu
from sae_lightning.ranks import mean_over_ranks


class Lagrangian(SAE):
    """min E‖y − ŷ‖² subject to E[L0] = L0* (`inequality`: ≤ L0*), with one learned threshold θ_j ≥ 0 per latent.

        f = h ⟦h > θ⟧               v = (mean Σ_j ⟦h_j > θ_j⟧ − L0*) / L0*           (inequality: its positive part)
        L = mean ‖y − ŷ‖² + α v + ρ v² + revival
        after each optimizer step   m ← β m + (1 − β) mean L0,   α ← clamp(α + η c),   θ ← max(θ, 0)
            c = (m − L0*)/L0*  (`absolute`: m − L0*);   α in [−α_max, α_max], inequality: [0, α_max]

    θ learns through a kernel of width ε = `bandwidth` · RMS(h), measured at calibration; θ starts at the (1 − L0*/d_sae) quantile of
    each h_j. Buffers: `target_l0` L0*, `dual` α, `running_l0` m, `width` ε. Errors: InputError for a target outside (0, d_sae) or a
    negative constant.
    """

    target_l0: Float[Tensor, ""]
    dual: Float[Tensor, ""]
    running_l0: Float[Tensor, ""]
    width: Float[Tensor, ""]

    def __init__(self, dictionary: MakeDictionary, target_l0: float, *, inequality: bool = False, absolute: bool = False, rho: float = 0.1,
                 dual_rate: float = 0.01, dual_max: float = 1.0, momentum: float = 0.9, bandwidth: float = 0.5,
                 revival: Revival | None = None):  # fmt: skip
        super().__init__()
        self.dictionary = dictionary(unit_norm=True)
        d_sae = self.dictionary.d_sae
        if not 0 < target_l0 < d_sae:
            raise InputError(f"model.target_l0 is {target_l0}, and the dictionary has {d_sae} latents: choose 0 < target_l0 < {d_sae}")
        for name, value in {"rho": rho, "dual_rate": dual_rate, "dual_max": dual_max}.items():
            if value < 0:
                raise InputError(f"model.{name} is {value}: it must not be negative")
        if not 0 <= momentum < 1 or bandwidth <= 0:
            raise InputError(f"model.momentum must be in [0, 1) and model.bandwidth positive, got {momentum} and {bandwidth}")
        self.inequality, self.absolute, self.rho = inequality, absolute, rho
        self.dual_rate, self.dual_max, self.momentum, self.bandwidth = dual_rate, dual_max, momentum, bandwidth
        self.revival = revival or no_revival
        self.threshold = nn.Parameter(torch.zeros(d_sae))
        self.register_buffer("target_l0", torch.tensor(float(target_l0)))
        self.register_buffer("dual", torch.zeros(()))
        self.register_buffer("running_l0", torch.tensor(float(target_l0)))
        self.register_buffer("width", torch.tensor(float(bandwidth)))

    def step(self, x: Tensor, y: Tensor) -> Step:
        h = self.dictionary.encode(x)
        near = h.above((self.threshold - self.width / 2).detach())
        theta = near.at(self.threshold)
        f = near.with_values(jump_relu(near.values, theta, self.width))
        y_hat = self.dictionary.decode(f, x)
        e = y - y_hat
        v = mean_over_ranks(heaviside(near.values, theta, self.width).sum() / len(x)) / self.target_l0 - 1
        if self.inequality:
            v = v.relu()
        losses = {"reconstruction": Term(e.square().sum(1).mean()), "constraint": Term(v, self.dual), "penalty": Term(v.square(), self.rho)}
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
        self.running_l0.lerp_((sums["fires"].sum() / sums["rows"]).to(self.running_l0), 1 - self.momentum)
        excess = self.running_l0 - self.target_l0
        self.dual.add_(self.dual_rate * (excess if self.absolute else excess / self.target_l0))
        self.dual.clamp_(0 if self.inequality else -self.dual_max, self.dual_max)
        self.threshold.clamp_(min=0)

    @torch.no_grad()
    def after_revival_(self, latents: Int[Tensor, " n"], alive: Bool[Tensor, " d_sae"]) -> None:
        self.threshold[latents] = self.threshold[alive].median() if alive.any() else 0.0

    def to_inference(self) -> InferenceSAE:
        return self.dictionary.to_inference(threshold=self.threshold)
