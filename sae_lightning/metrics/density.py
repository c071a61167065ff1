"""How often latents fire."""

import torch
from torch import Tensor
from torchmetrics import Metric

from sae_lightning.data.batch import Batch
from sae_lightning.models.base import Step


class Density(Metric):
    """density_j = share of the rows seen in which latent j fires.

        below_1e-5, below_1e-6, above_1e-2, above_1e-1 = number of such latents
        above_1e-2_share_of_l0, above_1e-1_share_of_l0 = what they contribute to L0, from 0 to 1
        mean_log10_feature_sparsity = mean log10(density + 1e-10)

    With n rows the smallest density that can be seen is 1/n.
    """

    full_state_update = False
    firings: Tensor
    rows: Tensor

    def __init__(self):
        super().__init__()
        self.add_state("firings", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")  # [d_sae] from the first batch on
        self.add_state("rows", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, batch: Batch, step: Step) -> None:
        self.firings = self.firings + step.latents.fires()
        self.rows += len(batch.x)

    def compute(self) -> dict[str, Tensor]:
        return density_numbers(self.firings / self.rows)


def density_numbers(density: Tensor) -> dict[str, Tensor]:
    """The numbers of `Density` from density [d_sae] itself."""
    density = density.double()
    l0 = density.sum().clamp(min=1e-30)
    values = {f"below_{edge}": (density < float(edge)).sum().double() for edge in ("1e-5", "1e-6")}
    for edge in ("1e-2", "1e-1"):
        above = density > float(edge)
        values |= {f"above_{edge}": above.sum().double(), f"above_{edge}_share_of_l0": (density * above).sum() / l0}
    return values | {"mean_log10_feature_sparsity": (density + 1e-10).log10().mean()}
