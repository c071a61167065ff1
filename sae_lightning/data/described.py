"""What a manifest of this package says about rows, wherever they lie."""

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from sae_lightning.data import manifest as names
from sae_lightning.data.manifest import Manifest, check_hook
from sae_lightning.data.statistics import Statistics, statistics_from_tensors


class DescribedRows(abc.ABC):
    """Rows in the shards of a manifest, in the order of sequences (numbered from 0) and positions.

    `statistics`: the tensors of statistics.safetensors. A subclass says where the tensors of a shard come from.
    """

    path: Any
    """A folder or a URL."""

    def __init__(self, manifest: Manifest, statistics: dict[str, Tensor]):
        self.manifest = manifest
        self._first_row = np.cumsum([0] + [shard.counts.rows for shard in manifest.shards])
        self._first_sequence = np.cumsum([0] + [shard.sequences for shard in manifest.shards])
        self._statistics = statistics
        self._bounds: Tensor | None = None

    @abc.abstractmethod
    def _tensor(self, shard: int, key: str) -> Tensor:
        """A tensor of a shard with one entry per row or sequence."""

    @property
    def identity(self) -> dict[str, Any]:
        """What determined the rows: transformer, hook points, text, context length, exclusions, seed, dtype."""
        return self.manifest.identity

    @property
    def hooks(self) -> list[str]:
        return list(self.manifest.widths)

    def width(self, hook: str) -> int:
        """d at a hook point. Errors: InputError for one that is not in the store."""
        check_hook(hook, self.manifest.widths, self.path)
        return self.manifest.widths[hook]

    @property
    def rows(self) -> int:
        return int(self._first_row[-1])

    @property
    def sequences(self) -> int:
        return int(self._first_sequence[-1])

    @property
    def shard_starts(self) -> Int64[Tensor, " shards_and_one"]:
        """The first row of each shard, and the number of rows."""
        return torch.from_numpy(self._first_row)

    @property
    def sequence_bounds(self) -> Int64[Tensor, " sequences_and_one"]:
        """Sequence s gave the rows bounds[s] … bounds[s + 1] − 1; none where all its positions were excluded."""
        if self._bounds is None:
            counts = [self._tensor(i, names.SEQUENCE_ROWS).long() for i in range(len(self.manifest.shards))]
            self._bounds = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(counts).cumsum(0)])
        return self._bounds

    def statistics(self, hook: str) -> Statistics:
        """Of all rows at a hook point. Errors: InputError for one that is not in the store."""
        self.width(hook)
        return statistics_from_tensors(hook, self._statistics)

    def tokens(self, sequences: Sequence[int] | Int[Tensor, " n"]) -> Int[Tensor, "n context"]:
        """Token ids (int32) of whole sequences, special tokens among them."""
        found = []
        for sequence in map(int, sequences):
            shard = int(np.searchsorted(self._first_sequence, sequence, side="right")) - 1
            found.append(self._tensor(shard, names.TOKENS)[sequence - int(self._first_sequence[shard])])
        return torch.stack(found)

    def has_row(self, sequences: Sequence[int] | Int[Tensor, " n"]) -> Bool[Tensor, "n context"]:
        """Where a position of these sequences gave a row: false for special tokens and whatever else was excluded."""
        mask = torch.zeros(len(sequences), self.manifest.context_length, dtype=torch.bool)
        bounds = self.sequence_bounds
        for i, sequence in enumerate(sequences):
            shard = int(np.searchsorted(self._first_sequence, int(sequence), side="right")) - 1
            first = int(self._first_row[shard])
            rows = slice(int(bounds[int(sequence)]) - first, int(bounds[int(sequence) + 1]) - first)
            mask[i, self._tensor(shard, names.POSITION)[rows].long()] = True
        return mask

    def _pieces(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """The shards that hold rows start … stop − 1, and which of their own rows those are: from, and the one after the last."""
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"rows {start} to {stop} of {self.rows}")
        pieces = []
        shard = int(np.searchsorted(self._first_row, start, side="right")) - 1
        while start < stop:
            first, end = int(self._first_row[shard]), min(stop, int(self._first_row[shard + 1]))
            if end > start:
                pieces.append((shard, start - first, end - first))
            start, shard = max(start, end), shard + 1
        return pieces or [(0, 0, 0)]

    def _by_shard(self, rows: Int64[Tensor, " n"]) -> list[tuple[int, Int64[Tensor, " m"], Int64[Tensor, " m"]]]:
        """For each shard that holds some of these rows: its own numbers of them in ascending order, and their places in `rows`."""
        shards = torch.from_numpy(np.searchsorted(self._first_row, rows.numpy(), side="right") - 1)
        found = []
        for shard in shards.unique().tolist():
            here = (shards == shard).nonzero()[:, 0]
            within, order = (rows[here] - int(self._first_row[shard])).sort()  # in the order of the file
            found.append((shard, within, here[order]))
        return found
