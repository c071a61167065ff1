"""A folder of shards: .npy, .safetensors or .pt files, each with rows [n, d] or sequences [n, context, d]."""

import re
from pathlib import Path

from torch import Tensor

from sae_lightning.data.foreign.cache import FLOATS, ForeignCache, Part
from sae_lightning.data.foreign.numpy_files import read_npy
from sae_lightning.data.foreign.safetensors_files import read_safetensors
from sae_lightning.data.foreign.torch_files import read_pt
from sae_lightning.errors import InputError

TOKEN_IDS = "token_ids"
SUFFIXES = (".npy", ".safetensors", ".pt")


def shard_files(folder: Path) -> list[Path]:
    """The shards of a folder, shard_2 before shard_10."""
    found = [path for path in folder.iterdir() if path.suffix in SUFFIXES and not path.name.startswith(".") and path.is_file()]
    return sorted(found, key=lambda path: natural(path.name))


def open_shards(folder: Path, stores: Path) -> ForeignCache:
    """Rows of the shards of a folder, one file after the other in natural order.

    The hook points of safetensors are the names of its tensors of 2 or 3 dimensions; `token_ids` [n, context] are those of 3-dimensional ones.
    The one hook point of .npy and .pt is the name of the folder. Errors: InputError, which names the file.
    """
    files = shard_files(folder)
    kinds = sorted({path.suffix for path in files})
    if len(kinds) > 1:
        raise InputError(f"{folder} holds {' and '.join(kinds)} files: set data.store to a folder of one kind")
    hook = folder.resolve().name or "activations"
    return ForeignCache(folder, [_part(path, hook) for path in files], files, stores)


def natural(name: str) -> list[str | int]:
    """A key to sort by: numbers in a name count as numbers."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]


def _part(path: Path, hook: str) -> Part:
    token_ids = None
    if path.suffix == ".safetensors":
        tensors = read_safetensors(path)
        token_ids = tensors.pop(TOKEN_IDS, None)
        names = sorted((name for name, x in tensors.items() if x.dim() > 1 and x.is_floating_point()), key=natural)
        if not names:
            raise InputError(f"{path} has no tensor of rows [n, d] or [n, context, d]: it holds {', '.join(tensors) or 'nothing'}")
        tensors = {name: tensors[name] for name in names}
    else:
        tensors = {hook: read_npy(path) if path.suffix == ".npy" else read_pt(path)}
    shapes = {_sequences(path, name, x) for name, x in tensors.items()}
    if len(shapes) > 1:
        raise InputError(f"{path} has tensors of different sequences, {sorted(map(str, shapes))}: all its hook points must have the same")
    (shape,) = shapes
    rows = {name: x.view(-1, x.shape[-1]) for name, x in tensors.items()}
    if len(shape) == 1:
        return Part(path, 0, None, rows)  # token ids of rows in no known sequence are of no use
    if token_ids is not None and (tuple(token_ids.shape) != shape or token_ids.is_floating_point()):
        raise InputError(
            f"{path} has {TOKEN_IDS} of shape {list(token_ids.shape)} beside sequences {list(shape)}: give whole numbers of that shape"
        )
    return Part(path, 0, shape[1], rows, token_ids)


def _sequences(path: Path, name: str, x: Tensor) -> tuple[int, ...]:
    """The shape without d. Errors: InputError for what cannot be rows."""
    if x.dtype not in FLOATS:
        raise InputError(f"{path} is {str(x.dtype).removeprefix('torch.')} at '{name}': rows are read as float16, bfloat16 or float32")
    if x.dim() not in (2, 3) or 0 in x.shape[1:]:
        raise InputError(f"{path} has shape {list(x.shape)} at '{name}': rows are [n, d] or [n, context, d]")
    return tuple(x.shape[:-1])
