"""The functions of reference.py on a CPU with numba: contiguous float32 only, large results in memory that is used again."""

import threading

import numpy as np
import torch
from torch import Tensor

from sae_lightning.kernels import compiled, memory
from sae_lightning.kernels.reference import ByLatent, Entries
from sae_lightning.kernels.threads import share

TILE_BYTES = 8 << 20
"""Of a table too large for the cache."""
_own = threading.local()


def top_k(h: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, latents = h.new_empty(len(h), k), torch.empty(len(h), k, dtype=torch.int64)
    arrays = _array(h), k, values.numpy(), latents.numpy()
    share(len(h), lambda first, last: compiled.top_k(first, last, *arrays))
    return values, latents


def keep_top_k_(h: Tensor, k: int) -> Tensor:
    arrays = _array(h), h.detach().view(torch.int32).numpy(), k
    share(len(h), lambda first, last: compiled.keep_top_k(first, last, *arrays))
    return h


def positive(values: Tensor) -> tuple[Tensor, Tensor]:
    """Every part counts into columns of its own."""
    per_row, array = torch.empty(len(values), dtype=torch.int64), _array(values)
    parts: list[np.ndarray] = []

    def count(first: int, last: int) -> None:
        per_column = np.zeros(values.shape[1], np.int32)
        compiled.positive(first, last, array, per_column, per_row.numpy())
        parts.append(per_column)

    share(len(values), count)
    return torch.from_numpy(np.sum(parts, axis=0, dtype=np.int64)), per_row


def above(h: Tensor, threshold: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Every part writes into a buffer that its thread keeps; with the sum of what they found each knows its place in the result."""
    per_row = torch.empty(len(h), dtype=torch.int64)
    arrays = _array(h), _array(threshold), per_row.numpy()
    found: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}

    def look(first: int, last: int) -> None:
        values, latents = _buffers(min(most, (last - first) * h.shape[1]) + 1)
        compiled.above(first, last, *arrays, values, latents)
        n = int(arrays[2][first:last].sum())
        if n <= most:
            found[first] = last, values[:n].copy(), latents[:n].copy()

    share(len(h), look)
    n = int(per_row.sum())
    if n > most:
        return None
    parts = [found[first] for first in sorted(found)]
    values, latents = (torch.from_numpy(np.concatenate([part[i] for part in parts])) for i in (1, 2))
    rows = torch.repeat_interleave(torch.arange(len(h)), per_row, output_size=n)
    return values, rows, latents.long(), per_row.cumsum(0) - per_row


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def _buffers(size: int) -> tuple[np.ndarray, np.ndarray]:
    kept = getattr(_own, "buffers", None)
    if kept is None or len(kept[0]) < size:
        kept = _own.buffers = np.empty(size, np.float32), np.empty(size, np.int32)
    return kept[0][:size], kept[1][:size]


def by_latent(entries: Entries) -> ByLatent:
    order, rows = torch.empty_like(entries.latents), torch.empty_like(entries.latents)
    offsets = torch.empty(entries.d_sae, dtype=torch.int64)
    compiled.by_latent(entries.latents.numpy(), entries.rows.numpy(), order.numpy(), rows.numpy(), offsets.numpy())
    return ByLatent(order, rows, offsets)


def _tile(table: Tensor, entries: int, bags: int) -> int:
    """How many rows of a table are used at a time: all of them, unless it is larger than the cache and bags have entries in every part."""
    tile = max(1, TILE_BYTES // (table.element_size() * max(1, table.shape[1])))
    tiles = len(table) / tile
    return tile if tiles > 2 and entries > 4 * bags * tiles else max(1, len(table))


def weighted_sum(weights: Tensor, index: Tensor, table: Tensor, offsets: Tensor) -> Tensor:
    out = memory.empty((len(offsets), table.shape[1]), table)
    arrays = _array(weights), _array(index), _array(table), _tile(table, len(index), len(offsets)), offsets.numpy(), out.numpy()
    share(len(offsets), lambda first, last: compiled.weighted_sum(first, last, *arrays))
    return out


def products(a: Tensor, W: Tensor, entries: Entries) -> Tensor:
    out = a.new_empty(len(entries.latents))
    tile = _tile(W, len(entries.latents), len(a))
    arrays = _array(a), _array(W), tile, entries.latents.numpy(), entries.offsets.numpy(), out.numpy()
    share(len(a), lambda first, last: compiled.products(first, last, *arrays))
    return out


def project_(gradient: Tensor, W: Tensor) -> None:
    arrays = _array(gradient), _array(W)
    share(len(W), lambda first, last: compiled.project(first, last, *arrays))


def normalise_(W: Tensor) -> None:
    array = _array(W)
    share(len(W), lambda first, last: compiled.normalise(first, last, array))
