"""Which checkpoint of a run is gone on from."""

import logging
import zipfile
from pathlib import Path
from typing import NamedTuple

from sae_lightning.errors import InputError

log = logging.getLogger(__name__)
CANDIDATES = ("last.ckpt", "previous.ckpt")
"""What a run leaves in its folder `checkpoints` to go on from. (best.ckpt is older than both.)"""


class Point(NamedTuple):
    """A checkpoint and the optimizer steps that it has behind it."""

    path: Path
    step: int


def newest(folder: Path) -> Point | None:
    """The readable checkpoint of a run with the most steps; None for a run that was stopped before its first one.

    Says which ones cannot be read. Errors: InputError where there are some, and none can be read.
    """
    paths = _candidates(folder)
    unreadable: dict[Path, str] = {}
    found: list[Point] = []
    for path in paths:
        try:
            found.append(Point(path, step_of(path)))
        except InputError as error:
            unreadable[path] = str(error)
    for point in sorted(found, key=lambda point: point.step, reverse=True):
        if damage := damage_of(point.path):
            unreadable[point.path] = f"{point.path} cannot be read ({damage})"
            continue
        for problem in unreadable.values():
            log.warning("%s: going on from %s, step %d", problem, point.path.name, point.step)
        return point
    if paths:
        raise _none_left(folder, [unreadable[path] for path in paths])
    return None


def refuse_damaged(folder: Path) -> None:
    """Errors: InputError for a run all of whose checkpoints are damaged; seen without torch, before anything is written."""
    damages = {}
    for path in _candidates(folder):
        damages[path] = damage_of(path)
        if damages[path] is None:
            return
    if damages:
        raise _none_left(folder, [f"{path} cannot be read ({damage})" for path, damage in damages.items()])


def _candidates(folder: Path) -> list[Path]:
    return [path for name in CANDIDATES if (path := folder / "checkpoints" / name).is_file()]


def _none_left(folder: Path, unreadable: list[str]) -> InputError:
    return InputError(
        f"{'; '.join(unreadable)}: no checkpoint is left to go on from; delete {folder / 'checkpoints'} to begin again at step 0"
    )


def step_of(path: Path) -> int:
    """The number of optimizer steps in a checkpoint, without reading its tensors. Errors: InputError where it cannot be read."""
    import torch

    try:
        if not zipfile.is_zipfile(path):
            raise RuntimeError("it is cut short, or something else")
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception as error:  # what torch raises for a damaged file is of many kinds
        raise InputError(f"{path} cannot be read ({str(error).splitlines()[0][:200]})") from error


def damage_of(path: Path) -> str | None:
    """What is wrong with a file's bytes, by the checksums in it: torch itself does not look at them."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        return str(error)
    return None if name is None else f"{name} is not what was written"
