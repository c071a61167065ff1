"""How few latents explain a row."""

import torch
from torch import Tensor
from torchmetrics import Metric

from sae_lightning.data.batch import Batch
from sae_lightning.models.base import Step


class Sparsity(Metric):
    """l0 = mean number of f_j > 0 per row;   l1 = mean Σ_j f_j, in raw units."""

    full_state_update = False
    active: Tensor
    latent_sum: Tensor
    rows: Tensor

    def __init__(self):
        super().__init__()
        for name in ("active", "latent_sum", "rows"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, batch: Batch, step: Step) -> None:
        f = step.latents.values
        self.active += (f > 0).sum()
        self.latent_sum += f.clamp(min=0).sum(dtype=torch.float64)
        self.rows += len(batch.x)

    def compute(self) -> dict[str, Tensor]:
        return {"l0": self.active / self.rows, "l1": self.latent_sum / self.rows}
