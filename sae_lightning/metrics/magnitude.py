"""How large latents are."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from sae_lightning.data.batch import Batch
from sae_lightning.models.base import Step


class Magnitude(Metric):
    """Latents f in raw units, over all rows seen and all latents, the silent ones too.

    latents_min, latents_max, latents_mean, latents_std (over n)
    latents_norm = sqrt(mean ‖f‖²) over rows        mean_magnitude = Σ f / number of f > 0
    """

    full_state_update = False
    least: Tensor
    largest: Tensor
    magnitude: Tensor
    magnitude_square: Tensor
    firing: Tensor
    rows: Tensor
    entries: Tensor

    def __init__(self):
        super().__init__()
        self.add_state("least", torch.tensor(math.inf, dtype=torch.float64), dist_reduce_fx="min")
        self.add_state("largest", torch.zeros((), dtype=torch.float64), dist_reduce_fx="max")
        for name in ("magnitude", "magnitude_square", "firing", "rows", "entries"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, batch: Batch, step: Step) -> None:
        f = step.latents.values.detach().clamp(min=0).flatten().double()
        per_latent = step.latents.sum_per_latent()
        entries = len(batch.x) * len(per_latent)
        if len(f) < entries or not entries:  # not all are stored: what is missing is 0
            f = torch.cat([f, f.new_zeros(1)])
        self.least = torch.minimum(self.least, f.amin().abs())  # not −0
        self.largest = torch.maximum(self.largest, f.amax())
        self.magnitude += f.sum()
        self.magnitude_square += f.square().sum()
        self.firing += (f > 0).sum()
        self.rows += len(batch.x)
        self.entries += entries

    def compute(self) -> dict[str, Tensor]:
        mean = self.magnitude / self.entries
        return {
            "latents_min": self.least,
            "latents_max": self.largest,
            "latents_mean": mean,
            "latents_std": (self.magnitude_square / self.entries - mean.square()).clamp(min=0).sqrt(),
            "latents_norm": (self.magnitude_square / self.rows).sqrt(),
            "mean_magnitude": self.magnitude / self.firing.clamp(min=1),
        }
