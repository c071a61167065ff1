"""What SAELens caches: a Hugging Face dataset saved to disk, a column [context, d] for each hook point, and `token_ids` [context].

Written by sae_lens.cache_activations_runner (SAELens 6): features Array2D((context, d), dtype), a list of lists in Arrow, in stream files
that state.json lists. Arrow knows no bfloat16.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from sae_lightning.data.foreign.cache import ForeignCache, Part
from sae_lightning.data.foreign.mapped import mapped, tensor_in
from sae_lightning.errors import InputError

if TYPE_CHECKING:
    import pyarrow

STATE, SPLITS = "state.json", "dataset_dict.json"
TOKEN_IDS = "token_ids"


class _NoHook(ValueError):
    """A column that is not rows of a hook point."""


def open_arrow(folder: Path, stores: Path) -> ForeignCache:
    """Rows of a dataset saved to disk: one sequence for each example. A shard is a record batch, since only that lies in one piece.

    Errors: InputError for a dataset without such columns, with examples of different shapes, and for a file that is missing or damaged.
    """
    files = _files(folder)
    parts = [part for file in files for part in _parts(file)]
    return ForeignCache(folder, parts, files, stores)


def _files(folder: Path) -> list[Path]:
    """As state.json lists them: other .arrow files there are what the library caches for itself."""
    state = folder / STATE
    try:
        names = [str(entry["filename"]) for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
    except OSError as error:
        raise InputError(f"{folder} has no {STATE}: the cache was not finished, make it again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{state} is damaged: make the cache again") from error
    for name in names:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing, {STATE} lists it: copy the whole folder, or make the cache again")
    return [folder / name for name in names]


def _parts(file: Path) -> list[Part]:
    try:
        import pyarrow
    except ImportError as error:
        raise InputError("a dataset saved to disk needs the package pyarrow: pip install 'sae_lightning[text]'") from error
    memory = mapped(file)
    parts, row = [], 0
    try:
        with pyarrow.ipc.open_stream(pyarrow.py_buffer(memory.numpy())) as stream:
            for batch in stream:
                if batch.num_rows:
                    parts.append(_part(file, memory, batch, row))
                    row += len(next(iter(parts[-1].rows.values())))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{file} is no Arrow stream, or it was cut short ({str(error).splitlines()[0]}): make the cache again") from error
    return parts


def _part(file: Path, memory: UInt8[Tensor, " bytes"], batch: "pyarrow.RecordBatch", first: int) -> Part:
    hooks, refused, context = {}, [], None
    for name in batch.schema.names:
        column = batch.column(name)
        try:
            x = _tensor(memory, column, 2)
        except _NoHook as reason:
            refused.append(f"{name} ({reason})")
            continue
        except ValueError as error:
            raise InputError(f"{file} cannot be read at '{name}': {error}") from error
        if context not in (None, x.shape[1]):
            raise InputError(f"{file} has contexts of {x.shape[1]} and {context} tokens: all hook points must have the same")
        context, hooks[name] = x.shape[1], x.view(-1, x.shape[2])
    if context is None:
        raise InputError(f"{file} has no column of rows [context, d] in float16 or float32: it holds {', '.join(refused)}")
    token_ids = _token_ids(file, memory, batch, context) if TOKEN_IDS in batch.schema.names else None
    return Part(file, first, context, hooks, token_ids)


def _token_ids(file: Path, memory: UInt8[Tensor, " bytes"], batch: "pyarrow.RecordBatch", context: int) -> Tensor:
    try:
        token_ids = _tensor(memory, batch.column(TOKEN_IDS), 1)
    except ValueError as error:
        raise InputError(f"{file} cannot be read at '{TOKEN_IDS}': {error}") from error
    if token_ids.shape[1] != context:
        raise InputError(f"{file} has {token_ids.shape[1]} {TOKEN_IDS} for sequences of {context} rows: make the cache again")
    return token_ids


def _tensor(memory: UInt8[Tensor, " bytes"], column: Any, depth: int) -> Tensor:
    """A column of lists, `depth` of them in one another, as the tensor that it is in the file: rows (depth 2) or token ids (depth 1).

    Errors: _NoHook for a column of other types, ValueError for one whose values do not lie side by side.
    """
    import pyarrow
    from pyarrow import types

    dtypes = {
        1: {pyarrow.int32(): torch.int32, pyarrow.int64(): torch.int64},
        2: {pyarrow.float16(): torch.float16, pyarrow.float32(): torch.float32},
    }[depth]
    shape = [len(column)]
    for _ in range(depth):
        column = getattr(column, "storage", column)  # the type Array2D, where its library has made it known
        if not (types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type)):
            raise _NoHook(str(column.type))
        if column.null_count:
            raise ValueError("examples are missing")
        length, column = _inner(column)
        shape.append(length)
    if column.type not in dtypes:
        raise _NoHook(f"{'lists of ' * depth}{column.type}")
    if column.null_count:
        raise ValueError("entries are missing")
    values, dtype = column.buffers()[1], dtypes[column.type]
    offset = values.address - memory.data_ptr() + column.offset * dtype.itemsize
    if not 0 <= offset < len(memory):
        raise ValueError("it is compressed: save it without compression")
    return tensor_in(memory, offset, dtype, shape)


def _inner(column: Any) -> tuple[int, Any]:
    """The length of the lists of a column, and what they hold, one list after the other. Errors: ValueError for several lengths."""
    from pyarrow import types

    if types.is_fixed_size_list(column.type):
        length = column.type.list_size
        return length, column.values.slice(column.offset * length, len(column) * length)
    offsets = column.offsets.to_numpy()
    lengths = np.unique(np.diff(offsets))
    if not lengths.any():
        raise ValueError("its examples are empty")
    if len(lengths) > 1:
        raise ValueError(f"its examples have between {lengths[0]} and {lengths[-1]} entries: all must have the same shape")
    return int(lengths[0]), column.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
