"""Rows whose true directions are known."""

from collections.abc import Iterator
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sae_lightning.data.batch import Batch, Shape, Views, arranged, cut
from sae_lightning.data.rows import RowsDataModule, generator, scale_of, share
from sae_lightning.errors import InputError

CHUNK = 1024
HELD_OUT, SAMPLED = 1 << 40, 1 << 41


class SyntheticDataModule(RowsDataModule):
    """Sparse non-negative sums of known unit directions, plus noise.

    A row is the sum of Binomial(2·l0, ½) draws, each a direction with probability ∝ (rank + n/16)^−zipf and a magnitude
    |1 + 0.25·N(0,1)| (one drawn twice counts twice), and Gaussian noise of `noise` times the signal's standard deviation per dimension.
    `correlation`: the share of every second draw that is replaced by the partner (rank ⊕ 1) of the one before it.

    `views`: rows of one space; x and y (`pair`), or `stacked` rows side by side (`stack`), which are the same draws and magnitudes with
    directions of each space's own and noise of its own. The spaces have width `d`, but y of a pair `d_out`. `directions` are those of y,
    spaces side by side: what decoder rows are to find; `spaces`: one [n, width] tensor each.

    A row depends on (seed, its index) only: training rows are 0, 1, 2, …, held-out rows and samples lie far behind. `d`: width of a
    row; `n_directions`: how many there are; `l0`: mean number active; `rows_held_out`: validation rows.
    Errors: InputError for sizes that cannot be.
    """

    def __init__(self, d: int, n_directions: int, l0: float, batch_size: int, zipf: float = 1.0, noise: float = 0.1, correlation: float = 0.0,
                 rows_held_out: int = 16384, scale: str = "unit", seed: int = 0, d_out: int = 96, stacked: int = 3, views: Views = "one"):  # fmt: skip
        super().__init__(batch_size, scale)
        if not (d >= 1 and 0.5 <= l0 <= n_directions / 2):
            raise InputError(
                f"data.d={d}, data.n_directions={n_directions}, data.l0={l0}: choose d ≥ 1 and from half a direction to half of them active on average"
            )
        if noise < 0 or not 0 <= correlation <= 1 or rows_held_out < 1:
            raise InputError(
                f"data.noise={noise} must not be negative, data.correlation={correlation} lies in [0, 1], data.rows_held_out={rows_held_out} is positive"
            )
        if d_out < 1 or stacked < 2:
            raise InputError(f"data.d_out={d_out} must be positive, and data.stacked={stacked} at least 2")
        self.l0, self.noise, self.correlation, self.seed, self.rows_held_out, self.views = (
            l0,
            noise,
            correlation,
            seed,
            rows_held_out,
            views,
        )
        widths = {"one": [d], "pair": [d, d_out], "stack": [d] * stacked}[views]
        self.spaces: list[Float[Tensor, "n d"]] = [_directions(n_directions, width, seed, i) for i, width in enumerate(widths)]
        of_y = arranged(self.spaces, views)[1]
        self.directions: Float[Tensor, "n d_out"] = of_y[0] if len(of_y) == 1 else torch.cat(of_y, dim=1)
        frequencies = (torch.arange(1, n_directions + 1) + n_directions / 16).double() ** -zipf
        self.cumulative = (frequencies.cumsum(0) / frequencies.sum()).float()
        self._chunk = lru_cache(maxsize=8)(self._make_chunk)

    @property
    def shape(self) -> Shape:
        return Shape(*arranged([space.shape[1] for space in self.spaces], self.views))

    @cached_property
    def scale(self) -> tuple[Tensor, Tensor]:
        rows = self.rows(SAMPLED, 8 * CHUNK).split([space.shape[1] for space in self.spaces], dim=1)
        x, y = arranged([self._scale_of(space) for space in rows], self.views)
        return torch.cat(x), torch.cat(y)

    def _scale_of(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
        d = rows.shape[1]
        return torch.full((d,), scale_of(float(rows.double().square().sum(1).mean()), d, self.scale_mode))

    def rows(self, start: int, n: int) -> Float[Tensor, "n d"]:
        """Rows start … start + n − 1, of all spaces side by side."""
        first, last = start // CHUNK, (start + n - 1) // CHUNK
        chunks = torch.cat([self._chunk(index) for index in range(first, last + 1)])
        return chunks[start - first * CHUNK :][:n]

    def train_batch(self, index: int, rank: int = 0, ranks: int = 1) -> Batch:
        return share(self._cut(self.rows(index * self.batch_size, self.batch_size)), rank, ranks)

    def held_out(self) -> Iterator[Batch]:
        for start in range(0, self.rows_held_out, self.batch_size):
            yield self._cut(self.rows(HELD_OUT + start, min(self.batch_size, self.rows_held_out - start)))

    def sample(self, n: int, seed: int) -> Batch:
        return self._cut(self.rows(SAMPLED + (seed << 24), n))

    def _cut(self, rows: Float[Tensor, "n d"]) -> Batch:
        return cut(rows, self.shape, self.views)

    @cached_property
    def noise_stds(self) -> list[float]:
        """Of the noise of each space, per dimension."""
        chunks = [self._signals(generator(self.seed, "signal", i)) for i in range(8)]
        return [self.noise * float(torch.cat(of_space).var(0).mean().sqrt()) for of_space in zip(*chunks, strict=True)]

    def _make_chunk(self, index: int) -> Tensor:
        g = generator(self.seed, "rows", index)
        signals = self._signals(g)
        noisy = [s + std * torch.randn(s.shape, generator=g) for s, std in zip(signals, self.noise_stds, strict=True)]
        return noisy[0] if len(noisy) == 1 else torch.cat(noisy, dim=1)

    def _signals(self, g: torch.Generator) -> list[Tensor]:
        """Of each space, of the same draws."""
        most = round(2 * self.l0)
        last = len(self.directions) - 1
        draws = torch.searchsorted(self.cumulative, torch.rand(CHUNK, most, generator=g)).clamp(max=last)
        count = torch.rand(CHUNK, most, generator=g).lt(0.5).sum(1, keepdim=True)
        if self.correlation:
            together = torch.rand(CHUNK, most // 2, generator=g) < self.correlation
            first, second = draws[:, 0 : 2 * (most // 2) : 2], draws[:, 1::2]
            draws[:, 1::2] = torch.where(together, (first ^ 1).clamp(max=last), second)
        magnitude = (1 + 0.25 * torch.randn(draws.shape, generator=g)).abs() * (torch.arange(most) < count)
        return [F.embedding_bag(draws, directions, per_sample_weights=magnitude, mode="sum") for directions in self.spaces]


def _directions(n: int, d: int, seed: int, space: int) -> Float[Tensor, "n d"]:
    key = (seed, "directions", space) if space else (seed, "directions")
    return F.normalize(torch.randn(n, d, generator=generator(*key)), dim=1)
