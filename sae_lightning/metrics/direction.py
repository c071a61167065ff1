"""Whether reconstructions point where rows point, and whether they are as long."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from sae_lightning.data.batch import Batch
from sae_lightning.models.base import Step


class Direction(Metric):
    """cosine = mean cos(y, ŷ);   relative_reconstruction_bias γ = Σ‖ŷ‖²/Σ y·ŷ, below 1 where reconstructions are too short.

    γ: Rajamanoharan et al. 2024, arXiv:2404.16014. The cosine of a zero row is 0.
    """

    full_state_update = False
    cosines: Tensor
    reconstruction_square: Tensor
    product: Tensor
    rows: Tensor

    def __init__(self):
        super().__init__()
        for name in ("cosines", "reconstruction_square", "product", "rows"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, batch: Batch, step: Step) -> None:
        y, y_hat = batch.y.double(), step.reconstruction.double()
        self.cosines += F.cosine_similarity(y, y_hat, dim=1, eps=1e-30).sum()
        self.reconstruction_square += y_hat.square().sum()
        self.product += (y * y_hat).sum()
        self.rows += len(y)

    def compute(self) -> dict[str, Tensor]:
        return {"cosine": self.cosines / self.rows, "relative_reconstruction_bias": self.reconstruction_square / self.product}
