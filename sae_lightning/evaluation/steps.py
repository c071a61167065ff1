"""Held-out rows through an SAE."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lightning.data.batch import Batch
from sae_lightning.data.rows import RowsDataModule
from sae_lightning.errors import InputError
from sae_lightning.inference import InferenceSAE
from sae_lightning.models.base import Step


def steps(sae: InferenceSAE, data: RowsDataModule, rows: int) -> Iterator[tuple[Batch, Step]]:
    """The first `rows` held-out rows in batches, with latents and reconstructions, in raw units, on the device of the SAE.

    Errors: InputError when the widths of the rows are not those of the SAE.
    """
    check_widths(sae, data)
    left = rows
    for batch in data.held_out():
        x = batch.x[:left].to(sae.b_enc.device)
        batch = Batch(x, x if batch.y is batch.x else batch.y[:left].to(sae.b_enc.device))
        with torch.no_grad():
            latents = sae.encode(batch.x)
            step = Step(latents, sae.reconstruct(batch.x, latents), {})
        yield batch, step
        left -= len(x)
        if left <= 0:
            return


def check_widths(sae: InferenceSAE, data: RowsDataModule) -> None:
    """Errors: InputError when the widths of the rows are not those of the SAE."""
    own, rows = (sae.W_enc.shape[1], sae.W_dec.shape[1]), (data.shape.d_in, data.shape.d_out)
    if own != rows:
        raise InputError(
            f"the SAE maps rows of width {own[0]} to {own[1]}, these rows are {rows[0]} and {rows[1]} wide: take the data of its training"
        )


class Firing(NamedTuple):
    """Which latents fire, and how many in each row (on the CPU)."""

    density: Float[Tensor, " d_sae"]
    l0: Float[Tensor, " rows"]


def firing(sae: InferenceSAE, data: RowsDataModule, rows: int) -> Firing:
    """Over the first `rows` held-out rows. Errors: InputError when there are none."""
    fires, per_row = torch.zeros(sae.d_sae, dtype=torch.float64), []
    for _, step in steps(sae, data, rows):
        fires += step.latents.fires().cpu()
        per_row.append(step.latents.l0_per_row().cpu().float())
    if not per_row:
        raise InputError("there are no held-out rows to evaluate on: give the data more rows")
    l0 = torch.cat(per_row)
    return Firing((fires / len(l0)).float(), l0)
