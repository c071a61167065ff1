"""Asking the operating system for memory that is mapped from files, compiled by numba so that a thread can do it without the GIL."""

import numpy as np
from numba import types

from sae_lightning.kernels.compiled import compiled

_madvise = types.ExternalFunction("madvise", types.intc(types.uintp, types.uintp, types.intc))


@compiled
def advise(begin, length, advice):
    """madvise of every range: its address, a multiple of the page size, and its bytes. What the system refuses is left out."""
    for i in range(begin.shape[0]):
        _madvise(np.uintp(begin[i]), np.uintp(length[i]), advice)
