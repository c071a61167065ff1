"""The pool of rows that a transformer fills while an SAE is trained on them."""

import logging
import threading
from bisect import bisect_right
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from sae_lightning.data.encoded import Encoded
from sae_lightning.data.periods import Layout, Place
from sae_lightning.data.reading import Reading
from sae_lightning.data.rows import generator

log = logging.getLogger(__name__)


class _Chunk(NamedTuple):
    """Which slots of the pool hold its rows, by part; its sequences, and where they gave a row."""

    parts: dict[int, Int64[Tensor, " n"]]
    ids: list[Int[Tensor, "sequences context"]]
    has_row: list[Bool[Tensor, "sequences context"]]


class Period(NamedTuple):
    """A period that was entered: number of its first row, how many it delivers, of how many in the pool; and the one that follows."""

    start: int
    rows: int
    held: int
    following: Place


class Pool:
    """The training rows of a text over and over, side by side at all `hooks`; any place of the sequence can be asked for at any time.

    A row is read, held, and delivered once in each pass of the text; `Layout` says when. The order is a pure function of (text, seed,
    pool_rows). How many rows a period has is known when it was entered, so that to enter at a row behind one needs a place that is known
    (`place_of`, `know_`): from there each period is read and skipped. Entering a known place reads three chunks at most.

    Rows lie where the transformer is. May be used from several threads: `read` and `sequences` wait while the pool is filled, the others do not.
    """

    def __init__(self, reading: Reading, layout: Layout, hooks: list[str], seed: int):
        self.reading, self.layout, self.hooks, self.seed = reading, layout, hooks, seed
        self._values: dict[str, Encoded] = {}
        self._free = torch.arange(layout.capacity)
        self._chunks: dict[tuple[int, int], _Chunk] = {}
        self._order: Int64[Tensor, " rows"] = self._free[:0]
        self._now: Place | None = None
        self._filling, self._table = threading.Lock(), threading.Lock()
        self._starts, self._places = [0], [Place(0, 0)]
        self._periods: dict[Place, Period] = {}
        self._sequences: dict[Place, list[_Chunk]] = {}
        self._said = False

    def read(self, start: int, stop: int, rank: int = 0, ranks: int = 1) -> Float[Tensor, "rows d"]:
        """Rows number start + rank, start + rank + ranks, … below stop of the endless sequence, float32."""
        found, at = [], start
        with self._filling:
            while at < stop:
                first = self._enter(at).start
                here = self._order[at - first : stop - first]
                found.append(self._at(here[(rank - (at - start)) % ranks :: ranks]))
                at += len(here)
        return found[0] if len(found) == 1 else torch.cat(found)

    def sequences(self, row: int) -> tuple[Place, int, Int[Tensor, "n context"], Bool[Tensor, "n context"]]:
        """The period that delivers a row, its first row, the token ids of the sequences it is fed by, and where these gave a row."""
        with self._table:
            place, period = self._period_of(row)
            chunks = self._sequences.get(place)
        if period is None or chunks is None:
            with self._filling:
                period = self._enter(row)
                assert self._now is not None
                place, chunks = self._now, self._sequences[self._now]
        ids = torch.cat([piece for chunk in chunks for piece in chunk.ids])
        has_row = torch.cat([piece for chunk in chunks for piece in chunk.has_row])
        kept = has_row.any(1)
        return place, period.start, ids[kept], has_row[kept]

    def forget_before_(self, row: int) -> None:
        """Frees the token ids of periods that end before a row."""
        with self._table:
            for place in [place for place in self._sequences if self._periods[place].start + self._periods[place].rows <= row]:
                del self._sequences[place]

    def fill(self, row: int) -> float | None:
        """Rows in the pool when so many have been delivered, of those in it when it was last filled; None where that is not known."""
        with self._table:
            period = self._period_of(row - 1)[1] if row else None
        return None if period is None else (period.held - (row - period.start)) / period.held

    def place_of(self, row: int) -> tuple[Place, int]:
        """The nearest known place at or before a row, and the number of its first row."""
        with self._table:
            i = bisect_right(self._starts, row) - 1
            place, start = self._places[i], self._starts[i]
            period = self._periods.get(place)
        if period is not None and row >= start + period.rows:
            return period.following, start + period.rows
        return place, start

    def know_(self, place: Place, start: int) -> None:
        """Says what `place_of` has said before."""
        with self._table:
            if place not in self._places:
                i = bisect_right(self._starts, start)
                self._starts.insert(i, start)
                self._places.insert(i, place)

    def _period_of(self, row: int) -> tuple[Place, Period | None]:
        """The period that delivers a row, where it has been entered."""
        place = self._places[bisect_right(self._starts, row) - 1]
        period = self._periods.get(place)
        return place, period if period is not None and row < period.start + period.rows else None

    def _enter(self, row: int) -> Period:
        place, start = self.place_of(row)
        while True:
            if self._now != place:
                self._fill(place, start)
            period = self._periods[place]
            if row < start + period.rows:
                return period
            place, start = period.following, start + period.rows

    def _fill(self, place: Place, start: int) -> None:
        """Makes the pool what it is at the beginning of a period."""
        self._now = None  # should reading fail
        pass_, number = place
        wanted = {(pass_, chunk): parts for chunk, parts in self.layout.chunks_in(number).items()}
        for key, chunk in list(self._chunks.items()):
            parts = wanted.get(key, range(0))
            self._keep_(key, parts if set(parts) <= set(chunk.parts) else range(0))
        for key, parts in wanted.items():
            self._load_(key)
            self._keep_(key, parts)
        own = self._chunks.get((pass_, number))
        is_last = number == self.layout.chunks or (number > 0 and (own is None or not own.ids))
        chunks = [self._chunks[key] for key in wanted]
        delivered = [slots for key in wanted for part, slots in self._chunks[key].parts.items() if is_last or part == number - key[1]]
        if is_last:
            self._say_that_it_begins_again()
            for chunk in (-2, -1):
                self._load_((pass_ + 1, chunk))
        slots = torch.cat(delivered)
        order = slots[torch.randperm(len(slots), generator=generator(self.seed, "live period", *place))]
        self._order = order.to(self.reading.device)
        following = Place(pass_ + 1, 0) if is_last else Place(pass_, number + 1)
        self.know_(place, start)
        with self._table:
            self._periods[place] = Period(start, len(order), self.layout.capacity - len(self._free), following)
            self._sequences[place] = chunks
        self._now = place

    def _keep_(self, key: tuple[int, int], parts: range) -> None:
        """Gives back the slots of a chunk's other parts."""
        own = self._chunks[key].parts
        for part in [part for part in own if part not in parts]:
            self._free = torch.cat([self._free, own.pop(part)])
        if not parts:
            del self._chunks[key]

    def _load_(self, key: tuple[int, int]) -> None:
        if key in self._chunks:
            return
        pass_, chunk = key
        slots, ids, has_row = [self._free[:0]], [], []
        for piece in self.reading.rows(*self.layout.span(chunk)):
            n = int(piece.keep.sum())
            here, self._free = self._free[:n], self._free[n:]
            self._write_(here, piece.rows)
            slots.append(here)
            ids.append(piece.ids.cpu())
            has_row.append(piece.keep.cpu())
        of_chunk = torch.cat(slots)
        of_chunk = of_chunk[torch.randperm(len(of_chunk), generator=generator(self.seed, "live", pass_, chunk))]
        parts = self.layout.parts(chunk)
        self._chunks[key] = _Chunk(dict(zip(parts, of_chunk.tensor_split(len(parts)), strict=True)), ids, has_row)

    def _write_(self, slots: Int64[Tensor, " n"], rows: dict[str, Encoded]) -> None:
        slots = slots.to(self.reading.device)
        for hook in self.hooks:
            values, scale = rows[hook]
            if hook not in self._values:
                room = values.new_empty(self.layout.capacity, values.shape[1])
                self._values[hook] = Encoded(room, None if scale is None else scale.new_empty(len(room)))
            pool = self._values[hook]
            pool.values[slots] = values
            if pool.scale is not None and scale is not None:
                pool.scale[slots] = scale

    def _at(self, slots: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        rows = [self._values[hook].at(slots).float() for hook in self.hooks]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def _say_that_it_begins_again(self) -> None:
        if not self._said:
            log.warning("all %d sequences of the text have been read: from here on they are read again (said once)", self.reading.end)
        self._said = True
