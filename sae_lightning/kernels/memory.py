"""Large results that are made at every step, in memory that is not new.

A fresh array of tens of MB costs several times what writing it costs: the system hands its pages out one by one. Memory goes back into
use when nothing refers to it any more, not before.
"""

import functools
import importlib.util
import math
import sys
import threading
from typing import Any

import torch
from torch import Tensor

LARGE = 1 << 20
"""Bytes from which on memory is kept."""
MOST = 6
"""Arrays that are kept: pre-activations and two gradients, for the sizes of training and of validation."""
_IDLE = 2
"""References to an array that nothing uses: the list's and that of the question."""

_kept: list[Any] = []
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
    idle = [i for i in range(len(_kept)) if sys.getrefcount(_kept[i]) == _IDLE]
    for i in idle:
        if _kept[i].nbytes == size:
            _kept.append(_kept.pop(i))
            return _kept[-1]
    if len(_kept) >= MOST and idle:
        del _kept[idle[0]]
    array = torch.empty(size, dtype=torch.uint8).numpy()
    if len(_kept) < MOST:
        _kept.append(array)
    return array
