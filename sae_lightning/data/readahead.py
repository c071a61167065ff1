"""Asks the operating system for rows of mapped files before they are read, so that a disk has many of them to fetch at a time."""

import ctypes
import functools
import math
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sae_lightning.data.order import Stretches

_WILLNEED = getattr(mmap, "MADV_WILLNEED", None)


class Readahead:
    """Of tensors of [rows, …], given for each shard; `shard_starts` is the first row of each, and the number of rows."""

    def __init__(self, tensors: Sequence[Sequence[Tensor]], shard_starts: np.ndarray):
        self._first = [np.array([tensor.data_ptr() for tensor in shards], np.int64) for shards in tensors]
        self._bytes = [shards[0].element_size() * math.prod(shards[0].shape[1:]) for shards in tensors]
        self._shard_starts = shard_starts

    def ask(self, rows: Stretches) -> None:
        """Returns at once, more or less; what is in memory costs little. No stretch may lie in two shards."""
        advise = _madvise()
        if advise is None:
            return
        shard = np.searchsorted(self._shard_starts, rows.starts, side="right") - 1
        within = rows.starts - self._shard_starts[shard]
        for first, size in zip(self._first, self._bytes, strict=True):
            begin = first[shard] + within * size
            end = begin + rows.lengths * size
            begin -= begin % mmap.PAGESIZE
            for address, length in zip(begin.tolist(), (end - begin).tolist(), strict=True):
                advise(address, length, _WILLNEED)


@functools.cache
def _madvise() -> Any:
    """None where the system has no such call."""
    if _WILLNEED is None:
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
