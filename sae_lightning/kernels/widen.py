"""Loops that gather rows from all over mapped memory and make them float32, compiled by numba; they let the GIL go.

Imported only where numba is installed. `memory` is one array over everything that is mapped, `offsets` say at which entry of it each
shard begins, a place is `shard << SHIFT | row`. The row at places[i] goes to out[i, column:column + d], d its width. Results are those of
PyTorch bit for bit; float32 goes in and out as its bits.
"""

import numpy as np

from sae_lightning.kernels.compiled import compiled

SHIFT = 40
"""Bits for the number of a row in its shard."""
_ROW = (1 << SHIFT) - 1
_U = np.uint32
_INFINITE, _REBIAS, _QUIET = _U(0x1F << 23), _U(112 << 23), _U(1 << 22)
_TINY, _SMALLEST = _U(113 << 23), np.float32(2.0**-14)


@compiled
def copied(memory, offsets, places, out, column, d):
    """32 bits as they are."""
    for i in range(places.shape[0]):
        first = offsets[places[i] >> SHIFT] + (places[i] & _ROW) * d
        row, to = memory[first : first + d], out[i, column : column + d]
        for j in range(d):
            to[j] = row[j]


@compiled
def bfloat16(memory, offsets, places, out, column, d):
    for i in range(places.shape[0]):
        first = offsets[places[i] >> SHIFT] + (places[i] & _ROW) * d
        row, to = memory[first : first + d], out[i, column : column + d]
        for j in range(d):
            to[j] = _U(row[j]) << _U(16)


@compiled
def float16(memory, offsets, places, out, column, d):
    """Without a branch: numbers get another bias, those below 2⁻¹⁴ are what is left when that is taken from 2⁻¹⁴ + them; NaN gets quiet."""
    for i in range(places.shape[0]):
        first = offsets[places[i] >> SHIFT] + (places[i] & _ROW) * d
        row, to = memory[first : first + d], out[i, column : column + d]
        for j in range(d):
            word = _U(row[j])
            size = _U((word & _U(0x7FFF)) << _U(13))
            small = np.float32(_U(size + _TINY).view(np.float32) - _SMALLEST).view(np.uint32)
            special = _U(size + _REBIAS + _REBIAS) | (_QUIET if size > _INFINITE else _U(0))
            bits = _U(size + _REBIAS) if size >= _U(1 << 23) else small
            bits = _U(special) if size >= _INFINITE else bits
            to[j] = bits | _U((word & _U(0x8000)) << _U(16))


@compiled
def int8(memory, offsets, scales, scale_offsets, places, out, column, d):
    """Values times the scale of their row; `scales` and `out` are float32."""
    for i in range(places.shape[0]):
        shard, r = places[i] >> SHIFT, places[i] & _ROW
        row, to = memory[offsets[shard] + r * d : offsets[shard] + r * d + d], out[i, column : column + d]
        scale = scales[scale_offsets[shard] + r]
        for j in range(d):
            to[j] = np.float32(row[j]) * scale
