"""How many latents say the same as another one."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sae_lightning.data.rows import RowsDataModule
from sae_lightning.errors import InputError
from sae_lightning.evaluation.steps import firing
from sae_lightning.inference import InferenceSAE

ENTRIES = 2**25
"""Cosines that are held at once."""
ABOVE = 0.9


class Redundancy:
    """c_i = max_{j ≠ i} cos(W_dec[i], W_dec[j]) over living latents i, j; of a crosscoder's rows as they are, hook points side by side.

        redundancy_max_cosine = mean c_i;   redundancy_above_0.9 = share of the living latents with c_i > 0.9

    Living: fires in the first `rows` held-out rows. Fewer than two living latents give {}.
    """

    def __init__(self, rows: int = 65_536):
        if rows < 1:
            raise InputError(f"evaluate.redundancy.rows is {rows}: give a positive number of rows")
        self.rows = rows

    def __call__(self, sae: InferenceSAE, data: RowsDataModule) -> dict[str, float]:
        living = firing(sae, data, self.rows).density > 0
        if int(living.sum()) < 2:
            return {}
        cosines = nearest(sae.W_dec[living.to(sae.W_dec.device)]).double()
        return {"redundancy_max_cosine": float(cosines.mean()), f"redundancy_above_{ABOVE}": float((cosines > ABOVE).double().mean())}


def nearest(directions: Float[Tensor, "n d"], entries: int = ENTRIES) -> Float[Tensor, " n"]:
    """The largest cosine of each of n ≥ 2 directions with another one. Half of the cosines are computed, some `entries` at a time.

    A row of zeros has cosine 0 with all others.
    """
    unit = F.normalize(directions, dim=1)
    largest = unit.new_full((len(unit),), -torch.inf)
    block = max(1, entries // len(unit))
    for start in range(0, len(unit), block):
        cosines = unit[start : start + block] @ unit[start:].T
        cosines.fill_diagonal_(-torch.inf)
        of_rows = largest[start : start + block]
        torch.maximum(of_rows, cosines.amax(1), out=of_rows)
        torch.maximum(largest[start:], cosines.amax(0), out=largest[start:])
    return largest
