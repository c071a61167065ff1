"""How fast shuffled rows come out of a store, and how well they are mixed.

    python -m benchmarks.stream [--rows 1200000] [--dtype bfloat16] [--folder FOLDER] [--steps 20] [--rounds 3]
    python -m benchmarks.stream --peers        # other libraries' readers beside them: needs `make peers`

Readers take turns on one store of d 768 (made in FOLDER, or in a temporary one): ours out of mapped files (numba), ours by way of a pool
(what stores that cannot be mapped, and machines without numba, are read with), one careful thread that reads random blocks with pread into a
pool that is used again, permutes and widens them, and a sequential read. Warm: files are in memory. Cold: they have been dropped
from it, and the sequential read goes past it (O_DIRECT). Then batches beside the SAE step of work A: how long it waits for them.
Mixing is counted on row numbers: rows that follow each other in a batch should be as far apart in the store as in a perfect
permutation of the pool, and as few rows of a batch of the same sequence. Printed are ratios side by side, and no judgement.
"""

import argparse
import gc
import json
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.peers.readers import OTHERS, Other, write_others
from benchmarks.steps.ours import WORKS, make
from sae_lightning.data.batch import Batch
from sae_lightning.data.encoded import DTYPES, encode
from sae_lightning.data.forward import Rows
from sae_lightning.data.gather import CHUNK
from sae_lightning.data.manifest import MANIFEST, Manifest, read_manifest
from sae_lightning.data.order import LANES, Order, numbers
from sae_lightning.data.rows import prefetched
from sae_lightning.data.shuffle import BLOCK, ShuffledRows, split
from sae_lightning.data.store import Store
from sae_lightning.data.writer import ShardBuffer, StoreWriter

HOOK, CONTEXT, SHARD_SEQUENCES = "rows", 128, 256
D, BATCH, POOL = 768, 4096, 131_072
DIRECT_BYTES = 8 << 20


# -- a store ------------------------------------------------------------------------------------------------------------------------


