"""Shards that torch.save wrote."""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from sae_lightning.errors import InputError


def read_pt(path: Path) -> Tensor:
    """The tensor of a .pt file, mapped; nothing but a tensor is unpickled.

    Errors: InputError for a file that holds anything else, is damaged, or is of the format before PyTorch 1.6.
    """
    again = "save one tensor of rows with torch.save"
    try:
        tensor = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} holds pickled objects, which are never run: {again}") from error
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        raise InputError(f"{path} cannot be read ({str(error).splitlines()[0][:120]}): {again}") from error
    if not isinstance(tensor, Tensor):
        raise InputError(f"{path} holds a {type(tensor).__name__} and not a tensor: {again}")
    if tensor.layout != torch.strided or not tensor.is_contiguous():
        raise InputError(f"{path} holds a tensor that is not contiguous: save rows.contiguous()")
    return tensor.detach()
