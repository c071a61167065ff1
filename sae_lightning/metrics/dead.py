"""How many latents never fire."""

import torch
from torch import Tensor
from torchmetrics import Metric

from sae_lightning.data.batch import Batch
from sae_lightning.models.base import Step


class Dead(Metric):
    """dead = latents that fired in none of the rows seen, whose number is `rows`; dead_pct = their share in percent; alive = the others.

    Few rows make many look dead. In training dead is another thing: silent for `dead_after` rows, which the dictionary counts.
    """

    full_state_update = False
    fires: Tensor
    rows: Tensor

    def __init__(self):
        super().__init__()
        self.add_state("fires", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")  # [d_sae] from the first batch on
        self.add_state("rows", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, batch: Batch, step: Step) -> None:
        self.fires = self.fires + step.latents.fires()
        self.rows += len(batch.x)

    def compute(self) -> dict[str, Tensor]:
        dead = (self.fires == 0).sum().double()
        return {"dead": dead, "dead_pct": 100 * dead / self.fires.numel(), "alive": self.fires.numel() - dead, "rows": self.rows}
