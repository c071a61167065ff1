"""Held-out rows in two: one half to choose by, the other to report."""

import copy
from collections.abc import Iterator
from typing import NamedTuple

from jaxtyping import Bool, Int
from torch import Tensor

from sae_lightning.data.batch import Batch
from sae_lightning.data.rows import RowsDataModule

EVERY = 1 << 40


class Halves(NamedTuple):
    """The same source of training rows; `held_out` and `tokens_held_out` of each give its half alone, whole sequences of a text."""

    validation: RowsDataModule
    test: RowsDataModule


def halves(data: RowsDataModule) -> Halves:
    """`data` is prepared. It stays as it is."""
    middle = middle_sequence = 0
    if data.transformer is None:
        middle = sum(len(batch.x) for batch in data.held_out()) // 2
    else:
        _, special = data.tokens_held_out(EVERY)
        middle_sequence = len(special) // 2
        middle = int((~special[:middle_sequence]).sum())
    return Halves(_only(data, 0, middle, 0, middle_sequence), _only(data, middle, EVERY, middle_sequence, EVERY))


def _only(data: RowsDataModule, first: int, last: int, first_sequence: int, last_sequence: int) -> RowsDataModule:
    def held_out() -> Iterator[Batch]:
        start = 0
        for batch in data.held_out():
            here = slice(max(first - start, 0), max(last - start, 0))
            start += len(batch.x)
            x = batch.x[here]
            if len(x):
                yield Batch(x, x if batch.y is batch.x else batch.y[here])

    def tokens_held_out(n: int) -> tuple[Int[Tensor, "n context"], Bool[Tensor, "n context"]]:
        ids, special = data.tokens_held_out(min(first_sequence + n, last_sequence))
        return ids[first_sequence:], special[first_sequence:]

    part = copy.copy(data)
    part.held_out, part.tokens_held_out = held_out, tokens_held_out  # type: ignore[method-assign]
    return part
