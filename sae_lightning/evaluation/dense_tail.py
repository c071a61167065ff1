"""What the latents that fire almost always are good for."""

import torch
from jaxtyping import Bool
from torch import Tensor

from sae_lightning.data.batch import Batch
from sae_lightning.data.rows import RowsDataModule
from sae_lightning.errors import InputError
from sae_lightning.evaluation.steps import steps
from sae_lightning.inference import InferenceSAE
from sae_lightning.metrics.density import Density
from sae_lightning.metrics.reconstruction_error import ReconstructionError
from sae_lightning.models.base import Step

EDGES = ("1e-2", "1e-1")


class DenseTail:
    """Latents of density above 1 % and above 10 % over the first `rows` held-out rows, in two passes over them.

        above_1e-2, above_1e-1 = number of such latents;   above_…_share_of_l0 = what they contribute to L0 (both as in `Density`)
        above_…_explained_variance = explained variance − explained variance with those latents set to zero

    The last one is a share of Σ‖y − ȳ‖². It may exceed the explained variance itself, since b_dec does not make up for their mean.
    """

    def __init__(self, rows: int = 65_536):
        if rows < 1:
            raise InputError(f"evaluate.dense_tail.rows is {rows}: give a positive number of rows")
        self.rows = rows

    def __call__(self, sae: InferenceSAE, data: RowsDataModule) -> dict[str, float]:
        device = sae.b_enc.device
        fires = Density().to(device)
        for batch, step in steps(sae, data, self.rows):
            fires.update(batch, step)
        density = fires.firings / fires.rows
        kept = {edge: density <= float(edge) for edge in EDGES}
        whole, without = ReconstructionError().to(device), {edge: ReconstructionError().to(device) for edge in EDGES}
        for batch, step in steps(sae, data, self.rows):
            whole.update(batch, step)
            for edge in EDGES:
                without[edge].update(batch, _only(sae, batch, step, kept[edge]))
        explained = whole.compute()["explained_variance"]
        values = {name: float(value) for name, value in fires.compute().items() if name.startswith("above_")}
        lost = {edge: float(explained - error.compute()["explained_variance"]) for edge, error in without.items()}
        return values | {f"above_{edge}_explained_variance": value for edge, value in lost.items()}


@torch.no_grad()
def _only(sae: InferenceSAE, batch: Batch, step: Step, kept: Bool[Tensor, " d_sae"]) -> Step:
    """The step with all other latents at zero."""
    latents = step.latents.with_values(step.latents.values * step.latents.at(kept.to(step.latents.values.dtype)))
    return Step(latents, sae.reconstruct(batch.x, latents), {})
