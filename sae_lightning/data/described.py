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
    def shard_sequences(self) -> Int64[Tensor, " shards_and_one"]:
        """The first sequence of each shard, and the number of sequences. None lies in two shards."""
        return torch.from_numpy(self._first_sequence)

    def sequence_rows(self, shard: int) -> Int64[Tensor, " sequences"]:
        """How many rows each sequence of a shard gave, one after the other; 0 where all its positions were excluded."""
        return self._tensor(shard, names.SEQUENCE_ROWS).long()

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
        for i, sequence in enumerate(map(int, sequences)):
            shard = int(np.searchsorted(self._first_sequence, sequence, side="right")) - 1
            counts, within = self._tensor(shard, names.SEQUENCE_ROWS), sequence - int(self._first_sequence[shard])
            first = int(counts[:within].sum())
            mask[i, self._tensor(shard, names.POSITION)[first : first + int(counts[within])].long()] = True
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
