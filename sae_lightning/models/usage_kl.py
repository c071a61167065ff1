"""ReLU whose latents are drawn to one rate of use (the objective of the splatnlp SAE, with a gradient for that rate)."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lightning.errors import InputError
from sae_lightning.inference import InferenceSAE
from sae_lightning.kernels.squares import squared_error
from sae_lightning.latents import Latents
from sae_lightning.models.base import SAE, MakeDictionary, Step, Term
from sae_lightning.models.ramp import risen
from sae_lightning.models.straight_through import heaviside

SMOOTHING = 1e-4
WARMUP, PERIOD = 6000, 60_000


class UsageKL(SAE):
    """f = min(relu(h), cap);   L = mean ‖y − ŷ‖² + λ mean Σ_j f_j + κ mean_j KL(ρ ‖ p_j).

        KL(ρ‖p) = ρ log(ρ/p) + (1−ρ) log((1−ρ)/(1−p))        at (1 − 2δ) p + δ, δ = 1e-4: dead latents keep a gradient
        p_j = sg(EMA_j) + p̂_j − sg(p̂_j),   p̂_j = mean ⟦h_j > 0⟧,   ∂⟦h > 0⟧/∂h = rect(h/ε)/ε

    ρ = `usage`: the KL alone is smallest at an L0 of ρ · d_sae. ε = `bandwidth` · RMS(h), measured at calibration, where EMA_j starts,
    too; after each step EMA ← momentum · EMA + (1 − momentum) · share of rows in which j fired. λ = `sparsity` rises from 0 over
    `warmup_steps`; κ rises from `kappa_floor` to `kappa` over the same steps, then swings down to the floor and back as a cosine of
    `period_steps`. None: 6000 and 60 000, or what fits one warm-up and one period, ten times as long, into the run. Where decoder rows
    have other norms than 1, f_j counts times ‖W_dec,j‖. Buffers: `sparsity`, `kappa`, `width` ε, `running_usage` EMA [d_sae].
    Errors: InputError for ρ or a momentum outside (0, 1), and for what is negative or no positive number of steps.
    """

    sparsity: Float[Tensor, ""]
    kappa: Float[Tensor, ""]
    width: Float[Tensor, ""]
    running_usage: Float[Tensor, " d_sae"]
    steps_done: Int[Tensor, ""]
    warmup_steps: Int[Tensor, ""]
    period_steps: Int[Tensor, ""]
    is_divisible = True
    buffers_of_latents = ("running_usage",)

    def __init__(self, dictionary: MakeDictionary, sparsity: float, usage: float = 0.05, kappa: float = 1.5, *, kappa_floor: float = 0.05,
                 warmup_steps: int | None = None, period_steps: int | None = None, momentum: float = 0.99, bandwidth: float = 1.0,
                 cap: float | None = None):  # fmt: skip
        super().__init__()
        for name, value in {"sparsity": sparsity, "kappa": kappa, "kappa_floor": kappa_floor, "warmup_steps": warmup_steps or 0}.items():
            if value < 0:
                raise InputError(f"model.{name} is {value}: it must not be negative")
        for name, value in {"period_steps": period_steps, "cap": cap, "bandwidth": bandwidth}.items():
            if value is not None and value <= 0:
                raise InputError(f"model.{name} is {value}: it must be positive")
        if not 0 < usage < 1 or not 0 <= momentum < 1:
            raise InputError(f"model.usage must lie in (0, 1) and model.momentum in [0, 1), got {usage} and {momentum}")
        self.dictionary = dictionary(unit_norm=True)
        self.usage, self.kappa_floor, self.momentum, self.bandwidth, self.cap = usage, kappa_floor, momentum, bandwidth, cap
        self.wanted_warmup, self.wanted_period = warmup_steps, period_steps
        self.register_buffer("sparsity", torch.tensor(float(sparsity)))
        self.register_buffer("kappa", torch.tensor(float(kappa)))
        self.register_buffer("width", torch.tensor(float(bandwidth)))
        self.register_buffer("running_usage", torch.full((self.dictionary.d_sae,), float(usage)))
        self.register_buffer("steps_done", torch.tensor(0))
        self.register_buffer("warmup_steps", torch.tensor(warmup_steps or 0))
        self.register_buffer("period_steps", torch.tensor(period_steps or PERIOD))

    def begin_(self, steps: int) -> None:
        if self.wanted_warmup is None:
            self.warmup_steps.fill_(min(WARMUP, steps // 11))
        if self.wanted_period is None:
            self.period_steps.fill_(max(1, min(PERIOD, steps - steps // 11)))

    def step(self, x: Tensor, y: Tensor) -> Step:
        near = self.dictionary.encode(x).above((-self.width / 2).detach().expand_as(self.running_usage).contiguous())
        f = near.with_values(near.values.relu().clamp(max=self.cap or math.inf))
        y_hat = self.dictionary.decode(f, x)
        l1 = f.values if self.dictionary.unit_norm else f.values * f.at(self.dictionary.norms())
        losses = {
            "reconstruction": Term(squared_error(y, y_hat)[0]),
            "sparsity": Term(self.dictionary.total(l1.sum()) / len(x), self.sparsity * risen(self.steps_done, self.warmup_steps)),
            "usage": Term(self._divergence(near, len(x)), self._kappa_now()),
        }
        return Step(f, y_hat, losses)

    def _divergence(self, near: Latents, rows: int) -> Tensor:
        """mean_j KL(ρ ‖ p_j), valued at the running usage, with the gradient of this batch's."""
        fires = heaviside(near.values, near.values.new_zeros(()), self.width, to_input=True)
        batch = near.with_values(fires).sum_per_latent() / rows
        p = (1 - 2 * SMOOTHING) * (self.running_usage + (batch - batch.detach())) + SMOOTHING
        rho = self.usage
        divergence = rho * (math.log(rho) - p.log()) + (1 - rho) * (math.log(1 - rho) - (1 - p).log())
        return self.dictionary.total(divergence.sum()) / self.dictionary.d_sae

    def _kappa_now(self) -> Tensor:
        swing = 2 * math.pi * (self.steps_done - self.warmup_steps) / self.period_steps
        share = torch.where(self.steps_done < self.warmup_steps, risen(self.steps_done, self.warmup_steps), (1 + swing.cos()) / 2)
        return self.kappa_floor + (self.kappa - self.kappa_floor) * share

    @torch.no_grad()
    def calibrate_(self, x: Tensor) -> None:
        """ε from the root mean square of h, and the usage that it starts with."""
        squares, fires = torch.zeros((), dtype=torch.float64, device=x.device), torch.zeros_like(self.running_usage)
        for part in x.split(8192):
            h = self.dictionary.encode(part).h
            squares += h.square().sum(dtype=torch.float64)
            fires += (h > 0).sum(0)
        self.width.copy_(self.bandwidth * (self.dictionary.total(squares) / (len(x) * self.dictionary.d_sae)).sqrt())
        self.running_usage.copy_(fires / len(x))

    @torch.no_grad()
    def after_step_(self, sums: Mapping[str, Tensor]) -> None:
        self.steps_done += 1
        self.running_usage.lerp_((sums["fires"] / sums["rows"]).to(self.running_usage), 1 - self.momentum)

    @torch.no_grad()
    def after_revival_(self, latents: Int[Tensor, " n"], alive: Bool[Tensor, " d_sae"]) -> None:
        self.running_usage[latents] = self.running_usage[alive].mean() if alive.any() else self.usage

    def to_inference(self) -> InferenceSAE:
        return self.dictionary.to_inference(threshold=torch.zeros_like(self.dictionary.b_enc), cap=self.cap)
