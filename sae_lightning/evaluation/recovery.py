"""Whether the true directions were found, where they are known."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sae_lightning.data.rows import RowsDataModule, generator
from sae_lightning.errors import InputError
from sae_lightning.evaluation.steps import firing
from sae_lightning.inference import InferenceSAE


class Recovery:
    """One-to-one assignment of true directions to decoder rows of living latents that maximises the sum of cosines (Hungarian algorithm).

        recovery = share of the truths whose latent is at cos > `cosine` (recall)
        recovery_precision = share of the living latents that are matched so;   recovery_f1 = their harmonic mean
        recovery_mean_cosine = mean over truths (0 for a truth without a latent)
        recovery_chance, recovery_chance_mean_cosine = the same of as many random directions as the SAE has latents

    Living: fires in the first `rows` held-out rows. Data without known directions (`data.directions`, [n, d] unit rows) gives {}.
    """

    def __init__(self, cosine: float = 0.9, rows: int = 65_536):
        if not 0 < cosine < 1 or rows < 1:
            raise InputError(f"evaluate.recovery: cosine={cosine} must lie between 0 and 1, and rows={rows} must be positive")
        self.cosine, self.rows = cosine, rows

    def __call__(self, sae: InferenceSAE, data: RowsDataModule) -> dict[str, float]:
        truths: Tensor | None = getattr(data, "directions", None)
        if truths is None:
            return {}
        living = firing(sae, data, self.rows).density > 0
        cosines = matched(truths, sae.W_dec.cpu()[living])
        random = matched(truths, torch.randn(sae.W_dec.shape, generator=generator(0, "chance")))
        found = int((cosines > self.cosine).sum())
        return {
            "recovery": found / len(truths),
            "recovery_precision": found / max(1, int(living.sum())),
            "recovery_f1": 2 * found / (len(truths) + int(living.sum())),
            "recovery_mean_cosine": float(cosines.sum()) / len(truths),
            "recovery_chance": int((random > self.cosine).sum()) / len(truths),
            "recovery_chance_mean_cosine": float(random.sum()) / len(truths),
        }


def matched(truths: Float[Tensor, "n d"], decoder: Float[Tensor, "latents d"]) -> Float[Tensor, " pairs"]:
    """Cosines of the best one-to-one assignment: min(n, latents) of them."""
    return assigned(truths, decoder)[2]


def assigned(
    left: Float[Tensor, "n d"], right: Float[Tensor, "m d"]
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """The best one-to-one assignment of rows by their cosines, min(n, m) pairs: places on the left, places on the right, cosines."""
    from scipy.optimize import linear_sum_assignment

    cosines = F.normalize(left.double(), dim=1) @ F.normalize(right.double(), dim=1).T
    rows, columns = map(torch.from_numpy, linear_sum_assignment(cosines.numpy(), maximize=True))
    return rows, columns, cosines[rows, columns]
