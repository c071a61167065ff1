"""An activation store that lies elsewhere: s3://, gs://, hf://, http(s):// and whatever else fsspec knows."""

import hashlib
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import torch
from filelock import FileLock
from jaxtyping import Float32, Int64
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from sae_lightning.data import manifest as names
from sae_lightning.data.described import DescribedRows
from sae_lightning.data.encoded import Encoded, joined
from sae_lightning.data.manifest import MANIFEST, STATISTICS, Manifest, parsed
from sae_lightning.data.remote.cache import ShardCache
from sae_lightning.data.remote.fetchers import Fetchers
from sae_lightning.data.remote.index import REQUESTS, index
from sae_lightning.data.remote.server import PIECE, Server
from sae_lightning.errors import InputError
from sae_lightning.files import replacing

GAP = 256 * 1024
"""Bytes between two rows that are read rather than asked for anew: they take about as long as a request waits."""


class RemoteStore(DescribedRows):
    """The rows of a store on a server, with a cache of whole shards in `folder`, of at most `cache_bytes`.

    `read` fetches the shard that it needs, and `fetch_ahead` those that will be needed; the sha256 of each is compared with the manifest.
    Single rows (`rows_at`), token ids and the bounds of sequences come by byte ranges, except where a shard is in the cache. What is
    named by `keep` is fetched once and lies in a file of its own, the index and the statistics too: those are not counted in `cache_bytes`.

    Errors: InputError, as `Server`, and for a shard that is not what the manifest says.
    """

    def __init__(self, server: Server, manifest: Manifest, folder: Path, cache_bytes: int):
        self.path = server.url
        self._server, self._folder = server, folder
        self._cache = ShardCache(folder, cache_bytes)
        self._cached_as = [f"{Path(shard.name).stem}-{shard.sha256[:16]}.safetensors" for shard in manifest.shards]
        self._id = _digest(*self._cached_as)
        super().__init__(manifest, load(self._statistics_file(manifest)))
        self._index = index(server, manifest.shards, folder / f"index-{self._id}.safetensors")
        self._small: dict[tuple[int, str], Tensor] = {}
        self._fetchers = Fetchers(self._fetch)
        self._wanted: list[int] = []
        self._keep: Tensor = torch.empty(0, dtype=torch.int64)
        self._kept: dict[str, Encoded] = {}

    def mapped(self, hook: str) -> None:
        """Shards come and go."""
        self.width(hook)

    def fetch_ahead(self, shards: Sequence[int]) -> None:
        """Says which shards are needed next, in this order. Returns at once."""
        self._wanted = list(shards)
        self._fetchers.ahead([shard for shard in shards if not (self._folder / self._cached_as[shard]).exists()])

    def read(self, hook: str, start: int, stop: int) -> Encoded:
        """Rows start … stop − 1 as they are stored. A single row does not fetch its shard."""
        self.width(hook)
        return joined([self._stored(shard, hook, first, end, end - first > 1) for shard, first, end in self._pieces(start, stop)])

    def rows_at(self, hook: str, rows: Int64[Tensor, " n"]) -> Float32[Tensor, "n d"]:
        """A copy of the rows with these numbers, in the order given."""
        found = torch.empty(len(rows), self.width(hook))
        place = torch.searchsorted(self._keep, rows)
        is_kept = (place < len(self._keep)) & (torch.cat([self._keep, rows.new_full((1,), -1)])[place] == rows)
        if is_kept.any():
            found[is_kept] = self._kept_rows(hook).at(place[is_kept]).float()
        if not is_kept.all():
            found[~is_kept] = self._at(hook, rows[~is_kept]).float()
        return found

    def keep(self, rows: Int64[Tensor, " n"]) -> None:
        """These rows are asked for again and again: they are fetched once, when the first of them is, and stay on this machine."""
        self._keep, self._kept = rows.unique(), {}

    # -- whole shards ---------------------------------------------------------------------------------------------------

    def _fetch(self, shard: int, is_needed: bool) -> None:
        wanted = [self._cached_as[each] for each in self._wanted]
        self._cache.fetch(
            self._cached_as[shard], self.manifest.shards[shard].bytes, lambda path: self._download(shard, path), wanted, is_needed
        )

    def _download(self, shard: int, to: Path) -> None:
        """Twice at most: what came with another checksum may have been spoilt on its way."""
        described = self.manifest.shards[shard]
        for _ in range(2):
            digest = hashlib.sha256()
            with open(to, "rb+") as file:
                for piece in self._server.pieces(described.name, 0, described.bytes):
                    digest.update(piece)
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            if digest.hexdigest() == described.sha256:
                return
        raise InputError(f"{self.path}/{described.name} is altered (its checksum is not that of the manifest): copy it there again")

    def _opened(self, shard: int, is_wanted: bool) -> int | None:
        """A descriptor of a shard in the cache, to be closed; None where it is not there and not wanted."""
        name, size = self._cached_as[shard], self.manifest.shards[shard].bytes
        while (descriptor := self._cache.opened(name, size)) is None and is_wanted:
            self._fetchers.now(shard)
        return descriptor

    # -- parts of shards ------------------------------------------------------------------------------------------------

    def _stored(self, shard: int, hook: str, first: int, end: int, is_wanted: bool = False) -> Encoded:
        """Rows of a shard, out of the cache or, where it is not there and not wanted, by byte range."""
        keys = [hook, names.scale_key(hook)] if self.manifest.dtype == "int8" else [hook]
        return Encoded(*self._entries(shard, keys, first, end, is_wanted))

    def _entries(self, shard: int, keys: Sequence[str], first: int, end: int, is_wanted: bool = False) -> list[Tensor]:
        """Entries first … end − 1 of tensors of a shard."""
        places = [self._index.places[shard][key] for key in keys]
        descriptor = self._opened(shard, is_wanted and end > first)
        try:
            return [place.tensor(self._bytes(shard, descriptor, *place.span(first, end)), end - first) for place in places]
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _bytes(self, shard: int, descriptor: int | None, start: int, stop: int) -> bytearray:
        if descriptor is None:
            return bytearray(self._server.read(self.manifest.shards[shard].name, start, stop))
        content = bytearray(stop - start)
        view, done = memoryview(content), 0
        while done < len(content):
            n = os.preadv(descriptor, [view[done:]], start + done)
            if not n:
                raise InputError(f"{self._folder / self._cached_as[shard]} was cut off: delete it, it is fetched again")
            done += n
        return content

    def _tensor(self, shard: int, key: str) -> Tensor:
        if key == names.SEQUENCE_ROWS:
            return self._index.sequence_rows[shard]
        if (shard, key) not in self._small:
            self._small[shard, key] = self._entries(shard, [key], 0, self._index.places[shard][key].shape[0])[0]
        return self._small[shard, key]

    def _at(self, hook: str, rows: Int64[Tensor, " n"]) -> Encoded:
        """A copy of rows with these numbers as they are stored, those near one another in one request."""
        like = self._stored(0, hook, 0, 0)
        found = Encoded(like.values.new_empty(len(rows), self.width(hook)), None if like.scale is None else like.scale.new_empty(len(rows)))

        def fill(shard: int, within: Tensor, places: Tensor) -> None:
            first = int(within[0])
            part = self._stored(shard, hook, first, int(within[-1]) + 1).at(within - first)
            found.values[places] = part.values
            if found.scale is not None and part.scale is not None:
                found.scale[places] = part.scale

        row_bytes = self._index.places[0][hook].entry_bytes
        jobs = []
        for shard, within, places in self._by_shard(rows):
            sizes = _runs(within.tolist(), 1 + GAP // row_bytes, max(1, PIECE // row_bytes))
            jobs += [(shard, *both) for both in zip(within.split(sizes), places.split(sizes), strict=True)]
        with ThreadPoolExecutor(REQUESTS) as pool:
            list(pool.map(lambda job: fill(*job), jobs))
        return found

    def _kept_rows(self, hook: str) -> Encoded:
        if hook not in self._kept:
            path = self._folder / f"kept-{_digest(self._id, hook, self._keep.numpy().tobytes().hex())}.safetensors"
            with FileLock(path.with_name(f".{path.name}.lock")):
                if not path.exists():
                    rows = self._at(hook, self._keep)
                    with replacing(path) as temporary:
                        save_file({"values": rows.values} | ({} if rows.scale is None else {"scale": rows.scale}), temporary)
            tensors = load_file(path)
            self._kept[hook] = Encoded(tensors["values"], tensors.get("scale"))
        return self._kept[hook]

    def _statistics_file(self, manifest: Manifest) -> bytes:
        content = self._server.small_file(STATISTICS)
        if manifest.statistics_sha256 not in (None, hashlib.sha256(content).hexdigest()):
            raise InputError(f"{self.path}/{STATISTICS} is altered (its checksum is not that of the manifest): copy it there again")
        return content


class RemoteSource:
    """A store on a server, as a source of rows: `widths` fetches its manifest, `ensure` opens it. Its shards are kept below `stores`."""

    def __init__(self, url: str, stores: Path, cache_bytes: int):
        self.path, self.cache_bytes = url.rstrip("/"), cache_bytes
        self.server = Server(self.path)
        slug = re.sub(r"[^A-Za-z0-9.-]+", "-", self.path.split("://", 1)[1]).strip("-")
        self.folder = stores / "remote" / f"{slug[-60:]}-{_digest(self.path)}"

    @cached_property
    def manifest(self) -> Manifest:
        again = "copy the whole store there again"
        manifest = parsed(self.server.small_file(MANIFEST), self.path, again)
        if not manifest.complete:
            done, due = len(manifest.shards), manifest.shards_expected()
            raise InputError(f"{self.path} is incomplete ({done} of {due} shards): finish it where it is made, and {again}")
        return manifest

    def widths(self) -> dict[str, int]:
        """Width d by hook point. Errors: InputError, as `Server`, and for a URL that is no complete store."""
        return self.manifest.widths

    @cached_property
    def store(self) -> RemoteStore:
        return RemoteStore(self.server, self.manifest, self.folder, self.cache_bytes)

    def ensure(self) -> RemoteStore:
        """Errors: InputError, as `RemoteStore`."""
        return self.store

    def shards_at_once(self, given: int | None) -> int | None:
        """How many shards are shuffled together: where it is not given, as many as half of the cache holds, so that the next ones have
        room while these are read. From the manifest and `cache_bytes` alone: it determines the order of the rows.

        Errors: InputError for a cache that holds less than two shards, and for more shards than it holds.
        """
        shards, largest = len(self.manifest.shards), max(shard.bytes for shard in self.manifest.shards)
        if self.cache_bytes < 2 * largest:
            raise InputError(
                f"data.cache_bytes={self.cache_bytes} is less than two shards of {self.path}, which have {largest} bytes: "
                f"set it to {2 * largest} or more"
            )
        if given is not None and min(given, shards) > self.cache_bytes // largest:
            raise InputError(
                f"data.shards_at_once={given} shards of {largest} bytes are more than data.cache_bytes={self.cache_bytes}: "
                "raise that, or set data.shards_at_once=null"
            )
        return self.cache_bytes // 2 // largest if given is None else given


def is_remote(path: str) -> bool:
    """Whether it is a URL, and no folder."""
    return "://" in path


def _runs(ascending: list[int], most_apart: int, most: int) -> list[int]:
    """Lengths of runs of numbers that follow one another at most so far apart, and span at most so many."""
    lengths, first, last = [], -most, 0
    for number in ascending:
        if number - first >= most or number - last > most_apart:
            lengths.append(0)
            first = number
        lengths[-1] += 1
        last = number
    return lengths


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()
