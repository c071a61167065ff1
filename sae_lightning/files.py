"""Files appear whole or not at all: written under a temporary name beside their target, fsynced, renamed."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae_lightning.errors import InputError

UNNAMED = ".tmp??????"
"""What safetensors calls a file while it writes it, beside the name that it was given."""


@contextlib.contextmanager
def replacing(path: str | Path, previous: Path | None = None) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what was written there replaces `path` when the block ends well.

    What `path` was until then becomes `previous` (in the same folder), where one is given: at any moment one of the two is whole. A
    block that fails leaves both as they were. Errors: InputError when the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fchmod(file.fileno(), _mode_of_new_files(path))
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            free = shutil.disk_usage(path.parent).free
            raise InputError(
                f"the disk is full ({free / 1e6:.0f} MB free) while writing {path}: free some space and start again; what was written before is kept"
            ) from error
        raise


def _mode_of_new_files(path: Path) -> int:
    """Who may read what is written beside `path`: some libraries write theirs for their owner alone."""
    probe = path.with_name(f".{path.name}.mode.{os.getpid()}.tmp")
    try:
        with open(probe, "wb") as file:
            return os.fstat(file.fileno()).st_mode & 0o777
    finally:
        probe.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Replaces the file at `path` by `text`, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Replaces the file at `path` by indented JSON, atomically. Errors: ValueError for NaN or infinity."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def remove_leftovers(folder: Path) -> None:
    """Removes what processes that were killed left of files they were writing, below a folder that no other process writes into."""
    for path in folder.rglob(UNNAMED):
        path.unlink(missing_ok=True)
    for path in folder.rglob(".*.tmp"):
        _, pid, _ = path.name.rsplit(".", 2)
        if pid.isdecimal() and int(pid) != os.getpid():
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_disk_full(error: BaseException) -> bool:
    """Also where torch and safetensors turned the system's error into one of their own."""
    return (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or "No space left on device" in str(error)
