"""Which tokens are reconstructed well: by their place in the sequence, and by how frequent they are."""

import logging

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from sae_lightning.data.batch import Batch
from sae_lightning.data.rows import RowsDataModule
from sae_lightning.errors import InputError
from sae_lightning.evaluation.steps import steps
from sae_lightning.inference import InferenceSAE
from sae_lightning.models.base import Step

EVERY = 1 << 40
"""More sequences than any source has."""
QUANTILES = 4
log = logging.getLogger(__name__)


class Positions:
    """Explained variance and L0 of the rows of a bin, over the first `rows` held-out rows.

        …_at_position_00004: the token stands at positions 4 to 7 of its sequence (from 0 on, BOS counts); so for 0, 1, 2 and all powers of 2
        …_of_token_quartile_1: its token is among the rarest of the held-out text; …_4: the most frequent; a quarter of the rows each
        explained_variance_… = 1 − Σ‖e‖²/Σ‖y − ȳ‖² over the rows of the bin, ȳ the mean of all rows;   l0_… = mean number of active latents

    Tokens of one frequency are never parted: their rows go where the middle one of them belongs. A bin without rows is left out. Data without
    tokens gives {}.
    """

    def __init__(self, rows: int = 65_536):
        if rows < 1:
            raise InputError(f"evaluate.positions.rows is {rows}: give a positive number of rows")
        self.rows = rows

    def __call__(self, sae: InferenceSAE, data: RowsDataModule) -> dict[str, float]:
        try:
            ids, has_no_row = data.tokens_held_out(EVERY)
        except InputError as error:
            log.info("no scores by position: %s", error)
            return {}
        names, bins = _bins(ids, ~has_no_row)
        sums = torch.zeros(len(names), data.shape.d_out + 4, dtype=torch.float64, device=sae.b_enc.device)
        done = 0
        for batch, step in steps(sae, data, self.rows):
            numbers = _numbers(batch, step)
            for of_row in bins[:, done : done + len(numbers)].to(sums.device):
                sums.index_add_(0, of_row, numbers)
            done += len(numbers)
        return _scores(names, sums.cpu())


def _bins(ids: Int64[Tensor, "n context"], has_row: Bool[Tensor, "n context"]) -> tuple[list[str], Int64[Tensor, "2 rows"]]:
    """Names of all bins, and in which two of them each row is; rows in the order of sequences and positions."""
    positions, of_position = position_bins(ids.shape[1])
    names = positions + [f"of_token_quartile_{i + 1}" for i in range(QUANTILES)]
    by_position = of_position.expand_as(ids)[has_row]
    return names, torch.stack([by_position, len(positions) + frequency_bins(ids[has_row], QUANTILES)])


def position_bins(context: int) -> tuple[list[str], Int64[Tensor, " context"]]:
    """Names of bins that begin at 0, 1, 2 and all powers of 2, and in which of them each position is."""
    edges = [0, *(1 << i for i in range((context - 1).bit_length()))]
    return [f"at_position_{edge:05}" for edge in edges], torch.bucketize(torch.arange(context), torch.tensor(edges), right=True) - 1


def frequency_bins(tokens: Int64[Tensor, " rows"], n: int) -> Int64[Tensor, " rows"]:
    """For each token the number, below n, of the quantile of its frequency among these tokens; 0: the rarest.

    Those of one frequency take up the ranks a … b − 1 among all; their quantile is that of (a + b)/2.
    """
    _, kind, count = tokens.unique(return_inverse=True, return_counts=True)
    _, frequency, rows = count[kind].unique(return_inverse=True, return_counts=True)
    middle_twice = 2 * rows.cumsum(0) - rows
    return (n * middle_twice // (2 * len(tokens)))[frequency]


def _numbers(batch: Batch, step: Step) -> Float64[Tensor, "rows _"]:
    """Of each row: y, ‖y‖², ‖e‖², L0, 1."""
    y = batch.y.double()
    e = y - step.reconstruction
    of_row = (y.square().sum(1), e.square().sum(1), step.latents.l0_per_row(), torch.ones_like(y[:, 0]))
    return torch.cat([y, *(values.double()[:, None] for values in of_row)], dim=1)


def _scores(names: list[str], sums: Float64[Tensor, "bins _"]) -> dict[str, float]:
    """Every row is in two bins, which the mean does not show."""
    total, (square, error, l0, rows) = sums[:, :-4], sums[:, -4:].T
    mean = total.sum(0) / rows.sum()
    variance = square - 2 * total @ mean + rows * mean.square().sum()
    filled = [i for i in range(len(names)) if rows[i] > 0]
    scores = {f"explained_variance_{names[i]}": float(1 - error[i] / variance[i]) for i in filled}
    return scores | {f"l0_{names[i]}": float(l0[i] / rows[i]) for i in filled}
