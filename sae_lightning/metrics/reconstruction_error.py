"""How far reconstructions are from rows."""

import torch
from torch import Tensor
from torchmetrics import Metric

from sae_lightning.data.batch import Batch
from sae_lightning.models.base import Step


class ReconstructionError(Metric):
    """Sums of e = y − ŷ over all rows seen, in raw units; ȳ is the mean of those rows.

        mse = mean ‖e‖²/d        mse_sum = mean ‖e‖²        l1_error = mean |e|
        normalised_mse = Σ‖e‖²/Σ‖y‖²        fvu = Σ‖e‖²/Σ‖y − ȳ‖²        explained_variance = 1 − fvu

    Rows that do not vary have no explained variance: not finite.
    """

    full_state_update = False
    squared_error: Tensor
    absolute_error: Tensor
    square: Tensor
    total: Tensor
    rows: Tensor

    def __init__(self):
        super().__init__()
        for name in ("squared_error", "absolute_error", "square", "rows"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")  # [d_out] from the first batch on

    def update(self, batch: Batch, step: Step) -> None:
        y = batch.y.double()
        e = y - step.reconstruction
        self.squared_error += e.square().sum()
        self.absolute_error += e.abs().sum()
        self.square += y.square().sum()
        self.total = self.total + y.sum(0)
        self.rows += len(y)

    def compute(self) -> dict[str, Tensor]:
        numbers = self.rows * self.total.numel()
        fvu = self.squared_error / (self.square - self.total.square().sum() / self.rows)
        return {
            "mse": self.squared_error / numbers,
            "mse_sum": self.squared_error / self.rows,
            "normalised_mse": self.squared_error / self.square,
            "l1_error": self.absolute_error / numbers,
            "fvu": fvu,
            "explained_variance": 1 - fvu,
        }
