"""Reading an activation store."""

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, Int64
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from sae_lightning.data import manifest as names
from sae_lightning.data.described import DescribedRows
from sae_lightning.data.encoded import Encoded, joined
from sae_lightning.data.manifest import STAMPS, STATISTICS, Manifest, read_manifest
from sae_lightning.errors import InputError
from sae_lightning.files import write_json


class Store(DescribedRows):
    """The activations of a transformer at some hook points, in a folder of shards.

    A row is the activation of one token; row i is that of the same token at every hook point. Rows stand in the order of
    sequences (numbered from 0) and positions. Shards are mapped into memory and read where they are needed: many processes on one
    store read it from the disk once. May be read from several threads.

    Errors: InputError for a folder that is no store, an incomplete one, one of a later version, and for a shard that is missing,
    truncated or altered. Sizes are checked at each opening, checksums of files that changed since this machine last checked them.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        manifest = read_manifest(self.path)
        if not manifest.complete:
            done, due = len(manifest.shards), manifest.shards_expected()
            raise InputError(
                f"{self.path} is incomplete ({done} of {due} shards): a run with the configuration that made it harvests the rest"
            )
        verify(self.path, manifest)
        super().__init__(manifest, load_file(self.path / STATISTICS))
        self._files: dict[int, Any] = {}
        self._tensors: dict[tuple[int, str], Tensor] = {}

    def read(self, hook: str, start: int, stop: int) -> Encoded:
        """Rows start … stop − 1 as they are stored: a view of the mapped file where one shard holds them all, so do not write into it."""
        self.width(hook)
        return joined([self._encoded(shard, hook).at(slice(first, end)) for shard, first, end in self._pieces(start, stop)])

    def mapped(self, hook: str) -> list[Encoded]:
        """The rows of each shard, mapped into memory for as long as this lives."""
        self.width(hook)
        return [self._encoded(shard, hook) for shard in range(len(self.manifest.shards))]

    def rows_at(self, hook: str, rows: Int64[Tensor, " n"]) -> Float32[Tensor, "n d"]:
        """A copy of the rows with these numbers, in the order given."""
        found = torch.empty(len(rows), self.width(hook))
        for shard, within, places in self._by_shard(rows):
            found[places] = self._encoded(shard, hook).at(within).float()
        return found

    def _encoded(self, shard: int, hook: str) -> Encoded:
        """All rows of a shard, mapped and not read."""
        return Encoded(self._tensor(shard, hook), self._tensor(shard, names.scale_key(hook)) if self.manifest.dtype == "int8" else None)

    def _tensor(self, shard: int, key: str) -> Tensor:
        """A tensor of a shard, mapped and not read."""
        if (shard, key) not in self._tensors:
            if shard not in self._files:
                self._files[shard] = safe_open(self.path / self.manifest.shards[shard].name, framework="pt")
            self._tensors[shard, key] = self._files[shard].get_tensor(key)
        return self._tensors[shard, key]


class ExistingStore:
    """A store that somebody made, as a source of rows: `widths` reads its manifest, `ensure` opens it."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @property
    def manifest(self) -> Manifest:
        """Errors: InputError for a folder that is no store."""
        return read_manifest(self.path)

    def widths(self) -> dict[str, int]:
        """Width d by hook point. Errors: as `manifest`."""
        return self.manifest.widths

    def ensure(self) -> Store:
        """Errors: InputError, as `Store`."""
        return Store(self.path)


def listed(manifest: Manifest) -> list[tuple[str, int | None, str]]:
    """The files of a store: name, bytes (where the manifest says), sha256."""
    files: list[tuple[str, int | None, str]] = [(shard.name, shard.bytes, shard.sha256) for shard in manifest.shards]
    return files if manifest.statistics_sha256 is None else [*files, (STATISTICS, None, manifest.statistics_sha256)]


def verify(folder: Path, manifest: Manifest, may_be_missing: bool = False) -> None:
    """Compares the files of a store with its manifest: sizes always, checksums of those whose size or time changed since the last time.

    Errors: InputError, which names the file. With `may_be_missing`, missing files are none.
    """
    stamps = read_stamps(folder)
    checked = False
    for name, size, sha256 in listed(manifest):
        path = folder / name
        if may_be_missing and not path.exists():
            continue
        known = stamps.get(name)
        problem = fault(path, size, None if known and os.access(path, os.R_OK) and known == stamp(path, sha256) else sha256)
        if problem:
            raise InputError(problem)
        if known != (now := stamp(path, sha256)):
            stamps[name], checked = now, True
    if checked:
        with contextlib.suppress(OSError, InputError):  # a store may lie where this user cannot write
            write_json(folder / STAMPS, stamps)


def fault(path: Path, size: int | None, sha256: str | None) -> str | None:
    """What is wrong with a file of a store, in one line; None where nothing is. None for what shall not be looked at."""
    again = "a run with the configuration that made the store harvests it again"
    try:
        there = path.stat().st_size
        if size is not None and there != size:
            return f"{path} is truncated or altered ({there} bytes instead of {size}): delete it, {again}"
        if sha256 is not None and checksum(path) != sha256:
            return f"{path} is altered (its checksum is not that of the manifest): delete it, {again}"
    except FileNotFoundError:
        return f"{path} is missing: {again}"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror}): ask its owner for the right to read it, or look after the disk"
    return None


def read_stamps(folder: Path) -> dict[str, list[Any]]:
    """What this machine has checked: name → (size, mtime_ns, sha256). Empty where that cannot be read."""
    try:
        stamps = json.loads((folder / STAMPS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


def stamp(path: Path, sha256: str) -> list[Any]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, sha256]


def checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    from sae_lightning.data.command import main

    sys.exit(main())
