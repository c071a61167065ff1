"""Folders of activations as other people write them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_lightning.data.foreign.cache import ForeignCache
from sae_lightning.data.foreign.existing import ExistingCache, existing

CONTEXT, D = 12, 16
HOOK = "blocks.3.hook_resid_post"
SHARDS = (3, 1, 5, 2, 4, 1, 3, 2, 6, 2, 3, 4)
"""Sequences of each: a dozen, so that their names sort otherwise than their numbers."""


def rows_of(sequences: Sequence[int] = SHARDS, dtype: torch.dtype = torch.float32, context: int = CONTEXT, d: int = D) -> list[Tensor]:
    """Sequences [n, context, d] of each shard; different everywhere, of different norms."""
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(n, context, d, generator=g) * (1 + torch.arange(d)) + 0.5).to(dtype) for n in sequences]


def token_ids_of(shards: Sequence[Tensor]) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randint(50, x.shape[:2], generator=g, dtype=torch.int32) for x in shards]


def write_npy(folder: Path, shards: Sequence[Tensor]) -> Path:
    folder.mkdir(parents=True)
    for i, x in enumerate(shards):
        np.save(folder / f"shard_{i}.npy", x.numpy())
    return folder


def write_pt(folder: Path, shards: Sequence[Tensor]) -> Path:
    folder.mkdir(parents=True)
    for i, x in enumerate(shards):
        torch.save(x, folder / f"shard_{i}.pt")
    return folder


def write_safetensors(folder: Path, shards: Sequence[Tensor], more: Sequence[Mapping[str, Tensor]] = ()) -> Path:
    """`more`: further tensors of each shard."""
    folder.mkdir(parents=True)
    for i, x in enumerate(shards):
        save_file({HOOK: x} | (dict(more[i]) if more else {}), folder / f"shard_{i}.safetensors", metadata={"from": "somebody"})
    return folder


def write_arrow(folder: Path, shards: Sequence[Tensor], token_ids: Sequence[Tensor] | None = None) -> Path:
    """As CacheActivationsRunner of SAELens 6.54 writes it: Array2D and a list of fixed length, a file for each shard."""
    from datasets import Array2D, Dataset, Features, List, Value, concatenate_datasets

    context, d = shards[0].shape[1:]
    features: dict = {HOOK: Array2D((context, d), dtype=str(shards[0].dtype).removeprefix("torch."))}
    if token_ids is not None:
        features["token_ids"] = List(Value("int32"), length=context)
    parts = []
    for i, x in enumerate(shards):
        columns = {HOOK: x} | ({"token_ids": token_ids[i]} if token_ids is not None else {})
        parts.append(Dataset.from_dict(columns, features=Features(features)))
    concatenate_datasets(parts).save_to_disk(folder, num_shards=3)
    return folder


WRITERS: dict[str, Callable[[Path, Sequence[Tensor]], Path]] = {
    "npy": write_npy,
    "pt": write_pt,
    "safetensors": write_safetensors,
    "arrow": write_arrow,
}


def opened(folder: Path, stores: Path | None = None) -> ForeignCache:
    """By way of what recognises it; statistics go beside it, unless told otherwise."""
    source = existing(folder, stores or folder.parent / "stores")
    assert isinstance(source, ExistingCache)
    return source.ensure()
