"""How a checkpoint gets to the disk and back."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.types import _PATH

from sae_lightning.errors import InputError
from sae_lightning.files import replacing


class AtomicCheckpointIO(CheckpointIO):
    """A checkpoint appears whole or not at all, and nothing in it is executed when it is read.

    It is written beside its target under a temporary name, fsynced, renamed: what TMPDIR is does not matter. What was there before
    stays until then, and longer where `storage_options` is a path in the same folder: it is renamed to that.
    Errors: InputError when the disk is full; when a checkpoint is missing, cut short, or holds more than tensors and plain values.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Path | None = None) -> None:
        with replacing(path, previous=storage_options) as temporary, open(temporary, "wb") as file:
            _save(checkpoint, file)

    def load_checkpoint(self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Tensors land on the CPU unless `map_location` says otherwise; `weights_only` is true whatever is asked."""
        if not Path(path).is_file():
            raise InputError(f"there is no checkpoint at {path}: give a run that got as far as its first checkpoint")
        try:
            if not zipfile.is_zipfile(path):
                raise RuntimeError("it is cut short, or something else")
            return torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except (RuntimeError, OSError, pickle.UnpicklingError) as error:
            reason = str(error).split("\n")[0].strip()[:200]
            raise InputError(
                f"{path} cannot be read as a checkpoint ({reason}): delete it, and resume from another one or start again"
            ) from error

    def remove_checkpoint(self, path: _PATH) -> None:
        Path(path).unlink(missing_ok=True)


def _save(checkpoint: dict[str, Any], file: Any) -> None:
    """torch.save, with the system's error where there was one: closing its archive raises another. Given a path, it loses it."""
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        raise cause or error from None
