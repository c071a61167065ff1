"""Rows out of an activation store."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from torch.utils.data import DataLoader

from sae_lightning.data.batch import Batch, Hooks, Shape, Views, arranged, cut
from sae_lightning.data.described import DescribedRows
from sae_lightning.data.foreign.existing import ExistingCache
from sae_lightning.data.harvest import Harvesting
from sae_lightning.data.manifest import check_hook
from sae_lightning.data.order import LastBatch, places_of
from sae_lightning.data.remote.store import RemoteSource, RemoteStore
from sae_lightning.data.rows import RowsDataModule, origin_of, scale_of
from sae_lightning.data.shuffle import CPU, ShuffledRows, ShuffledSequences, Split, split
from sae_lightning.data.store import ExistingStore
from sae_lightning.data.stored import StoredRows
from sae_lightning.errors import InputError
from sae_lightning.transformers.base import Transformer


class ActivationDataModule(RowsDataModule):
    """Rows of an activation store: of one hook point, where x is y (`views`: one), or of several at the same token.

    The others than `hook` are `others`: y of a `pair`, what follows in a `stack`. Each has a scale of its own.
    Whole sequences are held out for validation, the same ones whatever the seed (`validation_rows`; None: 5 % of the rows, at most 65 536).
    Training rows are shuffled over the whole store: blocks of at most 64 neighbours in a random order, mixed in 64 windows of together
    `pool_rows` rows, each pass in another order (`Order`, with `shards_at_once`). Every row comes once in a pass. Where one ends inside
    a batch, the next pass goes on in it (`last_batch`: fill), its rows are left out (drop), or it is a shorter batch than the others
    (short); several ranks get as many rows each, so that fewer rows than there are ranks are left out of a short one. `scale`: rows are
    divided in training so that E‖x‖² = 1 (`unit`), = d (`sqrt_d`), or not at all (`none`); E is over all rows of the store.

    Errors: InputError for a hook point that is not in the store, for fewer training rows than a batch, and for a short batch of fewer
    rows than ranks.
    """

    def __init__(
        self,
        source: Harvesting | ExistingStore | ExistingCache | RemoteSource,
        hook: str,
        batch_size: int,
        validation_rows: int | None = None,
        pool_rows: int = 131_072,
        scale: Literal["unit", "sqrt_d", "none"] = "unit",
        seed: int = 0,
        transformer: Transformer | None = None,
        others: Sequence[str] = (),
        views: Views = "one",
        last_batch: LastBatch = "fill",
        shards_at_once: int | None = None,
    ):
        super().__init__(batch_size, scale)
        if shards_at_once is not None and shards_at_once < 1:
            raise InputError(f"data.shards_at_once is {shards_at_once}: give a positive number of shards, or null for all")
        if pool_rows < 1:
            raise InputError(f"data.pool_rows is {pool_rows}: give a positive number of rows")
        if validation_rows is not None and validation_rows < 1:
            raise InputError(f"data.validation_rows is {validation_rows}: give a positive number of rows, or null for 5 %")
        self.source, self.hook, self.transformer, self.views = source, hook, transformer, views
        self.side_by_side = [hook, *others]
        self.validation_rows, self.pool_rows, self.seed = validation_rows, pool_rows, seed
        self.last_batch: LastBatch = last_batch
        self.shards_at_once = shards_at_once
        self._fetched_for = range(0)

    def prepare_data(self) -> None:
        """Makes the store, where it is not complete."""
        self.source.ensure()

    def setup(self, stage: str | None = None) -> None:
        """Opens and checks the store."""
        _ = self.parts

    @cached_property
    def shape(self) -> Shape:
        widths = self.source.widths()
        for hook in self.side_by_side:
            check_hook(hook, widths, self.source.path)
        return Shape(*arranged([widths[hook] for hook in self.side_by_side], self.views))

    @property
    def hooks(self) -> Hooks:
        return Hooks(*arranged(self.side_by_side, self.views))

    @property
    def origin(self) -> dict[str, Any]:
        return origin_of(self.store.identity) if isinstance(self.store, DescribedRows) else {}

    @cached_property
    def store(self) -> StoredRows:
        return self.source.ensure()

    @cached_property
    def parts(self) -> Split:
        """Training and validation rows."""
        for hook in self.side_by_side:
            self.store.width(hook)
        parts = split(self.store, self.validation_rows)
        if parts.train_rows < self.batch_size:
            raise InputError(
                f"{self.store.path} has {parts.train_rows} training rows, less than one batch of data.batch_size={self.batch_size}: "
                f"harvest more {'images (data.max_images)' if self.is_of_images else 'tokens (a longer text, data.max_tokens)'} "
                "or lower data.batch_size"
            )
        if isinstance(self.store, RemoteStore):
            self.store.keep(parts.validation_rows)
        return parts

    @cached_property
    def shuffled(self) -> ShuffledRows:
        device = CPU if self.trainer is None else self.trainer.strategy.root_device
        return ShuffledRows(self.store, self.side_by_side, self.parts, self.pool_rows, self.seed, self.shards_at_once, device)

    @cached_property
    def sequences(self) -> ShuffledSequences:
        return ShuffledSequences(self.store, self.parts, self.seed)

    @property
    def scale(self) -> tuple[Float[Tensor, " d_in"], Float[Tensor, " d_out"]]:
        x, y = arranged([self._scale_at(hook) for hook in self.side_by_side], self.views)
        return torch.cat(x), torch.cat(y)

    def _scale_at(self, hook: str) -> Float[Tensor, " d"]:
        d = self.store.width(hook)
        return torch.full((d,), scale_of(self.mean_square(hook), d, self.scale_mode))

    def mean_square(self, hook: str) -> float:
        """E‖x‖² over all rows of the store. Errors: InputError where it is 0."""
        mean_square = self.store.statistics(hook).mean_square_norm
        if mean_square == 0:
            raise InputError(f"all rows at hook point '{hook}' of {self.store.path} are 0: choose another hook point")
        return mean_square

    @property
    def rows_trained(self) -> int:
        if self.last_batch == "short":
            return self._places(self.batches_trained)[0]
        return super().rows_trained

    def numbers(self) -> dict[str, float]:
        images = {} if self.rows_per_image is None else {"images": self.rows_trained / self.rows_per_image}
        return {"passes": self.rows_trained / self.parts.train_rows} | images

    @property
    def rows_per_image(self) -> float | None:
        """Of a store of images (the mean, where rows were left out)."""
        return self.store.rows / self.store.sequences if self.is_of_images else None

    @property
    def is_of_images(self) -> bool:
        return isinstance(self.store, DescribedRows) and self.store.manifest.is_of_images

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        ranks, rows = self.shares[1], self.parts.train_rows % self.batch_size
        if self.last_batch == "short" and 0 < rows < ranks:
            raise InputError(
                f"a pass of {self.store.path} ends with {rows} rows, too few for {ranks} ranks: set data.last_batch to fill or drop"
            )
        _ = self.shuffled
        return super().train_dataloader()

    def train_batch(self, index: int, rank: int = 0, ranks: int = 1) -> Batch:
        start, stop = self._places(index)
        return self.batch_at(start, stop - (stop - start) % ranks, rank, ranks)

    def batch_at(self, start: int, stop: int, rank: int = 0, ranks: int = 1) -> Batch:
        """Training rows at places start + rank, start + rank + ranks, … below stop of the endless sequence of passes."""
        if isinstance(self.store, RemoteStore) and start not in self._fetched_for:
            self._fetched_for, shards = self.shuffled.order.needed(start)
            self.store.fetch_ahead(shards)
        if self.views == "pair":
            return Batch(*self.shuffled.read_apart(start, stop, rank, ranks))
        rows = self.shuffled.read(start, stop, rank, ranks)
        return Batch(rows, rows)

    def _places(self, index: int) -> tuple[int, int]:
        return places_of(index, self.batch_size, self.parts.train_rows, self.last_batch)

    def held_out(self) -> Iterator[Batch]:
        for rows in self.parts.validation_rows.split(self.batch_size):
            yield self._at(rows)

    def sample(self, n: int, seed: int) -> Batch:
        rows = self.parts.train_rows
        chosen = np.random.default_rng(seed).choice(rows, min(n, rows), replace=False)
        return self._at(torch.from_numpy(self.parts.rows_at(chosen)))

    def _at(self, rows: Int64[Tensor, " n"]) -> Batch:
        side_by_side = torch.cat([self.store.rows_at(hook, rows) for hook in self.side_by_side], dim=1)
        return cut(side_by_side.float(), self.shape, self.views)

    def tokens_held_out(self, n: int) -> tuple[Int[Tensor, "n context"], Bool[Tensor, "n context"]]:
        """Token ids (int64) of at most n validation sequences, and where no row was harvested.

        That is where a special token stands, and what the exclusions of the harvest left out.
        """
        return self._tokens(self.parts.validation[:n])

    def tokens_train(self, index: int, n: int) -> tuple[Int[Tensor, "n context"], Bool[Tensor, "n context"]]:
        """The same of n training sequences: batch number `index` of an endless row of them, which is shuffled anew for each pass."""
        return self.tokens_at(index * n, (index + 1) * n)

    def tokens_at(self, start: int, stop: int) -> tuple[Int[Tensor, "n context"], Bool[Tensor, "n context"]]:
        """The same of sequences start … stop − 1 of that row."""
        return self._tokens(self.sequences.read(start, stop))

    def images_held_out(self) -> tuple[Int[Tensor, " n"], Bool[Tensor, "n positions"]]:
        if not self.is_of_images:
            return super().images_held_out()
        return self.parts.validation, self.store.has_row(self.parts.validation)

    def _tokens(self, sequences: Int[Tensor, " n"]) -> tuple[Int[Tensor, "n context"], Bool[Tensor, "n context"]]:
        if self.is_of_images:
            raise InputError(f"{self.store.path} has no tokens: its rows are of images")
        return self.store.tokens(sequences).long(), ~self.store.has_row(sequences)
