"""Where the tensors of each shard lie in its file, so that a part of them can be read without the rest."""

import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock
from jaxtyping import Int32
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_lightning.data.manifest import SEQUENCE_ROWS, Shard
from sae_lightning.data.remote.server import Server
from sae_lightning.errors import InputError
from sae_lightning.files import replacing

REQUESTS = 16
"""Small requests at a time: they wait for the server, not for the network's throughput."""
HEADER = 16 * 1024
"""Bytes asked for at the beginning of a shard: more than the headers of a few hook points have."""
TYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "I8": torch.int8, "I32": torch.int32,
         "I64": torch.int64}  # fmt: skip


class Place(NamedTuple):
    """A tensor in a file of safetensors: its type as that format names it, its shape, and its first byte."""

    dtype: str
    shape: list[int]
    offset: int

    @property
    def entry_bytes(self) -> int:
        """Of one row, or whatever axis 0 counts."""
        return TYPES[self.dtype].itemsize * math.prod(self.shape[1:])

    def span(self, first: int, end: int) -> tuple[int, int]:
        """The bytes of entries first … end − 1."""
        return self.offset + first * self.entry_bytes, self.offset + end * self.entry_bytes

    def tensor(self, content: bytearray, n: int) -> Tensor:
        """n entries."""
        dtype = TYPES[self.dtype]
        return torch.frombuffer(content, dtype=dtype).view(n, *self.shape[1:]) if content else torch.empty(n, *self.shape[1:], dtype=dtype)


class Index(NamedTuple):
    """By shard: places of its tensors, and how many rows each of its sequences gave."""

    places: list[dict[str, Place]]
    sequence_rows: list[Int32[Tensor, " sequences"]]


def index(server: Server, shards: Sequence[Shard], kept: Path) -> Index:
    """Of all shards: a few requests for each, by byte ranges, kept in the file `kept`. Errors: InputError, as `Server`, and for a damaged shard."""
    with FileLock(kept.with_name(f".{kept.name}.lock")):
        if not kept.exists():
            with ThreadPoolExecutor(REQUESTS) as pool:
                places = list(pool.map(lambda shard: _places(server, shard), shards))
                rows = list(pool.map(lambda shard, here: _sequence_rows(server, shard, here), shards, places))
            with replacing(kept) as temporary:
                save_file({SEQUENCE_ROWS: torch.cat(rows)}, temporary, {"places": json.dumps(places)})
    with safe_open(kept, framework="pt") as file:
        places = [{key: Place(*place) for key, place in of_shard.items()} for of_shard in json.loads(file.metadata()["places"])]
        rows = file.get_tensor(SEQUENCE_ROWS).split([shard.sequences for shard in shards])
    return Index(places, list(rows))


def _places(server: Server, shard: Shard) -> dict[str, Place]:
    head = server.read(shard.name, 0, min(HEADER, shard.bytes))
    end = 8 + int.from_bytes(head[:8], "little")
    try:
        if end > shard.bytes:
            raise ValueError(f"a header of {end} bytes")
        head += server.read(shard.name, len(head), max(end, len(head)))
        tensors = {key: value for key, value in json.loads(head[8:end]).items() if key != "__metadata__"}
        if any(end + value["data_offsets"][1] > shard.bytes for value in tensors.values()):
            raise ValueError("a tensor behind the end")
        return {key: Place(value["dtype"], value["shape"], end + value["data_offsets"][0]) for key, value in tensors.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(server, shard) from error


def _sequence_rows(server: Server, shard: Shard, places: dict[str, Place]) -> Int32[Tensor, " sequences"]:
    place = places[SEQUENCE_ROWS]
    rows = place.tensor(bytearray(server.read(shard.name, *place.span(0, shard.sequences))), shard.sequences)
    if int(rows.sum()) != shard.counts.rows:
        raise _damaged(server, shard)
    return rows


def _damaged(server: Server, shard: Shard) -> InputError:
    return InputError(f"{server.url}/{shard.name} is damaged or altered (it is not what the manifest says): copy the store there again")
