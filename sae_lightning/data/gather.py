"""Bringing rows together that stand all over a store: out of mapped files at once, or through a pool of windows in memory."""

import abc
import functools
import importlib.util
from collections.abc import Sequence
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from sae_lightning.data.encoded import Encoded
from sae_lightning.data.order import Stretches, numbers
from sae_lightning.data.stored import StoredRows
from sae_lightning.kernels import memory

CHUNK = 256
"""Rows that are gathered and then widened while a cache holds them."""


class Target(NamedTuple):
    """Where rows of a hook point go: columns of `rows` from `column` on."""

    rows: Float32[Tensor, "n d"]
    column: int


class Gathered(abc.ABC):
    """Windows of rows of some hook points, one in each slot, and batches of their rows as float32.

    `load_` takes in a window and says for each of its rows a place; `gather_` writes rows at places of any windows that are in.
    """

    @abc.abstractmethod
    def load_(self, slot: int, rows: Stretches) -> Int64[np.ndarray, " rows"]: ...

    @abc.abstractmethod
    def gather_(self, places: Int64[np.ndarray, " n"], targets: Sequence[Target]) -> None:
        """`targets`: one for each hook point."""

    def empty(self, n: int, d: int) -> Float32[Tensor, "n d"]:
        """Memory for rows. It is used again when nothing refers to it any more, not before."""
        return memory.empty((n, d), torch.empty(0))

    def handed_out(self, batches: list[Tensor]) -> list[Tensor]:
        """The same, fit to be used."""
        return batches


class MappedRows(Gathered):
    """Takes rows straight from mapped files: there is no pool and no copy. Needs numba."""

    def __init__(self, mapped: Sequence[Sequence[Encoded]], shard_starts: Int64[np.ndarray, " shards_and_one"]):
        self._mapped, self._shard_starts = mapped, shard_starts
        self._of_hook = [_Kernel(shards) for shards in mapped]

    def load_(self, slot: int, rows: Stretches) -> Int64[np.ndarray, " rows"]:
        from sae_lightning.kernels.widen import SHIFT

        shard = np.searchsorted(self._shard_starts, rows.starts, side="right") - 1
        return numbers(rows.starts - self._shard_starts[shard] + (shard << SHIFT), rows.lengths)

    def gather_(self, places: Int64[np.ndarray, " n"], targets: Sequence[Target]) -> None:
        for kernel, (rows, column) in zip(self._of_hook, targets, strict=True):
            kernel(places, rows.numpy(), column)


class _Kernel:
    """The loop for the rows of a hook point, as they are stored."""

    def __init__(self, shards: Sequence[Encoded]):
        from sae_lightning.kernels import widen

        self.d, dtype = shards[0].values.shape[1], shards[0].values.dtype
        values = _over([shard.values for shard in shards], {torch.int8: "i1", torch.float32: "u4"}.get(dtype, "u2"))
        if dtype == torch.int8:
            scales = _over([shard.scale for shard in shards if shard.scale is not None], "f4")
            self.loop, self.out = functools.partial(widen.int8, *values, *scales), np.float32
        else:
            loop = {torch.float32: widen.copied, torch.bfloat16: widen.bfloat16, torch.float16: widen.float16}[dtype]
            self.loop, self.out = functools.partial(loop, *values), np.uint32

    def __call__(self, places: np.ndarray, rows: np.ndarray, column: int) -> None:
        self.loop(places, rows.view(self.out), column, self.d)


def _over(tensors: Sequence[Tensor], kind: str) -> tuple[np.ndarray, Int64[np.ndarray, " shards"]]:
    """One array over the addresses of all tensors, and where in it each begins. What lies between them is never touched."""
    size = np.dtype(kind).itemsize
    first = np.array([tensor.data_ptr() for tensor in tensors], np.int64)
    end = max(tensor.data_ptr() + tensor.nbytes for tensor in tensors)
    base = min(tensor.data_ptr() for tensor in tensors if len(tensor))
    interface = {"data": (base, True), "shape": ((end - base) // size,), "typestr": f"<{kind}", "version": 3}
    return np.asarray(SimpleNamespace(__array_interface__=interface)), (first - base) // size


class PooledRows(Gathered):
    """Copies the rows of windows into a pool as they are stored, and widens those that are taken out of it."""

    def __init__(self, store: StoredRows, hooks: Sequence[str], slots: int, slot_rows: int, device: torch.device):
        self._store, self._hooks, self._slot_rows = store, list(hooks), slot_rows
        self._pool = [_empty_like(store.read(hook, 0, 1), slots * slot_rows, device) for hook in hooks]
        self._chunks = [torch.empty_like(pool.values[:CHUNK]) for pool in self._pool]

    def load_(self, slot: int, rows: Stretches) -> Int64[np.ndarray, " rows"]:
        first, n = slot * self._slot_rows, int(rows.lengths.sum())
        for hook, pool in zip(self._hooks, self._pool, strict=True):
            self._copy_(hook, rows, pool.at(slice(first, first + n)))
        return np.arange(first, first + n)

    def _copy_(self, hook: str, rows: Stretches, into: Encoded) -> None:
        at = 0
        for start, length in zip(rows.starts.tolist(), rows.lengths.tolist(), strict=True):
            stored, here = self._store.read(hook, start, start + length), into.at(slice(at, at + length))
            here.values.copy_(stored.values)
            if here.scale is not None and stored.scale is not None:
                here.scale.copy_(stored.scale)
            at += length

    def gather_(self, places: Int64[np.ndarray, " n"], targets: Sequence[Target]) -> None:
        index = torch.from_numpy(places)
        for pool, chunk, (rows, column) in zip(self._pool, self._chunks, targets, strict=True):
            out = rows[:, column : column + pool.values.shape[1]]
            for here, to in zip(index.split(CHUNK), out.split(CHUNK), strict=True):
                to.copy_(torch.index_select(pool.values, 0, here, out=chunk[: len(here)]))
            if pool.scale is not None:
                out.mul_(pool.scale[index][:, None])


def _empty_like(row: Encoded, n: int, device: torch.device) -> Encoded:
    scale = None if row.scale is None else torch.empty(n, device=device)
    return Encoded(row.values.new_empty(n, row.values.shape[1], device=device), scale)


def can_map(mapped: Sequence[Sequence[Encoded] | None], device: torch.device) -> bool:
    """Whether `MappedRows` can be used: numba is there, and rows are mapped, each entry at an address that is a multiple of its size."""
    if device.type != "cpu" or importlib.util.find_spec("numba") is None:
        return False
    return all(shards is not None and all(_is_plain(part) for shard in shards for part in shard if part is not None) for shards in mapped)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_contiguous() and tensor.data_ptr() % tensor.element_size() == 0
