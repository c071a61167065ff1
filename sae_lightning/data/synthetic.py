"""Rows whose true directions are known."""

from collections.abc import Iterator
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sae_lightning.data.batch import Batch, Shape
from sae_lightning.data.rows import RowsDataModule, generator, scale_of
from sae_lightning.errors import InputError

CHUNK = 1024
HELD_OUT, SAMPLED = 1 << 40, 1 << 41


class SyntheticDataModule(RowsDataModule):
    """Sparse non-negative sums of known unit directions, plus noise (definitions §4, "the reference synthetic rows").

    A row is the sum of Binomial(2·l0, ½) draws, each a direction with probability ∝ (rank + n/16)^−zipf and a magnitude
    |1 + 0.25·N(0,1)| (one drawn twice counts twice), and Gaussian noise of `noise` times the signal's standard deviation per dimension.
    `correlation`: the share of every second draw that is replaced by the partner (rank ⊕ 1) of the one before it.

    A row depends on (seed, its index) only: training rows are 0, 1, 2, …, held-out rows and samples lie far behind. `d`: width of a
    row; `n_directions`: how many there are; `l0`: mean number active; `rows_held_out`: validation rows.
    Errors: InputError for sizes that cannot be.
    """

    def __init__(self, d: int, n_directions: int, l0: float, batch_size: int, zipf: float = 1.0, noise: float = 0.1, correlation: float = 0.0,
                 rows_held_out: int = 16384, scale: str = "unit", seed: int = 0):  # fmt: skip
        super().__init__(batch_size, scale)
        if not (d >= 1 and 0.5 <= l0 <= n_directions / 2):
            raise InputError(
                f"data.d={d}, data.n_directions={n_directions}, data.l0={l0}: choose d ≥ 1 and from half a direction to half of them active on average"
            )
        if noise < 0 or not 0 <= correlation <= 1 or rows_held_out < 1:
            raise InputError(
                f"data.noise={noise} must not be negative, data.correlation={correlation} lies in [0, 1], data.rows_held_out={rows_held_out} is positive"
            )
        self.d, self.l0, self.noise, self.correlation, self.seed, self.rows_held_out = d, l0, noise, correlation, seed, rows_held_out
        self.directions: Float[Tensor, "n d"] = F.normalize(torch.randn(n_directions, d, generator=generator(seed, "directions")), dim=1)
        frequencies = (torch.arange(1, n_directions + 1) + n_directions / 16).double() ** -zipf
        self.cumulative = (frequencies.cumsum(0) / frequencies.sum()).float()
        self._chunk = lru_cache(maxsize=8)(self._make_chunk)

    @property
    def shape(self) -> Shape:
        return Shape((self.d,), (self.d,))

    @cached_property
    def scale(self) -> tuple[Tensor, Tensor]:
        x = self.rows(SAMPLED, 8 * CHUNK)
        s = torch.full((self.d,), scale_of(float(x.double().square().sum(1).mean()), self.d, self.scale_mode))
        return s, s

    def rows(self, start: int, n: int) -> Float[Tensor, "n d"]:
        """Rows start … start + n − 1."""
        first, last = start // CHUNK, (start + n - 1) // CHUNK
        chunks = torch.cat([self._chunk(index) for index in range(first, last + 1)])
        return chunks[start - first * CHUNK :][:n]

    def train_batch(self, index: int) -> Batch:
        x = self.rows(index * self.batch_size, self.batch_size)
        return Batch(x, x)

    def held_out(self) -> Iterator[Batch]:
        for start in range(0, self.rows_held_out, self.batch_size):
            x = self.rows(HELD_OUT + start, min(self.batch_size, self.rows_held_out - start))
            yield Batch(x, x)

    def sample(self, n: int, seed: int) -> Batch:
        x = self.rows(SAMPLED + (seed << 24), n)
        return Batch(x, x)

    @cached_property
    def noise_std(self) -> float:
        """Of the noise, per dimension."""
        signal = torch.cat([self._signal(generator(self.seed, "signal", i)) for i in range(8)])
        return self.noise * float(signal.var(0).mean().sqrt())

    def _make_chunk(self, index: int) -> Tensor:
        g = generator(self.seed, "rows", index)
        signal = self._signal(g)
        return signal + self.noise_std * torch.randn(signal.shape, generator=g)

    def _signal(self, g: torch.Generator) -> Tensor:
        most = round(2 * self.l0)
        draws = torch.searchsorted(self.cumulative, torch.rand(CHUNK, most, generator=g)).clamp(max=len(self.directions) - 1)
        count = torch.rand(CHUNK, most, generator=g).lt(0.5).sum(1, keepdim=True)
        if self.correlation:
            together = torch.rand(CHUNK, most // 2, generator=g) < self.correlation
            first, second = draws[:, 0 : 2 * (most // 2) : 2], draws[:, 1::2]
            draws[:, 1::2] = torch.where(together, (first ^ 1).clamp(max=len(self.directions) - 1), second)
        magnitude = (1 + 0.25 * torch.randn(draws.shape, generator=g)).abs() * (torch.arange(most) < count)
        return F.embedding_bag(draws, self.directions, per_sample_weights=magnitude, mode="sum")
