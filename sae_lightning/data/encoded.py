"""Rows as they are stored: plain numbers, or bytes with a scale for each row."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int64, Num
from torch import Tensor

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8}
"""Of stored values, by the name that configurations and manifests use."""

LEVELS = 127
"""int8 values are −LEVELS … LEVELS."""


class Encoded(NamedTuple):
    """Rows as they are stored. `scale` is there for int8 only: a row is scale · values."""

    values: Num[Tensor, "n d"]
    scale: Float32[Tensor, " n"] | None = None

    def float(self) -> Float32[Tensor, "n d"]:
        """The rows themselves. May share memory with `values` where those are float32: do not write into it."""
        return self.values.float() if self.scale is None else self.values * self.scale[:, None]

    def at(self, rows: slice | Int64[Tensor, " n"] | Bool[Tensor, " n_all"]) -> "Encoded":
        """Some of the rows: views for a slice, copies for numbers or a mask."""
        return Encoded(self.values[rows], None if self.scale is None else self.scale[rows])


def encode(rows: Float[Tensor, "n d"], dtype: str) -> Encoded:
    """Rows to be stored as `dtype`, one of `DTYPES`. int8: scale = max|x| / 127 for each row, values rounded to the nearest.

    An entry is off by at most half of its row's scale, its largest entry by nothing but float32's rounding; a row of zeros stays one.
    NaN and infinite entries cannot be seen in int8 values any more: look for them before (a `scale` of such a row is not finite).
    """
    if dtype != "int8":
        return Encoded(rows.to(DTYPES[dtype]))
    rows = rows.float()
    scale = rows.abs().amax(1) / LEVELS
    divisor = torch.where(scale > 0, scale, torch.ones_like(scale))
    return Encoded((rows / divisor[:, None]).round_().clamp_(-LEVELS, LEVELS).to(torch.int8), scale)


def joined(parts: Sequence[Encoded]) -> Encoded:
    """Rows of the same dtype, one part after the other. A single part is returned as it is, not copied."""
    if len(parts) == 1:
        return parts[0]
    scales = [part.scale for part in parts if part.scale is not None]
    return Encoded(torch.cat([part.values for part in parts]), torch.cat(scales) if scales else None)
