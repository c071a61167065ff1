"""Stored rows that cost nothing: each says which one it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae_lightning.data.encoded import Encoded, encode
from sae_lightning.data.statistics import Statistics
from sae_lightning.data.stored import StoredRows
from sae_lightning.errors import InputError

WIDTHS = {"a": 3, "b": 5}


def rows_of_sequences(store: StoredRows) -> Tensor:
    """How many rows each sequence gave, shard by shard."""
    return torch.cat([store.sequence_rows(shard) for shard in range(len(store.shard_starts) - 1)])


class Read(NamedTuple):
    hook: str
    start: int
    stop: int


class Numbered:
    """Row i is i + ½ at `a` and −i − 1 at `b`, in all columns, as float32; other types round it. `reads` are kept in their order."""

    def __init__(self, shards: Sequence[int], seed: int = 0, dtype: str = "float32", is_mapped: bool = False, most: int = 40):
        self.path, self.hooks, self.is_mapped = Path("numbered"), list(WIDTHS), is_mapped
        self.shard_starts = torch.tensor([0, *np.cumsum(shards)])
        self.rows = sum(shards)
        g = np.random.default_rng(seed)
        edges = [np.cumsum(g.integers(0, most, rows + 1)) for rows in shards]
        bounds = [np.concatenate([[0], each[each < rows], [rows]]) for rows, each in zip(shards, edges, strict=True)]
        self._sequence_rows = [torch.from_numpy(np.diff(each)) for each in bounds]
        self.shard_sequences = torch.tensor([0, *map(len, self._sequence_rows)]).cumsum(0)
        self.sequences = int(self.shard_sequences[-1])
        self.reads: list[Read] = []
        number = torch.arange(self.rows)[:, None]
        self._encoded = {
            "a": encode((number + 0.5).repeat(1, WIDTHS["a"]), dtype),
            "b": encode(-(number + 1.0).repeat(1, WIDTHS["b"]), dtype),
        }
        # Each shard has memory of its own, in an order that is not theirs.
        starts = list(zip(self.shard_starts[:-1].tolist(), self.shard_starts[1:].tolist(), strict=True))
        self._shards = {
            hook: [encoded.at(torch.arange(*each)) for each in reversed(starts)][::-1] for hook, encoded in self._encoded.items()
        }

    def sequence_rows(self, shard: int) -> Tensor:
        return self._sequence_rows[shard]

    def width(self, hook: str) -> int:
        return WIDTHS[hook]

    def statistics(self, hook: str) -> Statistics:
        raise NotImplementedError

    def read(self, hook: str, start: int, stop: int) -> Encoded:
        self.reads.append(Read(hook, start, stop))
        return self._encoded[hook].at(slice(start, stop))

    def rows_at(self, hook: str, rows: Tensor) -> Tensor:
        return self._encoded[hook].at(rows).float()

    def tokens(self, sequences) -> Tensor:
        raise InputError("no tokens here")

    def has_row(self, sequences) -> Tensor:
        raise InputError("no tokens here")

    def mapped(self, hook: str) -> list[Encoded] | None:
        return self._shards[hook] if self.is_mapped else None
