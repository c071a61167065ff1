"""Shards that numpy.save wrote."""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from sae_lightning.data.foreign.mapped import mapped, tensor_in
from sae_lightning.errors import InputError

DTYPES = {"<f2": torch.float16, "<f4": torch.float32}


def read_npy(path: Path) -> Tensor:
    """The array of a .npy file, mapped. Errors: InputError for one that is damaged, pickled, in another order or of another type."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, BadZipFile) as error:
        raise InputError(
            f"{path} cannot be read as a .npy file of numbers ({str(error).splitlines()[0]}): write it with numpy.save"
        ) from error
    if not isinstance(array, np.memmap) or array.dtype.str not in DTYPES:
        raise InputError(
            f"{path} holds {getattr(array, 'dtype', 'an archive')}: rows are read as float16 or float32 (bfloat16: safetensors)"
        )
    if not array.flags.c_contiguous:
        raise InputError(f"{path} is in Fortran order: write it with numpy.save(…, numpy.ascontiguousarray(rows))")
    return tensor_in(mapped(path), array.offset, DTYPES[array.dtype.str], array.shape)
