"""Rows without a store: the transformer fills a pool while the SAE is trained."""

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from sae_lightning.data.batch import Batch, Hooks, Shape, Views, arranged, cut
from sae_lightning.data.harvest import Harvest
from sae_lightning.data.live_pool import Pool
from sae_lightning.data.packing import check_context
from sae_lightning.data.periods import Layout, Place
from sae_lightning.data.reading import Reading, Stretch
from sae_lightning.data.rows import RowsDataModule, generator, origin_of, scale_of
from sae_lightning.data.shuffle import VALIDATION_MOST, VALIDATION_SHARE
from sae_lightning.errors import InputError

log = logging.getLogger(__name__)

ENDLESS = 1 << 60
"""Tokens: more than any text has."""
SAMPLED = 65_536
"""Training rows that the scale is of, and that samples are drawn from: the first ones of the text."""


class LiveDataModule(RowsDataModule):
    """Rows of a transformer that reads a text while an SAE is trained on them; nothing is written. They are those that `harvest` would store.

    The hook points and `views` are as of `ActivationDataModule`. The first sequences of the text are held out, so many that they give at
    least `validation_rows` rows (None: 5 % of `max_tokens`, at most 65 536). E‖x‖² for `scale`, and the rows that samples are drawn from,
    are of the first 65 536 training rows. All of these are read once, when training is set up, and kept in memory.

    Training rows come in the order of the text, mixed in a pool of at most `pool_rows` rows on the device of the training, which is filled
    whenever half of it is left (`Layout`); all sequences of the text, over and over. A checkpoint knows the place in the text: a resumed run
    reads three chunks of half a pool at most again, and what is held out. With several ranks each of them reads all of the text and takes
    its own rows of a batch.

    Errors: InputError for a hook point that the transformer has not, for a text that is too short, and as a harvest, whenever it is read.
    """

    def __init__(
        self,
        harvest: Harvest,
        hook: str,
        batch_size: int,
        validation_rows: int | None = None,
        pool_rows: int = 131_072,
        scale: Literal["unit", "sqrt_d", "none"] = "unit",
        seed: int = 0,
        others: Sequence[str] = (),
        views: Views = "one",
    ):
        super().__init__(batch_size, scale)
        if pool_rows < 1:
            raise InputError(f"data.pool_rows is {pool_rows}: give a positive number of rows")
        if validation_rows is not None and not 1 <= validation_rows <= harvest.max_tokens // 2:
            raise InputError(
                f"data.validation_rows is {validation_rows}: give a positive number of rows, at most half of data.max_tokens, or null"
            )
        self.harvest, self.transformer, self.hook, self.views = harvest, harvest.transformer, hook, views
        self.side_by_side = [hook, *others]
        self.validation_rows = (
            min(int(VALIDATION_SHARE * harvest.max_tokens), VALIDATION_MOST) if validation_rows is None else validation_rows
        )
        self.pool_rows, self.seed = pool_rows, seed

    @cached_property
    def shape(self) -> Shape:
        check_context(self.harvest.transformer, self.harvest.context_length)
        widths = self.harvest.transformer.widths(self.harvest.hooks)
        self.harvest.text.check()
        return Shape(*arranged([widths[hook] for hook in self.side_by_side], self.views))

    @property
    def hooks(self) -> Hooks:
        return Hooks(*arranged(self.side_by_side, self.views))

    def setup(self, stage: str | None = None) -> None:
        """Loads the transformer and reads what is held out and what samples are drawn from."""
        _ = self.shape
        _ = self.beginning

    @cached_property
    def reading(self) -> Reading:
        return Reading(self.harvest, None if self.trainer is None else self.trainer.strategy.root_device)

    @cached_property
    def beginning(self) -> tuple[Stretch, Stretch]:
        """Validation sequences, and the first training sequences."""
        validation = self.reading.stretch(0, max(1, self.validation_rows))
        train = self.reading.stretch(validation.stop, SAMPLED)
        if train.is_end and (len(train) < self.batch_size or len(train) < len(validation)):
            raise InputError(
                f"the text '{self.harvest.text.name}' gives {len(train)} training rows beside {len(validation)} validation rows: "
                "give a longer text (data.max_tokens), or lower data.validation_rows and data.batch_size"
            )
        if not len(train):
            raise InputError(
                f"the first {train.stop} sequences of the text '{self.harvest.text.name}' give no training row: give another text"
            )
        log.info(
            "no store: %d rows of the first %d sequences are held out, scale and samples are of %d rows of the next %d",
            *(len(validation), validation.stop, len(train), train.stop - train.first),
        )
        return validation, train

    @cached_property
    def pool(self) -> Pool:
        """Empty until a batch is asked for."""
        first = self.beginning[0].stop
        layout = Layout(first, self.harvest.sequences, self.harvest.context_length, self.pool_rows)
        return Pool(self.reading, layout, self.side_by_side, self.seed)

    @property
    def scale(self) -> tuple[Float[Tensor, " d_in"], Float[Tensor, " d_out"]]:
        x, y = arranged([self._scale_at(hook) for hook in self.side_by_side], self.views)
        return torch.cat(x), torch.cat(y)

    def _scale_at(self, hook: str) -> Float[Tensor, " d"]:
        train = self.beginning[1]
        d, mean_square = train.rows[hook].values.shape[1], train.mean_square[hook]
        if mean_square == 0:
            raise InputError(f"the first {len(train)} rows at hook point '{hook}' are 0: choose another hook point")
        return torch.full((d,), scale_of(mean_square, d, self.scale_mode))

    # -- rows -------------------------------------------------------------------------------------------------------

    def train_batch(self, index: int, rank: int = 0, ranks: int = 1) -> Batch:
        self.pool.forget_before_((self._number(self.batches_trained) - 1) * self.batch_size)
        rows = self.pool.read(index * self.batch_size, (index + 1) * self.batch_size, rank, ranks)
        return cut(rows, self.shape, self.views)

    def held_out(self) -> Iterator[Batch]:
        validation = self.beginning[0]
        for rows in torch.arange(len(validation)).split(self.batch_size):
            yield self._of(validation, rows)

    def sample(self, n: int, seed: int) -> Batch:
        train = self.beginning[1]
        return self._of(train, torch.from_numpy(np.random.default_rng(seed).choice(len(train), min(n, len(train)), replace=False)))

    def _of(self, stretch: Stretch, rows: Int64[Tensor, " n"]) -> Batch:
        side_by_side = torch.cat([stretch.rows[hook].at(rows).float() for hook in self.side_by_side], dim=1)
        return cut(side_by_side, self.shape, self.views)

    # -- sequences --------------------------------------------------------------------------------------------------

    def tokens_held_out(self, n: int) -> tuple[Int[Tensor, "n context"], Bool[Tensor, "n context"]]:
        """Token ids (int64) of at most n validation sequences, and where no row came from: special tokens and whatever else was excluded."""
        validation = self.beginning[0]
        kept = validation.has_row.any(1)
        return validation.ids[kept][:n].long(), ~validation.has_row[kept][:n]

    def tokens_train(self, index: int, n: int) -> tuple[Int[Tensor, "n context"], Bool[Tensor, "n context"]]:
        """The same of n training sequences, for batch number `index`: of those that its rows were mixed among, in an order of their own."""
        index = self._number(index)
        (pass_, period), first_row, ids, has_row = self.pool.sequences(index * self.batch_size)
        start = (index - -(-first_row // self.batch_size)) * n
        chosen, stop = [], start + n
        while start < stop:
            number, offset = divmod(start, len(ids))
            order = torch.randperm(len(ids), generator=generator(self.seed, "live sequences", pass_, period, number))
            chosen.append(order[offset : offset + stop - start])
            start += len(chosen[-1])
        return ids[torch.cat(chosen)].long(), ~has_row[torch.cat(chosen)]

    # -- where it stands --------------------------------------------------------------------------------------------

    def numbers(self) -> dict[str, float]:
        trained = self._number(self.batches_trained - 1) + 1
        fill = self.pool.fill(trained * self.batch_size)
        return {} if fill is None else {"buffer_fill_pct": 100 * fill}

    def state_dict(self) -> dict[str, int]:
        place, row = self.pool.place_of(self._number(self.batches_trained) * self.batch_size)
        return super().state_dict() | {"pass": place.pass_, "period": place.period, "first_row": row}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        super().load_state_dict(state_dict)
        self.pool.know_(Place(state_dict["pass"], state_dict["period"]), state_dict["first_row"])

    def _number(self, index: int) -> int:
        """Of the batch that is trained on, where few are trained on over and over."""
        return index % self.repeat_batches if self.repeat_batches else index

    @property
    def origin(self) -> dict[str, Any]:
        return origin_of(self.harvest.identity)

    @property
    def about(self) -> dict[str, Any]:
        of = self.harvest
        names = {"transformer": of.transformer.name, "text": of.text.name, "hooks": self.side_by_side}
        tokens = None if of.max_tokens == ENDLESS else of.max_tokens
        return super().about | {"mode": "live", **names, "max_tokens": tokens, "pool_rows": self.pool_rows}
