"""Large results that are made at every step, in memory that is not new.

A fresh array of tens of MB costs several times what writing it costs: the system hands its pages out one by one. Memory goes back into
use when nothing refers to it any more, not before.
"""

import contextlib
import ctypes
import functools
import importlib.util
import itertools
import math
import mmap
import sys
import threading
from typing import Any

import torch
from torch import Tensor

LARGE = 1 << 20
"""Bytes from which on memory is kept."""
MOST = 16
"""Arrays that are kept: pre-activations, gradients, and what is as large as a batch, for the sizes of training and of validation."""
PATIENCE = 64
"""Calls after which an array that nobody asked for is given back: what calibration or another size of batch has left."""
_IDLE = 2
"""References to an array that nothing uses: its entry's and that of the question."""


class _Kept:
    """An array, and when it was last asked for."""

    def __init__(self, array: Any, call: int):
        self.array, self.call = array, call

    @property
    def is_idle(self) -> bool:
        return sys.getrefcount(self.array) == _IDLE


_kept: list[_Kept] = []
_calls = itertools.count()
_lock = threading.Lock()


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """torch.empty of that shape with the type and the device of `like`."""
    size = math.prod(shape) * like.element_size()
    if not _has_numpy() or like.device.type != "cpu" or size < LARGE:
        return like.new_empty(shape)
    with _lock:
        flat = torch.from_numpy(_array(size)).view(like.dtype)
    # Not a view, so that what it is given to may change it in place. Through a storage object autograd would not add to it in place.
    return like.new_empty(0).set_(flat.view(shape))  # type: ignore[call-overload]


@functools.cache
def _has_numpy() -> bool:
    """Torch does without it, and so does using what was trained."""
    return importlib.util.find_spec("numpy") is not None


def _array(size: int) -> Any:
    """Idle memory of exactly that size, or new one; what has been idle longest makes room."""
    call = next(_calls)
    _kept.sort(key=lambda kept: kept.call)
    for kept in [kept for kept in _kept if kept.is_idle]:
        if kept.array.nbytes == size:
            kept.call = call
            return kept.array
        if call - kept.call > PATIENCE or len(_kept) >= MOST:
            _kept.remove(kept)
    array = _new(size)
    if len(_kept) < MOST:
        _kept.append(_Kept(array, call))
    return array


def _new(size: int) -> Any:
    """Pages of its own, large ones where the system has them: they go back to the system, and never leave a hole in the heap."""
    import numpy as np

    pages = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)


def give_back() -> None:
    """Hands memory that is idle back to the system, as after a calibration, whose arrays are of sizes that do not come again."""
    with _lock:
        _kept[:] = [kept for kept in _kept if not kept.is_idle]
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)
