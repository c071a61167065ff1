"""Transcoders: from what stands at one hook point to what stands at another (Dunefsky et al. 2024, arXiv:2406.11944)."""

import torch
from torch import nn

from sae_lightning.data.batch import Shape
from sae_lightning.errors import InputError
from sae_lightning.models.dictionary import Dictionary


def transcoder(shape: Shape, expansion_factor: float | None = None, d_sae: int | None = None, dead_after: int | None = None,
               sparse: bool | None = None, skip: bool = False, *, subtract: bool = True, unit_norm: bool = True,
               init_norm: float = 1.0) -> Dictionary:  # fmt: skip
    """A `Dictionary` that reads x and writes y; the two may differ in width.

        h = W_enc x + b_enc
        ŷ = f · W_dec + b_dec  (+ W_skip x)

    b_dec starts at the median of y and is never subtracted from x, whatever `subtract` says. `skip`: with the linear map W_skip
    [d_out, d_in], which starts at 0 (Paulo et al. 2025, arXiv:2501.18823). The rest: `Dictionary`.
    Errors: InputError, its own, and where x or y is several hook points.
    """
    if len(shape.x) != 1 or len(shape.y) != 1:
        raise InputError(f"a transcoder reads one hook point and writes one, these rows have {len(shape.x)}: choose dictionary=crosscoder")
    made = Dictionary(shape, expansion_factor, d_sae, dead_after, sparse, subtract=False, unit_norm=unit_norm, init_norm=init_norm)
    if skip:
        made.W_skip = nn.Parameter(torch.zeros(shape.d_out, shape.d_in))
    return made
