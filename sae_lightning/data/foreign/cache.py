"""Activations that somebody else cached, read where they lie."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Int, Int64
from torch import Tensor

from sae_lightning.data.encoded import Encoded, joined
from sae_lightning.data.foreign.measured import measured
from sae_lightning.data.manifest import check_hook
from sae_lightning.data.statistics import Statistics
from sae_lightning.errors import InputError

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
"""What rows may be stored as."""


STRETCH = 128
"""Of rows that are in no known sequence, so many neighbours count as one: they are held out together."""


class Part(NamedTuple):
    """Rows that lie one after the other in a file: a shard, or a record batch of one.

    `rows`: [n, d] by hook point, mapped into memory. `first`: the number of the first of them in its file. `context`: so many of them
    are a sequence; None where that is not known. `token_ids`: of the sequences, where they are known.
    """

    file: Path
    first: int
    context: int | None
    rows: dict[str, Tensor]
    token_ids: Int[Tensor, "sequences context"] | None = None

    @property
    def n(self) -> int:
        """The number of rows."""
        return len(next(iter(self.rows.values())))

    @property
    def sequence_rows(self) -> Int64[Tensor, " sequences"]:
        """Of each sequence; the last one may be shorter than the others."""
        length = self.context or STRETCH
        return (self.n - torch.arange(0, self.n, length)).clamp(max=length)

    @property
    def sequences(self) -> int:
        """The number of sequences."""
        return -(-self.n // (self.context or STRETCH))


class ForeignCache:
    """Rows of other people's files, as `StoredRows`: nothing is copied, nothing is written beside them.

    `parts` are its shards. Statistics are those of one pass over the rows, which also finds NaN and infinite ones; they are kept below
    `stores` for as long as the files do not change. All rows are there, those of special tokens too. May be read from several threads.

    Errors: InputError for files that do not go together, and for rows that are NaN or infinite once statistics are asked for.
    """

    def __init__(self, path: Path, parts: Sequence[Part], files: Sequence[Path], stores: Path):
        self.path, self.files, self.stores = path, list(files), stores
        self.parts = [part for part in parts if part.n]
        if not self.parts:
            raise InputError(f"{path} holds no rows: check data.store")
        self._widths = {hook: rows.shape[1] for hook, rows in self.parts[0].rows.items()}
        for part in self.parts:
            _check_alike(part, self.parts[0])
        self.shard_starts: Int64[Tensor, " shards_and_one"] = torch.tensor([0, *(part.n for part in self.parts)]).cumsum(0)
        self.shard_sequences: Int64[Tensor, " shards_and_one"] = torch.tensor([0, *(part.sequences for part in self.parts)]).cumsum(0)
        self._statistics: dict[str, Statistics] = {}

    @property
    def hooks(self) -> list[str]:
        return list(self._widths)

    @property
    def rows(self) -> int:
        return int(self.shard_starts[-1])

    @property
    def sequences(self) -> int:
        return int(self.shard_sequences[-1])

    def sequence_rows(self, shard: int) -> Int64[Tensor, " sequences"]:
        """How many rows each sequence of a shard has."""
        return self.parts[shard].sequence_rows

    @property
    def has_tokens(self) -> bool:
        return self.parts[0].token_ids is not None

    def width(self, hook: str) -> int:
        """d at a hook point. Errors: InputError for one that is not there."""
        check_hook(hook, self._widths, self.path)
        return self._widths[hook]

    def statistics(self, hook: str) -> Statistics:
        """Of all rows at a hook point: a pass over them, unless it was made before.

        Errors: InputError for a hook point that is not there, and for rows that are NaN or infinite.
        """
        self.width(hook)
        if hook not in self._statistics:
            self._statistics[hook] = measured(self, hook)
        return self._statistics[hook]

    def mapped(self, hook: str) -> list[Encoded]:
        """The rows of each shard, mapped into memory."""
        self.width(hook)
        return [Encoded(part.rows[hook]) for part in self.parts]

    def read(self, hook: str, start: int, stop: int) -> Encoded:
        """Rows start … stop − 1 as they are stored: a view of mapped memory where one shard holds them all, so do not write into it."""
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"rows {start} to {stop} of {self.rows}")
        self.width(hook)
        found = []
        shard = self.shard_of(min(start, self.rows - 1))
        while not found or start < stop:
            first, last = self.shard_starts[shard : shard + 2].tolist()
            end = min(stop, last)
            found.append(Encoded(self.parts[shard].rows[hook][start - first : end - first]))
            start, shard = end, shard + 1
        return joined(found)

    def rows_at(self, hook: str, rows: Int64[Tensor, " n"]) -> Float32[Tensor, "n d"]:
        """A copy of the rows with these numbers, in the order given, float32."""
        found = torch.empty(len(rows), self.width(hook))
        shards = torch.searchsorted(self.shard_starts, rows, right=True) - 1
        for shard in shards.unique().tolist():
            here = (shards == shard).nonzero()[:, 0]
            within, order = (rows[here] - self.shard_starts[shard]).sort()  # in the order of the file
            found[here[order]] = self.parts[shard].rows[hook][within].float()
        return found

    def shard_of(self, row: int) -> int:
        """The number of the shard that holds a row."""
        return int(torch.searchsorted(self.shard_starts, row, right=True)) - 1

    def tokens(self, sequences: Sequence[int] | Int[Tensor, " n"]) -> Int[Tensor, "n context"]:
        """Token ids (int32) of whole sequences. Errors: InputError where the files hold none."""
        self._check_tokens()
        found = []
        for sequence in map(int, sequences):
            shard = int(torch.searchsorted(self.shard_sequences, sequence, right=True)) - 1
            token_ids = self.parts[shard].token_ids
            assert token_ids is not None
            found.append(token_ids[sequence - int(self.shard_sequences[shard])])
        return torch.stack(found).int()

    def has_row(self, sequences: Sequence[int] | Int[Tensor, " n"]) -> Bool[Tensor, "n context"]:
        """All true: each position of a sequence has a row. Errors: InputError where the files hold no token ids."""
        self._check_tokens()
        assert self.parts[0].context is not None
        return torch.ones(len(sequences), self.parts[0].context, dtype=torch.bool)

    def _check_tokens(self) -> None:
        if not self.has_tokens:
            raise InputError(f"{self.path} holds no token_ids: leave out what needs the text (data/transformer, model.loss=kl)")


def _check_alike(part: Part, first: Part) -> None:
    """Errors: InputError, which names the file, for a part whose hook points, widths, dtypes or token ids are not those of the first one."""
    if list(part.rows) != list(first.rows):
        raise InputError(
            f"{part.file} holds {_listed(part.rows)} and {first.file} holds {_listed(first.rows)}: all files must hold the same"
        )
    for hook, rows in part.rows.items():
        like = first.rows[hook]
        if rows.shape[1] != like.shape[1]:
            raise InputError(
                f"{part.file} has rows of width {rows.shape[1]} at '{hook}' and {first.file} of {like.shape[1]}: separate them"
            )
        if rows.dtype != like.dtype:
            raise InputError(f"{part.file} is {_dtype(rows)} at '{hook}' and {first.file} is {_dtype(like)}: separate them")
        if len(rows) != part.n:
            raise InputError(f"{part.file} has {len(rows)} rows at '{hook}' and {part.n} at another hook point: all must have the same")
    if (part.token_ids is None) != (first.token_ids is None):
        raise InputError(f"only one of {part.file} and {first.file} has token_ids: give them to all files or to none")
    if part.token_ids is not None and part.context != first.context:
        raise InputError(f"{part.file} has sequences of {part.context} tokens and {first.file} of {first.context}: separate them")


def _listed(rows: dict[str, Tensor]) -> str:
    return ", ".join(f"'{hook}'" for hook in rows)


def _dtype(rows: Tensor) -> str:
    return str(rows.dtype).removeprefix("torch.")
