"""What stored rows are to those who shuffle and read them: our own store, and caches that others wrote."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from sae_lightning.data.encoded import Encoded
from sae_lightning.data.statistics import Statistics


@runtime_checkable
class StoredRows(Protocol):
    """Rows at some hook points, in shards, numbered from 0; row i is that of the same token at every hook point.

    May be read from several threads. Errors: InputError for a hook point that is not there.
    """

    @property
    def path(self) -> Path | str:
        """Where they are (a folder, or a URL), for messages."""
        ...

    @property
    def hooks(self) -> list[str]: ...

    @property
    def rows(self) -> int: ...

    @property
    def sequences(self) -> int: ...

    @property
    def shard_starts(self) -> Int64[Tensor, " shards_and_one"]:
        """The first row of each shard, and the number of rows."""
        ...

    @property
    def shard_sequences(self) -> Int64[Tensor, " shards_and_one"]:
        """The first sequence of each shard, and the number of sequences. None lies in two shards."""
        ...

    def sequence_rows(self, shard: int) -> Int64[Tensor, " sequences"]:
        """How many rows each sequence of a shard gave, one after the other; 0 where all its positions were excluded."""
        ...

    def width(self, hook: str) -> int:
        """d at a hook point."""
        ...

    def statistics(self, hook: str) -> Statistics: ...

    def read(self, hook: str, start: int, stop: int) -> Encoded:
        """Rows start … stop − 1 as they are stored. May be a view of mapped memory: never written into."""
        ...

    def rows_at(self, hook: str, rows: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """A copy of the rows with these numbers, in the order given, float32."""
        ...

    def tokens(self, sequences: Sequence[int] | Int[Tensor, " n"]) -> Int[Tensor, "n context"]:
        """Token ids of whole sequences. Errors: InputError where none are stored."""
        ...

    def has_row(self, sequences: Sequence[int] | Int[Tensor, " n"]) -> Bool[Tensor, "n context"]:
        """Where a position of these sequences gave a row. Errors: InputError where no tokens are stored."""
        ...

    def mapped(self, hook: str) -> list[Encoded] | None:
        """The rows of each shard, mapped into memory for as long as this lives; None where shards come and go."""
        ...
