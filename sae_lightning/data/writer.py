"""Writing an activation store, shard by shard."""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sae_lightning.data import manifest as names
from sae_lightning.data.encoded import DTYPES, Encoded
from sae_lightning.data.forward import Rows
from sae_lightning.data.manifest import LARGE, STAMPS, STATISTICS, Counts, Manifest, Shard, shard_name
from sae_lightning.data.statistics import Moments, moment_keys, statistics_tensors
from sae_lightning.data.store import checksum, read_stamps, stamp, verify
from sae_lightning.errors import InputError
from sae_lightning.files import UNNAMED, replacing, write_json

SECONDS_BETWEEN_STAMPS = 5.0
"""A shard without a stamp, after a kill, has its checksum computed when the store is opened again."""


class StoreWriter:
    """Writes the files of a store whose lock the caller holds. Each appears whole or not at all; the manifest follows each shard.

    Errors: InputError when the disk is full (what was written stays), and for files there that are truncated or altered.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder, self.manifest = folder, manifest
        folder.mkdir(parents=True, exist_ok=True)
        for left_behind in [*folder.glob(".*.tmp"), *folder.glob(UNNAMED)]:
            left_behind.unlink()
        verify(folder, manifest, may_be_missing=True)
        self._stamps, self._stamped = read_stamps(folder), time.monotonic()
        self.manifest.complete, self.manifest.statistics_sha256 = False, None
        self.manifest.write(folder)

    def missing(self) -> list[int]:
        """Numbers of the shards that are still to be harvested: those that were never written, and those that somebody deleted."""
        written, first = self.manifest.shards, self.manifest.share.first
        if any(shard.first_sequence != first + i * self.manifest.shard_sequences for i, shard in enumerate(written)):
            raise InputError(f"{self.folder} was merged from shards of several sizes, which cannot be harvested one by one: delete it")
        return [i for i in range(self.manifest.shards_expected()) if i >= len(written) or not (self.folder / written[i].name).exists()]

    def set_median_norms(self, medians: dict[str, float]) -> None:
        self.manifest.median_norms = medians
        self.manifest.write(self.folder)

    def write_shard(self, index: int, buffer: "ShardBuffer") -> None:
        name = shard_name(index)
        path = self.folder / name
        with replacing(path) as temporary:
            save_file(buffer.tensors(), temporary)
        shard = Shard(name, path.stat().st_size, checksum(path), buffer.first_sequence, buffer.sequences, buffer.counts)
        self.manifest.shards[index : index + 1] = [shard]
        self.manifest.write(self.folder)
        self._stamps[name] = stamp(path, shard.sha256)
        if time.monotonic() > self._stamped + SECONDS_BETWEEN_STAMPS:
            self._write_stamps()

    def finish(self) -> None:
        """Adds up the statistics and says that the store is complete."""
        manifest = self.manifest
        assert manifest.median_norms is not None
        moments = {hook: Moments(d) for hook, d in manifest.widths.items()}
        for shard in manifest.shards:
            with safe_open(self.folder / shard.name, framework="pt") as file:
                for hook, total in moments.items():
                    total.merge_(Moments.from_tensors({key: file.get_tensor(key) for key in moment_keys(hook)}, hook))
        tensors = {}
        for hook, total in moments.items():
            tensors |= statistics_tensors(hook, total, manifest.median_norms[hook])
        with replacing(self.folder / STATISTICS) as temporary:
            save_file(tensors, temporary)
        manifest.statistics_sha256 = checksum(self.folder / STATISTICS)
        self._stamps[STATISTICS] = stamp(self.folder / STATISTICS, manifest.statistics_sha256)
        self._write_stamps()
        manifest.complete = True
        manifest.write(self.folder)

    def _write_stamps(self) -> None:
        with contextlib.suppress(OSError):
            write_json(self.folder / STAMPS, self._stamps)
        self._stamped = time.monotonic()


@contextlib.contextmanager
def behind() -> Iterator[Callable[..., None]]:
    """Yields `do(call, *arguments)`: the call is made on a thread of its own, beside what the caller goes on to do, one at a time and in order.

    `do` waits until the call before has ended, and the end of the block for the last one. Errors: those of a call, there.
    """
    with ThreadPoolExecutor(1, "behind") as pool:
        under_way: list[Future] = []

        def do(call: Callable[..., object], *arguments: object) -> None:
            while under_way:
                under_way.pop().result()
            under_way.append(pool.submit(call, *arguments))

        yield do
        for last in under_way:
            last.result()


class ShardBuffer:
    """The rows of one shard, in memory, with their counts and sums."""

    def __init__(self, manifest: Manifest, first_sequence: int, sequences: int):
        assert manifest.median_norms is not None
        self.manifest, self.medians = manifest, manifest.median_norms
        self.first_sequence, self.sequences = first_sequence, 0
        self.counts = Counts(large_norms=dict.fromkeys(manifest.widths, 0))
        self._moments = {hook: Moments(d) for hook, d in manifest.widths.items()}
        context = manifest.context_length
        capacity = sequences * context
        dtype = DTYPES[manifest.dtype]
        scale = torch.empty(capacity) if dtype == torch.int8 else None
        self._rows = {
            hook: Encoded(torch.empty(capacity, d, dtype=dtype), None if scale is None else scale.clone())
            for hook, d in manifest.widths.items()
        }
        self._token, self._position = (torch.empty(capacity, dtype=torch.int32) for _ in range(2))
        self._sequence = torch.empty(capacity, dtype=torch.int64)
        self._tokens = torch.empty(sequences, context, dtype=torch.int32)
        self._sequence_rows = torch.empty(sequences, dtype=torch.int32)

    def add_(self, batch: Rows, exclude_norm_above: float | None) -> None:
        """Takes the rows of the next sequences; those with a norm above so many medians, at any hook point, are left out."""
        counts = self.counts
        for hook, norms in batch.norms.items():
            counts.large_norms[hook] += int((norms > LARGE * self.medians[hook]).sum())
        if exclude_norm_above is not None:
            kept = torch.stack([norms <= exclude_norm_above * self.medians[hook] for hook, norms in batch.norms.items()]).all(0)
            counts.norm_above_limit += int((~kept).sum())
            batch.select_(kept)
        counts.tokens += batch.ids.numel()
        counts.special += batch.special
        counts.nonfinite += batch.nonfinite
        ids, keep = batch.ids.cpu(), batch.keep.cpu()
        start, first = counts.rows, self.sequences
        counts.rows, self.sequences = start + int(keep.sum()), first + len(ids)
        here = slice(start, counts.rows)
        for hook, rows in batch.rows.items():
            self._moments[hook].update_(rows.float(), batch.norms[hook])
            held = self._rows[hook].at(here)
            held.values.copy_(rows.values)
            if held.scale is not None and rows.scale is not None:
                held.scale.copy_(rows.scale)
        sequence, position = keep.nonzero(as_tuple=True)
        self._token[here] = ids[keep].int()
        self._sequence[here] = self.first_sequence + first + sequence
        self._position[here] = position.int()
        self._tokens[first : self.sequences] = ids.int()
        self._sequence_rows[first : self.sequences] = keep.sum(1).int()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The content of the shard's file."""
        rows = {hook: rows.at(slice(self.counts.rows)) for hook, rows in self._rows.items()}
        tensors = {hook: of_hook.values for hook, of_hook in rows.items()}
        tensors |= {names.scale_key(hook): of_hook.scale for hook, of_hook in rows.items() if of_hook.scale is not None}
        for hook, moments in self._moments.items():
            tensors |= moments.tensors(hook)
        of_rows = {names.TOKEN: self._token, names.SEQUENCE: self._sequence, names.POSITION: self._position}
        of_sequences = {names.TOKENS: self._tokens, names.SEQUENCE_ROWS: self._sequence_rows}
        tensors |= {name: values[: self.counts.rows] for name, values in of_rows.items()}
        tensors |= {name: values[: self.sequences] for name, values in of_sequences.items()}
        tensors[names.SEQUENCE_IDS] = torch.arange(self.first_sequence, self.first_sequence + self.sequences)
        return tensors
