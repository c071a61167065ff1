"""Explained variance row by row."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from sae_lightning.data.batch import Batch
from sae_lightning.models.base import Step


class VariancePerRow(Metric):
    """v_i = 1 − ‖e_i‖²/‖y_i − ȳ‖² with the mean ȳ of all rows: its spread tells what one global ratio hides.

        explained_variance_legacy = mean of v_i        explained_variance_std = standard deviation of v_i (over n − 1)
        mse_over_norm = mean of ‖e_i‖²/(d ‖y_i − ȳ‖), what ViT-Prisma calls its mse_loss

    ȳ is known only at the end, so that rows are kept until then: the first `rows` of each rank, the others are not looked at. A row
    that is ȳ itself has no v_i and is left out.
    """

    full_state_update = False
    kept: list[Tensor]
    kept_errors: list[Tensor]

    def __init__(self, rows: int = 8192):
        super().__init__()
        self.most = rows
        self.add_state("kept", [], dist_reduce_fx="cat")
        self.add_state("kept_errors", [], dist_reduce_fx="cat")

    def update(self, batch: Batch, step: Step) -> None:
        room = self.most - sum(len(y) for y in self.kept)
        if room > 0:
            y = batch.y[:room]
            self.kept.append(y)
            self.kept_errors.append((y.double() - step.reconstruction[:room]).square().sum(1))

    def compute(self) -> dict[str, Tensor]:
        y = dim_zero_cat(self.kept)
        centred = y - y.mean(0, dtype=torch.float64)
        variance = centred.square().sum(1)
        errors, variance = dim_zero_cat(self.kept_errors)[variance > 0], variance[variance > 0]
        v = 1 - errors / variance
        return {
            "explained_variance_legacy": v.mean(),
            "explained_variance_std": v.std() if len(v) > 1 else torch.zeros_like(v.sum()),
            "mse_over_norm": (errors / variance.sqrt()).mean() / y.shape[1],
        }
