"""One process at a time on the folder of a run.

The lock is the system's, on .hydra/config.yaml, which is never written again: it leaves no file, and goes with the process that holds
it, however that ends.
"""

import fcntl
from pathlib import Path
from typing import IO

from sae_lightning.errors import InputError

_held: dict[Path, IO[bytes]] = {}


def hold(folder: Path) -> None:
    """Takes the lock of a run, until `release` or the end of the process; again is nothing. A folder without a record has no lock.

    Errors: InputError where another process holds it.
    """
    folder = folder.resolve()
    if folder in _held or not _file(folder).is_file():
        return
    file = open(_file(folder), "rb+")  # noqa: SIM115 (it stays open)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(f"{folder} is in use by another process: wait until it ends") from None
    _held[folder] = file


def release(folder: Path) -> None:
    """Gives the lock back, where this process holds it."""
    file = _held.pop(folder.resolve(), None)
    if file is not None:
        file.close()


def is_held(folder: Path) -> bool:
    """Whether another process is at work in a run's folder."""
    if folder.resolve() in _held:
        return False
    try:
        with open(_file(folder), "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _file(folder: Path) -> Path:
    return folder / ".hydra" / "config.yaml"