def made(folder: Path, rows: int, d: int, dtype: str) -> Store:
    """Normal numbers in sequences of 128 rows. A whole store that is there is used again."""
    manifest = Manifest({}, {HOOK: d}, dtype, CONTEXT, [], -(-rows // CONTEXT), SHARD_SEQUENCES, SHARD_SEQUENCES)
    if not (folder / MANIFEST).exists() or not read_manifest(folder).complete:
        writer, g = StoreWriter(folder, manifest), torch.Generator().manual_seed(0)
        writer.set_median_norms({HOOK: d**0.5})
        for shard, first in enumerate(range(0, manifest.sequences, SHARD_SEQUENCES)):
            n = min(SHARD_SEQUENCES, manifest.sequences - first)
            ids, values = torch.zeros(n, CONTEXT, dtype=torch.int64), torch.randn(n * CONTEXT, d, generator=g)
            buffer = ShardBuffer(manifest, first, n)
            buffer.add_(Rows(ids, ids == 0, {HOOK: encode(values, dtype)}, {HOOK: values.double().norm(dim=1)}, 0, 0), None)
            writer.write_shard(shard, buffer)
        writer.finish()
    return Store(folder)


# -- readers: each yields how many rows it has delivered -------------------------------------------------------------------------------


class Unmapped(Store):
    """A store as those are that cannot be mapped."""

    def mapped(self, hook: str) -> None:  # type: ignore[override]
        return None


def ours(kind: type[Store], folder: Path) -> Iterator[int]:
    """A pass, in batches."""
    store = kind(folder)
    rows = ShuffledRows(store, [HOOK], split(store, None), POOL, seed=0)
    for place in range(0, rows.rows - BATCH + 1, BATCH):
        yield len(rows.read(place, place + BATCH))


def careful(folder: Path) -> Iterator[int]:
    """pread of random blocks into a pool, permuted and widened from there; no buffer is made anew. Rows are taken for float16."""
    files, rows = _files(folder)
    opened, size, per_pool = [(os.open(file, os.O_RDONLY), _begins(file)) for file in files], BLOCK * D * 2, POOL // BLOCK
    counts = rows // BLOCK
    shard, block = np.repeat(np.arange(len(files)), counts), numbers(np.zeros_like(counts), counts)
    pool, half, out = (torch.empty(n, D, dtype=t) for n, t in ((POOL, torch.float16), (CHUNK, torch.float16), (BATCH, torch.float32)))
    memory, g = pool.numpy(), np.random.default_rng(0)
    order = g.permutation(len(shard))
    for window in np.split(order, range(per_pool, len(order), per_pool)):
        for i, j in enumerate(window):
            fd, begin = opened[shard[j]]
            os.preadv(fd, [memory[i * BLOCK : (i + 1) * BLOCK].data], begin + int(block[j]) * size)
        permutation = torch.from_numpy(g.permutation(len(window) * BLOCK))
        for at in range(0, len(permutation) - BATCH + 1, BATCH):
            for here, to in zip(permutation[at : at + BATCH].split(CHUNK), out.split(CHUNK), strict=True):
                to.copy_(torch.index_select(pool, 0, here, out=half[: len(here)]))
            yield BATCH
    for fd, _ in opened:
        os.close(fd)


def sequential(folder: Path, direct: bool) -> Iterator[int]:
    """All files from end to end into one buffer; `direct`: past the page cache."""
    files, rows = _files(folder)
    buffer, size = mmap.mmap(-1, DIRECT_BYTES), sum(file.stat().st_size for file in files) / rows.sum()
    for file in files:
        fd, got = os.open(file, os.O_RDONLY | (os.O_DIRECT if direct else 0)), DIRECT_BYTES
        while got == DIRECT_BYTES:
            got = os.readv(fd, [buffer])
            yield round(got / size)
        os.close(fd)


def _files(folder: Path) -> tuple[list[Path], np.ndarray]:
    """The shards, and how many rows each holds."""
    shards = read_manifest(folder).shards
    return [folder / shard.name for shard in shards], np.array([shard.counts.rows for shard in shards])


def _begins(file: Path) -> int:
    """Where in a file the rows begin."""
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        return 8 + length + json.loads(opened.read(length))[HOOK]["data_offsets"][0]


def forget(folder: Path) -> None:
    """Drops the shards from the page cache. Nothing may have them mapped."""
    gc.collect()
    for file in _files(folder)[0]:
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def timed(reader: Iterator[int]) -> float:
    """Rows per second."""
    began, total = time.perf_counter(), sum(reader)
    return total / (time.perf_counter() - began)


def rates(readers: dict[str, Callable[[], float]], rounds: int, before: Callable[[], object]) -> dict[str, float]:
    """Rows per second of each reader: the best of several rounds in which they take turns, the first of which does not count."""
    best = dict.fromkeys(readers, 0.0)
    for turn in range(rounds + 1):
        for name, reader in readers.items():
            before()
            rate = reader()
            best[name] = max(best[name], rate if turn else 0.0)
    return best


def print_rates(title: str, found: dict[str, float], beside: str) -> None:
    print(title)
    for name, rate in found.items():
        print(f"  {name:<34} {rate / 1e6:6.2f} M rows/s   {rate / found[beside]:5.2f} × {beside}")


# -- beside training ----------------------------------------------------------------------------------------------------------------------


def waits(folder: Path, steps: int) -> tuple[float, float]:
    """Milliseconds of a step of topk at work A, and of what it waits for its batch: medians."""
    work = WORKS["A"]
    store = made(folder, 40 * work.batch, work.d, "bfloat16")
    rows = ShuffledRows(store, [HOOK], split(store, None), POOL, seed=0)
    scale = work.d**0.5
    step = make("topk", work, rows.read(0, work.batch) / scale, settled=False)
    batches = prefetched(Batch(x, x) for x in (rows.read(i * work.batch, (i + 1) * work.batch) for i in range(steps + 3)))
    times: list[tuple[float, float]] = []
    for _ in range(steps + 3):
        began = time.perf_counter()
        x = next(batches).x
        waited = time.perf_counter() - began
        step(x / scale)
        times.append((1e3 * (time.perf_counter() - began), 1e3 * waited))
    return statistics.median(all_ for all_, _ in times[3:]), statistics.median(waited for _, waited in times[3:])


# -- mixing -------------------------------------------------------------------------------------------------------------------------------


class Mixing(NamedTuple):
    """Beside a perfect permutation of pools of random blocks: how far rows that follow each other in a batch lie apart in the store
    (ours over perfect), and how many pairs of rows of a batch are of one sequence (perfect over ours). 1 is perfect, above is better."""

    distance: float
    pairs: float


def mixing(rows: int, pool: int, batch: int, sequence: int, passes: int = 2) -> Mixing:
    """Of a store of so many rows, in sequences of so many."""
    order, g = order_of(rows, pool), np.random.default_rng(0)
    starts = np.arange(0, rows, BLOCK)
    lengths = np.minimum(BLOCK, rows - starts)
    ours_, perfect = np.zeros(2), np.zeros(2)
    for number in range(passes):
        ours_ += _near(_pass(order, number), batch, sequence)
        blocks = g.permutation(len(starts))
        pools = np.split(blocks, range(pool // BLOCK, len(blocks), pool // BLOCK))
        perfect += _near(np.concatenate([g.permutation(numbers(starts[some], lengths[some])) for some in pools]), batch, sequence)
    return Mixing(ours_[0] / perfect[0], perfect[1] / ours_[1])


def order_of(rows: int, pool: int) -> Order:
    """Ours, of so many rows."""
    starts = np.arange(0, rows, BLOCK)
    return Order(lambda _: (starts, np.minimum(BLOCK, rows - starts)), np.array([rows]), 0, pool)


def _pass(order: Order, number: int) -> np.ndarray:
    """The rows of a pass in their order."""
    segment = order.segment(number * order.rows)
    found = np.empty(segment.rows, np.int64)
    for lane in range(LANES):
        row = 0
        while row < segment.lane_rows[lane]:
            window = segment.window(lane, row)
            rows = numbers(*segment.stretches(window))[segment.permutation(window)]
            found[lane + LANES * np.arange(window.begin, window.end)] = rows
            row = window.end
    return found


def _near(rows: np.ndarray, batch: int, sequence: int) -> tuple[float, float]:
    """Mean distance of rows that follow each other in a batch; pairs of rows of a batch that are of the same sequence."""
    batches = rows[: len(rows) // batch * batch].reshape(-1, batch)
    counts = [np.unique(each // sequence, return_counts=True)[1] for each in batches]
    return float(np.abs(np.diff(batches)).mean()), float(sum((n * (n - 1) // 2).sum() for n in counts))


def compare_others(folder: Path, rows: int) -> None:
    """Other libraries' readers on as many rows, each of which says which one it is; the careful thread beside them."""
    others = [Other(folder / "others", *which) for which in OTHERS]
    write_others(folder / "others", rows, D)
    careful_ = {"careful thread (float16)": lambda: timed(careful(folder / "float16"))}
    found = rates({str(other): other.read for other in others} | careful_, 1, lambda: None)
    print_rates(f"other libraries, warm, {rows} rows as float16", found, "careful thread (float16)")
    everything = np.random.default_rng(0).permutation(rows)
    perfect = _near(everything, BATCH, CONTEXT)
    print("  mixing beside a permutation of all rows")
    for name, order in [*((str(other), other.order()) for other in others), ("ours", _pass(order_of(rows, POOL), 0))]:
        distance, pairs = _near(order, BATCH, CONTEXT)
        share = len(order) // BATCH / (rows // BATCH)
        print(f"  {name:<34} neighbours {distance / perfect[0]:.3f}, pairs of a sequence {share * perfect[1] / pairs:.3f}")


def main(folder: Path, rows: int, dtype: str, steps: int, rounds: int, peer_rows: int) -> None:
    made(folder / dtype, rows, D, dtype)
    made(folder / "float16", rows, D, "float16")
    readers = {
        "ours, mapped": lambda: timed(ours(Store, folder / dtype)),
        "ours, through a pool": lambda: timed(ours(Unmapped, folder / dtype)),
        "careful thread (float16)": lambda: timed(careful(folder / "float16")),
    }
    warm = rates(readers | {"sequential": lambda: timed(sequential(folder / dtype, False))}, rounds, lambda: None)
    print_rates(f"warm, {rows} rows of d {D} as {dtype}, batches of {BATCH}, pool {POOL}", warm, "careful thread (float16)")
    if peer_rows:
        compare_others(folder, peer_rows)
    cold = rates(
        readers | {"sequential, direct": lambda: timed(sequential(folder / dtype, True))},
        rounds,
        lambda: (forget(folder / dtype), forget(folder / "float16")),
    )
    print_rates("cold", cold, "sequential, direct")
    step, wait = waits(folder / "work_a", steps)
    print(f"a step of topk at work A: {step:.1f} ms, of which {wait:.2f} ms ({100 * wait / step:.1f} %) waiting for its batch")
    mixed = mixing(4096 * BLOCK, POOL // 2, BATCH, CONTEXT)
    print(f"mixing beside a perfect permutation of the pool: neighbours {mixed.distance:.3f}, pairs of a sequence {mixed.pairs:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_200_000)
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--folder", type=Path, help="stores are kept there; otherwise in a temporary folder")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", action="store_true", help="other libraries' readers beside them: needs `make peers`")
    parser.add_argument("--peer-rows", type=int, default=262_144, help="that they read")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        peer_rows = given.peer_rows if given.peers else 0
        main(given.folder or Path(temporary), given.rows, given.dtype, given.steps, given.rounds, peer_rows)
