"""The statistics of a cache that came without: one pass over its rows, kept for the next start."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_lightning.data.progress import Progress
from sae_lightning.data.statistics import Moments, Statistics, statistics_from_tensors, statistics_tensors
from sae_lightning.errors import InputError
from sae_lightning.files import replacing

if TYPE_CHECKING:
    from sae_lightning.data.foreign.cache import ForeignCache

ROWS_FOR_MEDIAN = 8192
ENTRIES_AT_ONCE = 1 << 18
"""So few that their float64 copy stays in the cache: 1.3 to 2 times as fast as 2²⁰, 4 times as 2²²."""
ROWS_REPORTED = 1 << 16

log = logging.getLogger(__name__)


def measured(cache: "ForeignCache", hook: str) -> Statistics:
    """Of all rows at a hook point, as kept below `cache.stores`, or from a pass over the rows. Of several processes one makes it.

    Errors: InputError for rows that are NaN or infinite: the first one is named.
    """
    kept = cache.stores / f"statistics-{cache.path.resolve().name}-{fingerprint(cache.path, cache.files)}" / "statistics.safetensors"
    with _alone(kept.parent):
        tensors = _read(kept)
        if not any(key.startswith(f"{hook}.") for key in tensors):
            moments, median = _pass(cache, hook)
            tensors |= statistics_tensors(hook, moments, median)
            with contextlib.suppress(OSError, InputError), replacing(kept) as temporary:  # no right to write there, no space
                save_file(tensors, temporary, metadata={"of": str(cache.path)})
        return statistics_from_tensors(hook, tensors)


def fingerprint(path: Path, files: list[Path]) -> str:
    """Changes when a file is replaced, added, removed or touched: a hash of the folder, names, sizes and times."""
    status = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([str(path.resolve()), status]).encode()).hexdigest()[:10]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, where it can be written into."""
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("waiting for another process that reads the rows for their statistics (%s)", folder)
        lock.acquire(poll_interval=0.5)
    except OSError as error:
        log.warning("cannot write into %s (%s): statistics are computed at each start; set paths.stores", folder, error.strerror)
    try:
        yield
    finally:
        lock.release()


def _read(kept: Path) -> dict[str, Tensor]:
    try:
        return load_file(kept)
    except (OSError, SafetensorError):
        return {}


def _pass(cache: "ForeignCache", hook: str) -> tuple[Moments, float]:
    """Sums over all rows, and the median norm of the first of them."""
    d = cache.width(hook)
    moments, first_norms, seen = Moments(d), [], 0
    log.info("reading %d rows at %s of %s for their statistics, once", cache.rows, hook, cache.path)
    with Progress("statistics", cache.rows) as progress:
        for shard in cache.mapped(hook):
            for piece in shard.values.split(ROWS_REPORTED):
                for stored in piece.split(max(1, ENTRIES_AT_ONCE // d)):
                    rows = stored.float().double()  # from float16 in one go: slower
                    norms = torch.linalg.vector_norm(rows, dim=1)
                    if not bool(norms.isfinite().all()):
                        raise InputError(_nonfinite(cache, hook, seen + int((~norms.isfinite()).nonzero()[0, 0])))
                    moments.update_(rows, norms)
                    if seen < ROWS_FOR_MEDIAN:
                        first_norms.append(norms)
                    seen += len(rows)
                progress.advance(len(piece), len(piece))
    return moments, float(torch.cat(first_norms)[:ROWS_FOR_MEDIAN].median())


def _nonfinite(cache: "ForeignCache", hook: str, row: int) -> str:
    shard = cache.shard_of(row)
    part = cache.parts[shard]
    within = part.first + row - int(cache.shard_starts[shard])
    where = f"row {within} of {part.file}"
    if part.context is not None:
        where += f" (position {within % part.context} of its sequence {within // part.context})"
    return f"{where} has NaN or infinite entries at hook point '{hook}': leave such rows out when the cache is made, or harvest anew"
