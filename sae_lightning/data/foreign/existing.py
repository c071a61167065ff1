"""What lies in a folder of activations: a store of this package, or other people's files."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from sae_lightning.data.foreign.arrow import SPLITS, STATE, open_arrow
from sae_lightning.data.foreign.cache import ForeignCache
from sae_lightning.data.foreign.shards import open_shards, shard_files
from sae_lightning.data.manifest import MANIFEST
from sae_lightning.data.store import ExistingStore
from sae_lightning.errors import InputError
from sae_lightning.transformers.base import Transformer

READ = "a store of this package (manifest.json), a dataset saved to disk, as SAELens does (state.json), or shards .npy, .safetensors or .pt"


class ExistingCache:
    """Other people's activations in a folder, as a source of rows. `stores`: where their statistics are kept."""

    def __init__(self, path: Path, stores: Path):
        self.path, self.stores = path, stores

    @cached_property
    def cache(self) -> ForeignCache:
        is_dataset = (self.path / STATE).exists() or (self.path / "dataset_info.json").exists()
        return open_arrow(self.path, self.stores) if is_dataset else open_shards(self.path, self.stores)

    def widths(self) -> dict[str, int]:
        """Width d by hook point. Errors: InputError, as `ensure`."""
        return {hook: self.cache.width(hook) for hook in self.cache.hooks}

    def ensure(self) -> ForeignCache:
        """Errors: InputError for files that cannot be read, or do not go together."""
        return self.cache

    def check_transformer(self, transformer: Transformer, hooks: Sequence[str]) -> None:
        """Errors: InputError where an SAE of these rows could not be spliced into `transformer`: no token ids, other hook points or widths."""
        if not self.cache.has_tokens:
            raise InputError(
                f"{self.path} holds no token_ids, and without them nothing is evaluated inside a transformer: leave out data/transformer"
            )
        for hook, d in transformer.widths(hooks).items():
            here = self.cache.width(hook)
            if d != here:
                raise InputError(
                    f"{self.path} has rows of width {here} at '{hook}', {transformer.name} of {d}: set data/transformer to theirs"
                )


def existing(path: Path, stores: Path) -> ExistingStore | ExistingCache:
    """The source of the rows in a folder. Errors: InputError, which lists what is read, for a folder that holds none of it."""
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
        raise InputError(f"{path} may not be read by this user: check data.store")
    if (path / MANIFEST).exists():
        return ExistingStore(path)
    if (path / SPLITS).exists():
        raise InputError(f"{path} is a dataset of several splits: set data.store to one of their folders")
    if (path / STATE).exists() or (path / "dataset_info.json").exists() or (path.is_dir() and shard_files(path)):
        return ExistingCache(path, stores)
    why = "it holds none of what is read" if path.is_dir() else "there is no such folder"
    raise InputError(f"{path} is no activation store, {why}: {READ}; check data.store")
