"""Training and validation rows of a store, and the order in which training rows come."""

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sae_lightning.data.rows import generator
from sae_lightning.data.store import Store
from sae_lightning.errors import InputError

BLOCK = 64
VALIDATION_SHARE, VALIDATION_MOST = 0.05, 65_536


class Split(NamedTuple):
    """Which sequences of a store are held out: Bool [sequences]; their rows, and the training rows in blocks of at most 64 neighbours."""

    is_validation: Bool[Tensor, " sequences"]
    validation_rows: Int64[Tensor, " n_validation"]
    block_start: Int64[Tensor, " blocks"]
    block_rows: Int64[Tensor, " blocks"]

    @property
    def train_rows(self) -> int:
        return int(self.block_rows.sum())


def split(store: Store, validation_rows: int | None) -> Split:
    """Holds out whole sequences with at least `validation_rows` rows (None: 5 %, at most 65 536 rows).

    The choice depends on the store alone, so that all runs on a store, whatever their seed, are validated on the same rows.
    Errors: InputError where less than half of the rows would be left.
    """
    bounds = store.sequence_bounds
    if validation_rows is None:
        validation_rows = min(int(VALIDATION_SHARE * store.rows), VALIDATION_MOST)
    order = torch.randperm(store.sequences, generator=generator("validation", store.sequences))
    order = order[bounds.diff()[order] > 0]
    chosen = int(torch.searchsorted(bounds.diff()[order].cumsum(0), max(validation_rows, 1))) + 1
    is_validation = torch.zeros(store.sequences, dtype=torch.bool)
    is_validation[order[:chosen]] = True
    in_validation = is_validation.repeat_interleave(bounds.diff())
    if 2 * int(in_validation.sum()) > store.rows:
        raise InputError(
            f"data.validation_rows={validation_rows} holds out more than half of the {store.rows} rows of {store.path}: "
            "lower it, or harvest more tokens (data.max_tokens)"
        )
    return Split(is_validation, in_validation.nonzero()[:, 0], *_blocks(~in_validation))


def _blocks(train: Bool[Tensor, " rows"]) -> tuple[Int64[Tensor, " blocks"], Int64[Tensor, " blocks"]]:
    """Runs of training rows, cut into blocks: first row and length of each."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], train.numpy(), [False]]).astype(np.int8)))
    start, stop = edges[::2], edges[1::2]
    blocks = -(-(stop - start) // BLOCK)
    within = np.arange(blocks.sum()) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    block_start = np.repeat(start, blocks) + BLOCK * within
    return torch.from_numpy(block_start), torch.from_numpy(np.minimum(BLOCK, np.repeat(stop, blocks) - block_start))


class ShuffledRows:
    """The training rows of a store, over and over, each pass in another order; any place of it can be asked for at any time.

    A row is that of one token at all `hooks`, side by side.

    A pass is a seeded permutation of blocks, cut into windows of about `pool_rows` rows; a window's rows are permuted again.
    One window is held in memory. The order is a pure function of (store, seed, pool_rows). May be called from several threads.
    """

    def __init__(self, store: Store, hooks: Sequence[str], parts: Split, pool_rows: int, seed: int):
        self.store, self.hooks, self.parts, self.seed = store, list(hooks), parts, seed
        self.rows = parts.train_rows
        self.windows = max(1, round(self.rows / max(pool_rows, BLOCK)))
        self._lock = threading.Lock()
        self._pass = -1
        self._order = self._window_start = torch.empty(0, dtype=torch.int64)
        self._held: tuple[int, int] | None = None
        self._window = self._permutation = torch.empty(0)

    def read(self, start: int, stop: int) -> Float[Tensor, "rows d"]:
        """Rows number start … stop − 1 of the endless sequence, float32."""
        parts = []
        with self._lock:
            while start < stop:
                number, offset = divmod(start, self.rows)
                self._enter_pass(number)
                window = int(torch.searchsorted(self._window_start, offset, right=True)) - 1
                self._load_window(window)
                first = offset - int(self._window_start[window])
                here = self._permutation[first : first + stop - start]
                parts.append(self._window[here].float())
                start += len(here)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _enter_pass(self, number: int) -> None:
        if self._pass == number:
            return
        blocks = len(self.parts.block_start)
        self._order = torch.randperm(blocks, generator=generator(self.seed, "blocks", number))
        rows_before = torch.cat([torch.zeros(1, dtype=torch.int64), self.parts.block_rows[self._order].cumsum(0)])
        self._window_start = rows_before[[w * blocks // self.windows for w in range(self.windows)]]
        self._pass = number

    def _load_window(self, window: int) -> None:
        if self._held == (self._pass, window):
            return
        self._held, self._window = None, torch.empty(0)  # so that two windows are never held at a time
        blocks = len(self._order)
        chosen = self._order[window * blocks // self.windows : (window + 1) * blocks // self.windows]
        chosen = chosen.sort().values  # in the order of the files
        starts, lengths = self.parts.block_start[chosen].tolist(), self.parts.block_rows[chosen].tolist()
        widths = [self.store.width(hook) for hook in self.hooks]
        dtype = torch.float32 if self.store.dtype == torch.int8 else self.store.dtype
        rows = torch.empty(sum(lengths), sum(widths), dtype=dtype)
        for hook, of_hook in zip(self.hooks, rows.split(widths, dim=1), strict=True):
            at = 0
            for start, length in zip(starts, lengths, strict=True):
                of_hook[at : at + length] = self.store.read(hook, start, start + length).float()
                at += length
        self._permutation = torch.randperm(len(rows), generator=generator(self.seed, "rows", self._pass, window))
        self._held, self._window = (self._pass, window), rows


class ShuffledSequences:
    """The sequences that training rows come from, over and over, each pass in another order: a pure function of (store, seed)."""

    def __init__(self, store: Store, parts: Split, seed: int):
        self.sequences = (~parts.is_validation & (store.sequence_bounds.diff() > 0)).nonzero()[:, 0]
        self.seed = seed
        self._pass, self._order = -1, self.sequences

    def read(self, start: int, stop: int) -> Int64[Tensor, " n"]:
        """Sequences number start … stop − 1 of the endless row of them."""
        chosen = []
        while start < stop:
            number, offset = divmod(start, len(self.sequences))
            if number != self._pass:
                order = torch.randperm(len(self.sequences), generator=generator(self.seed, "sequences", number))
                self._pass, self._order = number, self.sequences[order]
            chosen.append(self._order[offset : offset + stop - start])
            start += len(chosen[-1])
        return torch.cat(chosen)
