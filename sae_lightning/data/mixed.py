"""Rows of several stores, mixed with weights."""

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from torch.utils.data import DataLoader

from sae_lightning.data.batch import Batch, Hooks, Shape, arranged
from sae_lightning.data.datamodule import ActivationDataModule
from sae_lightning.data.order import LANES
from sae_lightning.data.rows import RowsDataModule, scale_of
from sae_lightning.data.shuffle import VALIDATION_MOST, VALIDATION_SHARE
from sae_lightning.errors import InputError

CYCLE = 4096
SMALLEST = 16
"""A batch is mixed of at least so many units, where it has as many rows."""


class MixedDataModule(RowsDataModule):
    """Rows of several stores of the same hook points, so many of each in every batch as `weights` say (None: as the stores have rows).

    Each store is shuffled as if it were alone, in the memory of its share of the pool, and begins its next pass where one ends. A batch
    is put together of units of up to 64 rows, `CYCLE` of which hold the weights as exactly as whole numbers can; ranks whose number
    divides a unit read rows of their own. Validation rows, `sample` and tokens are mixed with the same weights. One scale for all, of
    the mixture. The settings of `stores` count together: `validation_rows` (None: a twentieth of the store that gives out first) and
    `pool_rows`.

    Errors: InputError for weights that are none, for stores whose widths differ, and what `ActivationDataModule` raises.
    """

    def __init__(self, stores: Sequence[ActivationDataModule], weights: Sequence[float] | None = None):
        first = stores[0]
        super().__init__(first.batch_size, first.scale_mode)
        if weights is not None and len(weights) != len(stores):
            raise InputError(f"data.weights has {len(weights)} numbers for {len(stores)} stores in data.store: give one for each")
        if weights is not None and not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise InputError(f"data.weights is {list(weights)}: give a positive number for each store")
        if any(store.last_batch != "fill" for store in stores):
            raise InputError(f"data.last_batch={first.last_batch} is of one store: a mixture of several has no pass, set it to fill")
        self.stores, self.hook, self.views, self.transformer = list(stores), first.hook, first.views, first.transformer
        self._given = weights
        most = max(self.batch_size // SMALLEST, 1)
        self.unit = math.gcd(self.batch_size, LANES, 1 << most.bit_length() - 1)

    @cached_property
    def shape(self) -> Shape:
        first, *others = (store.shape for store in self.stores)
        for store, other in zip(self.stores[1:], others, strict=True):
            if other != first:
                raise InputError(
                    f"{store.source.path} has rows of another width ({other.d_in}) at '{store.hook}' than {self.stores[0].source.path} "
                    f"({first.d_in}): mix stores of one transformer"
                )
        return first

    @property
    def hooks(self) -> Hooks:
        return self.stores[0].hooks

    @cached_property
    def weights(self) -> Float[np.ndarray, " stores"]:
        """Of the stores; their sum is 1."""
        given = np.array([store.store.rows for store in self.stores] if self._given is None else self._given, dtype=np.float64)
        return given / given.sum()

    @cached_property
    def mixture(self) -> "Mixture":
        """How the stores take turns. From here on they know their share of the validation rows and of the pool."""
        total, pool = self.stores[0].validation_rows, self.stores[0].pool_rows
        if total is None:
            total = min(VALIDATION_MOST, *(VALIDATION_SHARE * s.store.rows / w for s, w in zip(self.stores, self.weights, strict=True)))
        for store, weight in zip(self.stores, self.weights, strict=True):
            store.validation_rows = max(1, round(total * weight))
            store.pool_rows = max(LANES, round(pool * weight))
        return Mixture(self.weights)

    def numbers(self) -> dict[str, float]:
        per_image = [store.rows_per_image for store in self.stores]
        if any(rows is None for rows in per_image):
            return {}
        return {"images": sum(self.rows_trained * weight / rows for weight, rows in zip(self.weights.tolist(), per_image, strict=True))}  # type: ignore[operator]

    @property
    def origin(self) -> dict[str, Any]:
        found = [store.origin | {"weight": weight} for store, weight in zip(self.stores, self.weights.tolist(), strict=True)]
        return {"mixed": found}

    @property
    def about(self) -> dict[str, Any]:
        stores = zip(self.stores, self.weights.tolist(), strict=True)
        return {**super().about, "stores": [{"path": str(store.source.path), "weight": weight} for store, weight in stores]}

    def prepare_data(self) -> None:
        for store in self.stores:
            store.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Opens and checks the stores."""
        _ = self.shape, self.mixture
        for store in self.stores:
            store.setup(stage)

    @property
    def scale(self) -> tuple[Float[Tensor, " d_in"], Float[Tensor, " d_out"]]:
        def at(hook: str) -> Float[Tensor, " d"]:
            d = self.stores[0].store.width(hook)
            squares = [store.mean_square(hook) for store in self.stores]
            return torch.full((d,), scale_of(float(self.weights @ squares), d, self.scale_mode))

        x, y = arranged([at(hook) for hook in self.stores[0].side_by_side], self.views)
        return torch.cat(x), torch.cat(y)

    def train_dataloader(self) -> DataLoader:
        for store in self.stores:
            store.trainer = self.trainer
            _ = self.mixture, store.shuffled
        return super().train_dataloader()

    def train_batch(self, index: int, rank: int = 0, ranks: int = 1) -> Batch:
        units = self.batch_size // self.unit
        parts, done = [], 0
        for store, i, j in self._of_each(units * index, units * (index + 1)):
            start, stop, own = self.unit * i, self.unit * j, (rank - done) % ranks
            if start + own < stop:
                parts.append(store.batch_at(start, stop, own, ranks))
            done += stop - start
        return joined(parts)

    def held_out(self) -> Iterator[Batch]:
        _ = self.mixture
        return itertools.chain.from_iterable(store.held_out() for store in self.stores)

    def sample(self, n: int, seed: int) -> Batch:
        return joined([store.sample(stop - start, seed) for store, start, stop in self._of_each(0, n)])

    def tokens_held_out(self, n: int) -> tuple[Int[Tensor, "n context"], Bool[Tensor, "n context"]]:
        return _side_by_side([store.tokens_held_out(stop - start) for store, start, stop in self._of_each(0, n)])

    def tokens_train(self, index: int, n: int) -> tuple[Int[Tensor, "n context"], Bool[Tensor, "n context"]]:
        return _side_by_side([store.tokens_at(start, stop) for store, start, stop in self._of_each(index * n, (index + 1) * n)])

    def _of_each(self, start: int, stop: int) -> list[tuple[ActivationDataModule, int, int]]:
        """Which of its own each store gives for the turns start … stop − 1; those that give none are left out."""
        starts, stops = self.mixture.before(start).tolist(), self.mixture.before(stop).tolist()
        return [(store, i, j) for store, i, j in zip(self.stores, starts, stops, strict=True) if i < j]


def _side_by_side(found: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len({ids.shape[1] for ids, _ in found}) > 1:
        raise InputError(
            "the stores that are mixed hold sequences of different lengths, so none is evaluated inside a transformer: "
            "leave out data/transformer, or harvest them with the same data.context_length"
        )
    ids, special = zip(*found, strict=True)
    return torch.cat(ids), torch.cat(special)


class Mixture:
    """In which order so many parts take turns: a cycle, evenly laid out, in which each comes as often as its weight says, at least once."""

    def __init__(self, weights: Float[np.ndarray, " parts"]):
        exact = weights * CYCLE
        counts = np.maximum(np.floor(exact).astype(np.int64), 1)
        behind = np.argsort(counts - exact, kind="stable")
        for part in itertools.islice(itertools.cycle(behind), max(CYCLE - int(counts.sum()), 0)):
            counts[part] += 1
        times = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
        turns = np.repeat(np.arange(len(counts)), counts)[np.argsort(times, kind="stable")]
        taken = np.cumsum(turns[:, None] == np.arange(len(counts)), axis=0)
        self._before = np.concatenate([np.zeros((1, len(counts)), np.int64), taken])

    def before(self, n: int) -> Int64[np.ndarray, " parts"]:
        """How many of the first n turns each part has."""
        cycles, rest = divmod(n, len(self._before) - 1)
        return cycles * self._before[-1] + self._before[rest]


def joined(batches: Sequence[Batch]) -> Batch:
    """Their rows, one after the other."""
    x = torch.cat([batch.x for batch in batches])
    return Batch(x, x if all(batch.y is batch.x for batch in batches) else torch.cat([batch.y for batch in batches]))
