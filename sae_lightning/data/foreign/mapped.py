"""Files mapped into memory, and tensors that lie in them."""

import mmap
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from sae_lightning.errors import InputError


def mapped(path: Path) -> UInt8[Tensor, " bytes"]:
    """The bytes of a file, read from the disk where they are looked at. Never written into.

    Errors: InputError for an empty one, and one that this user cannot read.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                raise InputError(f"{path} is empty: delete it, or write it again")
            try:
                return torch.from_file(os.fspath(path), shared=False, size=size, dtype=torch.uint8)
            except RuntimeError:  # refused for a file larger than the memory; the other way keeps a file open, of which there are few
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check data.store") from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(memory, dtype=torch.uint8)


def tensor_in(memory: UInt8[Tensor, " bytes"], offset: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """The tensor that begins `offset` bytes into a mapped file. Errors: ValueError where the file is too short, or not aligned."""
    size = dtype.itemsize
    for n in shape:
        size *= n
    if offset < 0 or offset + size > len(memory):
        raise ValueError(f"it ends at byte {offset + size} of {len(memory)}")
    if offset % dtype.itemsize:
        raise ValueError(f"it begins at byte {offset}, which is no multiple of {dtype.itemsize}")
    return memory[offset : offset + size].view(dtype).view(*shape)
