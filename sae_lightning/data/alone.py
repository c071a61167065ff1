"""One process at a time that writes a store."""

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from sae_lightning.errors import InputError
from sae_lightning.files import write_json

log = logging.getLogger(__name__)

OWNER = ".harvesting.json"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the lock of a store; says once for whom it waits. The lock of a process that died is free.

    Errors: InputError for a folder that cannot be written into.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("waiting for %s to harvest %s", _owner(folder), folder)
        lock.acquire(poll_interval=0.5)
    except OSError as error:
        raise InputError(f"cannot write into {folder} ({error.strerror}): set paths.stores to a folder of yours") from error
    try:
        write_json(folder / OWNER, {"host": socket.gethostname(), "pid": os.getpid()})
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def _owner(folder: Path) -> str:
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
