"""Making an activation store: a transformer reads a text, or images; what happens at its hook points is written down."""

import sys

if __name__ == "__main__":  # here, so that what is wrong with a command is said before torch is imported
    from sae_lightning.run.harvest import main

    sys.exit(main())

import abc
import copy
import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from sae_lightning.data.alone import OWNER, alone
from sae_lightning.data.encoded import DTYPES
from sae_lightning.data.forward import Passes
from sae_lightning.data.images import Images
from sae_lightning.data.manifest import MANIFEST, STATISTICS, Manifest, Share, read_manifest, with_share, without_share
from sae_lightning.data.places import PlacedText
from sae_lightning.data.progress import Progress
from sae_lightning.data.shares import cut, folder_of_part
from sae_lightning.data.store import Store
from sae_lightning.data.text import Documents, Text
from sae_lightning.data.writer import ShardBuffer, StoreWriter, behind
from sae_lightning.errors import InputError
from sae_lightning.transformers.base import Network, Transformer

log = logging.getLogger(__name__)

ROWS_FOR_MEDIAN = 8192
PLACES = "places.json"


class Harvesting(abc.ABC):
    """The store of what happens in a network that reads something: described at once, made by `ensure` where it is not there yet.

    `source` has numbered sequences; `sequences` of them are read. A subclass says what a sequence is. `part` is the same for a share of
    them, in a store of its own. Errors: InputError for settings that cannot be, when constructed.
    """

    unit: str
    """In which an amount is given: tokens or images."""
    other: str
    """What to give instead, where none of it can be used."""
    remedy: str
    """What to do where the disk is too small."""

    def __init__(
        self,
        transformer: Network,
        source: Text | Images,
        hooks: Sequence[str],
        sequences: int,
        dtype: str,
        on_nonfinite: Literal["refuse", "skip"],
        exclude_norm_above: float | None,
        shard_rows: int,
        forward_batch_size: int,
        seed: int,
        stores: str | Path,
    ):
        self.transformer, self.source, self.sequences = transformer, source, sequences
        self.hooks = [str(hook) for hook in hooks]
        self.dtype, self.on_nonfinite, self.exclude_norm_above = dtype, on_nonfinite, exclude_norm_above
        self.shard_rows, self.forward_batch_size = shard_rows, forward_batch_size
        self.seed, self.stores = seed, Path(stores)
        self.share, self.path_of_part = Share(0, sequences, sequences), None
        self._check_settings()

    @property
    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """What determines the rows of the whole, and nothing else. JSON-able."""

    @property
    @abc.abstractmethod
    def positions(self) -> int:
        """Of a sequence."""

    @abc.abstractmethod
    def special_ids(self) -> set[int]:
        """What gives no row where it stands."""

    @abc.abstractmethod
    def check_source(self) -> None:
        """Errors: InputError for what cannot be read, before anything heavy is done."""

    @abc.abstractmethod
    def amount(self, sequences: int) -> int:
        """So many sequences in `unit`s."""

    @property
    def path_of_whole(self) -> Path:
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:10]
        return self.stores / f"{self.transformer.name}-{self.source.name}-{digest}"

    @property
    def path(self) -> Path:
        return self.path_of_part or self.path_of_whole

    def part(self, part: int, parts: int) -> Self:
        """The store of one of `parts` shares, in <whole>.parts/part-<part>-of-<parts>; `merge` joins all of them. One part is the whole.

        A share is whole shards, as many as any other or one more. Rows are those of the whole, judged by norms of its first rows.
        Errors: InputError for a part that there is not, and for more parts than shards.
        """
        made = copy.copy(self)
        made.share = cut(self.sequences, self.shard_sequences, part, parts)
        made.path_of_part = None if parts == 1 else folder_of_part(self.path_of_whole, part, parts)
        return made

    def widths(self) -> dict[str, int]:
        """Width d by hook point, without weights, activations or text.

        Errors: InputError for what would stop the harvest at once: no network, no such file, no such hook point, a disk too small.
        """
        manifest = self.manifest()
        if manifest is not None and self._is_complete(manifest):
            return manifest.widths
        widths = self.transformer.widths(self.hooks)
        self._check(widths, manifest)
        return widths

    def ensure(self) -> Store:
        """The store; harvested first, or the rest of it, where it is not complete. One process harvests, others wait and say so."""
        if not self.is_complete():
            widths = self.widths()
            with alone(self.path):
                manifest = self.manifest()
                if not self._is_complete(manifest):
                    self._harvest(manifest or self._new_manifest(widths))
        return Store(self.path)

    def is_complete(self) -> bool:
        """Whether all that was to be harvested is there. Errors: as `manifest`."""
        return self._is_complete(self.manifest())

    def manifest(self) -> Manifest | None:
        """What was written; None where nothing was. Errors: InputError for a store that this is not."""
        if not (self.path / MANIFEST).exists():
            return None
        manifest = read_manifest(self.path)
        if manifest.identity != with_share(self.identity, self.share):
            cut = "with another data.shard_rows or data.forward_batch_size: give those"
            how = cut if without_share(manifest.identity) == self.identity and not self.share.is_whole else "by another configuration"
            raise InputError(f"{self.path} was made {how}, delete it or set paths.stores to another folder")
        return manifest

    # -- before -----------------------------------------------------------------------------------------------------

    def _check_settings(self) -> None:
        for name in ("shard_rows", "forward_batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"data.{name} is {getattr(self, name)}: give a positive number")
        if self.dtype not in DTYPES:
            raise InputError(f"data.dtype is '{self.dtype}': choose one of {', '.join(DTYPES)}")
        if self.exclude_norm_above is not None and self.exclude_norm_above <= 1:
            raise InputError(f"data.exclude_norm_above is {self.exclude_norm_above}: give a multiple of the median norm, such as 10")
        if not self.hooks or len(set(self.hooks)) < len(self.hooks):
            raise InputError(f"data.hooks is {self.hooks}: give different hook points, at least one")

    def _check(self, widths: dict[str, int], manifest: Manifest | None) -> None:
        self.check_source()
        row = sum(widths.values()) * DTYPES[self.dtype].itemsize + 20  # 20: token, sequence, position; the sequence's tokens
        row += 4 * len(widths) if self.dtype == "int8" else 0  # their scales
        written = sum(shard.bytes for shard in manifest.shards if (self.path / shard.name).exists()) if manifest else 0
        needed = (self.share.stop - self.share.first) * self.positions * row - written
        free = shutil.disk_usage(_existing(self.stores)).free
        if needed > free:
            raise InputError(
                f"the activations need {needed / 1e6:.0f} MB and the disk of {self.stores} has {free / 1e6:.0f} MB free: "
                f"{self.remedy}, free some space or set paths.stores to another disk"
            )

    def _is_complete(self, manifest: Manifest | None) -> bool:
        if manifest is None or not manifest.complete:
            return False
        return all((self.path / name).exists() for name in [STATISTICS, *(shard.name for shard in manifest.shards)])

    @property
    def shard_sequences(self) -> int:
        """Whole forward passes, so that a single shard can be harvested again and comes out the same."""
        return max(1, self.shard_rows // (self.positions * self.forward_batch_size)) * self.forward_batch_size

    def _new_manifest(self, widths: dict[str, int]) -> Manifest:
        return Manifest(
            identity=with_share(self.identity, self.share),
            widths=widths,
            dtype=self.dtype,
            context_length=self.positions,
            special_ids=sorted(self.special_ids()),
            sequences=self.share.stop - self.share.first,
            shard_sequences=self.shard_sequences,
            forward_batch_size=self.forward_batch_size,
        )

    # -- harvest ----------------------------------------------------------------------------------------------------

    def _harvest(self, manifest: Manifest) -> None:
        writer = StoreWriter(self.path, manifest)
        missing = writer.missing()
        if missing:
            sequences = sum(min(manifest.shard_sequences, manifest.sequences - i * manifest.shard_sequences) for i in missing)
            what = ", ".join(self.hooks), self.transformer.name, self.amount(sequences), self.unit, self.path
            log.info("harvesting %s of %s: up to %d %s into %s", *what)
            passes = Passes(self.transformer, self._read(), manifest, self.seed, self.on_nonfinite == "skip")
            with Progress("harvest", sequences * manifest.context_length) as progress, behind() as do:
                if manifest.median_norms is None:
                    writer.set_median_norms(passes.median_norms(ROWS_FOR_MEDIAN))
                for index in missing:
                    buffer = self._shard(manifest, passes, index, progress)
                    if not buffer.sequences:
                        break  # the text, or the images, have ended
                    do(writer.write_shard, index, buffer)
                log.info("harvested %d rows at %.0f rows/s", progress.rows, progress.rows_per_second)
        if not manifest.counts.rows and self.share.is_whole:
            raise InputError(f"no row of {self.path} was kept: raise data.exclude_norm_above or give {self.other}")
        (self.path / OWNER).unlink(missing_ok=True)  # before: a harvest that is killed after it is complete leaves nothing else
        writer.finish()
        self._report(manifest)

    def _read(self) -> Text | Images:
        """What is read: of a text made of documents, for a part, without all that lies before it."""
        if self.share.is_whole or not isinstance(self.source, Documents):
            return self.source
        return PlacedText(self.source, self.path.parent / PLACES, self.shard_sequences)

    def _shard(self, manifest: Manifest, passes: Passes, index: int, progress: Progress) -> ShardBuffer:
        first = self.share.first + index * manifest.shard_sequences
        stop = min(first + manifest.shard_sequences, self.share.stop)
        buffer = ShardBuffer(manifest, first, stop - first)
        for start in range(first, stop, manifest.forward_batch_size):
            batch = passes.batch(start)
            if batch is None:
                break
            before = buffer.counts.rows
            buffer.add_(batch, self.exclude_norm_above)
            progress.advance(batch.ids.numel(), buffer.counts.rows - before)
        return buffer

    def _report(self, manifest: Manifest) -> None:
        counts, sequences = manifest.counts, sum(shard.sequences for shard in manifest.shards)
        if sequences < manifest.sequences:
            what, where = "the images" if manifest.is_of_images else "the text", "" if self.share.is_whole else " of this part"
            log.warning("%s ended after %d of %d %s%s", what, self.amount(sequences), self.amount(manifest.sequences), self.unit, where)
        log.info(
            "%s: %d rows of %d tokens; left out: %d special tokens (ids %s), %d NaN or infinite, %d by norm; "
            "norm above 10 x the median: %s",
            *(self.path, counts.rows, counts.tokens, counts.special, manifest.special_ids, counts.nonfinite, counts.norm_above_limit),
            ", ".join(f"{n} at {hook}" for hook, n in counts.large_norms.items()),
        )


class Harvest(Harvesting):
    """The store of a transformer's activations on a text.

    `max_tokens` are fed, in sequences of `context_length`; a text that ends earlier gives fewer, which is said. One forward pass
    serves all `hooks` (None: the transformer's own). Special tokens (BOS, EOS, padding) give no rows. `exclude_norm_above` leaves out
    rows (sink tokens) whose norm, at any hook point, exceeds so many times the median norm of the first 8192 rows; how many exceed
    10 times is always counted. `on_nonfinite`: what to do with rows that are NaN, infinite, or too large for `dtype` (int8: bytes with a scale
    for each row and hook point). `shard_rows` and
    `forward_batch_size` (sequences) do not determine the rows: those of a store that was begun stay as they were. The folder is
    `<stores>/<transformer>-<text>-<hash of what determines the rows>`.

    Errors: InputError for settings that cannot be, when constructed.
    """

    unit, other, remedy = "tokens", "another text", "lower data.max_tokens"

    def __init__(
        self,
        transformer: Transformer,
        text: Text,
        hooks: Sequence[str] | None = None,
        context_length: int = 128,
        max_tokens: int = 1_000_000,
        dtype: str = "bfloat16",
        on_nonfinite: Literal["refuse", "skip"] = "refuse",
        exclude_norm_above: float | None = None,
        shard_rows: int = 32_768,
        forward_batch_size: int = 32,
        seed: int = 0,
        stores: str | Path = "stores",
    ):
        self.text, self.context_length, self.max_tokens = text, context_length, max_tokens
        of_text = {"context_length": context_length, "max_tokens": max_tokens}
        for name, value in of_text.items():
            if value < 1:
                raise InputError(f"data.{name} is {value}: give a positive number")
        if max_tokens < context_length:
            raise InputError(
                f"data.max_tokens={max_tokens} is less than one sequence of data.context_length={context_length} tokens: raise it"
            )
        super().__init__(
            transformer, text, transformer.hooks if hooks is None else hooks, max_tokens // context_length, dtype, on_nonfinite,
            exclude_norm_above, shard_rows, forward_batch_size, seed, stores,
        )  # fmt: skip
        self.transformer: Transformer = transformer

    @cached_property
    def identity(self) -> dict[str, Any]:
        identity = {
            "transformer": self.transformer.identity(),
            "hooks": self.hooks,
            "text": self.text.identity(),
            "context_length": self.context_length,
            "sequences": self.sequences,
            "seed": self.seed,
            "dtype": self.dtype,
            "exclusions": {"special": True, "on_nonfinite": self.on_nonfinite, "norm_above": self.exclude_norm_above},
        }
        return json.loads(json.dumps(identity))

    @property
    def positions(self) -> int:
        return self.context_length

    def special_ids(self) -> set[int]:
        return self.transformer.special_ids()

    def check_source(self) -> None:
        longest = self.transformer.max_context()
        if longest is not None and self.context_length > longest:
            raise InputError(f"data.context_length={self.context_length} is more than {self.transformer.name} can read: at most {longest}")
        self.text.check()

    def amount(self, sequences: int) -> int:
        return sequences * self.context_length


def _existing(folder: Path) -> Path:
    """The nearest folder above that exists."""
    folder = folder.absolute()
    return folder if folder.exists() else _existing(folder.parent)
