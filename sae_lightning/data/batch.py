"""What a source of rows hands out."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

T = TypeVar("T")
Views = Literal["one", "pair", "stack"]
"""Of which hook points a source gives rows: one (y is x), x and y of one each, or several side by side (y is x)."""


class Batch(NamedTuple):
    """Rows in raw space. For an autoencoder y is x, the same tensor."""

    x: Float[Tensor, "batch d_in"]
    y: Float[Tensor, "batch d_out"]

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """The same rows there; one tensor stays one tensor."""
        x = self.x.to(device, non_blocking=non_blocking)
        return Batch(x, x if self.y is self.x else self.y.to(device, non_blocking=non_blocking))


class Shape(NamedTuple):
    """Widths of the hook points that make up a row of x and a row of y: one each for an autoencoder."""

    x: tuple[int, ...]
    y: tuple[int, ...]

    @property
    def d_in(self) -> int:
        return sum(self.x)

    @property
    def d_out(self) -> int:
        return sum(self.y)


class Hooks(NamedTuple):
    """Hook points that make up a row of x and a row of y."""

    x: tuple[str, ...]
    y: tuple[str, ...]


def arranged(of_hook: Sequence[T], views: Views) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """What is given per hook point, for x and for y: the first for both, the first and the second, or all for both."""
    if views == "pair":
        return (of_hook[0],), (of_hook[1],)
    both = tuple(of_hook) if views == "stack" else (of_hook[0],)
    return both, both


def cut(rows: Float[Tensor, "batch d"], shape: Shape, views: Views) -> Batch:
    """A batch from rows of all hook points side by side, x before y."""
    if views != "pair":
        return Batch(rows, rows)
    x, y = rows.split([shape.d_in, shape.d_out], dim=1)
    return Batch(x.contiguous(), y.contiguous())
