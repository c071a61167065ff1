"""The order in which training rows come: which row of a store stands at each place of an endless sequence. Arithmetic only; nothing is read.

A pass is a seeded permutation of blocks of neighbours, laid end to end and cut into `LANES` stretches of equal length, the lanes.
Place t of a pass is the next row of lane t mod LANES, so that a batch has as many rows of each, and ranks whose number divides LANES
read lanes of their own. A lane is cut into windows, within which rows are permuted; lanes change windows at different times.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64

from sae_lightning.data.rows import generator

LANES = 64
MOST_AT_ONCE = 1 << 26
"""Rows, whose permuted blocks take 24 MB: far more than a pool has, so that rows are mixed as well as over all of a larger store."""
LastBatch = Literal["fill", "drop", "short"]
"""What happens where a pass ends inside a batch: the next pass goes on in it, its rows are left out, or it is a short one."""
Array = np.ndarray


def places_of(batch: int, batch_size: int, rows: int, last: LastBatch) -> tuple[int, int]:
    """First place of a batch, and the one after its last; a pass has `rows` places."""
    if last == "fill":
        return batch * batch_size, (batch + 1) * batch_size
    batches = rows // batch_size if last == "drop" else -(-rows // batch_size)
    number, within = divmod(batch, batches)
    first = number * rows + within * batch_size
    return first, min(first + batch_size, (number + 1) * rows)


class Window(NamedTuple):
    """Rows `begin` … `end` − 1 of a lane, which are permuted together."""

    lane: int
    number: int
    begin: int
    end: int


class Stretches(NamedTuple):
    """Rows of a store: from each of `starts` as many as `lengths` says."""

    starts: Int64[Array, " n"]
    lengths: Int64[Array, " n"]


def numbers(starts: Int64[Array, " n"], lengths: Int64[Array, " n"]) -> Int64[Array, " rows"]:
    """The numbers from each start on, as many as its length says, one stretch after the other."""
    return np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())


class Segment:
    """What is permuted as a whole: a pass, or one group of shards in it. Places `first` … `first` + `rows` − 1.

    `lane_rows`, `_at`: how many rows each lane has, and where in the segment they begin. `_opening`, `_windows`: the length of a lane's
    first window, and how many there are; the others have `_length` rows, but the last ½ to 1½ of that.
    """

    def __init__(self, key: tuple[int, ...], first: int, starts: Array, lengths: Array, window_rows: int, seed: int):
        self.key, self.first, self._starts, self._length, self._seed = key, first, starts, window_rows, seed
        self._before = np.concatenate([[0], np.cumsum(lengths)])
        self.rows = int(self._before[-1])
        lanes = np.arange(LANES)
        self.lane_rows: Array = (self.rows - lanes + LANES - 1) // LANES
        self._at = lanes * (self.rows // LANES) + np.minimum(lanes, self.rows % LANES)
        opening = np.clip(window_rows * (LANES + 2 * lanes) // (2 * LANES), 1, np.maximum(self.lane_rows // 2, 1))
        self._opening = np.where(2 * self.lane_rows <= 3 * window_rows, self.lane_rows, opening)
        self._windows = 1 + (self.lane_rows - self._opening + window_rows // 2) // window_rows

    def window(self, lane: int, row: int) -> Window:
        """The one that a row of a lane is in."""
        opening, last = int(self._opening[lane]), int(self._windows[lane]) - 1
        number = 0 if row < opening else min(1 + (row - opening) // self._length, last)
        begin = 0 if number == 0 else opening + (number - 1) * self._length
        end = int(self.lane_rows[lane]) if number == last else opening + number * self._length
        return Window(lane, number, begin, end)

    def permutation(self, window: Window) -> Int64[Array, " rows"]:
        """Which row of its stretches, end to end, stands at each place of a window."""
        key = (self._seed, "rows", *self.key, window.lane, window.number)
        return torch.randperm(window.end - window.begin, generator=generator(*key)).numpy()

    def stretches(self, window: Window) -> Stretches:
        """The rows of a window, in the order of the store."""
        begin, end = (int(self._at[window.lane]) + row for row in (window.begin, window.end))
        first, last = np.searchsorted(self._before, begin, side="right") - 1, np.searchsorted(self._before, end, side="left")
        edges = np.clip(self._before[first : last + 1], begin, end)
        starts = self._starts[first:last] + edges[:-1] - self._before[first:last]
        order = np.argsort(starts)
        return Stretches(starts[order], np.diff(edges)[order])


class Order:
    """The endless sequence: pass after pass, each in another order. A pure function of its arguments.

    `blocks`: first rows and lengths of the blocks of a shard, in the order of the store; they have `shard_rows` rows together, and are
    asked for when a segment begins. `pool_rows`: the windows of all lanes together. `shards_at_once`: blocks are permuted within groups of
    so many shards, drawn anew for each pass; None: over all of them, or so many that they have `MOST_AT_ONCE` rows, so that what is in
    memory does not grow with the store.
    """

    def __init__(self, blocks: Callable[[int], tuple[Array, Array]], shard_rows: Int64[Array, " shards"], seed: int, pool_rows: int,
                 shards_at_once: int | None = None):  # fmt: skip
        self._blocks, self._shard_rows, self._seed = blocks, shard_rows, seed
        self._at_once = shards_at_once or max(1, MOST_AT_ONCE // max(1, int(shard_rows.max())))
        self.rows = int(shard_rows.sum())
        self.window_rows = max(1, pool_rows // LANES)
        self._kept: list[Segment] = []

    @property
    def most_window_rows(self) -> int:
        """No window is longer."""
        return min(self.window_rows + (self.window_rows + 1) // 2, -(-self.rows // LANES))

    def segment(self, place: int) -> Segment:
        """The one that a place is in. The last two are kept: one that is read, and one whose first windows are asked for ahead."""
        for kept in self._kept:
            if kept.first <= place < kept.first + kept.rows:
                return kept
        first, key, shards = self._group(place)
        made = Segment(key, first, *self._permuted(key, shards), self.window_rows, self._seed)
        self._kept = [*self._kept, made][-2:]
        return made

    def needed(self, place: int) -> tuple[range, list[int]]:
        """The places of the segment that a place is in, and the shards that it needs, followed by those of the next segment."""
        first, _, here = self._group(place)
        places = range(first, first + int(self._shard_rows[here].sum()))
        return places, list(dict.fromkeys([*here.tolist(), *self._group(places.stop)[2].tolist()]))

    def _group(self, place: int) -> tuple[int, tuple[int, ...], Array]:
        """Of the segment that a place is in: first place, what seeds it, and its shards."""
        number, within = divmod(place, self.rows)
        groups = self._groups(number)
        ends = np.cumsum([self._shard_rows[group].sum() for group in groups])
        group = int(np.searchsorted(ends, within, side="right"))
        first = number * self.rows + int(ends[group]) - int(self._shard_rows[groups[group]].sum())
        return first, (number, group) if len(groups) > 1 else (number,), groups[group]

    def _groups(self, number: int) -> list[Array]:
        """Shards that are permuted together, group by group of a pass."""
        shards = len(self._shard_rows)
        if self._at_once >= shards:
            return [np.arange(shards)]
        order = torch.randperm(shards, generator=generator(self._seed, "shards", number)).numpy()
        return [order[i : i + self._at_once] for i in range(0, shards, self._at_once)]

    def _permuted(self, key: tuple[int, ...], shards: Array) -> tuple[Array, Array]:
        """First rows and lengths of the blocks of these shards, permuted."""
        starts, lengths = map(np.concatenate, zip(*(self._blocks(int(shard)) for shard in shards), strict=True))
        order = torch.randperm(len(starts), generator=generator(self._seed, "blocks", *key)).numpy()
        return starts[order], lengths[order]
