"""Rows out of mapped memory are what PyTorch makes of them, bit for bit."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from sae_lightning.data.encoded import Encoded
from sae_lightning.data.gather import MappedRows, Target
from sae_lightning.data.order import Stretches

BITS16 = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
BITS32 = torch.randint(-(1 << 31), 1 << 31, (1 << 16,), generator=torch.Generator().manual_seed(0)).to(torch.int32)


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        (BITS16.view(torch.float16), None),
        (BITS16.view(torch.bfloat16), None),
        (BITS32.view(torch.float32), None),
        (BITS32.view(torch.int8)[: 1 << 16], torch.rand(1 << 12, generator=torch.Generator().manual_seed(0))),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, Tensor) else "",
)
@pytest.mark.parametrize("column", [0, 3])
def test_every_bit_is_pytorchs(values: Tensor, scale: Tensor | None, column: int) -> None:
    """All numbers of 16 bits, infinities, NaNs and those below 2⁻¹⁴ among them; in three shards, the second of which has no row."""
    values = values.view(1 << 12, 16)
    cuts = [0, 1000, 1000, 1 << 12]
    shards = [Encoded(values[a:b].clone(), None if scale is None else scale[a:b].clone()) for a, b in itertools.pairwise(cuts)]
    rows = MappedRows([shards], np.array(cuts))
    order = torch.randperm(1 << 12, generator=torch.Generator().manual_seed(1)).numpy()
    places = rows.load_(0, Stretches(np.array([0, 1000]), np.array([1000, 3096])))[order]
    found = torch.full((1 << 12, 20), 7.0)
    rows.gather_(places, [Target(found, column)])
    expected = Encoded(values, scale).float()[torch.from_numpy(order)]
    assert torch.equal(found[:, column : column + 16].contiguous().view(torch.int32), expected.contiguous().view(torch.int32))
    assert found[:, :column].eq(7).all()
    assert found[:, column + 16 :].eq(7).all()
