"""What a source of rows hands out."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


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
