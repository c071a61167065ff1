"""Asks the operating system for rows of mapped files before they are read, so that a disk has many of them to fetch at a time."""

import importlib.util
import math
import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from torch import Tensor

from sae_lightning.data.order import Stretches


class Readahead:
    """Of tensors of [rows, …], given for each shard; `shard_starts` is the first row of each, and the number of rows.

    From then on a page that is touched is read alone, without what lies around it. A thread does the asking, since a disk that is busy
    makes it wait. Without numba, or where the system has no such calls, nothing is asked for.
    """

    def __init__(self, tensors: Sequence[Sequence[Tensor]], shard_starts: np.ndarray):
        self._first = [np.array([tensor.data_ptr() for tensor in shards], np.int64) for shards in tensors]
        self._bytes = [shards[0].element_size() * math.prod(shards[0].shape[1:]) for shards in tensors]
        self._shard_starts = shard_starts
        self._advise = _advise() if tensors else None
        self._thread = ThreadPoolExecutor(1, "readahead")
        if self._advise is not None:
            for first, size in zip(self._first, self._bytes, strict=True):
                self._advise(*_pages(first, size * np.diff(shard_starts)), mmap.MADV_RANDOM)

    def ask(self, rows: Stretches) -> None:
        """Returns at once; what is in memory costs little. No stretch may lie in two shards."""
        if self._advise is not None:
            self._thread.submit(self._ask, rows, self._advise)

    def _ask(self, rows: Stretches, advise: Any) -> None:
        shard = np.searchsorted(self._shard_starts, rows.starts, side="right") - 1
        within = rows.starts - self._shard_starts[shard]
        for first, size in zip(self._first, self._bytes, strict=True):
            advise(*_pages(first[shard] + within * size, rows.lengths * size), mmap.MADV_WILLNEED)


def _pages(begin: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pages that these ranges of memory lie in."""
    more = begin % mmap.PAGESIZE
    return begin - more, length + more


def _advise() -> Any:
    """The loop over ranges; None where there is none."""
    if importlib.util.find_spec("numba") is None or not hasattr(mmap, "MADV_WILLNEED"):
        return None
    from sae_lightning.kernels.advise import advise

    return advise
