"""Whole shards in a folder of this machine, bounded in bytes, which any number of processes share."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from sae_lightning.errors import InputError
from sae_lightning.files import is_disk_full

POLL = 0.05
TOUCH = 1.0
"""Seconds between two marks that a shard is in use."""


class ShardCache:
    """Files of known size, of which the least recently used go when there is no room. They appear whole or not at all.

    A fetch reserves its room: its temporary file has the full size from the start. Each is fetched by one process at a time (a lock),
    and what a process that was killed left is removed by the next that needs room. Files and temporary files together never have more than
    `limit` bytes. What was opened stays readable when it goes.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit
        folder.mkdir(parents=True, exist_ok=True)
        self._touched: dict[str, float] = {}

    def opened(self, name: str, size: int) -> int | None:
        """A descriptor, to be closed; None where the file is not there, or has lost its size."""
        try:
            descriptor = os.open(self.folder / name, os.O_RDONLY)
        except FileNotFoundError:
            return None
        if os.fstat(descriptor).st_size != size:
            os.close(descriptor)
            (self.folder / name).unlink(missing_ok=True)
            return None
        if (now := time.monotonic()) - self._touched.get(name, -TOUCH) >= TOUCH:
            self._touched[name] = now
            os.utime(descriptor)
        return descriptor

    def fetch(self, name: str, size: int, write: Callable[[Path], None], wanted: Sequence[str], is_needed: bool) -> None:
        """Has `write` fill a file, unless it is there or another process fetches it.

        `wanted`: files that are needed soon, in this order. Others go first; one that is needed at once takes the room of the last of them,
        and any other one is not fetched where they have no room to spare. Errors: those of `write`, and InputError for a full disk.
        """
        with FileLock(self.folder / f".{name}.lock"):
            if (self.folder / name).exists():
                return
            temporary = self.folder / f".{name}.tmp"
            try:
                while not self._reserve(temporary, size, wanted, is_needed):
                    if not is_needed:
                        return
                    time.sleep(POLL)
                write(temporary)
                os.replace(temporary, self.folder / name)
            except BaseException as error:
                temporary.unlink(missing_ok=True)
                if is_disk_full(error):
                    raise InputError(f"the disk of {self.folder} is full: free some space, or set paths.stores to another disk") from error
                raise

    def _reserve(self, temporary: Path, size: int, wanted: Sequence[str], is_needed: bool) -> bool:
        """Makes room and takes it; False, with nothing removed, where there is none."""
        with FileLock(self.folder / ".lock"):
            fetched, there = 0, []
            for path in self.folder.glob(".shard-*.tmp"):
                if path == temporary or not self._is_fetched(path):
                    path.unlink(missing_ok=True)
                else:
                    fetched += _status(path)[1]
            for path in self.folder.glob("shard-*"):
                used, bytes_ = _status(path)
                rank = wanted.index(path.name) if path.name in wanted else len(wanted)
                there.append((-rank, used, bytes_, path))
            there.sort()
            room = self.limit - fetched - sum(bytes_ for *_, bytes_, _ in there)
            gone = []
            for rank, _, bytes_, path in there:
                if room >= size or (-rank < len(wanted) and not is_needed):
                    break
                gone.append(path)
                room += bytes_
            if room < size:
                return False
            for path in gone:
                path.unlink(missing_ok=True)
            with open(temporary, "wb") as file:
                file.truncate(size)
            return True

    def _is_fetched(self, temporary: Path) -> bool:
        """Whether somebody who lives holds the lock of a temporary file."""
        try:
            with FileLock(self.folder / f"{temporary.name.removesuffix('.tmp')}.lock", timeout=0):
                return False
        except Timeout:
            return True


def _status(path: Path) -> tuple[float, int]:
    """When a file was last in use, and its bytes; a file that just became another has none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0.0, 0
    return status.st_mtime, status.st_size
