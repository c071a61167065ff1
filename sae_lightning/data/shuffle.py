"""Training and validation rows of a store, and training rows in the order in which they come."""

import itertools
import math
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from sae_lightning.data.device_pool import DevicePool
from sae_lightning.data.gather import Gathered, MappedRows, PooledRows, Target, can_map
from sae_lightning.data.order import LANES, Order, Segment, Stretches, Window, numbers
from sae_lightning.data.readahead import Readahead
from sae_lightning.data.rows import generator
from sae_lightning.data.stored import StoredRows
from sae_lightning.errors import InputError

BLOCK = 64
VALIDATION_SHARE, VALIDATION_MOST = 0.05, 65_536
CPU = torch.device("cpu")


class Split:
    """Which sequences of a store are held out, and the training rows in blocks of at most 64 neighbours.

    `validation`: the sequences, ascending, and `validation_rows` their rows. `shard_rows`: how many training rows each shard has. Nothing
    here grows with the store but what is said of each shard.
    """

    def __init__(self, store: StoredRows, validation: Int64[Tensor, " n_sequences"]):
        self.store, self.validation = store, validation
        self.shard_rows: Int64[np.ndarray, " shards"] = store.shard_starts.diff().numpy()
        held_out = []
        for shard, within in _by_shard(store, validation):
            rows = store.sequence_rows(shard).numpy()
            starts = int(store.shard_starts[shard]) + rows.cumsum() - rows
            held_out.append(numbers(starts[within.numpy()], rows[within.numpy()]))
            self.shard_rows[shard] -= len(held_out[-1])
        self.validation_rows: Int64[Tensor, " n_rows"] = torch.from_numpy(np.concatenate(held_out))

    @property
    def train_rows(self) -> int:
        return int(self.shard_rows.sum())

    def is_validation(self, shard: int) -> Bool[np.ndarray, " sequences"]:
        """For each sequence of a shard."""
        bounds = self.store.shard_sequences[shard : shard + 2]
        begin, end = torch.searchsorted(self.validation, bounds)
        found = np.zeros(int(bounds[1] - bounds[0]), bool)
        found[(self.validation[begin:end] - bounds[0]).numpy()] = True
        return found

    def blocks(self, shard: int) -> tuple[Int64[np.ndarray, " blocks"], Int64[np.ndarray, " blocks"]]:
        """Runs of training rows of a shard, cut into blocks: first row and length of each."""
        bounds = np.concatenate([[0], self.store.sequence_rows(shard).numpy().cumsum()]) + int(self.store.shard_starts[shard])
        edges = np.flatnonzero(np.diff(np.concatenate([[True], self.is_validation(shard), [True]]).astype(np.int8)))
        start, stop = bounds[edges[::2]], bounds[edges[1::2]]
        start, stop = start[start < stop], stop[start < stop]
        blocks = -(-(stop - start) // BLOCK)
        block_start = np.repeat(start, blocks) + BLOCK * numbers(np.zeros_like(blocks), blocks)
        return block_start, np.minimum(BLOCK, np.repeat(stop, blocks) - block_start)

    def rows_at(self, places: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The rows that stand at these places among all training rows, in the order of the store."""
        stop = self.shard_rows.cumsum()
        shards, found = np.searchsorted(stop, places, side="right"), np.empty_like(places)
        for shard in np.unique(shards):
            here = shards == shard
            within = places[here] - (stop - self.shard_rows)[shard]
            starts, lengths = self.blocks(int(shard))
            end = lengths.cumsum()
            block = np.searchsorted(end, within, side="right")
            found[here] = starts[block] + within - (end - lengths)[block]
        return found


def split(store: StoredRows, validation_rows: int | None) -> Split:
    """Holds out whole sequences with at least `validation_rows` rows (None: 5 %, at most 65 536 rows).

    The choice depends on the store alone, so that all runs on a store, whatever their seed, are validated on the same rows.
    Errors: InputError where less than half of the rows would be left.
    """
    if validation_rows is None:
        validation_rows = min(int(VALIDATION_SHARE * store.rows), VALIDATION_MOST)
    wanted = max(validation_rows, 1)
    parts = Split(store, _drawn(store, wanted)) if 2 * wanted <= store.rows else None
    if parts is None or 2 * len(parts.validation_rows) > store.rows:
        raise InputError(
            f"data.validation_rows={validation_rows} holds out more than half of the {store.rows} rows of {store.path}: "
            "lower it, or harvest more tokens (data.max_tokens)"
        )
    return parts


def _drawn(store: StoredRows, wanted: int) -> Int64[Tensor, " n"]:
    """Sequences that have rows, ascending: as many, drawn at random without replacement, as give `wanted` rows. The store has so many."""
    g = generator("validation", store.sequences)
    drawn, rows = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    while int(rows.sum()) < wanted:
        more = torch.randint(store.sequences, (max(64, len(drawn)),), generator=g).numpy()
        _, first = np.unique(more, return_index=True)
        new = torch.from_numpy(more[np.sort(first)])
        new = new[~torch.isin(new, drawn)]
        drawn, rows = torch.cat([drawn, new]), torch.cat([rows, _rows_of(store, new)])
    chosen = drawn[: int(torch.searchsorted(rows.cumsum(0), wanted)) + 1]
    return chosen[rows[: len(chosen)] > 0].sort().values


def _rows_of(store: StoredRows, sequences: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """How many rows these sequences gave."""
    order = sequences.argsort()
    found = torch.empty_like(sequences)
    found[order] = torch.cat([store.sequence_rows(shard)[within] for shard, within in _by_shard(store, sequences[order])] or [order])
    return found


def _by_shard(store: StoredRows, sequences: Int64[Tensor, " n"]) -> Iterator[tuple[int, Int64[Tensor, " m"]]]:
    """For each shard that holds some of these ascending sequences: which of its own they are."""
    edges = torch.searchsorted(sequences, store.shard_sequences)
    for shard in edges.diff().nonzero()[:, 0].tolist():
        yield shard, sequences[edges[shard] : edges[shard + 1]] - store.shard_sequences[shard]


class ShuffledRows:
    """The training rows of a store, over and over, each pass in another order (`Order`); any place of it can be asked for at any time.

    A row is that of one token at all `hooks`, side by side. Where numba is installed and the files are mapped, rows come straight from
    them, and nothing but what is handed out takes memory. Elsewhere one window of each lane is kept as it is stored, on `device`: less
    than 1½ · `pool_rows` rows over all ranks. Entering anywhere reads at most one window of each lane. May be called from several threads.
    """

    def __init__(self, store: StoredRows, hooks: Sequence[str], parts: Split, pool_rows: int, seed: int,
                 shards_at_once: int | None = None, device: torch.device = CPU):  # fmt: skip
        self.store, self.hooks = store, list(hooks)
        self.device = device if device.type == "cuda" else CPU
        self.widths = [store.width(hook) for hook in hooks]
        shard_starts = store.shard_starts.numpy()
        self.order = Order(parts.blocks, parts.shard_rows, seed, pool_rows, shards_at_once)
        mapped = [store.mapped(hook) for hook in hooks]
        self._mapped = [shards for shards in mapped if shards is not None] if can_map(mapped, self.device) else None
        known = [shards for shards in mapped if shards is not None]
        self._ahead = Readahead([[shard.values for shard in shards] for shards in known], shard_starts)
        self._lock = threading.Lock()
        self._windows: _Windows | None = None

    @property
    def rows(self) -> int:
        """Of a pass."""
        return self.order.rows

    def read(self, start: int, stop: int, rank: int = 0, ranks: int = 1) -> Float32[Tensor, "rows d"]:
        """Rows at places start + rank, start + rank + ranks, … below stop; hook points side by side."""
        columns = list(itertools.accumulate(self.widths, initial=0))
        return self._read(start, stop, rank, ranks, [columns[-1]], list(zip([0] * len(self.hooks), columns[:-1], strict=True)))[0]

    def read_apart(self, start: int, stop: int, rank: int = 0, ranks: int = 1) -> list[Float32[Tensor, "rows _"]]:
        """The same rows, those of each hook point in memory of their own."""
        return self._read(start, stop, rank, ranks, self.widths, [(i, 0) for i in range(len(self.hooks))])

    def _read(self, start: int, stop: int, rank: int, ranks: int, widths: list[int], at: list[tuple[int, int]]) -> list[Tensor]:
        """Arrays of these widths; `at`: for each hook point, which one and from which column on."""
        with self._lock:
            shared = math.gcd(LANES, ranks)
            if self._windows is None or self._windows.shared != shared:
                self._windows = None  # its memory first
                self._windows = _Windows(self.order, self._rows_in_memory(LANES // shared), self._ahead, shared)
            rows = self._windows.rows
            found, done = [rows.empty(len(range(start + rank, stop, ranks)), width) for width in widths], 0
            for places in self._windows.places_(start + rank, stop, ranks):
                rows.gather_(places, [Target(found[i][done : done + len(places)], column) for i, column in at])
                done += len(places)
            return rows.handed_out(found)

    def _rows_in_memory(self, slots: int) -> Gathered:
        if self._mapped is not None:
            return MappedRows(self._mapped, self.store.shard_starts.numpy())
        pool = DevicePool if self.device.type == "cuda" else PooledRows
        return pool(self.store, self.hooks, slots, self.order.most_window_rows, self.device)


class _Windows:
    """The window of each lane that rows are taken from at present. Lanes v, v + shared, … have one slot each: those of a rank."""

    def __init__(self, order: Order, rows: Gathered, ahead: Readahead, shared: int):
        self.order, self.rows, self.shared, self._ahead = order, rows, shared, ahead
        slots, self._slot_rows = LANES // shared, order.most_window_rows
        self._places = np.empty(slots * self._slot_rows, np.int64)
        self._held = np.full((4, slots), -1)
        """Of each slot: place of the segment, lane, and the rows of it that are there: first, and the one after the last."""
        self._asked: dict[int, tuple[int, Window, Stretches]] = {}
        """The window that was asked for ahead for each slot, the place of its segment, and its rows."""

    def places_(self, place: int, stop: int, ranks: int) -> Iterator[Int64[np.ndarray, " n"]]:
        """Where the rows at places place, place + ranks, … below stop are, part by part; windows go and come in between."""
        while place < stop:
            segment = self.order.segment(place)
            within, end = place - segment.first, min(stop - segment.first, segment.rows)
            yield from self._places_in(segment, within, len(range(within, end, ranks)), ranks)
            place += ranks * len(range(within, end, ranks))

    def _places_in(self, segment: Segment, place: int, n: int, ranks: int) -> Iterator[Int64[np.ndarray, " n"]]:
        """n of them in a segment. In a round each lane gives one row; so many rounds at a time as no window ends in."""
        step, lanes = ranks // self.shared, len(self._held[0])
        row, lane = np.divmod(place + ranks * np.arange(lanes), LANES)
        slot = lane // self.shared
        while n > 0:
            self._hold_(segment, slot[:n], lane[:n], row[:n])
            begin, end = self._held[2:, slot]
            rounds = 1 if n < lanes else min(int((-((row - end) // step)).min()), -(-n // lanes))
            yield self._places[(slot * self._slot_rows + row - begin + step * np.arange(rounds)[:, None]).ravel()[:n]]
            row, n = row + rounds * step, n - rounds * lanes

    def _hold_(self, segment: Segment, slot: np.ndarray, lane: np.ndarray, row: np.ndarray) -> None:
        """Takes in the windows of these rows that are not there, and asks for those that come after them."""
        first, of_lane, begin, end = self._held[:, slot]
        missing = np.flatnonzero((first != segment.first) | (of_lane != lane) | (row < begin) | (row >= end))
        if not len(missing):
            return
        windows = [(int(slot[i]), segment.window(int(lane[i]), int(row[i]))) for i in missing]
        stretches = [self._asked_(at, segment, window) for at, window in windows]
        self._held[:, slot[missing]] = -1  # so that nothing half read is taken for a window
        for (at, window), rows in zip(windows, stretches, strict=True):
            loaded = self.rows.load_(at, rows)
            self._places[at * self._slot_rows :][: len(loaded)] = loaded[segment.permutation(window)]
            self._held[:, at] = segment.first, window.lane, window.begin, window.end
        for at, window in windows:
            self._ask_ahead_(at, segment, window)

    def _asked_(self, slot: int, segment: Segment, window: Window) -> Stretches:
        """Rows of a window, which are asked for where they were not yet."""
        if (asked := self._asked.get(slot)) is None or asked[:2] != (segment.first, window):
            self._ask_(slot, segment, window)
        return self._asked[slot][2]

    def _ask_(self, slot: int, segment: Segment, window: Window) -> None:
        self._asked[slot] = segment.first, window, segment.stretches(window)
        self._ahead.ask(self._asked[slot][2])

    def _ask_ahead_(self, slot: int, segment: Segment, window: Window) -> None:
        """The next window of a lane; after its last one, that of the lane which has the same place in the rounds of the next segment."""
        lane, row = window.lane, window.end
        if row == segment.lane_rows[lane]:
            lane, row = (lane - segment.rows) % LANES, 0
            slot, segment = lane // self.shared, self.order.segment(segment.first + segment.rows)
        self._ask_(slot, segment, segment.window(lane, row))


class ShuffledSequences:
    """The sequences that training rows come from, over and over, each pass in another order: a pure function of (store, seed)."""

    def __init__(self, store: StoredRows, parts: Split, seed: int):
        shards = range(len(store.shard_sequences) - 1)
        training = [~parts.is_validation(shard) & (store.sequence_rows(shard) > 0).numpy() for shard in shards]
        self.sequences = torch.from_numpy(np.flatnonzero(np.concatenate(training)))
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
