"""JumpReLU (Rajamanoharan et al. 2024, arXiv:2407.14435)."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_lightning.errors import InputError
from sae_lightning.inference import InferenceSAE
from sae_lightning.kernels.squares import squared_error
from sae_lightning.latents import Latents
from sae_lightning.models.auxk import no_revival
from sae_lightning.models.base import SAE, MakeDictionary, Revival, Step, Term
from sae_lightning.models.calibration import calibrated_thresholds
from sae_lightning.models.ramp import risen
from sae_lightning.models.straight_through import heaviside, jump_relu
from sae_lightning.models.threshold_revival import check_weight, dead_thresholds
from sae_lightning.ranks import mean_over_ranks

WEIGHTS = {"target": 3.0, "l0": 5e-3, "tanh": 0.02}
"""λ of each penalty where the user gives none; for rows of E‖x‖² = 1."""


class JumpReLU(SAE):
    """f = h ⟦h > θ⟧ with one learned threshold θ_j ≥ 0 per latent;   L = mean ‖y − ŷ‖² + λ P + revival.

        P = (mean L0 / L0* − 1)²  (`target`),   mean L0  (`l0`),   mean Σ_j tanh(c f_j ‖W_dec,j‖)  (`tanh`)

    θ learns through a kernel of width ε = `bandwidth` · RMS(h) around it, measured at calibration; it starts at the (1 − L0*/d_sae)
    quantile of each h_j (L0* is half the width of a row where the penalty has no target) and is clamped at 0 after every step. The L0 of
    a batch depends on h, not on f. λ = `sparsity` rises over the first `warmup` (a share) of the run. `gradient_to_input`: the steps of L0
    lend their gradient to h too. `threshold_revival`: weight of mean Σ relu(θ_j − h_j) ‖W_dec,j‖ over dead latents.
    Buffers: `sparsity` λ, `target_l0` L0*, `width` ε. Errors: InputError for a target without the penalty or the penalty without a
    target, for one outside (0, d_sae), and for negative constants.
    """

    sparsity: Float[Tensor, ""]
    target_l0: Float[Tensor, ""] | None
    width: Float[Tensor, ""]
    steps_done: Int[Tensor, ""]
    warmup_steps: Int[Tensor, ""]
    beta1 = 0.0
    is_divisible = True

    def __init__(self, dictionary: MakeDictionary, penalty: Literal["target", "l0", "tanh"] = "target", target_l0: float | None = None,
                 sparsity: float | None = None, *, warmup: float = 0.3, bandwidth: float = 0.5, tanh_scale: float = 4.0,
                 gradient_to_input: bool = False, threshold_revival: float = 0.0, revival: Revival | None = None):  # fmt: skip
        super().__init__()
        self.dictionary = dictionary(subtract=False, unit_norm=False)
        d_sae = self.dictionary.d_sae
        _check(penalty, target_l0, d_sae, warmup, bandwidth)
        sparsity = WEIGHTS[penalty] if sparsity is None else sparsity
        for name, value in {"sparsity": sparsity, "tanh_scale": tanh_scale}.items():
            if value < 0:
                raise InputError(f"model.{name} is {value}: it must not be negative")
        check_weight(threshold_revival)
        self.penalty, self.warmup, self.bandwidth, self.tanh_scale = penalty, warmup, bandwidth, tanh_scale
        self.gradient_to_input, self.threshold_revival, self.revival = gradient_to_input, threshold_revival, revival or no_revival
        self.threshold = nn.Parameter(torch.zeros(d_sae))
        self.register_buffer("sparsity", torch.tensor(float(sparsity)))
        self.register_buffer("target_l0", None if target_l0 is None else torch.tensor(float(target_l0)))
        self.register_buffer("width", torch.tensor(float(bandwidth)))
        self.register_buffer("steps_done", torch.tensor(0))
        self.register_buffer("warmup_steps", torch.tensor(0))

    def begin_(self, steps: int) -> None:
        self.warmup_steps.fill_(round(self.warmup * steps))

    def step(self, x: Tensor, y: Tensor) -> Step:
        h = self.dictionary.encode(x)
        near = h.above((self.threshold - self.width / 2).detach())
        theta = near.at(self.threshold)
        f = near.with_values(jump_relu(near.values, theta, self.width))
        y_hat = self.dictionary.decode(f, x)
        loss, e = squared_error(y, y_hat)
        weight = self.sparsity * risen(self.steps_done, self.warmup_steps)
        losses = {"reconstruction": Term(loss), "sparsity": Term(self._penalty(near, f, theta, len(x)), weight)}
        losses |= dead_thresholds(self.dictionary, h, self.threshold, self.threshold_revival)
        return Step(f, y_hat, losses | dict(self.revival(self.dictionary, h, e)))

    def _penalty(self, near: Latents, f: Latents, theta: Tensor, rows: int) -> Tensor:
        if self.penalty == "tanh":
            return self.dictionary.total((self.tanh_scale * f.values * f.at(self.dictionary.norms())).tanh().sum()) / rows
        l0 = self.dictionary.total(heaviside(near.values, theta, self.width, self.gradient_to_input).sum()) / rows
        return l0 if self.target_l0 is None else (mean_over_ranks(l0) / self.target_l0 - 1).square()

    def calibration_rows(self) -> int:
        return math.ceil(32 * self.dictionary.d_sae / self._starting_l0())

    def calibrate_(self, x: Tensor) -> None:
        threshold, rms = calibrated_thresholds(self.dictionary, x, self._starting_l0() / self.dictionary.d_sae)
        with torch.no_grad():
            self.threshold.copy_(threshold)
            self.width.copy_(self.bandwidth * rms)

    def _starting_l0(self) -> float:
        d = self.dictionary
        return min(d.shape.d_in, d.d_sae) / 2 if self.target_l0 is None else float(self.target_l0)

    @torch.no_grad()
    def after_step_(self, sums: Mapping[str, Tensor]) -> None:
        self.steps_done += 1
        self.threshold.clamp_(min=0)

    @torch.no_grad()
    def after_revival_(self, latents: Int[Tensor, " n"], alive: Bool[Tensor, " d_sae"]) -> None:
        self.threshold[latents] = self.threshold[alive].median() if alive.any() else 0.0

    def to_inference(self) -> InferenceSAE:
        return self.dictionary.to_inference(threshold=self.threshold)


def _check(penalty: str, target_l0: float | None, d_sae: int, warmup: float, bandwidth: float) -> None:
    if penalty == "target" and target_l0 is None:
        raise InputError("model.target_l0 is null, and model.penalty=target needs it: give the mean number of active latents per row")
    if penalty != "target" and target_l0 is not None:
        raise InputError(f"model.target_l0 is {target_l0}, and model.penalty={penalty} knows no target: add model.target_l0=null")
    if target_l0 is not None and not 0 < target_l0 < d_sae:
        raise InputError(f"model.target_l0 is {target_l0}, and the dictionary has {d_sae} latents: choose 0 < target_l0 < {d_sae}")
    if not 0 <= warmup <= 1 or bandwidth <= 0:
        raise InputError(f"model.warmup must be a share of the run and model.bandwidth positive, got {warmup} and {bandwidth}")
